//! Changes that guests hear of (`--events`): who reads them, who waits, and who wakes watchers.
//!
//! Stock guests have no queue by which a daemon could notify them. So changes are read from a file
//! of the share that exists for guests alone, `.gangplank/events`, whose READ waits. A request that
//! waits has no thread; `event_thread` answers all of them.
//!
//! A process that has opened the file for reading and writing is a *waker*: it makes the guest's
//! kernel tell its watchers what the kernel has not seen, by system calls that look like changes.
//! Requests of this process change nothing (`waker.rs`).

pub(super) mod control;
pub mod node;
mod queue;
mod waker;

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use gangplank_events::Kind;
use gangplank_fuse::{Handle, NodeId, Unique};
use parking_lot::{Mutex, MutexGuard};
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::ClockId;

pub(super) use self::waker::View;

use self::queue::Queue;
use crate::device::request::Request;
use crate::state::arena::Arena;
use crate::sys::clock;
use crate::sys::interrupt::Interruption;

/// How long a READ waits. Linux's virtio-fs driver sends no INTERRUPT, so a process that is killed
/// while it reads ends only when the READ does.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// Most processes of a guest that read changes at a time.
const MAX_READERS: usize = 64;

/// Most names whose inode is remembered.
const MAX_NAMES: usize = 1 << 16;

/// A change that another process of the host has made, another guest's daemon included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// What happened to a path, relative to the share. The path of a directory ends in a slash.
    Of(Kind, &'a [u8]),
    /// Changes were lost.
    Lost,
}

/// A READ that waits for changes.
#[derive(Debug)]
pub struct EventRead {
    unique: Unique,
    handle: u64,
    size: usize,
}

/// A READ that waits, with its request.
pub(super) struct Waiting {
    pub(super) request: Box<Request>,
    read: EventRead,
    until: Instant,
    /// Whether INTERRUPT or the session's end has ended the wait.
    is_interrupted: bool,
    /// The device ends the wait: the ring stops.
    stop: Arc<Interruption>,
}

/// What a READ that has waited is answered with.
pub(super) type Answer = (Waiting, io::Result<Vec<u8>>);

/// The changes of one guest's session.
pub(super) struct Events {
    state: Mutex<State>,
    /// Held while the first reader comes or the last one goes, and the file system is told.
    watching: Mutex<()>,
    /// Whether somebody reads.
    is_read: AtomicBool,
    /// Wakes the thread that answers READ.
    wake: Arc<OwnedFd>,
    /// Where the waker outlives the process; `None` in tests.
    arena: Option<Arc<Arena>>,
    /// The waker, without an arena.
    own_waker: AtomicU32,
}

#[derive(Default)]
struct State {
    /// The connection ends: no READ may begin to wait.
    is_closed: bool,
    /// Whether a thread answers READ.
    has_thread: bool,
    readers: HashMap<u64, Queue>,
    waiting: Vec<Waiting>,
    /// How the waker sees names.
    view: View,
    /// The inodes that names led to when the guest looked them up last.
    names: HashMap<(NodeId, Box<CStr>), NodeId>,
    last_handle: u64,
}

impl EventRead {
    pub(super) const fn unique(&self) -> Unique {
        self.unique
    }
}

impl Waiting {
    pub(super) const fn unique(&self) -> Unique {
        self.read.unique
    }
}

