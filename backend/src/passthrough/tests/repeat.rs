//! Requests that a worker was running when it died, run again by the next one: the reply and the
//! share are those of a run that nothing disturbed, whether the host had carried the operation out
//! or not.

mod player;

use std::os::unix::fs::symlink;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gangplank_fuse::{
    FallocateIn, ForgetIn, LinkIn, MkdirIn, MknodIn, Operation, Rename2In, RenameIn, SetxattrIn,
};
use rustix::time::ClockId;

use self::player::{Answer, Bytes, Player, encode};
use super::*;
use crate::session::Interrupted;
use crate::state::requests::{Current, RingRequests};
use crate::sys::clock;

const ROOT: NodeId = NodeId::ROOT;
/// Two ticks of the kernel's clock, which has at least 100 a second.
const TWO_TICKS: Duration = Duration::from_millis(25);

const DATA: &[u8] = b"one line\n";

/// The clock of `Interrupted::began`, in nanoseconds.
fn coarse_clock() -> i64 {
    clock::now(ClockId::RealtimeCoarse)
}

fn earlier(began: i64, note: u64) -> Interrupted {
    Interrupted {
        began,
        ended: clock::now(ClockId::Realtime),
        note,
    }
}

fn mkdir(name: &CStr) -> Bytes {
    let args = MkdirIn {
        mode: 0o700,
        umask: 0,
    };
    encode(ROOT, Operation::Mkdir { args, name }, &[])
}

fn create(name: &CStr, mode: u32) -> Bytes {
    let args = CreateIn {
        flags: (libc::O_CREAT | libc::O_WRONLY).cast_unsigned() | LARGE_FILE,
        mode: libc::S_IFREG | mode,
        ..CreateIn::default()
    };
    encode(ROOT, Operation::Create { args, name }, &[])
}

fn append(player: &mut Player, name: &CStr, data: &[u8]) -> Bytes {
    let node = player.find(name);
    let flags = libc::O_WRONLY | libc::O_APPEND;
    let fh = player.open(node, flags);
    let size = std::fs::metadata(player.directory.path().join(name.to_str().expect("text")));
    let args = WriteIn {
        fh,
        offset: size.expect("attributes").len(),
        size: u32::try_from(data.len()).expect("short"),
        flags: flags.cast_unsigned(),
        ..WriteIn::default()
    };
    encode(node, Operation::Write(args), data)
}

fn rename(flags: u32) -> Bytes {
    let args = Rename2In {
        newdir: ROOT.get(),
        flags,
        padding: 0,
    };
    let new_name = match flags {
        libc::RENAME_NOREPLACE => c"new",
        _ => c"other",
    };
    let name = c"old";
    encode(
        ROOT,
        Operation::Rename2 {
            args,
            name,
            new_name,
        },
        &[],
    )
}

fn set_xattr(player: &mut Player, flags: i32) -> Bytes {
    let value = b"value";
    let args = SetxattrIn {
        size: 5,
        flags: flags.cast_unsigned(),
        ..SetxattrIn::default()
    };
    let name = c"user.name";
    encode(
        player.find(c"old"),
        Operation::Setxattr { args, name, value },
        &[],
    )
}

/// Prepares an operation and returns its request.
type Prepare = fn(&mut Player) -> Bytes;

