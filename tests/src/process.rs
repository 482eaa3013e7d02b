//! Child processes that end with the test program, however it ends.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use parking_lot::{ReentrantMutex, ReentrantMutexGuard};
use rustix::process::{Gid, Pid, Signal, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::sockets::listens;
use crate::wait;

/// Held while a child is started, and by [`start_alone`].
static STARTING: ReentrantMutex<()> = ReentrantMutex::new(());

/// Limit for all threads of a process to stop.
const STOPPING: Duration = Duration::from_secs(20);

/// An ordinary user of the host, to run a program as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id; the only group the program gets.
    pub gid: u32,
}

impl User {
    /// `nobody`, which every Debian system has and which owns no files.
    pub const NOBODY: Self = Self {
        uid: 65534,
        gid: 65534,
    };

    /// Whether the calling process is root.
    #[must_use]
    pub fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    /// Runs `work` on the calling thread with this user's rights, if that thread has root's. What
    /// it creates belongs to the user.
    ///
    /// # Errors
    /// The user cannot be changed.
    pub fn act<T>(self, work: impl FnOnce() -> T) -> io::Result<T> {
        if !Self::is_root() {
            return Ok(work());
        }
        let groups = rustix::process::getgroups()?;
        set_thread_groups(&[])?;
        set_thread_res_gid(None, Gid::from_raw(self.gid), None)?;
        let done = with_user(Uid::from_raw(self.uid), work)?;
        set_thread_res_gid(None, Gid::ROOT, None)?;
        set_thread_groups(&groups)?;
        Ok(done)
    }
}

/// Runs `work` on the calling thread with root's rights, if that thread only acts as another user
/// ([`User::act`]).
///
/// # Errors
/// The user cannot be changed.
pub fn as_root<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    if rustix::process::getuid().is_root() {
        with_user(Uid::ROOT, work)
    } else {
        Ok(work())
    }
}

/// Runs `work` with another effective user of the calling thread.
fn with_user<T>(user: Uid, work: impl FnOnce() -> T) -> io::Result<T> {
    struct Restore(Uid);

    impl Drop for Restore {
        fn drop(&mut self) {
            // A real user of root permits this.
            let _ = set_thread_res_uid(None, self.0, None);
        }
    }

    let _restore = Restore(rustix::process::geteuid());
    set_thread_res_uid(None, user, None)?;
    Ok(work())
}

/// A command for `program` that is killed when this process ends. It runs as `user`, or as the
/// caller.
///
/// `setpriv` (util-linux) sets the parent death signal and then becomes the program, so the
/// child's pid is the program's.
pub fn tied(program: impl AsRef<OsStr>, user: Option<User>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(user) = user {
        command.args([
            format!("--reuid={}", user.uid),
            format!("--regid={}", user.gid),
            "--clear-groups".to_owned(),
        ]);
    }
    command.arg("--").arg(program);
    command
}

/// Spawns `command` as leader of a process group, from a thread that lives as long as the process.
///
/// The kernel sends the parent death signal when the *thread* that forked ends, and the test
/// runner's threads end early.
///
/// # Errors
/// What [`Command::spawn`] said.
pub fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                command.process_group(0);
                // The caller is gone, so the child is of no use.
                if let Err(mpsc::SendError(Ok(mut child))) = answer.send(command.spawn()) {
                    let _ = child.kill();
                }
            }
        });
        orders
    });
    let (answer, result) = mpsc::channel();
    let _starting = STARTING.lock();
    spawner
        .send((command, answer))
        .map_err(|_| io::Error::other("the spawning thread is gone"))?;
    result
        .recv()
        .map_err(|_| io::Error::other("the spawning thread is gone"))?
}

/// Has other threads wait in [`spawn`] until the result is dropped: for the time in which this
/// process has descriptors open that one program inherits. Any other would inherit them as well and
/// keep open what they lead to.
pub fn start_alone() -> ReentrantMutexGuard<'static, ()> {
    STARTING.lock()
}

/// Copies a program that will be executed, with its permissions.
///
/// Another process makes the copy. A child that another thread starts inherits this process's
/// descriptors until it executes its own program, and a program that is open for writing cannot be
/// executed (`ETXTBSY`).
///
/// # Errors
/// cp(1) fails.
pub fn copy_program(from: &Path, to: &Path) -> io::Result<()> {
    let copied = Command::new("cp").arg("--").args([from, to]).status()?;
    if copied.success() {
        return Ok(());
    }
    let text = format!("copying {} to {}: {copied}", from.display(), to.display());
    Err(io::Error::other(text))
}