impl Events {
    /// Nobody reads, except who did when the worker before died.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub(super) fn new(arena: Option<Arc<Arena>>) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            state: Mutex::default(),
            watching: Mutex::default(),
            is_read: AtomicBool::new(false),
            wake: Arc::new(wake),
            arena,
            own_waker: AtomicU32::new(0),
        })
    }

    /// Whether anybody reads changes.
    pub(super) fn is_read(&self) -> bool {
        self.is_read.load(Ordering::Relaxed)
    }

    /// Whether requests of this process change nothing.
    pub(super) fn is_waker(&self, pid: u32) -> bool {
        pid != 0 && self.waker().load(Ordering::Relaxed) == pid
    }

    /// The process whose requests change nothing, if there is one.
    pub(super) fn known_waker(&self) -> Option<u32> {
        Some(self.waker().load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// The guest has arrived from another daemon, at which this process was the waker. Its first
    /// READ makes it a reader again.
    pub(super) fn resume_waker(&self, pid: Option<u32>) {
        self.waker().store(pid.unwrap_or(0), Ordering::Relaxed);
    }

    fn waker(&self) -> &AtomicU32 {
        let arena = self.arena.as_ref();
        arena.map_or(&self.own_waker, |arena| &arena.header().waker)
    }

    /// Adds a reader, which is a waker if `wakes`.
    ///
    /// # Errors
    /// EMFILE: too many read. EBUSY: another process is the waker. EPERM: the process's number is
    /// not known.
    fn open(&self, pid: u32, wakes: bool) -> io::Result<Handle> {
        let mut state = self.lock();
        if state.readers.len() >= MAX_READERS {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        if wakes {
            if pid == 0 {
                return Err(io::Error::from_raw_os_error(libc::EPERM));
            }
            let taken = self
                .waker()
                .compare_exchange(0, pid, Ordering::Relaxed, Ordering::Relaxed);
            if taken.is_err() {
                return Err(io::Error::from_raw_os_error(libc::EBUSY));
            }
            state.view = View::Current;
        }
        // Not a number that an earlier worker has given.
        let now = clock::now(ClockId::Monotonic).cast_unsigned() << 1;
        let handle = now.max(state.last_handle.wrapping_add(2)) & !1 | u64::from(wakes);
        state.last_handle = handle;
        state.readers.insert(handle, Queue::new());
        self.is_read.store(true, Ordering::Relaxed);
        Ok(Handle::new(handle))
    }

    /// Whether a handle is the waker's.
    const fn wakes(handle: u64) -> bool {
        handle & 1 != 0
    }

    /// Removes a reader. Returns whether it was the last one.
    fn release(&self, handle: u64) -> bool {
        let mut state = self.lock();
        if Self::wakes(handle) {
            self.waker().store(0, Ordering::Relaxed);
        }
        let is_known = state.readers.remove(&handle).is_some();
        let is_last = is_known && state.readers.is_empty();
        if is_last {
            state.names.clear();
            self.is_read.store(false, Ordering::Relaxed);
        }
        drop(state);
        self.wake();
        is_last
    }

    /// The reader of a handle that an earlier worker has given is one again, and is told to look at
    /// everything. Returns whether nobody read before.
    fn know(&self, handle: u64) -> io::Result<bool> {
        let mut state = self.lock();
        if state.readers.contains_key(&handle) {
            return Ok(false);
        }
        if state.readers.len() >= MAX_READERS {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let is_first = state.readers.is_empty();
        state.readers.insert(handle, Queue::new());
        self.is_read.store(true, Ordering::Relaxed);
        Ok(is_first)
    }

    /// Whether a READ of this handle has to wait.
    fn must_wait(&self, handle: u64) -> bool {
        self.lock()
            .readers
            .get(&handle)
            .is_some_and(Queue::is_empty)
    }

    /// Takes what a reader has not read.
    ///
    /// # Errors
    /// EINVAL: the first line has more than `size` bytes.
    fn take(&self, handle: u64, size: usize) -> io::Result<Vec<u8>> {
        take(&mut self.lock(), handle, size)
    }

    /// Tells all readers of a change.
    pub(super) fn tell(&self, change: Change<'_>) {
        for queue in self.lock().readers.values_mut() {
            match change {
                Change::Of(kind, path) => queue.push(kind, path),
                Change::Lost => queue.lose(),
            }
        }
    }

    /// Has a READ wait. Returns whether a thread has to be started that answers it.
    ///
    /// # Errors
    /// The connection ends: returns the request.
    pub(super) fn wait(
        &self,
        request: Box<Request>,
        read: EventRead,
    ) -> Result<bool, Box<Request>> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(request);
        }
        let stop = Arc::new(Interruption::waking(Arc::clone(&self.wake)));
        let mut waiting = Waiting {
            request,
            read,
            until: Instant::now() + MAX_WAIT,
            is_interrupted: false,
            stop,
        };
        waiting.request.set_interruption(Arc::clone(&waiting.stop));
        state.waiting.push(waiting);
        let starts = !std::mem::replace(&mut state.has_thread, true);
        drop(state);
        self.wake();
        Ok(starts)
    }

    /// No thread could be started: returns all that wait.
    pub(super) fn give_up(&self) -> Vec<Answer> {
        let mut state = self.lock();
        state.has_thread = false;
        let waiting = std::mem::take(&mut state.waiting);
        let failed = || io::Error::from_raw_os_error(libc::ENOMEM);
        waiting
            .into_iter()
            .map(|one| (one, Err(failed())))
            .collect()
    }

    /// Ends the wait of a request. Returns false if it does not wait.
    pub(super) fn interrupt(&self, unique: Unique) -> bool {
        let mut state = self.lock();
        let one = state.waiting.iter_mut();
        let found = one.filter(|waiting| waiting.read.unique == unique);
        let count = found.map(|one| one.is_interrupted = true).count();
        drop(state);
        self.wake();
        count > 0
    }

    /// Ends all waits and refuses new ones.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        let all = state.waiting.iter_mut();
        all.for_each(|one| one.is_interrupted = true);
        drop(state);
        self.wake();
    }

    /// Ends all waits, and forgets all readers.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        let all = state.waiting.iter_mut();
        all.for_each(|one| one.is_interrupted = true);
        state.readers.clear();
        state.names.clear();
        self.waker().store(0, Ordering::Relaxed);
        self.is_read.store(false, Ordering::Relaxed);
        drop(state);
        self.wake();
    }

    /// What becomes readable when the thread has something to do.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn wake(&self) {
        // It fails only if the thread is to wake already.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }

    /// The READs that need not wait on, with what they are answered.
    pub(super) fn answers(&self) -> Vec<Answer> {
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        let mut state = self.lock();
        let now = Instant::now();
        let mut answers = Vec::new();
        for one in std::mem::take(&mut state.waiting) {
            let (handle, size) = (one.read.handle, one.read.size);
            let has_some = state
                .readers
                .get(&handle)
                .is_some_and(|all| !all.is_empty());
            if one.is_interrupted {
                let interrupted = io::Error::from_raw_os_error(libc::EINTR);
                answers.push((one, Err(interrupted)));
            } else if has_some {
                let lines = take(&mut state, handle, size);
                answers.push((one, lines));
            } else if now >= one.until || one.stop.is_interrupted() {
                answers.push((one, Ok(gangplank_events::IDLE.to_vec())));
            } else {
                state.waiting.push(one);
            }
        }
        answers
    }

    /// How long the thread may sleep; `None` if it is not needed any more, and ends.
    pub(super) fn pause(&self) -> Option<Duration> {
        let mut state = self.lock();
        let first = state.waiting.iter().map(|one| one.until).min();
        if first.is_none() && (state.is_closed || state.readers.is_empty()) {
            state.has_thread = false;
            return None;
        }
        // While a reader is busy, changes are taken off the host's queue.
        let until = first.unwrap_or_else(|| Instant::now() + MAX_WAIT);
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// The guest has looked up a name.
    fn note_name(&self, parent: NodeId, name: &CStr, node: NodeId) {
        let mut state = self.lock();
        if state.names.len() >= MAX_NAMES {
            state.names.clear();
        }
        state.names.insert((parent, name.into()), node);
    }

    /// What a name led to when the guest looked it up last.
    fn noted(&self, parent: NodeId, name: &CStr) -> Option<NodeId> {
        self.lock().names.get(&(parent, name.into())).copied()
    }

    /// Until the returned value is dropped, no other reader comes or goes.
    pub(super) fn hold_readers(&self) -> MutexGuard<'_, ()> {
        self.watching.lock()
    }

    fn set_view(&self, view: View) {
        self.lock().view = view;
    }

    fn view(&self) -> View {
        self.lock().view
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

fn take(state: &mut State, handle: u64, size: usize) -> io::Result<Vec<u8>> {
    let queue = state.readers.get_mut(&handle);
    let queue = queue.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
    if queue.is_empty() {
        return Ok(gangplank_events::IDLE.to_vec());
    }
    match queue.take(size) {
        lines if lines.is_empty() => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        lines => Ok(lines),
    }
}
