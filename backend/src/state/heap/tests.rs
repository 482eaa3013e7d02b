//! Tests of the heap.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::arena::Limits;
use super::super::change::killing;
use super::*;

fn arena(inode_bytes: u64) -> Arc<Arena> {
    Arena::new(Limits {
        inode_bytes,
        ..Limits::SMALL
    })
    .expect("an arena")
}

/// The taken blocks, by what the records say, with the length of each.
fn taken(heap: &Heap) -> HashMap<u32, usize> {
    let mut found = HashMap::new();
    for chunk in 1..=heap.record().chunks.load(Ordering::Relaxed) {
        let Some(class) = heap.chunk(chunk).expect("a record").class() else {
            continue;
        };
        for position in 0..blocks(class) {
            let block = Block::from_raw(chunk * CHUNK_UNITS + position * CLASSES[class]);
            let block = block.expect("not 0");
            if heap.taken(block).is_some() {
                found.insert(block.raw(), CLASSES[class] as usize * UNIT);
            }
        }
    }
    found
}

#[test]
fn each_length_gets_a_block_that_holds_it_with_little_rest() {
    let heap = Heap::new(&arena(1 << 20));
    for len in 0..=MAX_LEN {
        let block = heap.allocate(len).expect("room");
        let room = heap.words(block).len() * 8;
        assert!(room >= len, "{len} bytes in {room}");
        assert!(
            room <= (len + len / 3).max(len + UNIT),
            "{len} bytes in {room}"
        );
        heap.free(block);
    }
    assert!(heap.allocate(MAX_LEN + 1).is_none());
    assert_eq!(heap.bytes_in_use(), 0);
    // The blocks of a chunk leave little of it.
    for size in CLASSES {
        assert!(CHUNK_UNITS % size <= 16, "{size} units");
    }
}

#[test]
fn blocks_keep_what_is_in_them_and_do_not_overlap() {
    let heap = Heap::new(&arena(1 << 20));
    let content = |len: usize| vec![u8::try_from(len % 251).expect("a byte"); len];
    let made: Vec<(Block, usize)> = (1..=MAX_LEN)
        .map(|len| (heap.allocate(len).expect("room"), len))
        .collect();
    for (block, len) in &made {
        write_bytes(heap.words(*block), &content(*len));
    }
    for (block, len) in made {
        let mut found = vec![0; len];
        read_bytes(heap.words(block), &mut found);
        assert_eq!(found, content(len));
    }
}

#[test]
fn a_full_heap_says_so_and_its_memory_serves_blocks_of_any_size() {
    let heap = Heap::new(&arena(64 << 10));
    for len in [16, 672, 48] {
        let made: Vec<Block> = std::iter::from_fn(|| heap.allocate(len)).collect();
        let room = made.len() * len;
        let limit = (64 << 10) + CLASSES.len() * CHUNK;
        assert!(room > limit - limit / 8, "{room} bytes of {len}");
        assert!(room <= limit, "{room} bytes of {len}");
        made.into_iter().for_each(|block| heap.free(block));
        assert_eq!(heap.bytes_in_use(), 0);
    }
}

#[test]
fn memory_of_freed_blocks_is_given_back() {
    let arena = arena(64 << 20);
    let heap = Heap::new(&arena);
    let made: Vec<Block> = (0..300_000).filter_map(|_| heap.allocate(64)).collect();
    for block in &made {
        write_bytes(heap.words(*block), &[1; 64]);
    }
    let full = arena.used_bytes().expect("attributes");
    assert!(full > 64 * 300_000, "{full} bytes");
    made.into_iter().for_each(|block| heap.free(block));
    let empty = arena.used_bytes().expect("attributes");
    assert!(empty < 1 << 20, "{empty} bytes");
    let block = heap.allocate(64).expect("room");
    write_bytes(heap.words(block), &[2; 64]);
}

/// What a worker does to the heap.
#[derive(Debug, Clone, Copy)]
enum Step {
    Allocate(usize),
    /// Frees one of the taken blocks.
    Free(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..=MAX_LEN).prop_map(Step::Allocate),
        any::<usize>().prop_map(Step::Free),
    ]
}

