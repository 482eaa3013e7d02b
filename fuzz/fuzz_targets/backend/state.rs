//! The state that a dead worker leaves: a worker serves some of the input's requests, the next one
//! gets a copy of what it left, with words changed as the input says, and serves the others.
//!
//! Whatever the state says, the next worker ends with an error or goes on. Each reply must be whole
//! and within its room, and nothing outside the share may change.
//!
//! Each worker is a thread with descriptors of its own, copies of those of the thread before: the
//! numbers are those that a keeper's next worker finds, and what a worker closes is no other's.
#![no_main]

#[allow(dead_code, reason = "the other targets share one share")]
mod fixture;
mod input;
mod left_state;
mod requests;
mod serving;

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Once};

use gangplank_backend::passthrough::options::InodeFileHandles;
use gangplank_backend::passthrough::{self, Options, PassthroughFs, Share, ShareError};
use gangplank_backend::session::Session;
use gangplank_backend::state::arena::{Arena, Limits};
use gangplank_backend::state::device::{
    DeviceState, InflightState, LogState, PendingMessage, RegionState,
};
use gangplank_backend::state::inodes::SHARDS;
use gangplank_backend::state::recovery;
use gangplank_backend::state::requests::{Current, Pending, RingRequests};
use gangplank_backend::status::snapshot::{self, Room};
use libfuzzer_sys::fuzz_target;

use fixture::{Fixture, path_only};
use input::Input;
use left_state::LeftState;
use requests::Guest;
use serving::{serve, serve_by};

/// What an arena has room for: little, so that its limits are near.
const LIMITS: Limits = Limits {
    inode_bytes: 1 << 18,
    descriptors: 1024,
    rings: 2,
    ring_size: 32,
};

/// Requests of the first worker at most: one for each head of a ring.
const EARLIER: u8 = 24;

/// Requests of the next worker at most.
const LATER: usize = 32;

/// Changes of the state at most.
const CHANGES: u8 = 12;

/// Few descriptors, so that inodes are evicted: their names are in the state as well.
fn options() -> Options {
    Options {
        inode_file_handles: InodeFileHandles::Prefer,
        fd_budget: 12,
        max_inode_memory: LIMITS.inode_bytes,
        ..fixture::options()
    }
}

fuzz_target!(|bytes: &[u8]| {
    static HOOK: Once = Once::new();
    HOOK.call_once(keep_messages);
    fixture::on_own_thread(|| {
        let fixture = Fixture::get();
        fixture.fill();
        on_own_descriptors(|| first_worker(fixture, &mut Input::new(bytes)));
        fixture.check_and_clean();
    });
});

/// Has the message of a panic appear although its thread may have closed its descriptor 2.
fn keep_messages() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // The descriptor of the process's first thread.
        if let Ok(stderr) = File::options().write(true).open("/proc/self/fd/2") {
            // SAFETY: both are numbers, and nothing in this thread owns the descriptor 2.
            unsafe { libc::dup2(stderr.as_raw_fd(), 2) };
        }
        hook(panic);
    }));
}

