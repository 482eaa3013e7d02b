//! Confines the relay before it reads the first byte from a guest or an operator.
//!
//! It keeps threads, Unix sockets, and reading and writing of descriptors. It opens no file, and
//! starts no process. `switch` makes it connect to sockets that it does not know yet, as the user
//! it runs as: Landlock does not restrict that, and neither does the list of system calls.

use std::path::Path;

use gangplank_sandbox::landlock::Files;
use gangplank_sandbox::seccomp::{CallList, Seccomp, common};
use gangplank_sandbox::{Capability, Error, Kept};

/// Needed to connect to another user's socket, and to remove the own one from another user's
/// directory.
const CAPABILITIES: [Capability; 1] = [Capability::CAP_DAC_OVERRIDE];

/// Confines the process. It must have one thread, and have created its `sockets`.
pub(super) fn confine<'a>(
    seccomp: Seccomp,
    sockets: impl IntoIterator<Item = &'a Path>,
) -> Result<(), Error> {
    let mut files = Files::default();
    for path in sockets {
        files.remove_beside(path)?;
    }
    let kept = Kept {
        capabilities: &CAPABILITIES,
        files: Some(files),
        calls: &calls(),
    };
    gangplank_sandbox::confine(seccomp, kept)
}

/// The system calls that the relay may make.
fn calls() -> CallList {
    let mut list = common::server();
    list.refused.extend(common::NO_FILES);
    list
}

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    use gangplank_sandbox::seccomp::testing::under;
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn relay_connects_and_does_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("daemon");
        let listener = UnixListener::bind(&path).unwrap();
        under(&calls(), move || {
            let stream = UnixStream::connect(&path).unwrap();
            stream.set_nonblocking(true).unwrap();
            crate::daemon::listens_at(&path).unwrap();
            rustix::pipe::pipe().unwrap();
            assert!(rustix::fs::stat(&path).is_ok());
            assert!(std::thread::spawn(|| 1).join().is_ok());
            let no_files = std::fs::File::open("/dev/null").unwrap_err();
            assert_eq!(no_files.raw_os_error(), Some(Errno::ACCESS.raw_os_error()));
            let refused = Some(Errno::DOM.raw_os_error());
            let pipes = || Stdio::from(rustix::pipe::pipe().unwrap().0);
            let mut command = Command::new("/bin/true");
            command.stdin(pipes()).stdout(pipes()).stderr(pipes());
            assert_eq!(command.spawn().unwrap_err().raw_os_error(), refused);
            assert_eq!(
                UdpSocket::bind("127.0.0.1:0").unwrap_err().raw_os_error(),
                refused
            );
            assert_eq!(rustix::process::chroot("/"), Err(Errno::DOM));
        });
        drop(listener);
    }
}