/// Does the steps, and kills the worker before the last one's change number `kill_at`. Returns
/// false if it has fewer changes.
///
/// The next worker must find exactly the blocks that the dead one's records had. Only the last
/// step's block may be taken without a record.
fn survives(steps: &[Step], kill_at: usize) -> bool {
    let arena = arena(1 << 20);
    let heap = Heap::new(&arena);
    // In the order in which they were made, as the records have them.
    let mut known: Vec<(Block, usize)> = Vec::new();
    let (last, before) = steps.split_last().expect("steps");
    for step in before {
        match *step {
            Step::Allocate(len) => known.extend(heap.allocate(len).map(|block| (block, len))),
            Step::Free(_) if known.is_empty() => {}
            Step::Free(which) => heap.free(known.remove(which % known.len()).0),
        }
    }
    let finished = match *last {
        Step::Allocate(len) => killing::until(kill_at, || heap.allocate(len)).is_some(),
        Step::Free(_) if known.is_empty() => return false,
        Step::Free(which) => {
            // The record is cleared before the block is freed.
            let (block, _) = known.remove(which % known.len());
            killing::until(kill_at, || heap.free(block)).is_some()
        }
    };
    let next = Heap::new(&arena);
    let found = taken(&next);
    for (block, len) in &known {
        assert!(found.get(&block.raw()).is_some_and(|room| room >= len));
    }
    assert!(
        found.len() <= known.len() + 1,
        "more than one block is lost"
    );
    // The next worker gives none of them out again, and can free each.
    let mut distinct: HashSet<u32> = found.keys().copied().collect();
    for len in 1..=MAX_LEN {
        let block = next.allocate(len).expect("room");
        assert!(distinct.insert(block.raw()), "{block:?} twice");
    }
    for block in distinct.into_iter().filter_map(Block::from_raw) {
        next.free(block);
    }
    assert_eq!(next.bytes_in_use(), 0);
    for chunk in 1..=next.record().chunks.load(Ordering::Relaxed) {
        assert_eq!(next.chunk(chunk).expect("a record").taken(), 0);
    }
    !finished
}

/// Kills before each change of the operations at which a chunk is taken for the first time, filled,
/// given back and taken by blocks of another size.
#[test]
fn a_kill_loses_at_most_the_block_in_hand_and_gives_none_out_twice() {
    use Step::{Allocate, Free};
    let filled = |len: usize| vec![Allocate(len); CHUNK / len.next_multiple_of(UNIT)];
    let with = |mut steps: Vec<Step>, last: &[Step]| {
        steps.extend(last);
        steps
    };
    let full = filled(336);
    let (mut kills, mut cases) = (0, 0);
    for steps in [
        vec![Allocate(1)],
        vec![Allocate(100), Allocate(100)],
        vec![Allocate(100), Free(0)],
        vec![Allocate(100), Allocate(100), Free(0)],
        vec![Allocate(100), Free(0), Allocate(100)],
        vec![Allocate(100), Free(0), Allocate(600)],
        vec![Allocate(100), Allocate(100), Free(1), Allocate(100)],
        full.clone(),
        with(full.clone(), &[Allocate(336)]),
        with(full.clone(), &[Free(5)]),
        with(full.clone(), &[Free(5), Allocate(336)]),
        with(full, &[Allocate(336), Free(12), Free(0)]),
    ] {
        let found = (0..)
            .take_while(|kill_at| survives(&steps, *kill_at))
            .count();
        assert!(found > 0, "{steps:?} changes nothing");
        kills += found;
        cases += 1;
    }
    assert!(kills > cases, "{kills} kills");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_kill_at_any_time_leaves_each_block_taken_or_free(
        steps in prop::collection::vec(step(), 1..80)
    ) {
        for kill_at in 0.. {
            if !survives(&steps, kill_at) {
                break;
            }
        }
    }
}

#[test]
fn lost_blocks_come_back_when_all_are_freed() {
    let arena = arena(1 << 20);
    let heap = Heap::new(&arena);
    let made: Vec<Block> = (0..1000).filter_map(|len| heap.allocate(len / 2)).collect();
    assert_eq!(taken(&heap).len(), made.len());
    heap.free_all();
    assert!(taken(&heap).is_empty() && heap.bytes_in_use() == 0);
    assert!(heap.allocate(100).is_some());
}

/// The next worker starts in a time that a guest does not notice, also after a million evictions.
#[test]
fn a_large_heap_is_found_again_at_once() {
    let arena = arena(256 << 20);
    let heap = Heap::new(&arena);
    (0..1_000_000).for_each(|_| {
        heap.allocate(48).expect("room");
    });
    let find = || {
        let start = Instant::now();
        let next = Heap::new(&arena);
        let took = start.elapsed();
        assert_eq!(next.bytes_in_use(), heap.bytes_in_use());
        took
    };
    // The shortest of several: a busy machine takes the processor away.
    let took = (0..10).map(|_| find()).min().expect("some");
    eprintln!("{took:?} for {} bytes", heap.bytes_in_use());
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[test]
fn a_damaged_number_of_chunks_ends_at_the_last_one() {
    let arena = arena(1 << 20);
    let heap = Heap::new(&arena);
    let block = heap.allocate(100).expect("room");
    heap.record().chunks.store(u32::MAX, Ordering::Relaxed);
    let start = Instant::now();
    let next = Heap::new(&arena);
    next.free(block);
    let made = (0..1 << 20).map_while(|_| next.allocate(600)).count();
    assert!(made > 0 && next.allocate(600).is_none());
    next.free_all();
    assert!(next.bytes_in_use() == 0 && next.allocate(100).is_some());
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "it looks for more chunks"
    );
}
