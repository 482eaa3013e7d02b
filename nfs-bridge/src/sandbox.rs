//! Confines the program before it reads the first byte from a client or the daemon.
//!
//! It keeps threads, open descriptors, Unix sockets, memory to share with a daemon and, with
//! `--listen` or `--portmap`, the sockets that listen already. Landlock leaves it no file but the
//! logs of file handles and of clients, which are open, and its own sockets, which it removes.

use std::path::Path;

use gangplank_sandbox::landlock::Files;
use gangplank_sandbox::seccomp::{CallList, Conditional, Seccomp, common};
use gangplank_sandbox::{Capability, Error, Kept};

/// Memory that a daemon maps as well.
const SHARED_MEMORY: &[libc::c_long] = &[libc::SYS_memfd_create, libc::SYS_ftruncate];

/// The log of clients with locks, which may outlive the host.
const LOG: &[libc::c_long] = &[libc::SYS_fdatasync];

/// Datagrams to peers without a connection.
const DATAGRAMS: &[libc::c_long] = &[libc::SYS_sendto];

/// Confines the process. It must have one thread. `sockets` are those that it has created.
///
/// # Errors
/// The kernel refuses, or a socket's directory cannot be opened.
pub fn confine(seccomp: Seccomp, sockets: &[&Path]) -> Result<(), Error> {
    let mut files = Files::default();
    for path in sockets {
        files.remove_beside(path)?;
    }
    let kept = Kept {
        // To connect to another user's socket, and to remove the own one from another user's
        // directory.
        capabilities: &[Capability::CAP_DAC_OVERRIDE],
        files: Some(files),
        calls: &calls(),
    };
    gangplank_sandbox::confine(seccomp, kept)
}

fn calls() -> CallList {
    let mut list = common::server();
    list.allowed.extend([SHARED_MEMORY, LOG, DATAGRAMS]);
    list.conditional
        .push(Conditional::int(libc::SYS_fcntl, 1, libc::F_ADD_SEALS));
    list.refused.extend(common::NO_FILES);
    list
}

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    use gangplank_sandbox::seccomp::testing::under;
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn the_program_opens_no_file_and_no_socket_of_the_internet() {
        under(&calls(), || {
            UnixStream::pair().unwrap();
            let flags = rustix::fs::OFlags::RDONLY;
            let opened = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty());
            assert_eq!(opened.map(drop), Err(Errno::ACCESS));
            assert!(TcpListener::bind("127.0.0.1:0").is_err());
            assert_eq!(rustix::process::chroot("/"), Err(Errno::DOM));
        });
    }
}
