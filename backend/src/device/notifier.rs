//! A descriptor of the frontend that the device signals through: a ring's call or error descriptor.
//!
//! Its status flags belong to the frontend as well: with O_NONBLOCK set by the device, a driver
//! that sleeps in read(2) on its call eventfd would fail with EAGAIN. So the flags stay as they
//! are, and a descriptor without room blocks the thread that signals. That is a thread of the
//! guest's own worker process. Once the connection ends, no signal waits for room any more.

use std::fs::File;
use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering};

use gangplank_service::rate_limited;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::{Errno, ReadWriteFlags};

use crate::sys::interrupt::BlockedThread;

/// The offset that means the file's own position, or none (`pwritev2(2)`).
pub(super) const NO_OFFSET: u64 = u64::MAX;

/// The descriptor, and the thread that writes to it.
#[derive(Debug, Default)]
pub(super) struct Notifier {
    target: Mutex<Option<Target>>,
    writing: BlockedThread,
    /// The connection ends: a signal without room is dropped.
    ending: AtomicBool,
    is_stream: AtomicBool,
}

#[derive(Debug)]
struct Target {
    file: File,
    write_mode: WriteMode,
}

/// How a signal is written by one system call, if possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteMode {
    /// With `write`. An eventfd has room for 2^64 - 2 signals.
    Plain,
    /// With `pwritev2` and `RWF_NOWAIT`, for pipes and sockets: User Mode Linux has sockets. One
    /// without room already holds a signal.
    NoWait,
    /// With `poll` before `write`: pipes and sockets permit `RWF_NOWAIT` since Linux 6.4.
    PollFirst,
}

impl Notifier {
    /// Replaces the descriptor.
    pub(super) fn set(&self, file: Option<File>) {
        let kind = file.as_ref().and_then(kind_of);
        let target = file.map(|file| Target {
            write_mode: WriteMode::of(kind),
            file,
        });
        let is_stream = matches!(kind, Some(FileType::Fifo | FileType::Socket));
        self.is_stream.store(is_stream, Ordering::Relaxed);
        *self.target.lock() = target;
    }

    /// Whether the descriptor is a socket or a pipe. User Mode Linux has a pair of sockets
    /// (`os_pipe`, arch/um/os-Linux/file.c), and virtual machines have eventfds.
    pub(super) fn is_stream(&self) -> bool {
        self.is_stream.load(Ordering::Relaxed)
    }

    /// Signals once, if there is a descriptor. Waits while an eventfd has no room, until
    /// [`Notifier::end`].
    pub(super) fn signal(&self) {
        let mut target = self.target.lock();
        let Some(target) = &mut *target else { return };
        let _writing = self.writing.enter();
        loop {
            match target.write(self.ending.load(Ordering::SeqCst)) {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP) if target.write_mode == WriteMode::NoWait => {
                    target.write_mode = WriteMode::PollFirst;
                }
                // AGAIN: there is a signal already. PIPE: the guest has gone, and then its
                // connection ends as well.
                Ok(_) | Err(Errno::AGAIN | Errno::PIPE) => return,
                Err(error) => {
                    rate_limited!(debug, "cannot signal the driver: {error}");
                    return;
                }
            }
        }
    }

    /// From now on, a signal without room is dropped, once [`Notifier::wake`] has woken its thread.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
    }

    /// Wakes the thread that signals.
    pub(super) fn wake(&self) {
        self.writing.wake();
    }
}

impl Target {
    fn write(&self, is_ending: bool) -> rustix::io::Result<usize> {
        let signal = 1_u64.to_ne_bytes();
        match self.write_mode {
            WriteMode::NoWait => {
                let part = [IoSlice::new(&signal)];
                rustix::io::pwritev2(&self.file, &part, NO_OFFSET, ReadWriteFlags::NOWAIT)
            }
            WriteMode::Plain if !is_ending => rustix::io::write(&self.file, &signal),
            WriteMode::Plain | WriteMode::PollFirst => {
                if !is_ready(&self.file, PollFlags::OUT)? {
                    return Err(Errno::AGAIN);
                }
                rustix::io::write(&self.file, &signal)
            }
        }
    }
}

/// Whether a descriptor is readable or writable now, or fails at once.
pub(super) fn is_ready(
    file: impl std::os::fd::AsFd,
    events: PollFlags,
) -> rustix::io::Result<bool> {
    let mut ready = [PollFd::new(&file, events)];
    poll(&mut ready, Some(&Timespec::default())).map(|count| count > 0)
}

