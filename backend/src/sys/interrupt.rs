//! Getting a thread out of a blocking system call, without races.
#![allow(unsafe_code)] // installs a signal handler and sends a signal to one thread

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use rustix::process::getpid;
use rustix::thread::gettid;

/// Sent to a thread to make its system call fail with EINTR; its handler does nothing.
const WAKE_SIGNAL: libc::c_int = libc::SIGUSR1;

/// How long an interrupter waits before it signals again: the first signal may come just before the system call.
const RETRY: Duration = Duration::from_millis(1);

/// One thread's blocking call, and the means of others to end it.
#[derive(Debug, Default)]
pub struct Interruption {
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    interrupted: bool,
    /// The thread that is inside [`Interruption::run`].
    thread: Option<libc::pid_t>,
}

impl Interruption {
    /// Nothing blocked, nothing interrupted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether [`Interruption::interrupt`] was called.
    pub fn is_interrupted(&self) -> bool {
        self.state().interrupted
    }

    /// Makes the call that [`Interruption::run`] is in, or will be in, fail with EINTR, and returns once it has.
    pub fn interrupt(&self) {
        let process = getpid().as_raw_nonzero().get();
        let mut state = self.state();
        state.interrupted = true;
        while let Some(thread) = state.thread {
            // SAFETY: tgkill takes plain numbers. The thread is alive, since it cannot leave `run` without the lock
            // that is held here, and the signal has a handler, since `run` installed it.
            unsafe { libc::syscall(libc::SYS_tgkill, process, thread, WAKE_SIGNAL) };
            state = self
                .left
                .wait_timeout(state, RETRY)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Calls `blocking` again and again while it fails with EINTR, until it comes to another end or is interrupted.
    ///
    /// # Errors
    /// EINTR when interrupted; else what `blocking` returns.
    pub fn run<T>(&self, mut blocking: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        install_handler();
        let thread = gettid().as_raw_nonzero().get();
        {
            let mut state = self.state();
            if state.interrupted {
                return Err(io::Error::from_raw_os_error(libc::EINTR));
            }
            state.thread = Some(thread);
        }
        let result = loop {
            match blocking() {
                Err(error)
                    if error.kind() == io::ErrorKind::Interrupted && !self.is_interrupted() => {}
                result => break result,
            }
        };
        self.state().thread = None;
        self.left.notify_all();
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is two plain fields, each right whenever the lock is free.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

extern "C" fn do_nothing(_signal: libc::c_int) {}

fn install_handler() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // SAFETY: all-zero is a valid `sigaction`: no flags (above all not SA_RESTART), an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = do_nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: `action` is initialised, and its handler does nothing at all, so it is safe in any context.
        unsafe { libc::sigaction(WAKE_SIGNAL, &raw const action, std::ptr::null_mut()) };
    });
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;
    use std::thread;

    use super::*;

    /// Reads a byte by one system call, which std's `Read` for a pipe does not retry.
    fn read_byte(mut pipe: &io::PipeReader) -> io::Result<u8> {
        let mut byte = [0];
        pipe.read(&mut byte).map(|_| byte[0])
    }

    #[test]
    fn a_blocked_call_is_interrupted() {
        let (reader, _writer) = io::pipe().expect("a pipe");
        let interruption = Arc::new(Interruption::new());
        let blocked = thread::spawn({
            let interruption = Arc::clone(&interruption);
            move || {
                interruption
                    .run(|| read_byte(&reader))
                    .map_err(|e| e.kind())
            }
        });
        interruption.interrupt();
        assert_eq!(
            blocked.join().expect("no panic"),
            Err(io::ErrorKind::Interrupted)
        );
    }

    #[test]
    fn an_interruption_before_the_call_is_not_lost() {
        let interruption = Interruption::new();
        interruption.interrupt();
        let result = interruption.run(|| -> io::Result<()> { unreachable!("must not be called") });
        assert_eq!(
            result.map_err(|e| e.kind()),
            Err(io::ErrorKind::Interrupted)
        );
    }

    #[test]
    fn a_call_that_ends_by_itself_gives_its_result() {
        assert_eq!(Interruption::new().run(|| Ok(7)).expect("seven"), 7);
    }
}