/// The operations that change something, or add a handle: by name.
const CASES: [(&str, Prepare); 25] = [
    ("MKDIR", |_| mkdir(c"new")),
    ("MKDIR of a name that is taken", |_| mkdir(c"empty")),
    ("MKNOD", |_| {
        let args = MknodIn {
            mode: libc::S_IFIFO | 0o600,
            ..MknodIn::default()
        };
        let name = c"new";
        encode(ROOT, Operation::Mknod { args, name }, &[])
    }),
    ("SYMLINK", |_| {
        let (name, target) = (c"new", c"target");
        encode(ROOT, Operation::Symlink { name, target }, &[])
    }),
    ("CREATE", |_| create(c"new", 0o644)),
    ("CREATE of a file that nobody may write", |_| {
        create(c"new", 0o400)
    }),
    ("CREATE of a name that is taken", |_| create(c"old", 0o644)),
    ("TMPFILE", |_| {
        let args = CreateIn {
            flags: libc::O_RDWR.cast_unsigned() | LARGE_FILE,
            mode: libc::S_IFREG | 0o600,
            ..CreateIn::default()
        };
        let name = c"/";
        encode(ROOT, Operation::Tmpfile { args, name }, &[])
    }),
    ("OPEN", |player| {
        let node = player.find(c"old");
        let args = OpenIn {
            flags: LARGE_FILE,
            ..OpenIn::default()
        };
        encode(node, Operation::Open(args), &[])
    }),
    ("OPENDIR", |player| {
        let node = player.find(c"empty");
        encode(node, Operation::Opendir(OpenIn::default()), &[])
    }),
    ("LINK", |player| {
        let args = LinkIn {
            oldnodeid: player.find(c"old").get(),
        };
        let name = c"new";
        encode(ROOT, Operation::Link { args, name }, &[])
    }),
    ("UNLINK", |_| {
        let name = c"gone";
        encode(ROOT, Operation::Unlink { name }, &[])
    }),
    ("RMDIR", |_| {
        let name = c"empty";
        encode(ROOT, Operation::Rmdir { name }, &[])
    }),
    ("RENAME", |_| {
        let args = RenameIn { newdir: ROOT.get() };
        let (name, new_name) = (c"old", c"new");
        encode(
            ROOT,
            Operation::Rename {
                args,
                name,
                new_name,
            },
            &[],
        )
    }),
    ("RENAME over another", |_| rename(0)),
    ("RENAME without replacement", |_| {
        rename(libc::RENAME_NOREPLACE)
    }),
    ("RENAME, exchange", |_| rename(libc::RENAME_EXCHANGE)),
    ("RENAME with a whiteout", |_| rename(libc::RENAME_WHITEOUT)),
    ("WRITE", |player| {
        let node = player.find(c"old");
        let args = WriteIn {
            fh: player.open(node, libc::O_WRONLY),
            offset: 1,
            size: 9,
            ..WriteIn::default()
        };
        encode(node, Operation::Write(args), DATA)
    }),
    ("WRITE at the end", |player| append(player, c"old", DATA)),
    ("WRITE at the end, of the same as before", |player| {
        let path = player.directory.path().join("old");
        std::fs::write(path, DATA.repeat(2)).expect("written");
        append(player, c"old", DATA)
    }),
    ("FALLOCATE, collapse", |player| {
        let path = player.directory.path().join("old");
        std::fs::write(path, [1; 1 << 16]).expect("written");
        let node = player.find(c"old");
        let args = FallocateIn {
            fh: player.open(node, libc::O_RDWR),
            length: 1 << 12,
            mode: libc::FALLOC_FL_COLLAPSE_RANGE.cast_unsigned(),
            ..FallocateIn::default()
        };
        encode(node, Operation::Fallocate(args), &[])
    }),
    ("SETXATTR of a new one", |player| {
        set_xattr(player, libc::XATTR_CREATE)
    }),
    ("REMOVEXATTR", |player| {
        let request = set_xattr(player, 0);
        player.serve(&request, None).expect("set");
        let name = c"user.name";
        let node = player.find(c"old");
        encode(node, Operation::Removexattr { name }, &[])
    }),
    ("RELEASE", |player| {
        let node = player.find(c"old");
        let args = ReleaseIn {
            fh: player.open(node, 0),
            ..ReleaseIn::default()
        };
        encode(node, Operation::Release(args), &[])
    }),
];

/// The answer without what differs from run to run: numbers of nodes and handles, times.
fn shape(answer: &Answer) -> Result<usize, i32> {
    answer.as_ref().map(Vec::len).map_err(|errno| *errno)
}