fn kind_of(file: &File) -> Option<FileType> {
    let stat = rustix::fs::fstat(file).ok()?;
    Some(FileType::from_raw_mode(stat.st_mode))
}

impl WriteMode {
    const fn of(kind: Option<FileType>) -> Self {
        match kind {
            Some(FileType::Fifo | FileType::Socket) => Self::NoWait,
            _ => Self::Plain,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::thread;
    use std::time::{Duration, Instant};

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::OFlags;

    use super::*;

    fn notifier(far: impl Into<OwnedFd>) -> Arc<Notifier> {
        let notifier = Notifier::default();
        notifier.set(Some(File::from(far.into())));
        Arc::new(notifier)
    }

    fn flags(fd: impl AsFd) -> OFlags {
        rustix::fs::fcntl_getfl(fd).expect("flags")
    }

    #[test]
    fn a_driver_may_sleep_in_read_on_its_call_eventfd() {
        let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let before = flags(&event);
        let notifier = notifier(event.try_clone().expect("cloned"));
        assert_eq!(flags(&event), before);
        let driver = thread::spawn(move || {
            let mut count = [0; 8];
            rustix::io::read(&event, &mut count).map(|_| u64::from_ne_bytes(count))
        });
        thread::sleep(Duration::from_millis(20));
        notifier.signal();
        assert_eq!(driver.join().expect("no panic"), Ok(1));
    }

    #[test]
    fn full_pipes_and_sockets_do_not_block_and_keep_their_flags() {
        let (mut near, far) = std::io::pipe().expect("a pipe");
        let (mut near_socket, far_socket) = UnixStream::pair().expect("sockets");
        near_socket.set_nonblocking(true).expect("set");
        for far in [OwnedFd::from(far), far_socket.into()] {
            let before = flags(&far);
            let notifier = notifier(far.try_clone().expect("cloned"));
            for mode in [WriteMode::NoWait, WriteMode::PollFirst] {
                if let Some(target) = &mut *notifier.target.lock() {
                    assert_ne!(target.write_mode, WriteMode::Plain);
                    target.write_mode = mode;
                }
                // More than either buffer holds.
                for _ in 0..100_000 {
                    notifier.signal();
                }
            }
            assert_eq!(flags(&far), before);
        }
        let mut signal = [0; 8];
        for near in [&mut near as &mut dyn Read, &mut near_socket] {
            near.read_exact(&mut signal).expect("a signal");
            assert_eq!(u64::from_ne_bytes(signal), 1);
        }
    }

    #[test]
    fn a_full_eventfd_blocks_until_it_is_read_or_the_connection_ends() {
        let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let fill = || rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).expect("filled");
        let notifier = notifier(event.try_clone().expect("cloned"));
        let signal = || {
            let notifier = Arc::clone(&notifier);
            thread::spawn(move || notifier.signal())
        };

        fill();
        let blocked = signal();
        thread::sleep(Duration::from_millis(20));
        assert!(!blocked.is_finished());
        // A signal alone does not end the wait.
        notifier.wake();
        thread::sleep(Duration::from_millis(20));
        assert!(!blocked.is_finished());
        let mut count = [0; 8];
        rustix::io::read(&event, &mut count).expect("read");
        blocked.join().expect("no panic");
        rustix::io::read(&event, &mut count).expect("read");
        assert_eq!(u64::from_ne_bytes(count), 1, "the signal came after all");

        fill();
        let blocked = signal();
        thread::sleep(Duration::from_millis(20));
        notifier.end();
        let start = Instant::now();
        while !blocked.is_finished() {
            notifier.wake();
            thread::sleep(Duration::from_millis(1));
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "it goes on waiting"
            );
        }
        // Later signals do not wait, and with room they still arrive.
        notifier.signal();
        rustix::io::read(&event, &mut count).expect("read");
        notifier.signal();
        rustix::io::read(&event, &mut count).expect("read");
        assert_eq!(u64::from_ne_bytes(count), 1);
    }

    #[test]
    fn a_closed_pipe_is_no_reason_to_stop() {
        let (near, far) = std::io::pipe().expect("a pipe");
        drop(near);
        notifier(far).signal();
        Notifier::default().signal();
    }
}
