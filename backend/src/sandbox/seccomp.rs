//! Installs the list of permitted system calls of a process.

mod calls;

use gangplank_sandbox::seccomp;

use super::error::Error;
use super::options::Seccomp;

pub(super) use calls::Process;

/// Installs the list of `process` for all threads of the calling one. The processes that it forks
/// inherit the list. With `events`, workers may watch directories. It cannot be removed again, but
/// a stricter one can be added.
pub(super) fn install(action: Seccomp, events: bool, process: Process) -> Result<(), Error> {
    Ok(seccomp::install(action, &calls::list(process, events))?)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::UdpSocket;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use gangplank_sandbox::seccomp::testing::under;
    use gangplank_sandbox::seccomp::{Conditional, SeccompAction};
    use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat};
    use rustix::io::Errno;
    use rustix::thread::UnshareFlags;

    use super::*;

    /// The variable by which a test tells its own program to abort, as which process.
    const ABORTING_PROCESS: &str = "GANGPLANK_TEST_ABORTING_PROCESS";

    /// Runs `body` in a thread under a worker's list. A call outside of it fails with EDOM.
    fn with_filter(body: impl FnOnce() + Send + 'static) {
        under(&calls::list(Process::Worker, false), body);
    }

    fn errno_of<T>(result: io::Result<T>) -> Option<i32> {
        result.err().and_then(|error| error.raw_os_error())
    }

    #[test]
    fn list_of_each_process_under_each_action_compiles() {
        let table = [
            (SeccompAction::KillProcess, calls::REFUSED.len() + 1),
            (SeccompAction::Trap, calls::REFUSED.len() + 1),
            (SeccompAction::Log, 1),
        ];
        for process in [
            Process::Acceptor,
            Process::Keeper,
            Process::Worker,
            Process::Reporter,
        ] {
            for (action, filters) in &table {
                let list = calls::list(process, true);
                let programs = seccomp::programs(action.clone(), &list).unwrap();
                assert_eq!(programs.len(), *filters, "{process:?}");
            }
        }
    }

    #[test]
    fn no_call_is_listed_twice() {
        for process in [
            Process::Acceptor,
            Process::Keeper,
            Process::Worker,
            Process::Reporter,
        ] {
            let mut all: Vec<_> = calls::allowed(process).iter().copied().flatten().collect();
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count);
            for condition in calls::conditional(process) {
                assert!(!all.contains(&&condition.call), "{}", condition.call);
            }
        }
    }

    /// A list can only become stricter: a call that a keeper or worker needs and the acceptor may
    /// not make would be refused in them as well.
    #[test]
    fn the_acceptor_may_do_whatever_its_children_may() {
        let acceptor: Vec<_> = calls::allowed(Process::Acceptor)
            .iter()
            .copied()
            .flatten()
            .collect();
        for process in [Process::Keeper, Process::Worker, Process::Reporter] {
            for call in calls::allowed(process).iter().copied().flatten() {
                assert!(acceptor.contains(&call), "{process:?} {call}");
            }
            for condition in calls::conditional(process) {
                let same = |other: &Conditional| {
                    (other.call, other.argument, other.mask, other.value)
                        == (
                            condition.call,
                            condition.argument,
                            condition.mask,
                            condition.value,
                        )
                };
                assert!(
                    acceptor.contains(&&condition.call)
                        || calls::conditional(Process::Acceptor).iter().any(same),
                    "{process:?} {}",
                    condition.call
                );
            }
        }
    }

    #[test]
    fn the_calls_of_a_file_server_are_permitted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        with_filter(move || {
            // Not std::fs: on musl it calls open(), which the list refuses.
            let create = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = openat(CWD, path.join("f"), create, Mode::RUSR).unwrap();
            assert_eq!(rustix::io::pwrite(&file, b"x", 0).unwrap(), 1);
            let flags = rustix::fs::fcntl_getfl(&file).unwrap();
            rustix::fs::fcntl_setfl(&file, flags | OFlags::APPEND).unwrap();
            file.try_clone().unwrap();
            rustix::fs::renameat(CWD, path.join("f"), CWD, path.join("g")).unwrap();
            let found = rustix::fs::statat(CWD, path.join("g"), AtFlags::SYMLINK_NOFOLLOW).unwrap();
            assert_eq!(found.st_size, 1);
            let dir = openat(CWD, &path, OFlags::RDONLY, Mode::empty()).unwrap();
            assert_eq!(rustix::fs::Dir::new(dir).unwrap().count(), 3);

            let listener = UnixListener::bind(path.join("s")).unwrap();
            let client = UnixStream::connect(path.join("s")).unwrap();
            client.set_nonblocking(true).unwrap();
            listener.accept().unwrap();

            crate::sys::process::unshare(UnshareFlags::FS).unwrap();
            let threads: Vec<_> = (0..4)
                .map(|number| {
                    std::thread::Builder::new()
                        .name(format!("worker {number}"))
                        .spawn(move || number)
                        .unwrap()
                })
                .collect();
            let numbers: u32 = threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum();
            assert_eq!(numbers, 6);
        });
    }

    /// Not a test: what a child process of the next test does.
    #[test]
    fn aborting_process() {
        let process = match std::env::var(ABORTING_PROCESS).as_deref() {
            Ok("Acceptor") => Process::Acceptor,
            Ok("Keeper") => Process::Keeper,
            Ok("Worker") => Process::Worker,
            _ => return,
        };
        install(Seccomp::Kill, true, process).unwrap();
        std::process::abort();
    }

    /// The keeper tells by the signal what its worker died of. glibc and musl abort with different
    /// calls.
    #[test]
    fn abort_ends_a_confined_process_with_sigabrt() {
        for process in [Process::Acceptor, Process::Keeper, Process::Worker] {
            let ended = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "sandbox::seccomp::tests::aborting_process"])
                .env(ABORTING_PROCESS, format!("{process:?}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            assert_eq!(ended.signal(), Some(libc::SIGABRT), "{process:?}");
        }
    }

    /// Without landlock's scopes (before Linux 6.12), a worker reaches other guests' threads.
    #[test]
    fn only_an_abort_is_sent_to_a_thread_of_unknown_process() {
        for process in [Process::Keeper, Process::Worker] {
            let rows = calls::conditional(process);
            let mut tkill = rows.iter().filter(|row| row.call == libc::SYS_tkill);
            let abort = u64::from(libc::SIGABRT.cast_unsigned());
            assert!(tkill.all(|row| (row.argument, row.value) == (1, abort)));
            assert!(!calls::allowed(process).concat().contains(&libc::SYS_tkill));
        }
    }

    #[test]
    fn calls_that_no_file_server_makes_are_refused() {
        with_filter(|| {
            let refused = Some(libc::EDOM);
            assert_eq!(errno_of(UdpSocket::bind("127.0.0.1:0")), refused);
            assert_eq!(errno_of(Command::new("/bin/true").spawn()), refused);
            assert_eq!(
                errno_of(crate::sys::process::unshare(UnshareFlags::NEWUSER)),
                refused
            );
            assert_eq!(
                rustix::process::kill_process(
                    rustix::process::getpid(),
                    rustix::process::Signal::CONT
                ),
                Err(Errno::DOM)
            );
            assert_eq!(rustix::process::chroot("/"), Err(Errno::DOM));
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            assert_eq!(
                rustix::process::setrlimit(rustix::process::Resource::Nofile, limit),
                Err(Errno::DOM)
            );
        });
    }
}
