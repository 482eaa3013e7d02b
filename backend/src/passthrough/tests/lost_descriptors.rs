//! All processes die, and the next worker goes on with the state and what was held outside.

use std::collections::{HashMap, HashSet};
use std::os::fd::RawFd;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use gangplank_fuse::dir::DirentWriter;
use gangplank_fuse::{FileLock, LkFlags, LkIn};

use super::super::lost_descriptors::Lost;
use super::super::options::Locks;
use super::*;
use crate::handover::channel::{Channel, Message};
use crate::holder::client::Holder;
use crate::passthrough::forget_lost;
use crate::session::LockWait;
use crate::sys::process;

const ROOT: NodeId = NodeId::ROOT;

/// Plays the supervisor. Returns what it holds when the guest's end is closed.
fn hold(channel: Channel) -> JoinHandle<HashMap<RawFd, OwnedFd>> {
    thread::spawn(move || {
        let mut held = HashMap::new();
        while let Some(arrived) = channel.receive(None).expect("a message") {
            let signed = |number: u32| RawFd::try_from(number).expect("a number");
            let id = match arrived.message {
                Message::Hold(id, numbers) => {
                    let numbers = numbers.into_iter().map(signed);
                    held.extend(numbers.zip(arrived.descriptors));
                    id
                }
                Message::Unhold(id, numbers) => {
                    for number in numbers {
                        held.remove(&signed(number));
                    }
                    id
                }
                other => panic!("{other:?}"),
            };
            // An answer that a dead worker has not read is none.
            for answer in [Message::Held(id - 1, false), Message::Held(id, true)] {
                channel.send(&answer, &[]).expect("answered");
            }
        }
        held
    })
}

/// A guest with a holder.
struct Kept {
    guest: Guest,
    holder: JoinHandle<HashMap<RawFd, OwnedFd>>,
}

fn in_arena(arena: Arc<Arena>, directory: Arc<TempDir>, options: Options, able: Abilities) -> Kept {
    let (ours, theirs) = Channel::pair().expect("a channel");
    arena.set_holder(Arc::new(Holder::new(ours)));
    let share = share_in(arena, directory.path(), options, able);
    Kept {
        guest: Guest {
            fs: PassthroughFs::new(share),
            directory,
        },
        holder: hold(theirs),
    }
}

fn kept(options: Options, can_open_by_handle: bool) -> Kept {
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    let able = Abilities {
        can_open_by_handle,
        ..abilities()
    };
    let kept = in_arena(arena(), directory, options, able);
    kept.guest.fs.init(InitFlags::all()).expect("agreed");
    kept
}

fn many_descriptors() -> Options {
    Options {
        fd_budget: 100_000,
        ..Options::default()
    }
}

/// The numbers of all descriptors that the state refers to.
fn numbers(arena: &Arc<Arena>) -> Vec<RawFd> {
    let owners = arena.descriptor_owners();
    let owned = owners.iter().enumerate();
    let owned = owned.filter(|(_, owner)| owner.load(Ordering::Relaxed) != 0);
    owned
        .map(|(number, _)| RawFd::try_from(number).expect("a number"))
        .chain(
            arena
                .mounts()
                .iter()
                .filter_map(|mount| mount.descriptor.get()),
        )
        .collect()
}

/// Closes all descriptors of the guest, and gives the next worker those that were held.
fn after_all_died(kept: Kept) -> (Kept, Lost, (usize, usize)) {
    let Kept { guest, holder } = kept;
    let Guest { fs, directory } = guest;
    let share = Arc::clone(&fs.share);
    let (options, able) = (share.options.clone(), share.abilities);
    let state = share.arena.file().expect("a file");
    let state = state.try_clone_to_owned().expect("a descriptor");
    let channel = share.arena.holder().and_then(|holder| holder.number());
    std::mem::forget(fs);
    drop(process::adopt(channel.expect("a channel")));
    let held = holder.join().expect("no panic");
    let arrived: HashSet<RawFd> = held.keys().copied().collect();
    for number in numbers(&share.arena) {
        // Those that are held stay open by their numbers, which others could take otherwise.
        if !arrived.contains(&number) {
            drop(process::adopt(number));
        }
    }
    std::mem::forget(share);
    let arena = Arena::attach(state).expect("a state");
    let lost = forget_lost(&arena, &arrived);
    let next = in_arena(arena, directory, options, able);
    let reopened = next.guest.fs.reopen_lost();
    (next, lost, reopened)
}

/// Once with file handles, if they are permitted, and once without.
fn in_both_ways(test: impl Fn(bool)) {
    for can_open_by_handle in [false, is_root()] {
        test(can_open_by_handle);
    }
}

