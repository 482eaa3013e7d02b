//! Tables of inodes, open files and locks whose worker is killed before any of its changes, and
//! whose next worker is killed before any change of its correction.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

use parking_lot::{RwLock, RwLockWriteGuard};

use super::super::budget::{Budget, Descriptor, Permit, PermitFor};
use super::super::dir_stream::DirStream;
use super::super::file_type::FileType;
use super::super::inode_shard::Shard;
use super::super::mounts::{Identity, MountIndex};
use super::super::open_file::OpenFile;
use super::super::open_files::OpenFiles;
use super::super::posix_locks::PosixLocks;
use super::*;
use crate::state::arena::Arena;
use crate::state::change::killing;
use crate::state::descriptors::{Descriptors, HasDescriptor, Owner};
use crate::state::slab::Slab;
use crate::state::table::Changing;

/// Descriptors have lower numbers in these tests.
const DESCRIPTORS: RawFd = 1000;

/// A descriptor that is open, for what a worker holds.
fn held(budget: &Arc<Budget>) -> Descriptor {
    let file: OwnedFd = File::open("/dev/null").expect("opened").into();
    Descriptor::new(file, Permit::of_counted(budget, PermitFor::File))
}

/// Each descriptor of a record belongs to it, and no other belongs to a record of this kind.
fn check_owners<R: HasDescriptor, H>(arena: &Arc<Arena>, records: &Slab<R, H>) {
    let descriptors = Descriptors::new(arena);
    let mut expected = BTreeMap::new();
    for (key, record) in records.iter_from(0) {
        if let Some(number) = record.descriptor().get() {
            assert!(expected.insert(number, key.index()).is_none(), "{number}");
        }
    }
    for number in 0..DESCRIPTORS {
        let owner = descriptors.owner(number);
        let record = owner.and_then(|owner: Owner| owner.number(R::KIND));
        assert_eq!(record, expected.get(&number).copied(), "{number}");
    }
}

/// Has the next worker correct a table, killed before change number `kill_at` and then once more.
/// Returns whether it was killed.
fn correct(kill_at: usize, correct: impl Fn()) -> bool {
    let finished = killing::until(kill_at, &correct);
    correct();
    finished.is_none()
}

/// A change of the inodes, by their numbers.
#[derive(Debug, Clone, Copy)]
enum Change {
    Add(u64),
    Remove(u64),
    /// The inode's descriptor is given up.
    Evict(u64),
    /// A new inode has the same number.
    Replace(u64),
}

fn identity(ino: u64) -> Identity {
    Identity {
        mount: MountIndex::ROOT,
        ino,
        file_type: FileType::Regular,
    }
}

fn add(shard: &mut Shard, held: &Arc<Descriptor>, ino: u64, descriptor: RawFd) {
    let inserted = shard.slab.insert(Arc::clone(held), |inode, _| {
        inode.fill(identity(ino), 0);
    });
    let key = inserted.expect("room");
    shard.note_descriptor(key, Some(descriptor));
    shard.index(shard.hash_of(identity(ino)), key);
}

fn descriptor_of(ino: u64) -> RawFd {
    100 + RawFd::try_from(ino).expect("a small number")
}

impl Change {
    /// Makes the change as the inode table does.
    fn make(self, shard: &RwLock<Shard>, held: &Arc<Descriptor>) {
        let mut shard: Changing<RwLockWriteGuard<'_, Shard>> = Changing::new(shard.write());
        let find = |shard: &Shard, ino| {
            let hash = shard.hash_of(identity(ino));
            (hash, shard.find(hash, identity(ino)).expect("there").0)
        };
        match self {
            Self::Add(ino) => add(&mut shard, held, ino, descriptor_of(ino)),
            Self::Remove(ino) => {
                let (hash, key) = find(&shard, ino);
                shard.unindex(hash, key);
                shard.note_descriptor(key, None);
                shard.slab.remove(key);
                shard.trim();
            }
            Self::Evict(ino) => {
                let (_, key) = find(&shard, ino);
                shard.note_descriptor(key, None);
            }
            Self::Replace(ino) => {
                let (hash, key) = find(&shard, ino);
                shard.unindex(hash, key);
                add(&mut shard, held, ino, descriptor_of(ino) + 500);
            }
        }
    }

    const fn ino(self) -> u64 {
        match self {
            Self::Add(ino) | Self::Remove(ino) | Self::Evict(ino) | Self::Replace(ino) => ino,
        }
    }
}

