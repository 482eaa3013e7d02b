//! Programs under the emulated driver: a filter diverts their calls, which are answered until they
//! end.

use std::convert::Infallible;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use super::kernel::Kernel;
use super::seccomp::{self, Listener};
use crate::process;
use crate::sockets::listens;

/// The first argument that makes a program with this module become another one: see
/// [`become_program`].
pub const LAUNCH: &str = "--launch";

/// Limit for a program to end after SIGTERM.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// The child's side of [`Program::start`]: installs the filter, sends the listener through standard
/// input, and becomes the program in `arguments`. Returns only on failure.
///
/// # Errors
/// What the kernel refuses.
pub fn become_program(arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<Infallible> {
    become_behind(&mut seccomp::filter(), arguments)
}

/// The same with the filter `lines`.
pub(crate) fn become_behind(
    lines: &mut [libc::sock_filter],
    mut arguments: impl Iterator<Item = std::ffi::OsString>,
) -> Result<Infallible> {
    let program = arguments.next().context("no program to become")?;
    // The emulated driver ends with the test, so its programs have to end as well.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let listener = seccomp::install(lines).context("installing the filter")?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let descriptors = [listener.as_fd()];
    beside.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(
        std::io::stdin(),
        &[IoSlice::new(&[0])],
        &mut beside,
        SendFlags::empty(),
    )
    .context("sending the listener")?;
    drop(listener);
    Err(anyhow!(Command::new(&program).args(arguments).exec())
        .context(format!("becoming {}", program.display())))
}

/// Starts `program` by way of this one, which has to handle [`LAUNCH`]. The output is appended to
/// the file `log`. Returns the process and the listener for the diverted calls.
pub(crate) fn start_behind(
    program: &Path,
    arguments: &[String],
    log: &Path,
) -> Result<(Child, Listener)> {
    let (near, far) = UnixStream::pair()?;
    near.set_read_timeout(Some(LIMIT))?;
    let said = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(LAUNCH)
        .arg(program)
        .args(arguments)
        .stdin(Stdio::from(OwnedFd::from(far)))
        .stdout(said.try_clone()?)
        .stderr(said);
    let mut child =
        process::spawn(command).with_context(|| format!("starting {}", program.display()))?;
    let listener = receive(&near).inspect_err(|_| process::kill_group(&mut child));
    let listener = listener.with_context(|| program.display().to_string())?;
    Ok((child, Listener::new(listener)))
}

fn receive(socket: &UnixStream) -> Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut beside,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(listener) = descriptors.next()
        {
            return Ok(listener);
        }
    }
    bail!("the program ended before it could be watched")
}

fn is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref() == Some(&Errno::SRCH)
}

/// Kills `process` and waits until it is gone, before its parent reaps it.
///
/// # Errors
/// It cannot be killed.
pub fn kill_and_wait(process: Pid) -> Result<()> {
    let handle = pidfd_open(process, PidfdFlags::empty())?;
    pidfd_send_signal(&handle, Signal::KILL)?;
    let limit = Timespec::try_from(LIMIT)?;
    let mut ready = [PollFd::new(&handle, PollFlags::IN)];
    ensure!(
        poll(&mut ready, Some(&limit))? == 1,
        "not gone within {LIMIT:?}"
    );
    Ok(())
}

/// A program under the emulated driver. It is killed on drop.
pub struct Program {
    child: Child,
    kernel: Arc<Kernel>,
    log: PathBuf,
}

impl Program {
    /// Starts `program`, and appends its output to the file `log`. The calling program has to
    /// handle [`LAUNCH`].
    ///
    /// # Errors
    /// It cannot be started, or the kernel has no user notifications.
    pub fn start(
        kernel: &Arc<Kernel>,
        program: &Path,
        arguments: &[String],
        log: &Path,
    ) -> Result<Self> {
        let (child, listener) = start_behind(program, arguments, log)?;
        let listener = Arc::new(listener);
        {
            // The thread ends with the last process behind the filter, which may outlive the
            // program.
            let kernel = Arc::clone(kernel);
            thread::spawn(move || {
                loop {
                    match listener.next() {
                        Ok(Some(note)) => kernel.answer(&listener, note),
                        Ok(None) => break,
                        Err(error) => {
                            kernel
                                .faults
                                .add(format!("calls cannot be answered any more: {error}"));
                            break;
                        }
                    }
                }
            });
        }
        Ok(Self {
            child,
            kernel: Arc::clone(kernel),
            log: log.to_owned(),
        })
    }

    /// Its process ID.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Whether it listens at `socket`.
    #[must_use]
    pub fn listens(&self, socket: &Path) -> bool {
        listens(self.child.id(), socket)
    }

    /// The contents of the log file, which may have earlier programs' output.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has been waited for already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        process::signal(&self.child, signal).context("signalling a program")
    }

    /// Stops all threads of it and of the processes that it has started, as SIGSTOP does after a
    /// while. SIGKILL ends them nevertheless.
    ///
    /// # Errors
    /// They do not stop.
    pub fn pause(&self) -> Result<()> {
        let processes = process::with_descendants(self.child.id());
        for process in &processes {
            let pid = i32::try_from(*process).ok().and_then(Pid::from_raw);
            kill_process(pid.context("a process id")?, Signal::STOP)?;
        }
        process::wait_until_stopped(&processes).context("pausing a program")
    }

    /// Kills it while the driver is blocked, and waits until it is gone.
    ///
    /// # Errors
    /// It does not go.
    pub fn kill(&mut self) -> Result<()> {
        {
            let _frozen = self.kernel.freeze();
            kill_and_wait(self.pid())?;
        }
        self.child.wait()?;
        Ok(())
    }

    /// Kills it with all processes that it has started, and waits until they are gone.
    ///
    /// # Errors
    /// One does not go.
    pub fn kill_all(&mut self) -> Result<()> {
        for process in process::with_descendants(self.child.id()) {
            let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
            match kill_and_wait(pid.context("a process id")?) {
                // It has ended with another one.
                Err(error) if is_gone(&error) => {}
                killed => killed?,
            }
        }
        self.child.wait()?;
        Ok(())
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// The host does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not in time; with its log.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        process::wait_within(&mut self.child, LIMIT).with_context(|| self.log())
    }

    /// Ends it by SIGTERM.
    ///
    /// # Errors
    /// It does not end in time; with its log.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Only the process: its children may have to survive.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
