//! Caches directories by name, so that a path need not be looked up from the root each time.
//!
//! An entry is valid for the time that the daemon allows, and up to [`CacheLimits::max_age`]. The
//! cache serves the directories on the way to a file. The last name of a path is always looked up.
//! The cache has two halves. When the younger is full, it replaces the older, whose entries are
//! dropped. An entry that is used moves to the younger half. So the least used entries are dropped,
//! and their nodes forgotten.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use gangplank_fuse::NodeId;
use parking_lot::{Mutex, MutexGuard};

/// The size and age limits of the cache.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct CacheLimits {
    /// Number of directories.
    pub(super) directories: usize,
    /// Longest validity, whatever the daemon allows.
    pub(super) max_age: Duration,
}

#[derive(Debug)]
struct CacheEntry<T> {
    found: T,
    until: Instant,
}

/// Entries by directory and name.
type Names<T> = HashMap<NodeId, HashMap<Box<[u8]>, CacheEntry<T>>>;

#[derive(Debug)]
struct CacheHalf<T> {
    names: Names<T>,
    count: usize,
}

impl<T> Default for CacheHalf<T> {
    fn default() -> Self {
        Self {
            names: HashMap::new(),
            count: 0,
        }
    }
}

impl<T> CacheHalf<T> {
    fn get(&self, parent: NodeId, name: &[u8]) -> Option<&CacheEntry<T>> {
        self.names.get(&parent)?.get(name)
    }

    fn insert(
        &mut self,
        parent: NodeId,
        name: &[u8],
        known: CacheEntry<T>,
    ) -> Option<CacheEntry<T>> {
        let names = self.names.entry(parent).or_default();
        let before = names.insert(name.into(), known);
        if before.is_none() {
            self.count = self.count.saturating_add(1);
        }
        before
    }

    fn remove(&mut self, parent: NodeId, name: &[u8]) -> Option<CacheEntry<T>> {
        let names = self.names.get_mut(&parent)?;
        let known = names.remove(name)?;
        self.count = self.count.saturating_sub(1);
        if names.is_empty() {
            self.names.remove(&parent);
        }
        Some(known)
    }
}

#[derive(Debug)]
struct CacheHalves<T> {
    young: CacheHalf<T>,
    old: CacheHalf<T>,
}

/// Directories by name.
#[derive(Debug)]
pub(super) struct Cache<T> {
    limits: CacheLimits,
    halves: Mutex<CacheHalves<T>>,
}

impl<T: Clone> Cache<T> {
    pub(super) fn new(limits: CacheLimits) -> Self {
        Self {
            limits,
            halves: Mutex::new(CacheHalves {
                young: CacheHalf::default(),
                old: CacheHalf::default(),
            }),
        }
    }

    /// The directory `name` in `parent`, if it is cached and valid.
    pub(super) fn get(&self, parent: NodeId, name: &[u8]) -> Option<T> {
        let now = Instant::now();
        let mut halves = self.lock();
        if let Some(known) = halves.young.get(parent, name) {
            return (now < known.until).then(|| known.found.clone());
        }
        let known = halves.old.remove(parent, name)?;
        if now >= known.until {
            drop(halves);
            return None;
        }
        let found = known.found.clone();
        let evicted = self.insert_recent(&mut halves, parent, name, known);
        // Forgetting nodes may wait for the daemon, so no lock is held.
        drop(halves);
        drop(evicted);
        Some(found)
    }

    /// Caches the directory `name` in `parent` for `valid`, the time that the daemon allows.
    pub(super) fn put(&self, parent: NodeId, name: &[u8], found: &T, valid: Duration) {
        let valid = valid.min(self.limits.max_age);
        if valid.is_zero() || self.limits.directories == 0 {
            return;
        }
        let known = CacheEntry {
            found: found.clone(),
            until: Instant::now() + valid,
        };
        let mut halves = self.lock();
        let before = halves.old.remove(parent, name);
        let evicted = self.insert_recent(&mut halves, parent, name, known);
        drop(halves);
        drop((before, evicted));
    }

    /// Drops the entry for `name` in `parent`.
    pub(super) fn forget(&self, parent: NodeId, name: &[u8]) {
        let mut halves = self.lock();
        let known = (
            halves.young.remove(parent, name),
            halves.old.remove(parent, name),
        );
        drop(halves);
        drop(known);
    }

    fn insert_recent(
        &self,
        halves: &mut CacheHalves<T>,
        parent: NodeId,
        name: &[u8],
        known: CacheEntry<T>,
    ) -> (Option<CacheEntry<T>>, Option<CacheHalf<T>>) {
        let evicted = if halves.young.count.saturating_mul(2) >= self.limits.directories {
            let young = std::mem::take(&mut halves.young);
            Some(std::mem::replace(&mut halves.old, young))
        } else {
            None
        };
        (halves.young.insert(parent, name, known), evicted)
    }

    fn lock(&self) -> MutexGuard<'_, CacheHalves<T>> {
        self.halves.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn cache(directories: usize) -> Cache<Arc<u32>> {
        let max_age = LONG;
        Cache::new(CacheLimits {
            directories,
            max_age,
        })
    }

    fn parent() -> NodeId {
        NodeId::new(7)
    }

    #[test]
    fn names_belong_to_their_directory() {
        let cache = cache(10);
        cache.put(parent(), b"a", &Arc::new(1), LONG);
        assert_eq!(cache.get(parent(), b"a").as_deref(), Some(&1));
        assert_eq!(cache.get(NodeId::new(8), b"a"), None);
        assert_eq!(cache.get(parent(), b"b"), None);
        cache.put(parent(), b"a", &Arc::new(2), LONG);
        assert_eq!(cache.get(parent(), b"a").as_deref(), Some(&2));
        cache.forget(parent(), b"a");
        assert_eq!(cache.get(parent(), b"a"), None);
    }

    #[test]
    fn nothing_is_cached_longer_than_the_daemon_and_the_operator_allow() {
        let cache = cache(10);
        cache.put(parent(), b"never", &Arc::new(1), Duration::ZERO);
        assert_eq!(cache.get(parent(), b"never"), None);
        cache.put(parent(), b"short", &Arc::new(1), Duration::from_millis(1));
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(cache.get(parent(), b"short"), None);
        let operators = Cache::new(CacheLimits {
            directories: 10,
            max_age: Duration::ZERO,
        });
        operators.put(parent(), b"a", &1, LONG);
        assert_eq!(operators.get(parent(), b"a"), None);
    }

    #[test]
    fn used_entries_stay_and_unused_ones_are_forgotten() {
        let cache = cache(10);
        let used = Arc::new(1);
        let unused = Arc::new(2);
        cache.put(parent(), b"used", &used, LONG);
        cache.put(parent(), b"unused", &unused, LONG);
        for number in 0..100_u32 {
            cache.put(parent(), &number.to_le_bytes(), &Arc::new(3), LONG);
            assert!(
                cache.get(parent(), b"used").is_some(),
                "after {number} others"
            );
            let halves = cache.lock();
            assert!(halves.young.count + halves.old.count <= 10);
        }
        assert_eq!(Arc::strong_count(&unused), 1, "forgotten");
        assert_eq!(cache.get(parent(), b"unused"), None);
    }
}
