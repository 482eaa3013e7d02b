//! Tests of locks on the host's files.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use gangplank_fuse::{FileLock, LkFlags, LkIn, ReleaseFlags};

use super::*;
use crate::passthrough::options::Locks;
use crate::session::LockWait;
use crate::session::file_system::Migration;
use crate::sys::interrupt::Interruption;

const ROOT: NodeId = NodeId::ROOT;

fn lock(handle: Handle, owner: u64, kind: i32, start: u64, end: u64) -> LkIn {
    LkIn {
        fh: handle.get(),
        owner,
        lk: FileLock {
            start,
            end,
            r#type: kind.cast_unsigned(),
            pid: 1,
        },
        ..LkIn::default()
    }
}

/// Two guests that have the same file open.
fn pair() -> [(Guest, NodeId, Handle); 2] {
    let options = Options {
        locks: Locks::Host,
        ..Options::default()
    };
    let first = Guest::with(options.clone());
    std::fs::write(first.path("file"), b"0123456789").expect("written");
    let second = Guest::in_directory(Arc::clone(&first.directory), options);
    let agreed = second.fs.init(InitFlags::all()).expect("agreed");
    assert!(agreed.contains(InitFlags::POSIX_LOCKS | InitFlags::FLOCK_LOCKS));
    [first, second].map(|guest| {
        let node = guest.find(ROOT, c"file");
        let handle = guest.open(node, libc::O_RDWR).expect("opened");
        (guest, node, handle)
    })
}

#[test]
fn a_range_lock_is_seen_by_another_owner_and_another_guest() {
    let [(first, node, handle), (second, node2, handle2)] = pair();
    let take = |owner, kind, start, end| {
        first
            .fs
            .setlk(node, &lock(handle, owner, kind, start, end), LockWait::No)
    };
    take(1, libc::F_WRLCK, 2, 5).expect("taken");
    take(1, libc::F_WRLCK, 2, 5).expect("one's own is no obstacle");
    assert_eq!(errno(take(2, libc::F_RDLCK, 5, 9)), Some(libc::EAGAIN));
    take(2, libc::F_RDLCK, 6, u64::MAX).expect("taken");
    let test = second
        .fs
        .getlk(node2, &lock(handle2, 1, libc::F_WRLCK, 0, 3))
        .expect("asked");
    assert_eq!(
        (test.start, test.end, test.r#type),
        (2, 5, libc::F_WRLCK.cast_unsigned())
    );
    let test = second
        .fs
        .getlk(node2, &lock(handle2, 1, libc::F_WRLCK, 100, 101))
        .expect("asked");
    assert_eq!((test.start, test.end), (6, i64::MAX.cast_unsigned()));
    let test = second
        .fs
        .getlk(node2, &lock(handle2, 1, libc::F_RDLCK, 100, 101))
        .expect("asked");
    assert_eq!(test.r#type, libc::F_UNLCK.cast_unsigned());
}

#[test]
fn closing_gives_the_owners_locks_back() {
    let [(first, node, handle), (second, node2, handle2)] = pair();
    let take = |owner| {
        first.fs.setlk(
            node,
            &lock(handle, owner, libc::F_WRLCK, 0, 0),
            LockWait::No,
        )
    };
    let theirs = || {
        second
            .fs
            .setlk(node2, &lock(handle2, 9, libc::F_WRLCK, 0, 0), LockWait::No)
    };
    take(1).expect("taken");
    first
        .fs
        .flush(node, handle, 2)
        .expect("another owner closes");
    assert_eq!(errno(theirs()), Some(libc::EAGAIN));
    first.fs.flush(node, handle, 1).expect("closed");
    theirs().expect("free");
    second.fs.flush(node2, handle2, 9).expect("closed");
    take(1).expect("taken");
    first.fs.destroy();
    theirs().expect("a session's end frees all");
}

#[test]
fn a_waiting_lock_is_granted_or_interrupted() {
    let [(first, node, handle), (second, node2, handle2)] = pair();
    let held = lock(handle, 1, libc::F_WRLCK, 0, 9);
    first.fs.setlk(node, &held, LockWait::No).expect("taken");
    let interruption = Interruption::new();
    thread::scope(|scope| {
        let (done, result) = mpsc::channel();
        let (second, interruption) = (&second, &interruption);
        scope.spawn(move || {
            let wanted = lock(handle2, 1, libc::F_RDLCK, 3, 3);
            let outcome = second
                .fs
                .setlk(node2, &wanted, LockWait::UntilFree(interruption));
            done.send(outcome).expect("heard");
        });
        assert!(
            result.recv_timeout(Duration::from_millis(50)).is_err(),
            "it waits"
        );
        interruption.interrupt();
        let outcome = result
            .recv_timeout(Duration::from_secs(10))
            .expect("interrupted");
        assert_eq!(errno(outcome), Some(libc::EINTR));
    });
    let interruption = Interruption::new();
    thread::scope(|scope| {
        let (second, interruption) = (&second, &interruption);
        let waiting = scope.spawn(move || {
            let wanted = lock(handle2, 1, libc::F_RDLCK, 3, 3);
            second
                .fs
                .setlk(node2, &wanted, LockWait::UntilFree(interruption))
        });
        first.fs.flush(node, handle, 1).expect("closed");
        waiting.join().expect("no panic").expect("granted");
    });
}

#[test]
fn a_whole_lock_belongs_to_the_handle() {
    let [(first, node, handle), (second, node2, handle2)] = pair();
    let whole = |handle, kind| LkIn {
        lk_flags: LkFlags::FLOCK.bits(),
        ..lock(handle, 5, kind, 0, 0)
    };
    first
        .fs
        .setlk(node, &whole(handle, libc::F_WRLCK), LockWait::No)
        .expect("taken");
    let theirs = || {
        second
            .fs
            .setlk(node2, &whole(handle2, libc::F_RDLCK), LockWait::No)
    };
    assert_eq!(errno(theirs()), Some(libc::EAGAIN));
    let release = ReleaseIn {
        fh: handle.get(),
        release_flags: ReleaseFlags::FLOCK_UNLOCK.bits(),
        ..ReleaseIn::default()
    };
    first.fs.release(node, &release).expect("closed");
    theirs().expect("free");
}

#[test]
fn locks_are_the_guests_business_by_default() {
    let guest = Guest::new();
    std::fs::write(guest.path("file"), b"").expect("written");
    let node = guest.find(ROOT, c"file");
    let handle = guest.open(node, libc::O_RDWR).expect("opened");
    let args = lock(handle, 1, libc::F_WRLCK, 0, 0);
    assert_eq!(
        errno(guest.fs.setlk(node, &args, LockWait::No)),
        Some(libc::ENOSYS)
    );
    assert_eq!(errno(guest.fs.getlk(node, &args)), Some(libc::ENOSYS));
}

/// Linux does not wait for the reply to RELEASE, so another process may open and lock the file in
/// the meantime.
#[test]
fn a_close_underway_leaves_a_new_openers_locks_alone() {
    let [(first, node, handle), (second, node2, handle2)] = pair();
    first.release(node, handle);
    let start = std::sync::Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2000 {
                let closing = first.open(node, libc::O_RDWR).expect("opened");
                start.wait();
                first.release(node, closing);
                start.wait();
            }
        });
        let mut lost = 0;
        for _ in 0..2000 {
            start.wait();
            let handle = first.open(node, libc::O_RDWR).expect("opened");
            let held = lock(handle, 1, libc::F_WRLCK, 0, 9);
            first.fs.setlk(node, &held, LockWait::No).expect("taken");
            start.wait();
            let wanted = lock(handle2, 9, libc::F_RDLCK, 0, 9);
            let found = second.fs.getlk(node2, &wanted).expect("asked");
            lost += u32::from(found.r#type == libc::F_UNLCK.cast_unsigned());
            first.fs.flush(node, handle, 1).expect("closed");
            first.release(node, handle);
        }
        assert_eq!(lost, 0);
    });
}

