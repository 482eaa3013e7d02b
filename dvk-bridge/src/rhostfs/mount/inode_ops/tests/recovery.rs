//! Tests with a server that is lost, restarts or answers late.

use super::*;

#[test]
fn a_lost_server_is_reached_again_and_files_stay_open() {
    let mut fixture = fixture(Dialect::Ours);
    let (_, _, fh) = fixture.create("file", O_RDWR).unwrap();
    fixture.ops.write(fh, 0, b"before", Extent::Any).unwrap();
    {
        let mut state = fixture.server.state.lock();
        state.silent = 1;
        state.restart();
    }
    assert!(fixture.ops.read(fh, 0, 9, Extent::Any).is_err());
    // Until the backoff ends, no other call waits for the limit.
    assert_eq!(fixture.ops.read(fh, 0, 9, Extent::Any), Err(Errno::NOTCONN));
    assert_eq!(fixture.look("file"), Err(Errno::NOTCONN));
    std::thread::sleep(Duration::from_millis(1050));
    assert_eq!(fixture.ops.read(fh, 0, 9, Extent::Any).unwrap(), b"before");
    fixture.ops.close(fh);
    assert_eq!(fixture.server.state.lock().handles(), 0);
}

#[test]
fn files_are_reopened_after_an_unnoticed_restart() {
    let mut fixture = fixture(Dialect::Ours);
    let (_, _, kept) = fixture.create("kept", O_RDWR).unwrap();
    let (_, _, gone) = fixture.create("gone", O_RDWR).unwrap();
    fs::remove_file(fixture.host("gone")).unwrap();
    fixture.server.state.lock().restart();
    assert_eq!(fixture.ops.write(kept, 0, b"x", Extent::Any), Ok(1));
    assert_eq!(
        fixture.ops.write(gone, 0, b"x", Extent::Any),
        Err(Errno::STALE)
    );
}

#[test]
fn a_new_server_reuses_handles_and_files_are_not_confused() {
    let mut fixture = fixture(Dialect::Ours);
    let (_, _, one) = fixture.create("one", O_RDWR).unwrap();
    let (_, _, two) = fixture.create("two", O_RDWR).unwrap();
    {
        let mut state = fixture.server.state.lock();
        state.restart();
        state.losses += 1;
    }
    fixture.ops.write(two, 0, b"two", Extent::Any).unwrap();
    fixture.ops.write(one, 0, b"one", Extent::Any).unwrap();
    assert_eq!(fs::read(fixture.host("one")).unwrap(), b"one");
    assert_eq!(fs::read(fixture.host("two")).unwrap(), b"two");
}

#[test]
fn a_new_file_with_an_old_number_is_another_node() {
    let mut fixture = fixture(Dialect::Ours);
    fixture.server.state.lock().mark = 1;
    let (node, _, fh) = fixture.create("file", O_RDWR).unwrap();
    {
        let mut state = fixture.server.state.lock();
        state.restart();
        // As if the name belonged to another file with the same number.
        state.mark = 2;
    }
    assert_eq!(
        fixture.ops.write(fh, 0, b"x", Extent::Any),
        Err(Errno::STALE)
    );
    assert_eq!(fs::read(fixture.host("file")).unwrap(), b"");
    let (new, _) = fixture.look("file").unwrap();
    assert!(new != node);
    let fh = fixture.ops.open(new, O_RDWR).unwrap();
    assert_eq!(fixture.ops.write(fh, 0, b"x", Extent::Any), Ok(1));
}

#[test]
fn a_server_after_a_timeout_keeps_no_file_open_twice() {
    let mut fixture = fixture(Dialect::Ours);
    let (_, _, used) = fixture.create("used", O_RDWR).unwrap();
    let (_, _, closed) = fixture.create("closed", O_RDWR).unwrap();
    fixture.server.state.lock().losses += 1;
    fixture.ops.write(used, 0, b"x", Extent::Any).unwrap();
    assert_eq!(fixture.server.state.lock().handles(), 2);
    fixture.ops.close(closed);
    assert_eq!(fixture.server.state.lock().handles(), 1);
}

#[test]
fn a_call_without_an_answer_does_not_block_others() {
    let mut fixture = fixture(Dialect::Ours);
    fs::write(fixture.host("file"), "").unwrap();
    fixture.look("file").unwrap();
    fixture.server.state.lock().silent = 1;
    assert_eq!(fixture.look("file"), Err(Errno::IO));
    std::thread::sleep(Duration::from_millis(1050));
    fixture.look("file").unwrap();
    let state = fixture.server.state.lock();
    assert_eq!((state.bound, state.given_up), (2, 1));
}

#[test]
fn an_answer_to_an_earlier_call_is_refused() {
    let mut fixture = fixture(Dialect::Ours);
    fs::write(fixture.host("file"), "").unwrap();
    fixture.look("file").unwrap();
    fixture.server.state.lock().late = true;
    assert_eq!(fixture.look("file"), Err(Errno::IO));
    assert_eq!(fixture.look("file"), Err(Errno::NOTCONN));
}
