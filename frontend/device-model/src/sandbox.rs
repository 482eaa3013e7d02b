//! Confines the device model before it reads the first access of a guest, and the fd store before
//! it accepts the first connection.
//!
//! The device model can start an fd store at any time, since the previous one may have gone. The
//! new process inherits all restrictions. So the device model may execute programs, and its list
//! has what a program needs to start and to confine itself as an fd store. Landlock leaves it
//! reading and executing, because a program that is linked dynamically reads files that differ from
//! system to system; it writes to none but /dev/null, the standard output of an fd store.
//!
//! The fd store opens no file, makes no connection, and starts neither thread nor process.

use std::path::Path;

use gangplank_sandbox::landlock::Files;
use gangplank_sandbox::seccomp::{CallList, Conditional, Seccomp, common};
use gangplank_sandbox::{Capability, Error, Kept};
use libc::c_long;

use crate::bao;

/// What the device model keeps.
const CAPABILITIES: [Capability; 2] = [
    // To connect to another user's daemon, and to remove the status socket from another user's
    // directory.
    Capability::CAP_DAC_OVERRIDE,
    // To keep an fd store from being killed when memory runs out.
    Capability::CAP_SYS_RESOURCE,
];

/// Confines the device model, whose status socket is `status`. It must have one thread, and have
/// opened the hypervisor's driver and the devices' memory.
pub(crate) fn confine(seccomp: Seccomp, status: Option<&Path>) -> Result<(), Error> {
    let kept = Kept {
        capabilities: &CAPABILITIES,
        files: Some(files(status)?),
        calls: &model_calls(),
    };
    gangplank_sandbox::confine(seccomp, kept)
}

/// Confines the fd store. It must have one thread.
pub(crate) fn confine_fd_store(seccomp: Seccomp) -> Result<(), Error> {
    let kept = Kept {
        capabilities: &[],
        files: Some(Files::default()),
        calls: &fd_store_calls(),
    };
    gangplank_sandbox::confine(seccomp, kept)
}

fn files(status: Option<&Path>) -> Result<Files, Error> {
    let mut files = Files::readable();
    if let Some(path) = status {
        files.remove_beside(path)?;
    }
    // The standard output of a new fd store.
    files.write(Path::new("/dev/null"))?;
    Ok(files)
}

/// The system calls of the device model, and of a program that starts until it has confined itself.
fn model_calls() -> CallList {
    let mut list = common::server();
    list.allowed.extend([
        common::OPENING,
        common::WAITING,
        JOURNAL,
        STARTING,
        common::CONFINING,
        #[cfg(target_arch = "x86_64")]
        STARTING_X86_64,
        #[cfg(target_env = "gnu")]
        // The dynamic loader maps libraries.
        &[libc::SYS_mmap, libc::SYS_mprotect],
    ]);
    list.conditional.extend([
        Conditional::int(libc::SYS_fcntl, 1, libc::F_ADD_SEALS),
        Conditional::int(libc::SYS_fcntl, 1, libc::F_GET_SEALS),
        common::ioctls_of_type(bao::IOCTL_TYPE),
        // The fd store's own limits.
        Conditional::int(libc::SYS_prlimit64, 0, 0),
    ]);
    list.conditional.extend(common::confining());
    list.conditional.push(common::program());
    list
}

/// The system calls of the fd store.
fn fd_store_calls() -> CallList {
    let mut conditional = common::runtime();
    conditional.push(common::own_signals());
    // The standard library's check of a descriptor that it closes, in a debug build.
    conditional.push(Conditional::int(libc::SYS_fcntl, 1, libc::F_GETFD));
    CallList {
        allowed: vec![
            FD_STORE,
            common::ENDING,
            common::MEMORY,
            common::TIME,
            common::SIGNALS,
            #[cfg(target_arch = "x86_64")]
            &[libc::SYS_poll],
        ],
        conditional,
        refused: common::NO_FILES.to_vec(),
    }
}

/// Connections and their descriptors.
const FD_STORE: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_geteuid,
    libc::SYS_close,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    // What a panic says.
    libc::SYS_write,
    libc::SYS_writev,
];

/// The journal's memory.
const JOURNAL: &[c_long] = &[libc::SYS_memfd_create, libc::SYS_ftruncate];

/// Starting a program in a process of its own, and what a C library does in it before `main`.
const STARTING: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_chdir,
    libc::SYS_setpgid,
    libc::SYS_getppid,
    libc::SYS_set_tid_address,
];

/// Older calls for the same purpose.
#[cfg(target_arch = "x86_64")]
const STARTING_X86_64: &[c_long] = &[libc::SYS_fork, libc::SYS_vfork, libc::SYS_arch_prctl];

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use gangplank_sandbox::seccomp::testing::under;
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn device_model_starts_programs_and_uses_no_network() {
        under(&model_calls(), || {
            assert!(Command::new("/bin/true").status().unwrap().success());
            let refused = Some(Errno::DOM.raw_os_error());
            assert_eq!(
                UdpSocket::bind("127.0.0.1:0").unwrap_err().raw_os_error(),
                refused
            );
            assert_eq!(rustix::process::chroot("/"), Err(Errno::DOM));
        });
    }

    #[test]
    fn fd_store_makes_no_socket_and_opens_nothing() {
        let (one, other) = UnixStream::pair().unwrap();
        under(&fd_store_calls(), move || {
            let flags = rustix::fs::OFlags::RDONLY;
            let opened = rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty());
            assert_eq!(opened.unwrap_err(), Errno::ACCESS);
            assert_eq!(
                UnixStream::pair().unwrap_err().raw_os_error(),
                Some(Errno::DOM.raw_os_error())
            );
            assert!(std::thread::Builder::new().spawn(|| ()).is_err());
            drop((one, other));
        });
    }

    /// The fd store inherits the list of the device model that starts it.
    #[test]
    fn device_model_may_do_whatever_an_fd_store_may() {
        let model = model_calls().allowed.concat();
        for call in fd_store_calls().allowed.concat() {
            assert!(model.contains(&call), "{call}");
        }
    }
}
