//! INIT, and what a session serves before and after it.

use super::*;

#[test]
fn init_accepts_the_flags_that_both_sides_want_from_kernels_of_all_ages() {
    for minor in [27, 31, 36, 38, 41, 45, 99] {
        let mut guest = Guest::before_init();
        let offered = InitFlags::ASYNC_READ
            | InitFlags::MAX_PAGES
            | InitFlags::DO_READDIRPLUS
            | InitFlags::EXPORT_SUPPORT;
        let answer = guest.init(minor, offered).expect("INIT");
        assert_eq!((answer.major, answer.minor), (7, minor.min(45)));
        let taken = InitFlags::ASYNC_READ | InitFlags::MAX_PAGES | InitFlags::DO_READDIRPLUS;
        assert_eq!(answer.features(), taken);
        assert_eq!((answer.max_write, answer.max_pages), (1 << 20, 256));
    }
}

#[test]
fn init_of_a_newer_major_is_answered_with_ours_and_of_an_old_kernel_refused() {
    let mut guest = Guest::before_init();
    let newer = guest.call(Operation::Init(InitIn {
        major: 8,
        minor: 1,
        ..InitIn::default()
    }));
    let newer = reply::decode_init(&newer.expect("answered")).expect("an INIT reply");
    assert_eq!((newer.major, newer.minor), (7, 45));
    assert_eq!(guest.init(26, InitFlags::empty()), Err(libc::EPROTO));
    assert_eq!(guest.calls(), [""; 0]);
}

#[test]
fn nothing_is_served_before_init_and_after_destroy() {
    let mut guest = Guest::before_init();
    assert_eq!(guest.call(Operation::Statfs), Err(libc::EIO));
    guest.init(38, InitFlags::empty()).expect("INIT");
    assert!(guest.call(Operation::Statfs).is_ok());
    assert!(guest.call(Operation::Destroy).is_ok());
    assert_eq!(guest.call(Operation::Statfs), Err(libc::EIO));
    assert_eq!(guest.calls(), ["init", "destroy"]);
}

#[test]
fn a_second_init_frees_the_state_of_the_session_before() {
    let mut guest = Guest::new();
    guest.init(38, InitFlags::empty()).expect("INIT");
    assert_eq!(guest.calls(), ["init", "destroy", "init"]);
}