/// Sends `signal` to the child alone.
///
/// # Errors
/// ESRCH when it was already reaped; [`wait_until_stopped`]'s.
pub fn signal(child: &Child, signal: Signal) -> io::Result<()> {
    rustix::process::kill_process(pid_of(child), signal)?;
    match signal {
        Signal::STOP => wait_until_stopped(&[child.id()]),
        _ => Ok(()),
    }
}

/// Waits until all threads of processes that got SIGSTOP have stopped: one that runs on another
/// processor does a little later, and could still answer.
///
/// # Errors
/// A process has ended, or does not stop.
pub fn wait_until_stopped(processes: &[u32]) -> io::Result<()> {
    let deadline = Instant::now() + STOPPING;
    let stopped = || -> io::Result<bool> {
        let mut all = true;
        for process in processes {
            for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
                let status = std::fs::read_to_string(task?.path().join("status"))?;
                all &= status.contains("\nState:\tT");
            }
        }
        Ok(all)
    };
    while !stopped()? {
        if Instant::now() >= deadline {
            return Err(io::Error::other("a thread does not stop"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Sends `signal` to the child and every process in the group it leads.
///
/// # Errors
/// ESRCH when the group is empty.
pub fn signal_group(child: &Child, signal: Signal) -> io::Result<()> {
    rustix::process::kill_process_group(pid_of(child), signal).map_err(io::Error::from)
}

/// The children of a process, oldest first.
///
/// # Errors
/// The process is gone.
pub fn children(pid: u32) -> io::Result<Vec<u32>> {
    let mut last = children_now(pid)?;
    // The kernel may leave children out while another one ends (proc_pid_children(5)).
    for _ in 0..10 {
        let children = children_now(pid)?;
        if children == last {
            break;
        }
        last = children;
    }
    Ok(last)
}

fn children_now(pid: u32) -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        match std::fs::read_to_string(thread.path().join("children")) {
            Ok(list) => {
                let list = list.split_whitespace();
                children.extend(list.filter_map(|child| child.parse::<u32>().ok()));
            }
            // Not every kernel lists a process's children. A thread may end meanwhile.
            Err(_) if !thread.path().join("children").exists() => return children_by_table(pid),
            Err(_) => {}
        }
    }
    Ok(children)
}

/// The children of a process whose names begin with `name`, oldest first.
///
/// # Errors
/// The process is gone.
pub fn children_named(pid: u32, name: &str) -> io::Result<Vec<u32>> {
    let mut children = children(pid)?;
    // A process may end while the names are read.
    children.retain(|child| {
        std::fs::read_to_string(format!("/proc/{child}/comm"))
            .is_ok_and(|found| found.starts_with(name))
    });
    Ok(children)
}

/// The processes of which `parent` is the parent, by the table of all processes.
fn children_by_table(parent: u32) -> io::Result<Vec<u32>> {
    let wanted = format!("PPid:\t{parent}");
    let processes = std::fs::read_dir("/proc")?.flatten();
    let children = processes.filter_map(|entry| {
        let process = entry.file_name().to_str()?.parse::<u32>().ok()?;
        // A process may end while the table is read.
        let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
        status.lines().any(|line| line == wanted).then_some(process)
    });
    Ok(children.collect())
}

/// A process and all its descendants, parents first. Those that end meanwhile may be missing.
pub fn with_descendants(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(parent) = all.get(at).copied() {
        all.extend(children(parent).unwrap_or_default());
        at += 1;
    }
    all
}

/// Kills the child and every process in the group it leads, then reaps it.
///
/// User Mode Linux runs each guest process as a host process; they share its group.
pub fn kill_group(child: &mut Child) {
    // This fails only if the group is empty already.
    let _ = rustix::process::kill_process_group(pid_of(child), Signal::KILL);
    let _ = child.kill();
    let _ = child.wait();
}

/// Waits until the child ends, at most `limit`.
///
/// # Errors
/// `TimedOut` when it has not ended by then, or what waiting for it said.
pub fn wait_within(child: &mut Child, limit: Duration) -> io::Result<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("process {} did not end within {limit:?}", child.id()),
            ));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Waits until a process has made the file `path`.
///
/// # Errors
/// It is not there by `limit`.
pub fn wait_for_path(path: &Path, limit: Duration) -> Result<()> {
    let what = format!("{} is there", path.display());
    wait::until(&what, limit, || Ok(path.exists()))
}

/// Waits until a process in the network namespace of `child` listens at `socket`.
///
/// # Errors
/// None does by `limit`.
pub fn wait_for_listener(child: &Child, socket: &Path, limit: Duration) -> Result<()> {
    let what = format!("a process listens at {}", socket.display());
    wait::until(&what, limit, || Ok(listens(child.id(), socket)))
}