/// Makes the inodes 1 to `known`, then the change, killed before its change number `kills.0`, and
/// corrects it, killed before change number `kills.1`. Returns whether each was killed.
fn survives(known: u64, change: Change, kills: (usize, usize)) -> (bool, bool) {
    let arena = Arena::small();
    let budget = Budget::new(10);
    let held = Arc::new(held(&budget));
    let shard = RwLock::new(Shard::new(&arena, 0));
    for ino in 1..=known {
        Change::Add(ino).make(&shard, &held);
    }
    let was_killed = killing::until(kills.0, || change.make(&shard, &held)).is_none();
    let again = correct(kills.1, || Shard::correct(&arena, 0));

    let next = Shard::new(&arena, 0);
    check_owners(&arena, &next.slab);
    let mut with_descriptor = 0;
    for (key, inode) in next.slab.iter_from(0) {
        let ino = inode.ino.load(Ordering::Relaxed);
        let found = next.find(next.hash_of(identity(ino)), identity(ino));
        let is_found = found.is_some_and(|(found, _)| found == key);
        let is_replaced = inode.replaced.load(Ordering::Relaxed) != 0;
        assert_eq!(is_found, !is_replaced, "{ino} after {change:?}, {kills:?}");
        with_descriptor += u64::from(inode.descriptor.get().is_some());
    }
    assert_eq!(next.descriptors(), with_descriptor, "{change:?}, {kills:?}");
    for ino in (1..=known).filter(|ino| *ino != change.ino()) {
        let (_, inode) = next
            .find(next.hash_of(identity(ino)), identity(ino))
            .expect("an inode that is not changed");
        assert_eq!(inode.descriptor.get(), Some(descriptor_of(ino)));
    }
    let expected = usize::try_from(known).expect("few");
    let len = next.slab.len();
    assert!((expected - 1..=expected + 1).contains(&len), "{len}");
    (was_killed, again)
}

/// The change is killed before each of its stores, and each correction of that before each
/// `stride`th of its own.
fn kill_everywhere(known: u64, change: Change, stride: usize) -> usize {
    let mut kills = 0;
    for first in 0.. {
        let mut was_killed = true;
        for second in (first % stride..).step_by(stride) {
            let (killed, again) = survives(known, change, (first, second));
            was_killed = killed;
            kills += 1;
            if !again {
                break;
            }
        }
        if !was_killed {
            break;
        }
    }
    kills
}

#[test]
fn a_kill_before_any_store_leaves_a_shard_that_can_be_made_whole() {
    for change in [
        Change::Add(4),
        Change::Remove(2),
        Change::Evict(2),
        Change::Replace(2),
    ] {
        let kills = kill_everywhere(3, change, 1);
        assert!(kills > 8, "{change:?}: {kills} kills");
    }
}

#[test]
fn a_kill_while_the_index_grows_or_a_chunk_begins_loses_no_inode() {
    // The first index has 64 places, of which a quarter stays empty, and a chunk has 64 records.
    for known in [48, 64] {
        let kills = kill_everywhere(known, Change::Add(known + 1), 29);
        assert!(kills > 8, "{known}: {kills} kills");
    }
}

#[test]
fn a_kill_before_any_store_leaves_open_files_that_can_be_made_whole() {
    let node = NodeId::new(1 << 30);
    // Adds a file, or removes one.
    for adds in [true, false] {
        let mut kills = 0;
        'kills: for first in 0.. {
            for second in 0.. {
                let arena = Arena::small();
                let budget = Budget::new(100);
                let files = OpenFiles::new(&arena, &budget);
                let open = || {
                    let stream = DirStream::resumed(MountIndex::ROOT);
                    files.insert(OpenFile::directory(node, held(&budget), stream))
                };
                let handles = [(); 3].map(|()| open().expect("room"));
                let killed = match adds {
                    true => killing::until(first, || drop(open())),
                    false => killing::until(first, || drop(files.remove(handles[1], node))),
                };
                let again = correct(second, || OpenFiles::correct(&arena));
                let (mark, records, used) = arena.files();
                let next = Slab::<_, ()>::new(mark, records, used);
                check_owners(&arena, &next);
                assert!(next.len() >= 2 && next.len() <= 4, "{}", next.len());
                for handle in [handles[0], handles[2]] {
                    assert_eq!(files.node_of(handle), Some(node), "{first}, {second}");
                }
                kills += 1;
                match (killed, again) {
                    (_, true) => {}
                    (None, false) => break,
                    (Some(()), false) => break 'kills,
                }
            }
        }
        assert!(kills > 6, "{kills} kills");
    }
}

#[test]
fn a_kill_before_any_store_leaves_locks_that_can_be_made_whole() {
    let node = NodeId::new(1 << 30);
    for adds in [true, false] {
        let mut kills = 0;
        'kills: for first in 0.. {
            for second in 0.. {
                let arena = Arena::small();
                let budget = Budget::new(100);
                let locks = PosixLocks::new(&arena, &budget);
                let files = [(); 4].map(|()| Arc::new(held(&budget)));
                let add = |owner: usize| {
                    let number = u64::try_from(owner).expect("few");
                    let file = Arc::clone(&files[owner]);
                    locks.lock().insert((node, number), file).expect("room");
                };
                (0..3).for_each(add);
                let killed = match adds {
                    true => killing::until(first, || add(3)),
                    false => killing::until(first, || locks.release(node, 1)),
                };
                let again = correct(second, || PosixLocks::correct(&arena));
                let (mark, records, used) = arena.locks();
                let next = Slab::<crate::state::files::LockRecord, ()>::new(mark, records, used);
                check_owners(&arena, &next);
                let numbers = next
                    .iter_from(0)
                    .filter_map(|(_, lock)| lock.descriptor.get());
                let numbers: Vec<RawFd> = numbers.collect();
                for owner in [0, 2] {
                    let number = files[owner].as_fd().as_raw_fd();
                    assert!(numbers.contains(&number), "{first}, {second}");
                }
                kills += 1;
                match (killed, again) {
                    (_, true) => {}
                    (None, false) => break,
                    (Some(()), false) => break 'kills,
                }
            }
        }
        assert!(kills > 6, "{kills} kills");
    }
}
