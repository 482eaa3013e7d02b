//! Files that a guest has closed, kept open for a moment for its opening them again.
//!
//! Opening a file is the dearest thing that a request may ask for, and programs open the same few again and again: headers,
//! libraries, scripts, indices. A file that was opened for reading alone, and not for the first time lately, is kept for less
//! than a second. Its inode is held anyway, and what is open for reading keeps nobody from writing, executing or removing it, or
//! from making its file system read-only; a host's program that wants a lease for writing has to try again. Kept files are few,
//! and the first to go when descriptors get scarce; those of an inode that the guest forgets go with it.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use gangplank_fuse::NodeId;
use gangplank_service::rate_limited;

use super::budget::Descriptor;

/// How many files of one guest are kept.
const MOST: usize = 64;

/// How many nodes that were closed are remembered, to tell which are opened again.
const REMEMBERED: usize = 64;

/// How long a file is kept, and how often that is looked at: in all less than attributes are valid by default.
const KEPT: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(250);

/// One guest's closed files.
#[derive(Debug, Default)]
pub(super) struct ClosedFiles(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Number of files; for whoever need not know exactly.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// The oldest first.
    files: VecDeque<Closed>,
    /// Nodes closed lately, kept or not; the oldest first.
    lately: VecDeque<NodeId>,
    /// Whether a thread sees to their being let go.
    watched: bool,
}

#[derive(Debug)]
struct Closed {
    node: NodeId,
    descriptor: Arc<Descriptor>,
    since: Instant,
}

impl ClosedFiles {
    /// Takes a file of `node` out, to be used again.
    pub(super) fn take(&self, node: NodeId) -> Option<Arc<Descriptor>> {
        if self.is_empty() {
            return None;
        }
        let mut state = self.0.lock();
        let at = state.files.iter().rposition(|file| file.node == node)?;
        let file = state.files.remove(at);
        self.0.count(&state);
        Some(file?.descriptor)
    }

    /// Keeps a file of `node` that was opened for reading alone, if it is likely to be opened again.
    pub(super) fn keep(&self, node: NodeId, descriptor: Arc<Descriptor>) {
        let mut state = self.0.lock();
        if !state.lately.contains(&node) {
            if state.lately.len() >= REMEMBERED {
                state.lately.pop_front();
            }
            state.lately.push_back(node);
            return;
        }
        if !state.watched {
            if let Err(error) = self.watch() {
                rate_limited!(warn, "cannot keep a file open: {error}");
                return;
            }
            state.watched = true;
        }
        let oldest = (state.files.len() >= MOST).then(|| state.files.pop_front());
        state.files.push_back(Closed {
            node,
            descriptor,
            since: Instant::now(),
        });
        self.0.count(&state);
        drop(state);
        // Closed without the lock: that may take its time.
        drop(oldest);
    }

    /// Closes those of an inode that the guest has forgotten.
    pub(super) fn forget(&self, node: NodeId) {
        if self.is_empty() {
            return;
        }
        let mut gone = Vec::new();
        let mut state = self.0.lock();
        while let Some(at) = state.files.iter().position(|file| file.node == node) {
            gone.extend(state.files.remove(at));
        }
        self.0.count(&state);
        drop(state);
        drop(gone);
    }

    /// Closes all of them; how many that were.
    pub(super) fn close_all(&self) -> usize {
        if self.is_empty() {
            return 0;
        }
        let mut state = self.0.lock();
        let files = mem::take(&mut state.files);
        self.0.count(&state);
        drop(state);
        files.len()
    }

    fn is_empty(&self) -> bool {
        self.0.count.load(Ordering::Relaxed) == 0
    }

    /// Starts a thread that closes what was kept for long enough, and ends when there is nothing left.
    fn watch(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.0);
        let thread = thread::Builder::new().name("closed_files".into());
        thread
            .spawn(move || {
                loop {
                    thread::sleep(LOOK);
                    if !shared.close_older(KEPT) {
                        return;
                    }
                }
            })
            .map(drop)
    }
}

impl Shared {
    /// Closes those that were kept for `age`. Whether any are left; if not, nobody watches over them any more.
    fn close_older(&self, age: Duration) -> bool {
        let mut state = self.lock();
        let old = state
            .files
            .iter()
            .take_while(|file| file.since.elapsed() >= age)
            .count();
        let gone: Vec<Closed> = state.files.drain(..old).collect();
        state.watched = !state.files.is_empty();
        self.count(&state);
        let watched = state.watched;
        drop(state);
        drop(gone);
        watched
    }

    fn count(&self, state: &State) {
        self.count.store(state.files.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::budget::Budget;
    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId::new(number)
    }

    fn descriptor(budget: &Arc<Budget>) -> Arc<Descriptor> {
        let file = File::open("/dev/null").expect("opened");
        let permit = budget.take().expect("less than the limit");
        Arc::new(Descriptor::new(file.into(), permit))
    }

    #[test]
    fn what_is_closed_twice_is_kept_and_what_is_closed_once_is_not() {
        let (closed, budget) = (ClosedFiles::default(), Budget::new(10));
        closed.keep(node(2), descriptor(&budget));
        assert!(closed.take(node(2)).is_none() && budget.held() == 0);
        closed.keep(node(2), descriptor(&budget));
        closed.keep(node(3), descriptor(&budget));
        assert_eq!(budget.held(), 1);
        assert!(closed.take(node(3)).is_none());
        assert!(closed.take(node(2)).is_some());
        assert!(closed.take(node(2)).is_none() && budget.held() == 0);
    }

    #[test]
    fn they_are_few_and_the_oldest_go_first() {
        let (closed, budget) = (ClosedFiles::default(), Budget::new(1000));
        let nodes = 2..2 + MOST as u64 + 1;
        for number in nodes.clone().flat_map(|number| [number, number]) {
            closed.keep(node(number), descriptor(&budget));
        }
        assert_eq!(budget.held(), MOST as u64);
        assert!(closed.take(node(nodes.start)).is_none());
        assert!(closed.take(node(nodes.end - 1)).is_some());
        assert_eq!(closed.close_all(), MOST - 1);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn a_forgotten_inodes_go_with_it() {
        let (closed, budget) = (ClosedFiles::default(), Budget::new(10));
        for number in [2, 2, 2, 3, 3] {
            closed.keep(node(number), descriptor(&budget));
        }
        assert_eq!(budget.held(), 3);
        closed.forget(node(2));
        assert!(closed.take(node(2)).is_none());
        assert_eq!(budget.held(), 1);
    }

    #[test]
    fn they_are_let_go_though_nobody_asks() {
        let (closed, budget) = (ClosedFiles::default(), Budget::new(10));
        for _ in 0..2 {
            closed.keep(node(2), descriptor(&budget));
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while budget.held() > 0 {
            assert!(Instant::now() < deadline, "still open");
            thread::sleep(LOOK / 10);
        }
        // And are watched over again afterwards.
        closed.keep(node(2), descriptor(&budget));
        while budget.held() > 0 {
            assert!(Instant::now() < deadline, "still open");
            thread::sleep(LOOK / 10);
        }
    }
}
