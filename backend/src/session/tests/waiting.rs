//! Requests that wait for a lock or a disk.

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

#[test]
fn no_more_requests_wait_than_there_are_threads_for() {
    let mut guest = Guest::new();
    let mut waiting = 0;
    for unique in 0..300u64 {
        let mut bytes = encode(
            Operation::Setlkw(LkIn::default()),
            Extensions::default(),
            &[],
        );
        bytes[8..16].copy_from_slice(&unique.to_ne_bytes());
        match guest.send(&mut bytes, 16, 4096).0 {
            Served::WaitsForLock(_) => waiting += 1,
            Served::Replied(len) => assert_eq!(len, 16),
            Served::WouldBlock => panic!("the request may block"),
        }
    }
    assert_eq!(waiting, 256);
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