#[test]
fn inodes_are_found_again_also_after_renames() {
    in_both_ways(|by_handle| {
        let kept = kept(many_descriptors(), by_handle);
        let guest = &kept.guest;
        let (old, other) = (guest.mkdir(ROOT, c"old"), guest.mkdir(ROOT, c"other"));
        let below = guest.mkdir(old, c"below");
        let mut nodes = Vec::new();
        for number in 0..1000 {
            let name = CString::new(format!("file-{number}")).expect("no NUL");
            let (entry, opened) = guest.create(below, &name, libc::O_RDWR).expect("created");
            let node = NodeId::new(entry.nodeid);
            guest.release(node, Handle::new(opened.fh));
            nodes.push((node, entry.attr.ino));
        }
        let rename = |from, name, to, new_name| {
            let (name, new_name) = (checked(name), checked(new_name));
            let fs = &guest.fs;
            fs.rename(&root_creator(), from, name, to, new_name, 0)
                .expect("renamed");
        };
        rename(below, c"file-7", other, c"moved");
        // Everything below it keeps its node.
        rename(ROOT, c"old", other, c"new");
        rename(other, c"new", ROOT, c"new");
        let memory = guest.fs.state.inodes.memory().used();
        let (kept, lost, reopened) = after_all_died(kept);

        assert_eq!((lost, reopened), (Lost::default(), (0, 0)));
        let guest = kept.guest;
        assert_eq!(guest.fs.held_inodes(), 1003);
        assert_eq!(guest.fs.state.inodes.memory().used(), memory);
        // Not in the order in which directories were opened.
        for (node, ino) in nodes.iter().rev() {
            assert_eq!(guest.fs.getattr(*node, None).expect("found").attr.ino, *ino);
        }
        assert_eq!(guest.find(other, c"moved"), nodes[7].0);
        assert_eq!(guest.find(below, c"file-8"), nodes[8].0);
        assert_eq!(guest.find(ROOT, c"new"), old);
    });
}

#[test]
fn open_files_go_on_also_those_without_a_name() {
    in_both_ways(|by_handle| {
        let kept = kept(many_descriptors(), by_handle);
        let guest = &kept.guest;
        let make = |name: &CStr, flags| {
            let (entry, opened) = guest.create(ROOT, name, flags).expect("created");
            let file = (NodeId::new(entry.nodeid), Handle::new(opened.fh));
            guest.write(file.0, file.1, 0, b"before").expect("written");
            file
        };
        let named = make(c"named", libc::O_RDWR);
        let unlinked = make(c"unlinked", libc::O_RDWR | libc::O_DSYNC);
        let replaced = make(c"replaced", libc::O_RDWR);
        let closed = make(c"closed", libc::O_RDWR);
        guest
            .fs
            .unlink(ROOT, checked(c"unlinked"))
            .expect("removed");
        let (new, old) = (checked(c"named"), checked(c"replaced"));
        let renamed = guest.fs.rename(&root_creator(), ROOT, new, ROOT, old, 0);
        renamed.expect("renamed");
        guest.release(closed.0, closed.1);
        guest.fs.unlink(ROOT, checked(c"closed")).expect("removed");
        let args = CreateIn {
            flags: libc::O_RDWR.cast_unsigned() | LARGE_FILE,
            mode: 0o600,
            ..CreateIn::default()
        };
        let made = guest.fs.tmpfile(&root_creator(), ROOT, &args);
        let nameless = made.map(|(entry, opened)| {
            let file = (NodeId::new(entry.nodeid), Handle::new(opened.fh));
            guest.write(file.0, file.1, 0, b"before").expect("written");
            file
        });
        let nameless = nameless.expect("a file system with O_TMPFILE");
        let (kept, _, reopened) = after_all_died(kept);

        assert_eq!(reopened, (4, 0));
        let guest = kept.guest;
        for (node, handle) in [named, unlinked, replaced, nameless] {
            guest
                .write(node, handle, 6, b" and after")
                .expect("written");
            let mut content = [0; 32];
            let len = guest.read(node, handle, 0, &mut content).expect("read");
            assert_eq!(&content[..len], b"before and after");
        }
        assert!(guest.fs.getattr(closed.0, None).is_err(), "it has no name");
        let content = std::fs::read(guest.path("replaced")).expect("read");
        assert_eq!(content, b"before and after");
        for (node, handle) in [named, unlinked, replaced, nameless] {
            guest.release(node, handle);
            guest.fs.forget(node, 1);
        }
        guest.fs.forget(closed.0, 1);
        assert_eq!(guest.fs.share.held_descriptors(), 0, "nothing is left open");
        assert_eq!(guest.fs.open_files(), 0);
    });
}

