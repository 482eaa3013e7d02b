//! Requests that wait for a lock or a disk.

use std::time::Duration;

use super::*;

#[test]
fn a_lock_that_is_held_waits_until_interrupted() {
    let mut guest = Guest::new();
    let (served, _) = guest.send(
        &mut encode(
            Operation::Setlkw(LkIn::default()),
            Extensions::default(),
            &[],
        ),
        16,
        4096,
    );
    let Served::WaitsForLock(lock) = served else {
        panic!("the request does not wait: {served:?}")
    };
    let session = &guest.session;
    let mut reply = [0; 16];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut interrupt = encode(
                Operation::Interrupt(InterruptIn { unique: 42 }),
                Extensions::default(),
                &[],
            );
            let (mut readable, mut writable) = (Segments::default(), Segments::default());
            assert!(readable.push_slice(&mut interrupt));
            serve(
                session,
                &mut readable,
                &mut writable,
                &mut Scratch::default(),
                IoMode::Blocking,
            )
        });
        let mut segments = Segments::default();
        assert!(segments.push_slice(&mut reply));
        #[allow(unsafe_code)]
        // SAFETY: `reply` outlives the scope.
        let mut writer = unsafe { segments.writer() };
        assert_eq!(session.wait_for_lock(&lock, &mut writer), 16);
    });
    let header = OutHeader::read_from_bytes(&reply[..]).expect("a header");
    assert_eq!(header, OutHeader::error(Unique::new(42), libc::EINTR));
}

#[test]
fn an_interrupt_of_a_request_that_has_not_come_yet_is_asked_for_again() {
    let mut guest = Guest::new();
    assert_eq!(
        guest.call(Operation::Interrupt(InterruptIn { unique: 4242 })),
        Err(libc::EAGAIN)
    );
}

/// A SETLKW with this number, which waits.
fn wait_for_lock(guest: &mut Guest, unique: u64) -> LockRequest {
    let mut bytes = encode(
        Operation::Setlkw(LkIn::default()),
        Extensions::default(),
        &[],
    );
    bytes[8..16].copy_from_slice(&unique.to_ne_bytes());
    match guest.send(&mut bytes, 16, 4096).0 {
        Served::WaitsForLock(lock) => lock,
        served => panic!("request {unique} does not wait: {served:?}"),
    }
}

/// Tries a lock again; the reply's header if the request is finished.
fn retry(guest: &Guest, lock: &LockRequest) -> Option<OutHeader> {
    let mut reply = [0; 16];
    let mut segments = Segments::default();
    assert!(segments.push_slice(&mut reply));
    #[allow(unsafe_code)]
    // SAFETY: `reply` outlives the writer.
    let mut writer = unsafe { segments.writer() };
    let written = guest.session.retry_lock(lock, &mut writer)?;
    assert_eq!(written, 16);
    Some(OutHeader::read_from_bytes(&reply[..]).expect("a header"))
}

#[test]
fn any_number_of_requests_waits() {
    let mut guest = Guest::new();
    for unique in 1..=2000 {
        wait_for_lock(&mut guest, unique);
    }
}

#[test]
fn a_lock_that_is_tried_again_waits_on_until_interrupted() {
    let mut guest = Guest::new();
    let locks = [1, 2, 3].map(|unique| wait_for_lock(&mut guest, unique));
    for lock in &locks {
        assert_eq!(retry(&guest, lock), None);
    }
    guest
        .call(Operation::Interrupt(InterruptIn { unique: 2 }))
        .expect("it waits");
    // Returns at once: the thread that tries the locks looks at all of them.
    guest.session.lock_waits.wait_for_interrupt(Duration::MAX);
    let interrupted = |unique| Some(OutHeader::error(Unique::new(unique), libc::EINTR));
    assert_eq!(retry(&guest, &locks[0]), None);
    assert_eq!(retry(&guest, &locks[1]), interrupted(2));
    guest.session.lock_waits.close();
    assert_eq!(retry(&guest, &locks[2]), interrupted(3));
    assert_eq!(retry(&guest, &locks[0]), interrupted(1));
    // Both are forgotten.
    assert_eq!(retry(&guest, &locks[0]), interrupted(1));
}

#[test]
fn a_request_s_number_waits_only_once() {
    let mut guest = Guest::new();
    let wait = encode(
        Operation::Setlkw(LkIn::default()),
        Extensions::default(),
        &[],
    );
    assert!(matches!(
        guest.send(&mut wait.clone(), 16, 4096).0,
        Served::WaitsForLock(_)
    ));
    let (_, reply) = guest.send(&mut wait.clone(), 16, 4096);
    let header = OutHeader::read_from_bytes(&reply).expect("a header");
    assert_eq!(header, OutHeader::error(Unique::new(42), libc::EINVAL));
}

#[test]
fn requests_that_would_wait_for_a_disk_are_not_started_in_non_blocking_mode() {
    let mut guest = Guest::new();
    guest.calls();
    guest.mode = IoMode::NonBlocking;
    let read = Operation::Read(ReadIn {
        size: 9,
        ..ReadIn::default()
    });
    for operation in [Operation::Fsync(gangplank_fuse::FsyncIn::default()), read] {
        let mut bytes = encode(operation, Extensions::default(), &[]);
        let (served, _) = guest.send(&mut bytes, 64, 4096);
        assert!(matches!(served, Served::WouldBlock), "{served:?}");
    }
    assert!(guest.calls().is_empty());
    // Requests that do not wait are served.
    guest
        .call(Operation::Getattr(GetattrIn::default()))
        .expect("attributes");
}
