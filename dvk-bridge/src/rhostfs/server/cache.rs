//! Directories that are known by name, so that a path is not looked up from the root on each time.
//!
//! What is in it is believed for the time that the daemon allows, and no longer than [`Limits::longest`]. Only directories on
//! the way are found here; what a path is about is looked up each time. Two halves take turns: when the younger is full, the
//! older is let go, and what was found in it meanwhile has moved to the younger. So the least used half goes, and the nodes in
//! it are forgotten.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gangplank_fuse::NodeId;

use super::tree::Found;

/// How much is remembered, and for how long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Limits {
    /// Directories.
    pub(super) directories: usize,
    /// Longest time, whatever the daemon allows.
    pub(super) longest: Duration,
}

#[derive(Debug)]
struct Known {
    found: Found,
    until: Instant,
}

/// Names in directories, by the directories' nodes.
type Names = HashMap<NodeId, HashMap<Box<[u8]>, Known>>;

#[derive(Debug, Default)]
struct Half {
    names: Names,
    count: usize,
}

impl Half {
    fn get(&self, parent: NodeId, name: &[u8]) -> Option<&Known> {
        self.names.get(&parent)?.get(name)
    }

    fn insert(&mut self, parent: NodeId, name: &[u8], known: Known) -> Option<Known> {
        let names = self.names.entry(parent).or_default();
        let before = names.insert(name.into(), known);
        if before.is_none() {
            self.count = self.count.saturating_add(1);
        }
        before
    }

    fn remove(&mut self, parent: NodeId, name: &[u8]) -> Option<Known> {
        let names = self.names.get_mut(&parent)?;
        let known = names.remove(name)?;
        self.count = self.count.saturating_sub(1);
        if names.is_empty() {
            self.names.remove(&parent);
        }
        Some(known)
    }
}

#[derive(Debug, Default)]
struct Halves {
    young: Half,
    old: Half,
}

/// Directories by name.
#[derive(Debug)]
pub(super) struct Cache {
    limits: Limits,
    halves: Mutex<Halves>,
}

impl Cache {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            halves: Mutex::default(),
        }
    }

    /// The directory `name` in `parent`, if it is known and still believed.
    pub(super) fn get(&self, parent: NodeId, name: &[u8]) -> Option<Found> {
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
        let let_go = self.insert_young(&mut halves, parent, name, known);
        // Nodes are forgotten, which may wait for the daemon, with nothing locked.
        drop(halves);
        drop(let_go);
        Some(found)
    }

    /// Remembers that `name` in `parent` is a directory, for as long as the daemon says it may be `valid`.
    pub(super) fn put(&self, parent: NodeId, name: &[u8], found: &Found, valid: Duration) {
        let valid = valid.min(self.limits.longest);
        if valid.is_zero() || self.limits.directories == 0 {
            return;
        }
        let known = Known {
            found: found.clone(),
            until: Instant::now() + valid,
        };
        let mut halves = self.lock();
        let before = halves.old.remove(parent, name);
        let let_go = self.insert_young(&mut halves, parent, name, known);
        drop(halves);
        drop((before, let_go));
    }

    /// Forgets what `name` in `parent` is.
    pub(super) fn forget(&self, parent: NodeId, name: &[u8]) {
        let mut halves = self.lock();
        let known = (
            halves.young.remove(parent, name),
            halves.old.remove(parent, name),
        );
        drop(halves);
        drop(known);
    }

    fn insert_young(
        &self,
        halves: &mut Halves,
        parent: NodeId,
        name: &[u8],
        known: Known,
    ) -> (Option<Known>, Option<Half>) {
        let let_go = if halves.young.count.saturating_mul(2) >= self.limits.directories {
            let young = std::mem::take(&mut halves.young);
            Some(std::mem::replace(&mut halves.old, young))
        } else {
            None
        };
        (halves.young.insert(parent, name, known), let_go)
    }

    fn lock(&self) -> MutexGuard<'_, Halves> {
        self.halves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