#[test]
fn a_listing_goes_on_where_it_stood() {
    in_both_ways(|by_handle| {
        let kept = kept(many_descriptors(), by_handle);
        let guest = &kept.guest;
        let dir = guest.mkdir(ROOT, c"dir");
        for number in 0..100 {
            std::fs::write(guest.path(&format!("dir/a-file-{number}")), b"").expect("written");
        }
        let opened = guest.fs.opendir(dir, &OpenIn::default()).expect("opened");
        let handle = Handle::new(opened.fh);
        let list = |guest: &Guest, offset: u64, room: usize| {
            let args = ReadIn {
                fh: handle.get(),
                offset,
                ..ReadIn::default()
            };
            let mut buffer = vec![0; room];
            let mut writer = DirentWriter::new(&mut buffer);
            guest.fs.readdir(dir, &args, &mut writer).expect("listed");
            let len = writer.written();
            buffer.truncate(len);
            buffer
        };
        let expected = list(guest, 0, 1 << 16);
        let first = list(guest, 0, 1000);
        let last = last_offset(&first);
        let (kept, ..) = after_all_died(kept);

        let rest = list(&kept.guest, last, 1 << 16);
        assert!(!first.is_empty() && !rest.is_empty());
        assert_eq!([first, rest].concat(), expected);
    });
}

/// The offset of the last entry (`struct fuse_dirent`).
fn last_offset(entries: &[u8]) -> u64 {
    let (mut at, mut offset) = (0, 0);
    while at < entries.len() {
        let field = |from: usize, len: usize| &entries[at + from..at + from + len];
        offset = u64::from_ne_bytes(field(8, 8).try_into().expect("8 bytes"));
        let len = u32::from_ne_bytes(field(16, 4).try_into().expect("4 bytes"));
        at += (24 + len as usize).next_multiple_of(8);
    }
    offset
}

#[test]
fn locks_are_held_all_the_time() {
    let options = Options {
        locks: Locks::Host,
        ..many_descriptors()
    };
    let kept = kept(options.clone(), is_root());
    let guest = &kept.guest;
    let (entry, opened) = guest.create(ROOT, c"file", libc::O_RDWR).expect("created");
    let (node, handle) = (NodeId::new(entry.nodeid), Handle::new(opened.fh));
    let lock = |kind: i32, flags: LkFlags| LkIn {
        fh: handle.get(),
        owner: 1,
        lk: FileLock {
            start: 0,
            end: 9,
            r#type: kind.cast_unsigned(),
            pid: 1,
        },
        lk_flags: flags.bits(),
        ..LkIn::default()
    };
    let take = |guest: &Guest, kind, flags| guest.fs.setlk(node, &lock(kind, flags), LockWait::No);
    take(guest, libc::F_WRLCK, LkFlags::empty()).expect("free");
    take(guest, libc::F_WRLCK, LkFlags::FLOCK).expect("free");
    let other = File::options().write(true).open(guest.path("file"));
    let other = other.expect("opened");
    let (kept, lost, _) = after_all_died(kept);

    assert_eq!(lost, Lost::default());
    let guest = kept.guest;
    assert!(matches!(
        other.try_lock(),
        Err(std::fs::TryLockError::WouldBlock)
    ));
    take(&guest, libc::F_UNLCK, LkFlags::FLOCK).expect("its own");
    other.try_lock().expect("free");
    let second = Guest::in_directory(Arc::clone(&guest.directory), options);
    let node_of_second = second.find(ROOT, c"file");
    let handle_of_second = second.open(node_of_second, libc::O_RDWR).expect("opened");
    let ask = LkIn {
        fh: handle_of_second.get(),
        ..lock(libc::F_WRLCK, LkFlags::empty())
    };
    assert!(second.fs.setlk(node_of_second, &ask, LockWait::No).is_err());
    take(&guest, libc::F_UNLCK, LkFlags::empty()).expect("its own");
    second
        .fs
        .setlk(node_of_second, &ask, LockWait::No)
        .expect("free");
    guest.release(node, handle);
    guest.fs.forget(node, 1);
    assert_eq!(guest.fs.share.held_descriptors(), 0);
}

#[test]
fn what_is_not_needed_any_more_is_not_held() {
    let options = Options {
        locks: Locks::Host,
        ..many_descriptors()
    };
    let Kept { guest, holder } = kept(options, false);
    let (entry, opened) = guest.create(ROOT, c"file", libc::O_RDWR).expect("created");
    let (node, handle) = (NodeId::new(entry.nodeid), Handle::new(opened.fh));
    let lock = LkIn {
        fh: handle.get(),
        lk: FileLock {
            r#type: libc::F_WRLCK.cast_unsigned(),
            ..FileLock::default()
        },
        lk_flags: LkFlags::FLOCK.bits(),
        ..LkIn::default()
    };
    guest.fs.setlk(node, &lock, LockWait::No).expect("free");
    let by_range = LkIn {
        lk_flags: 0,
        ..lock
    };
    guest.fs.setlk(node, &by_range, LockWait::No).expect("free");
    guest.fs.unlink(ROOT, checked(c"file")).expect("removed");
    guest.release(node, handle);
    guest.fs.forget(node, 1);
    drop(guest);
    assert!(holder.join().expect("no panic").is_empty());
}