#[test]
fn a_request_that_is_run_again_ends_as_if_nothing_had_happened() {
    if skipped_without_root("a_request_that_is_run_again_ends_as_if_nothing_had_happened") {
        return;
    }
    for (name, prepare) in CASES {
        let mut undisturbed = Player::new();
        let request = prepare(&mut undisturbed);
        let expected = undisturbed.serve(&request, None);
        assert_ne!(
            expected.is_ok(),
            name.ends_with("taken"),
            "{name}: {expected:?}"
        );
        let tree = undisturbed.tree();
        let open = undisturbed.session.file_system().open_files();

        // The host had not heard of it.
        let mut player = Player::new();
        let request = prepare(&mut player);
        // What is there was not made in the tick in which the request begins.
        std::thread::sleep(TWO_TICKS);
        let answer = player.serve(&request, Some(earlier(coarse_clock(), 0)));
        assert_eq!(shape(&answer), shape(&expected), "{name}, not begun");
        assert_eq!(player.tree(), tree, "{name}, not begun");

        // The host had carried it out, and the reply was lost.
        let mut player = Player::new();
        let request = prepare(&mut player);
        std::thread::sleep(TWO_TICKS);
        let began = coarse_clock();
        let arena = arena();
        let ring = RingRequests::new(&arena, 0).expect("a ring");
        let current = Current::enter(&ring, 0);
        let lost = player.serve(&request, None);
        drop(current);
        let slots = arena.request_slots(0).expect("slots");
        let noted = slots[0].auxiliary.load(Ordering::Relaxed);
        assert_eq!(shape(&lost), shape(&expected), "{name}");
        let again = earlier(began, noted);
        let answer = player.serve(&request, Some(again));
        assert_eq!(shape(&answer), shape(&expected), "{name}, carried out");
        assert_eq!(player.tree(), tree, "{name}, carried out");
        assert_eq!(player.session.file_system().open_files(), open, "{name}");
    }
}

#[test]
fn a_forget_counts_once() {
    let mut player = Player::new();
    let node = player.find(c"old");
    player.find(c"old");
    let forget = encode(node, Operation::Forget(ForgetIn { nlookup: 1 }), &[]);
    player.serve(&forget, None).expect("forgotten");
    player
        .serve(&forget, Some(earlier(coarse_clock(), 0)))
        .expect("not again");
    assert_eq!(player.session.file_system().held_inodes(), 1);
}

#[test]
fn what_another_has_made_is_not_taken_for_the_guests_own() {
    let mut player = Player::new();
    let path = player.directory.path().join("new");
    let mkdir = mkdir(c"new");
    std::fs::create_dir(&path).expect("made");
    std::thread::sleep(TWO_TICKS);
    let answer = player.serve(&mkdir, Some(earlier(coarse_clock(), 0)));
    assert_eq!(answer, Err(libc::EEXIST), "made before");
    std::fs::remove_dir(&path).expect("removed");

    let (before, death) = (coarse_clock(), clock::now(ClockId::Realtime));
    std::thread::sleep(TWO_TICKS);
    std::fs::create_dir(&path).expect("made");
    let again = Interrupted {
        began: before,
        ended: death,
        note: 0,
    };
    assert_eq!(
        player.serve(&mkdir, Some(again)),
        Err(libc::EEXIST),
        "made after the death"
    );

    symlink("elsewhere", player.directory.path().join("link")).expect("made");
    let (name, target) = (c"link", c"target");
    let symlink = encode(ROOT, Operation::Symlink { name, target }, &[]);
    let answer = player.serve(&symlink, Some(earlier(before, 0)));
    assert_eq!(answer, Err(libc::EEXIST), "another target");
}

#[test]
fn a_name_that_was_used_again_meanwhile_is_not_removed() {
    let mut player = Player::new();
    let path = player.directory.path().join("gone");
    let name = c"gone";
    let unlink = encode(ROOT, Operation::Unlink { name }, &[]);
    let began = coarse_clock();
    player.serve(&unlink, None).expect("removed");
    std::thread::sleep(TWO_TICKS);
    std::fs::write(&path, "another's").expect("written");
    player
        .serve(&unlink, Some(earlier(began, 0)))
        .expect("done");
    assert!(path.exists());
}

#[test]
fn a_request_that_had_not_begun_is_carried_out() {
    let mut player = Player::new();
    let name = c"gone";
    let unlink = encode(ROOT, Operation::Unlink { name }, &[]);
    player.serve(&unlink, Some(earlier(0, 0))).expect("removed");
    assert!(!player.directory.path().join("gone").exists());
    let mkdir = mkdir(c"empty");
    let answer = player.serve(&mkdir, Some(earlier(0, 0)));
    assert_eq!(answer, Err(libc::EEXIST), "another's");
}

#[test]
fn a_write_at_the_end_that_was_cut_short_is_completed() {
    let mut player = Player::new();
    let request = append(&mut player, c"old", DATA);
    let path = player.directory.path().join("old");
    std::fs::write(&path, [b"old", &DATA[..4]].concat()).expect("written");
    let answer = player.serve(&request, Some(earlier(coarse_clock(), 0)));
    assert_eq!(shape(&answer), Ok(8));
    assert_eq!(std::fs::read(path).expect("read"), [b"old", DATA].concat());
}
