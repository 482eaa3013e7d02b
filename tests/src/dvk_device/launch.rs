//! 32-bit programs under the emulated module.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

pub use crate::bao::LAUNCH;
use crate::bao::launch::{become_behind, start_behind};
use crate::bao::seccomp::{argument, line};
use crate::process;

use super::EmulatedDevice;

/// Limit for a program to end after SIGTERM.
const LIMIT: Duration = Duration::from_secs(20);

/// `ioctl` of i386 (asm/unistd_32.h).
const IOCTL: u32 = 54;
/// `AUDIT_ARCH_I386` (linux/audit.h).
const I386: u32 = 0x4000_0003;
/// The type of DVK's calls, shifted to its position in a number.
const TYPE: u32 = 0xe300;

/// Diverts ioctls of DVK's type that 32-bit programs make.
fn filter() -> [libc::sock_filter; 9] {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
    const END: u32 = libc::BPF_RET | libc::BPF_K;
    const NEXT: [u8; 2] = [0, 0];
    [
        line(LOAD, NEXT, 4), // the architecture
        line(EQUAL, [0, 5], I386),
        line(LOAD, NEXT, 0), // the system call's number
        line(EQUAL, [0, 3], IOCTL),
        line(LOAD, NEXT, argument(1)),
        line(AND, NEXT, 0xff00),
        line(EQUAL, [1, 0], TYPE),
        line(END, NEXT, libc::SECCOMP_RET_ALLOW),
        line(END, NEXT, libc::SECCOMP_RET_USER_NOTIF),
    ]
}

/// Acts as a program whose first argument is [`LAUNCH`]: becomes the program in the further
/// arguments, behind the filter.
///
/// # Errors
/// What the kernel refuses.
pub fn become_program(arguments: impl Iterator<Item = OsString>) -> Result<Infallible> {
    become_behind(&mut filter(), arguments)
}

/// A program under the emulated module; killed when dropped.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts `program` with its output in the file `log`. The calling program has to handle
    /// [`LAUNCH`].
    ///
    /// # Errors
    /// It cannot be started, or the kernel has no user notifications.
    pub fn start(
        emulated: &Arc<EmulatedDevice>,
        program: &Path,
        arguments: &[String],
        log: &Path,
    ) -> Result<Self> {
        let (child, listener) = start_behind(program, arguments, log)?;
        let listener = Arc::new(listener);
        let emulated = Arc::clone(emulated);
        thread::spawn(move || {
            while let Ok(Some(note)) = listener.next() {
                let (emulated, listener) = (Arc::clone(&emulated), Arc::clone(&listener));
                // A waiting call does not delay others.
                thread::spawn(move || emulated.answer(&listener, note));
            }
            emulated.ended();
        });
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// Its output so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it by SIGTERM.
    ///
    /// # Errors
    /// It does not end in time; with its log.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        process::signal(&self.child, Signal::TERM).context("signalling a program")?;
        process::wait_within(&mut self.child, LIMIT).with_context(|| self.log())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}
