//! One program after another at one path, and where a link lies.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};

use super::*;

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn socket_that_was_left_behind_is_replaced_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fs.sock");
    drop(UnixListener::bind(&path).unwrap());
    let listening = OwnedListener::bind(&path, None).unwrap();
    UnixStream::connect(&path).unwrap();
    let busy = OwnedListener::bind(&path, None).unwrap_err();
    assert!(matches!(busy, BindError::InUse { .. }), "{busy}");
    drop(listening);
    assert!(!path.exists());
    fs::write(&path, b"precious").unwrap();
    let error = OwnedListener::bind(&path, None).unwrap_err().to_string();
    assert!(error.contains("a regular file, not a socket"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert_eq!(dir.path().read_dir().unwrap().count(), 1);
}

#[test]
fn socket_in_use_is_refused_with_its_owner_who_notices_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fs.sock");
    let other = UnixListener::bind(&path).unwrap();
    other.set_nonblocking(true).unwrap();
    let error = OwnedListener::bind(&path, None).unwrap_err().to_string();
    let own = format!("process {} (", std::process::id());
    assert!(error.contains(&own), "{error}");
    let accepted = other.accept().unwrap_err();
    assert_eq!(accepted.kind(), io::ErrorKind::WouldBlock);
    assert!(path.exists());
}

#[test]
fn datagram_socket_in_use_is_refused_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let _other = UnixDatagram::bind(&path).unwrap();
    let error = OwnedListener::bind(&path, None).unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }), "{error}");
}

#[test]
fn socket_is_for_those_whom_the_mode_allows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let owner = Mode::RUSR | Mode::WUSR;
    let listening = OwnedListener::bind(&path, Some(owner)).unwrap();
    assert_eq!(mode_of(&path), 0o600);
    drop(listening);
    // More than the usual umask, 022, leaves.
    let all = Mode::from_raw_mode(0o666);
    let listening = OwnedListener::bind(&path, Some(all)).unwrap();
    assert_eq!(mode_of(&path), 0o666);
    drop(listening);
    let group = fs::metadata(dir.path()).unwrap().gid();
    let _listening = OwnedListener::bind_for_group(&path, Gid::from_raw(group)).unwrap();
    assert_eq!(
        (mode_of(&path), fs::metadata(&path).unwrap().gid()),
        (0o660, group)
    );
}

#[test]
fn symbolic_link_is_refused_and_its_target_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let (path, target) = (dir.path().join("fs.sock"), dir.path().join("target"));
    let check = |expected: &str| {
        let mode = Some(Mode::from_raw_mode(0o666));
        let error = OwnedListener::bind(&path, mode).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(path.is_symlink());
    };
    symlink(&target, &path).unwrap();
    check("a symbolic link");
    assert!(!target.exists());

    fs::write(&target, "precious").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
    check("a symbolic link");
    assert_eq!(
        (
            fs::read_to_string(&target).unwrap().as_str(),
            mode_of(&target)
        ),
        ("precious", 0o600)
    );

    // A socket that was left behind is replaced at its own name alone.
    fs::remove_file(&target).unwrap();
    drop(UnixListener::bind(&target).unwrap());
    let before = fs::metadata(&target).unwrap();
    check("a symbolic link");
    let after = fs::metadata(&target).unwrap();
    assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));
}

#[test]
fn directory_may_be_reached_by_a_link_and_the_address_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("real");
    fs::create_dir(&real).unwrap();
    symlink("real", dir.path().join("link")).unwrap();
    let path = dir.path().join("link/fs.sock");
    let listening = OwnedListener::bind(&path, None).unwrap();
    let address = listening.listener.local_addr().unwrap();
    let plain = fs::canonicalize(&real).unwrap().join("fs.sock");
    assert_eq!(address.as_pathname(), Some(plain.as_path()));
    // The other spelling is the same socket, and names its owner.
    let error = OwnedListener::bind(&real.join("fs.sock"), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains(&std::process::id().to_string()), "{error}");
    // The file is removed where it was made, wherever the link leads by then.
    fs::remove_file(dir.path().join("link")).unwrap();
    symlink("/nowhere", dir.path().join("link")).unwrap();
    drop(listening);
    assert_eq!(real.read_dir().unwrap().count(), 0);
}

#[test]
fn directory_that_another_program_locks_delays_a_replacement_alone() {
    let dir = tempfile::tempdir().unwrap();
    let lock = fs::File::open(dir.path()).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    let started = Instant::now();
    let _fresh = OwnedListener::bind(&dir.path().join("fresh"), None).unwrap();
    assert!(started.elapsed() < LOCK_TIMEOUT);
    let left_behind = dir.path().join("left-behind");
    drop(UnixListener::bind(&left_behind).unwrap());
    let error = OwnedListener::bind(&left_behind, None).unwrap_err();
    assert!(matches!(error, BindError::Locked(_)), "{error}");
    assert!(left_behind.exists());
    drop(lock);
    let _replaced = OwnedListener::bind(&left_behind, None).unwrap();
}
