//! A cache of descriptors of closed files, for the next open of the same file.
//!
//! Opening a file is the most expensive operation, and programs open the same few files again and
//! again: headers, libraries, scripts, indices. The cache keeps a descriptor for less than a second
//! if the file was opened for reading only and was closed before recently. The inode is pinned
//! anyway. A descriptor open for reading does not keep anyone from writing, executing or removing
//! the file, nor from remounting its file system read-only; a host program that requests a write
//! lease has to retry. The cache is small. When descriptors run short it is emptied first, and
//! forgetting an inode removes its descriptors.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{io, mem, thread};

use gangplank_fuse::NodeId;
use gangplank_service::rate_limited;
use parking_lot::{Mutex, MutexGuard};

use super::budget::Descriptor;

/// Limit of cached descriptors.
const MAX_CACHED: usize = 64;

/// Number of recently closed nodes that are remembered, to recognise those that are reopened.
const HISTORY_LEN: usize = 64;

/// Age at which a descriptor is closed, and the interval between two checks. Together they are less
/// than the default attribute timeout of one second.
const MAX_AGE: Duration = Duration::from_millis(500);
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// One guest's cached descriptors.
#[derive(Debug, Default)]
pub(super) struct FdCache(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Number of cached descriptors, readable without the lock.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// The oldest first.
    files: VecDeque<CachedFd>,
    /// Recently closed nodes, cached or not; the oldest first.
    recently_closed: VecDeque<NodeId>,
    /// Whether the sweeper thread runs.
    sweeping: bool,
}

#[derive(Debug)]
struct CachedFd {
    node: NodeId,
    descriptor: Arc<Descriptor>,
    cached_at: Instant,
}

impl FdCache {
    /// Takes a cached descriptor of `node` for use by a new open.
    pub(super) fn take(&self, node: NodeId) -> Option<Arc<Descriptor>> {
        if self.is_empty() {
            return None;
        }
        let mut state = self.0.lock();
        let at = state.files.iter().rposition(|file| file.node == node)?;
        let file = state.files.remove(at);
        self.0.set_count(&state);
        Some(file?.descriptor)
    }

    /// Caches a descriptor of `node` that was opened for reading only, if the node was closed
    /// before recently.
    pub(super) fn insert(&self, node: NodeId, descriptor: Arc<Descriptor>) {
        let mut state = self.0.lock();
        if !state.recently_closed.contains(&node) {
            if state.recently_closed.len() >= HISTORY_LEN {
                state.recently_closed.pop_front();
            }
            state.recently_closed.push_back(node);
            return;
        }
        if !state.sweeping {
            if let Err(error) = self.start_sweeper() {
                rate_limited!(
                    warn,
                    "cannot start the fd cache's thread, so a file is not cached: {error}"
                );
                return;
            }
            state.sweeping = true;
        }
        let oldest = (state.files.len() >= MAX_CACHED).then(|| state.files.pop_front());
        state.files.push_back(CachedFd {
            node,
            descriptor,
            cached_at: Instant::now(),
        });
        self.0.set_count(&state);
        drop(state);
        // Closed without the lock, because close may block.
        drop(oldest);
    }

    /// Closes the descriptors of an inode that the guest has forgotten.
    pub(super) fn remove(&self, node: NodeId) {
        if self.is_empty() {
            return;
        }
        let mut gone = Vec::new();
        let mut state = self.0.lock();
        while let Some(at) = state.files.iter().position(|file| file.node == node) {
            gone.extend(state.files.remove(at));
        }
        self.0.set_count(&state);
        drop(state);
        drop(gone);
    }

    /// Closes all descriptors and returns their number.
    pub(super) fn clear(&self) -> usize {
        if self.is_empty() {
            return 0;
        }
        let mut state = self.0.lock();
        let files = mem::take(&mut state.files);
        self.0.set_count(&state);
        drop(state);
        files.len()
    }

    fn is_empty(&self) -> bool {
        self.0.count.load(Ordering::Relaxed) == 0
    }

    /// Starts a thread that closes old descriptors and exits when the cache is empty.
    fn start_sweeper(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.0);
        let thread = thread::Builder::new().name("fd_cache".into());
        thread
            .spawn(move || {
                loop {
                    thread::sleep(SWEEP_INTERVAL);
                    if !shared.close_older_than(MAX_AGE) {
                        return;
                    }
                }
            })
            .map(drop)
    }
}

impl Shared {
    /// Closes descriptors older than `age`. Returns whether any are left; if not, the sweeper
    /// exits.
    fn close_older_than(&self, age: Duration) -> bool {
        let mut state = self.lock();
        let old = state
            .files
            .iter()
            .take_while(|file| file.cached_at.elapsed() >= age)
            .count();
        let gone: Vec<CachedFd> = state.files.drain(..old).collect();
        state.sweeping = !state.files.is_empty();
        self.set_count(&state);
        let sweeping = state.sweeping;
        drop(state);
        drop(gone);
        sweeping
    }

    fn set_count(&self, state: &State) {
        self.count.store(state.files.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::budget::{Budget, PermitFor};
    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId::new(number)
    }

    fn descriptor(budget: &Arc<Budget>) -> Arc<Descriptor> {
        let file = File::open("/dev/null").expect("opened");
        let permit = budget
            .acquire(PermitFor::File)
            .expect("less than the limit");
        Arc::new(Descriptor::new(file.into(), permit))
    }

    #[test]
    fn what_is_closed_twice_is_kept_and_what_is_closed_once_is_not() {
        let (cache, budget) = (FdCache::default(), Budget::new(10));
        cache.insert(node(2), descriptor(&budget));
        assert!(cache.take(node(2)).is_none() && budget.held() == 0);
        cache.insert(node(2), descriptor(&budget));
        cache.insert(node(3), descriptor(&budget));
        assert_eq!(budget.held(), 1);
        assert!(cache.take(node(3)).is_none());
        assert!(cache.take(node(2)).is_some());
        assert!(cache.take(node(2)).is_none() && budget.held() == 0);
    }

    #[test]
    fn they_are_few_and_the_oldest_go_first() {
        let (cache, budget) = (FdCache::default(), Budget::new(1000));
        let nodes = 2..2 + MAX_CACHED as u64 + 1;
        for number in nodes.clone().flat_map(|number| [number, number]) {
            cache.insert(node(number), descriptor(&budget));
        }
        assert_eq!(budget.held(), MAX_CACHED as u64);
        assert!(cache.take(node(nodes.start)).is_none());
        assert!(cache.take(node(nodes.end - 1)).is_some());
        assert_eq!(cache.clear(), MAX_CACHED - 1);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn a_forgotten_inodes_go_with_it() {
        let (cache, budget) = (FdCache::default(), Budget::new(10));
        for number in [2, 2, 2, 3, 3] {
            cache.insert(node(number), descriptor(&budget));
        }
        assert_eq!(budget.held(), 3);
        cache.remove(node(2));
        assert!(cache.take(node(2)).is_none());
        assert_eq!(budget.held(), 1);
    }

    #[test]
    fn they_are_let_go_though_nobody_asks() {
        let (cache, budget) = (FdCache::default(), Budget::new(10));
        for _ in 0..2 {
            cache.insert(node(2), descriptor(&budget));
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while budget.held() > 0 {
            assert!(Instant::now() < deadline, "still open");
            thread::sleep(SWEEP_INTERVAL / 10);
        }
        // A new sweeper starts afterwards.
        cache.insert(node(2), descriptor(&budget));
        while budget.held() > 0 {
            assert!(Instant::now() < deadline, "still open");
            thread::sleep(SWEEP_INTERVAL / 10);
        }
    }
}
