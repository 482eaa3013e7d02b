//! Interrupting a thread's blocking system call without races.
#![allow(unsafe_code)] // installs a signal handler and sends a signal to one thread

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::process::getpid;
use rustix::thread::gettid;

/// Signal that makes a thread's system call fail with EINTR. Its handler does nothing.
const WAKE_SIGNAL: libc::c_int = libc::SIGUSR1;

/// Interval between two signals of an interrupter: a signal just before the system call has no
/// effect.
const RETRY: Duration = Duration::from_millis(1);

/// One thread's blocking call, which other threads can interrupt.
#[derive(Debug, Default)]
pub struct Interruption {
    state: Mutex<State>,
    left: Condvar,
    /// An eventfd that is written to.
    wakes: Option<Arc<OwnedFd>>,
}

#[derive(Debug, Default)]
struct State {
    interrupted: bool,
    /// The thread inside [`Interruption::run`].
    thread: Option<libc::pid_t>,
}

impl Interruption {
    /// No call is blocked and none is interrupted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Like [`Interruption::new`], for a wait without a thread: [`Interruption::interrupt`] also
    /// makes this eventfd readable.
    pub fn waking(eventfd: Arc<OwnedFd>) -> Self {
        Self {
            wakes: Some(eventfd),
            ..Self::default()
        }
    }

    /// Whether [`Interruption::interrupt`] was called.
    pub fn is_interrupted(&self) -> bool {
        self.state().interrupted
    }

    /// Makes the current or next call of [`Interruption::run`] fail with EINTR. Returns when that
    /// has happened.
    pub fn interrupt(&self) {
        let mut state = self.state();
        state.interrupted = true;
        if let Some(eventfd) = &self.wakes {
            // It fails only if it is readable already.
            let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
        }
        while let Some(thread) = state.thread {
            // The thread is alive, because it cannot leave `run` without the lock held here.
            send_wake_signal(thread);
            self.left.wait_for(&mut state, RETRY);
        }
    }

    /// Repeats `blocking` while it fails with EINTR, until it returns another result or is
    /// interrupted.
    ///
    /// # Errors
    /// EINTR if interrupted; else those of `blocking`.
    pub fn run<T>(&self, mut blocking: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        install_handler();
        let thread = own_thread();
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
        let mut state = self.state();
        state.thread = None;
        if state.interrupted {
            self.left.notify_all();
        }
        drop(state);
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each of the two plain fields is valid whenever the lock is free, whatever panicked.
        self.state.lock()
    }
}

/// Which thread is inside a system call that may block, so that others can make it return.
///
/// Unlike an [`Interruption`], it serves any number of calls, one after another, and entering it
/// makes no system call. [`BlockedThread::wake`] must be repeated until the call has returned: a
/// signal just before the call has no effect.
#[derive(Debug, Default)]
pub struct BlockedThread(AtomicI32);

impl BlockedThread {
    /// Announces that the calling thread enters a system call, until the returned value is dropped.
    /// A call that fails with EINTR may have been woken. Only one thread may be inside.
    pub fn enter(&self) -> Entered<'_> {
        self.0.store(own_thread(), Ordering::SeqCst);
        Entered(self)
    }

    /// Makes the call of the thread inside, if any, fail with EINTR.
    pub fn wake(&self) {
        let thread = self.0.load(Ordering::SeqCst);
        if thread != 0 {
            // A thread that has left meanwhile gets a signal that does nothing.
            send_wake_signal(thread);
        }
    }
}

/// A thread inside a [`BlockedThread`].
#[derive(Debug)]
pub struct Entered<'a>(&'a BlockedThread);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.0.store(0, Ordering::SeqCst);
    }
}

/// The calling thread's id. Asks the kernel once per thread, so a process that forks must not have
/// called it on the forking thread.
fn own_thread() -> libc::pid_t {
    thread_local! {
        static OWN: libc::pid_t = gettid().as_raw_nonzero().get();
    }
    OWN.with(|own| *own)
}

/// Interrupts the system call of a thread of this process.
fn send_wake_signal(thread: libc::pid_t) {
    install_handler();
    let process = getpid().as_raw_nonzero().get();
    // SAFETY: tgkill takes no pointers, and the signal has a handler.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, WAKE_SIGNAL) };
}

extern "C" fn do_nothing(_signal: libc::c_int) {}

fn install_handler() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // SAFETY: all-zero is a valid `sigaction` with an empty mask and no flags, so without
        // SA_RESTART.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = do_nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: `action` is initialised, and its handler does nothing.
        unsafe { libc::sigaction(WAKE_SIGNAL, &raw const action, std::ptr::null_mut()) };
    });
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;
    use std::thread;

    use super::*;

    /// Reads a byte by one system call. std does not retry a pipe's `read`.
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
