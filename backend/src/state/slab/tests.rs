//! Tests of the table.

use super::super::arena::{Arena, Limits};
use super::super::inodes::InodeRecord;
use super::*;

type TestSlab<H> = Slab<InodeRecord, H>;

fn arena() -> std::sync::Arc<Arena> {
    let limits = Limits {
        inode_bytes: 1 << 29,
        ..Limits::SMALL
    };
    Arena::new(limits).expect("an arena")
}

fn slab_in<H>(arena: &std::sync::Arc<Arena>) -> TestSlab<H> {
    Slab::new(arena.inode_table(0), arena.inodes(0), arena.used_inodes(0))
}

fn slab<H>() -> TestSlab<H> {
    slab_in(&arena())
}

fn insert<H>(slab: &mut TestSlab<H>, held: H) -> Key {
    slab.insert(held, |_, _| ()).expect("room")
}

#[test]
fn a_key_finds_its_record_and_no_later_one() {
    let mut slab = slab();
    let first = insert(&mut slab, "first");
    assert_eq!(slab.held(first), Some(&"first"));
    assert_eq!(slab.remove(first), Some(Some("first")));
    let second = insert(&mut slab, "second");
    assert_eq!(second.index(), first.index());
    assert!(slab.get(first).is_none() && slab.held(first).is_none());
    assert_eq!(slab.remove(first), None);
    assert_eq!(slab.held(second), Some(&"second"));
}

#[test]
fn foreign_numbers_find_nothing() {
    let mut slab = slab();
    let key = insert(&mut slab, ());
    for raw in [
        0,
        1,
        key.raw() + 1,
        key.raw() + CHUNK as u64,
        (1 << KEY_BITS) - 1,
    ] {
        let found = Key::from_raw(raw).and_then(|key| slab.get(key));
        assert!(found.is_none(), "{raw}");
    }
    assert_eq!(Key::from_raw(1 << KEY_BITS), None);
    assert!(
        Key::from_raw(key.raw())
            .and_then(|key| slab.get(key))
            .is_some()
    );
}

#[test]
fn memory_comes_back_and_indices_are_used_again() {
    let mut slab = slab();
    let mut keys: Vec<Key> = (0..100_000).map(|n| insert(&mut slab, n)).collect();
    let survivor = keys.swap_remove(50_000);
    for key in keys {
        assert!(slab.remove(key).is_some());
        slab.trim();
    }
    assert_eq!(slab.len(), 1);
    assert_eq!(slab.held.iter().flatten().count(), 1);
    assert!(slab.empty.len() <= MAX_EMPTY, "{}", slab.empty.len());
    let more: Vec<Key> = (0..100_000).map(|n| insert(&mut slab, n)).collect();
    assert_eq!(slab.chunks(), 100_000_usize.div_ceil(CHUNK));
    assert_eq!(slab.remove(survivor), Some(Some(50_000)));
    for key in more {
        assert!(slab.remove(key).is_some());
    }
    assert!(slab.is_empty());
}

#[test]
fn iteration_begins_where_asked() {
    let mut slab = slab();
    for n in 0..200u32 {
        insert(&mut slab, n);
    }
    let seen: Vec<u32> = slab.iter_from(130).map(|(key, _)| key.index()).collect();
    assert_eq!(seen, (130..200).collect::<Vec<_>>());
}

#[test]
fn the_next_worker_finds_all_records_and_holds_nothing() {
    let arena = arena();
    let mut slab = slab_in(&arena);
    let keys: Vec<Key> = (0..300).map(|n| insert(&mut slab, n)).collect();
    for key in &keys[..100] {
        slab.remove(*key);
    }
    let mut next: TestSlab<u32> = slab_in(&arena);
    assert_eq!(next.len(), 200);
    assert!(next.get(keys[50]).is_none());
    assert!(next.get(keys[200]).is_some() && next.held(keys[200]).is_none());
    *next.held_mut(keys[200]).expect("a record") = Some(7);
    assert_eq!(next.held(keys[200]), Some(&7));
    assert!(
        !keys.contains(&insert(&mut next, 8)),
        "a key is not used twice"
    );
    assert_eq!(next.chunks(), 5);
}

#[test]
fn a_record_that_a_damaged_state_does_not_count_is_removed_once() {
    let arena = arena();
    let mut slab = slab_in(&arena);
    let keys: Vec<Key> = (0..3).map(|n| insert(&mut slab, n)).collect();
    arena.used_inodes(0)[0].store(0b100, Ordering::Relaxed);
    let mut next: TestSlab<i32> = slab_in(&arena);
    assert_eq!(next.len(), 1);
    assert_eq!(next.remove(keys[0]), Some(None));
    assert_eq!(next.remove(keys[2]), Some(None));
    assert_eq!(next.remove(keys[1]), Some(None));
    assert!(next.is_empty());
    for n in 0..=i32::try_from(CHUNK).unwrap() {
        insert(&mut next, n);
    }
    assert_eq!((next.len(), next.chunks()), (CHUNK + 1, 2));
}

#[test]
fn a_damaged_generation_leaves_no_room_for_records() {
    let arena = arena();
    let table = arena.inode_table(0);
    for made in [LAST_GENERATION, u64::MAX] {
        table[0].made.store(made, Ordering::Relaxed);
        let mut slab: TestSlab<()> = slab_in(&arena);
        assert_eq!(slab.insert((), |_, _| ()), Err(Full));
        assert!(slab.next_raw() > 0);
    }
}

#[test]
fn keys_alone_tell_after_a_death_in_the_middle_of_a_change() {
    let arena = arena();
    let mut slab = slab_in(&arena);
    let (added, removed) = (insert(&mut slab, ()), insert(&mut slab, ()));
    arena.inode_table(0)[0].begin_change();
    // As if the worker had died before it stored a bit: of a new record, and of a removed one.
    arena.used_inodes(0)[0].store(0b10, Ordering::Relaxed);
    arena.inodes(0)[1].key.store(0, Ordering::Relaxed);
    let next: TestSlab<()> = slab_in(&arena);
    assert_eq!(next.len(), 1);
    assert!(next.get(added).is_some() && next.get(removed).is_none());
    assert_eq!(next.used_bits(0), 0b01);
}