#[test]
fn the_last_handle_takes_forgotten_locks_along() {
    let [(first, node, handle), (second, node2, handle2)] = pair();
    let again = first.open(node, libc::O_RDWR).expect("opened");
    let held = lock(handle, 1, libc::F_WRLCK, 0, 9);
    first.fs.setlk(node, &held, LockWait::No).expect("taken");
    let theirs = || {
        let wanted = lock(handle2, 9, libc::F_RDLCK, 0, 9);
        second.fs.setlk(node2, &wanted, LockWait::No)
    };
    first.release(node, again);
    assert_eq!(errno(theirs()), Some(libc::EAGAIN));
    first.release(node, handle);
    theirs().expect("free");
}

#[test]
fn guest_with_locks_on_the_hosts_files_does_not_migrate_until_it_has_closed_them() {
    let [(first, node, handle), _second] = pair();
    let range = |kind| {
        let args = lock(handle, 1, kind, 2, 5);
        first.fs.setlk(node, &args, LockWait::No).expect("done");
    };
    let whole = |kind| {
        let mut args = lock(handle, 2, kind, 0, u64::MAX);
        args.lk_flags = LkFlags::FLOCK.bits();
        first.fs.setlk(node, &args, LockWait::No).expect("done");
    };
    for (take, count) in [(&range as &dyn Fn(i32), 1), (&whole, 2)] {
        take(libc::F_WRLCK);
        let refused = first.fs.save().expect_err("it holds locks");
        assert!(
            refused
                .to_string()
                .contains(&format!("locks of {count} owners on the host's files")),
            "{refused}"
        );
    }
    whole(libc::F_UNLCK);
    first.fs.save().expect_err("it holds a lock");
    // Whether an owner of ranges has locks left is known when it closes the file.
    first.fs.flush(node, handle, 1).expect("flushed");
    first.fs.save().expect("saved");
}