/// Runs on a thread with a copy of the calling thread's descriptors.
fn on_own_descriptors(run: impl FnOnce() + Send) {
    fixture::on_own_thread(|| {
        // SAFETY: the call takes no pointers. The table is shared with other threads until then.
        let result = unsafe { libc::unshare(libc::CLONE_FILES) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        run();
    });
}

/// What a worker opens for itself: the shared directory, and the calling thread's descriptors.
fn own_descriptors(fixture: &Fixture) -> [OwnedFd; 2] {
    [
        fixture.open_root(),
        path_only(Path::new("/proc/thread-self/fd")),
    ]
}

/// The share of a worker with this state.
fn share([root, proc]: [OwnedFd; 2], arena: &Arc<Arena>) -> Result<Arc<Share>, ShareError> {
    Share::new(root, proc, options(), fixture::ABILITIES, Arc::clone(arena))
}

fn first_worker(fixture: &Fixture, input: &mut Input<'_>) {
    let arena = Arena::new(LIMITS).expect("memory for the guest's state");
    // The same input does the same each time.
    arena.header().hash_seed.store(1, Ordering::Relaxed);
    let share = share(own_descriptors(fixture), &arena);
    let file_system = PassthroughFs::new(share.expect("a directory can be shared"));
    let session = Session::continued(file_system, &arena);
    let ring = RingRequests::new(&arena, 0).expect("a ring");
    ring.begin();
    let mut guest = Guest::default();
    serve(&session, &guest.init(), 256, &mut guest);
    let mut served = Vec::new();
    for head in 0..u16::from(input.byte() % EARLIER) {
        let request = guest.request(input);
        let room = usize::from(input.byte()) * 64;
        ring.take([head]).expect("the head is free");
        ring.start(head);
        {
            let _current = Current::enter(&ring, head);
            serve(&session, &request, room, &mut guest);
        }
        match input.byte() % 4 {
            0 => {}
            1 => ring.done(head, 16),
            2 => ring.publish(head, head, 16),
            _ => ring.free(head),
        }
        served.push(request);
    }
    assert!(set_up(input).store(&arena), "it is short");
    let flags = input.byte();
    if flags & 1 != 0 {
        // It dies in the middle of changes.
        (0..SHARDS).for_each(|shard| arena.inode_table(shard)[0].begin_change());
        arena.files().0[0].begin_change();
        arena.locks().0[0].begin_change();
    }
    let signal = match flags & 2 {
        0 => libc::SIGSEGV,
        _ => libc::SIGKILL,
    };
    recovery::note_death(&arena, Some(signal));
    if flags & 4 != 0 {
        arena.header().is_incomplete.store(1, Ordering::Relaxed);
    }

    let mut left = LeftState::of(arena.file().expect("a file of this length is permitted"));
    for _ in 0..input.byte() % CHANGES {
        left.change(input);
    }
    on_own_descriptors(|| next_worker(fixture, left.into_file(), input, guest, &served));
    session.end();
}

/// What a frontend has set up, with descriptors of any numbers.
fn set_up(input: &mut Input<'_>) -> DeviceState {
    let mut state = DeviceState {
        is_owned: true,
        has_asked_features: true,
        features: Some(1 << 32),
        ..DeviceState::default()
    };
    let parts = input.byte();
    let file = RawFd::from(input.byte() % 64);
    if parts & 1 != 0 {
        state.inflight = Some(InflightState {
            file,
            rings: 2,
            ring_size: 32,
            ..InflightState::default()
        });
    }
    if parts & 2 != 0 {
        let (size, offset) = (4096, 0);
        state.log = Some(LogState { size, offset, file });
    }
    for region in 0..u64::from(parts >> 2 & 3) {
        state.regions.push(RegionState {
            guest_address: region << 12,
            len: 1 << 12,
            file,
            ..RegionState::default()
        });
    }
    for ring in 0..usize::from(parts >> 4 & 3) {
        let ring = state.ring(ring);
        (ring.size, ring.kick, ring.call) = (32, Some(file), Some(file));
        (ring.addresses, ring.is_enabled) = (Some([0; 5]), true);
    }
    if parts & 0x40 != 0 {
        state.pending = Some(PendingMessage {
            request: 5,
            flags: 9,
            payload: vec![0; 40],
            descriptors: vec![file],
        });
    }
    state.arriving = (parts & 0x80 != 0).then(|| vec![0; 20]);
    state
}

fn next_worker(
    fixture: &Fixture,
    state: OwnedFd,
    input: &mut Input<'_>,
    mut guest: Guest,
    served: &[Vec<u8>],
) {
    let room = Room {
        rings: LIMITS.rings,
        ring_size: LIMITS.ring_size,
    };
    let told = snapshot::read(1, state.as_fd(), room);
    let Ok(arena) = Arena::attach(state) else {
        return;
    };
    assert!(told.is_ok(), "a state that is read can be told of");
    let is_incomplete = arena.header().is_incomplete.load(Ordering::Acquire) != 0;
    if is_incomplete {
        // Every third descriptor is lost.
        let arrived: HashSet<RawFd> = (0..256).filter(|number| number % 3 != 0).collect();
        passthrough::forget_lost(&arena, &arrived);
    }
    let own = own_descriptors(fixture);
    let kept = own.iter().map(AsRawFd::as_raw_fd).chain([2]);
    let kept = kept.chain(arena.file().map(|file| file.as_raw_fd()));
    let kept = kept.chain(recovery::descriptors(&arena));
    passthrough::correct(&arena, kept).expect("numbers of descriptors");
    let Ok(share) = share(own, &arena) else {
        return;
    };
    let file_system = PassthroughFs::new(share);
    if is_incomplete {
        file_system.reopen_lost();
    }
    let session = Session::continued(file_system, &arena);
    let blame = recovery::blame(&arena);
    for ring in 0..LIMITS.rings {
        let Some(requests) = RingRequests::new(&arena, ring) else {
            continue;
        };
        for (head, pending) in requests.recover(u16::from(input.byte()), blame) {
            let request = served.get(usize::from(head));
            if let (Pending::Interrupted(earlier), Some(request)) = (pending, request) {
                requests.start(head);
                let _current = Current::enter(&requests, head);
                serve_by(
                    &session,
                    request,
                    4096,
                    &mut guest,
                    |reader, writer, scratch| {
                        session.repeat(reader, writer, scratch, earlier.into())
                    },
                );
            }
            requests.free(head);
        }
    }
    recovery::note_recovered(&arena);
    for _ in 0..LATER {
        if input.is_empty() {
            break;
        }
        let request = guest.request(input);
        let room = usize::from(input.byte()) * 64;
        serve(&session, &request, room, &mut guest);
    }
    // It may have left the state such that it cannot go to another daemon.
    let _ = session.save();
    session.end();
}
