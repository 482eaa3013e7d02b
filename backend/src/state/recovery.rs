//! Deaths of a guest's workers, and the descriptors that the next worker keeps.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::time::ClockId;

use super::arena::Arena;
use super::device::DeviceState;
use super::requests::{Blame, RingRequests};
use crate::sys::clock;

/// Notes that a worker has died, by this signal or of a fault that it found itself. Returns the
/// signal if that was the reason, and not how the worker ended itself after [`note_panic`].
pub fn note_death(arena: &Arena, signal: Option<i32>) -> Option<i32> {
    let header = arena.header();
    header.deaths.fetch_add(1, Ordering::Relaxed);
    let has_panicked = header.last_signal.load(Ordering::Relaxed) == PANICKED;
    let signal = signal.filter(|signal| !(has_panicked && *signal == libc::SIGABRT));
    let number = signal.map_or(0, i32::cast_unsigned);
    header.last_signal.store(number, Ordering::Relaxed);
    begin_pause(arena);
    signal
}

/// The value of the header's `last_signal` from a panic of a worker until its keeper notes its
/// death.
const PANICKED: u32 = u32::MAX - 2;

/// Notes that the calling process, a worker, has found a fault in itself and is about to end itself
/// by SIGABRT.
pub fn note_panic(arena: &Arena) {
    let last_signal = &arena.header().last_signal;
    last_signal.store(PANICKED, Ordering::Release);
}

/// The pause begins with the first of several deaths before the guest is served again.
fn begin_pause(arena: &Arena) {
    let died = &arena.header().died;
    if died.load(Ordering::Relaxed) == 0 {
        died.store(now(), Ordering::Release);
    }
}

/// Notes that the guest's connection has ended. From now on, descriptors of the state are closed,
/// and another worker has nothing to go on with.
pub fn note_end(arena: &Arena) {
    arena.header().is_ending.store(1, Ordering::Release);
}

/// Whether the last worker was freeing what the guest had, or had given its connection away.
pub fn is_ending(arena: &Arena) -> bool {
    arena.header().is_ending.load(Ordering::Acquire) != 0
}

/// The value of the header's `is_ending` of a guest whose connection another one's processes have.
const GIVEN_AWAY: u32 = 2;

/// Notes that the guest's connection now belongs to the processes that have its session.
pub fn note_given_away(arena: &Arena) {
    let is_ending = &arena.header().is_ending;
    is_ending.store(GIVEN_AWAY, Ordering::Release);
}

/// Whether the guest's connection belongs to other processes.
pub fn is_given_away(arena: &Arena) -> bool {
    arena.header().is_ending.load(Ordering::Acquire) == GIVEN_AWAY
}

/// Notes that the guest's connection is lost, and that its worker has ended. Nothing that the
/// frontend has sent is of use any more, except the memory for requests in flight, by which its
/// next connection is recognised. Returns the descriptors of everything else. They are not part of
/// the state any more.
pub fn note_disconnected(arena: &Arc<Arena>) -> Vec<RawFd> {
    let header = arena.header();
    header.last_signal.store(DISCONNECTED, Ordering::Relaxed);
    begin_pause(arena);
    let before = DeviceState::load(arena).unwrap_or_default();
    for (index, ring) in before.rings.iter().enumerate() {
        if ring.kick.is_some()
            && let Some(requests) = RingRequests::new(arena, index)
        {
            requests.carry_over();
        }
    }
    let after = DeviceState {
        inflight: before.inflight,
        ..DeviceState::default()
    };
    if !after.store(arena) {
        log::error!("a guest's set-up is too large to be recorded; please report this");
    }
    let disconnected = &header.disconnected;
    // A guest that is handed over meanwhile has not lost it anew.
    if disconnected.load(Ordering::Acquire) == 0 {
        disconnected.store(now().max(1), Ordering::Release);
    }
    header.is_leaving.store(0, Ordering::Release);
    let kept = after.descriptors();
    let mut left = before.descriptors();
    left.retain(|number| !kept.contains(number));
    left.sort_unstable();
    left.dedup();
    left
}

/// Notes that the worker has found the guest's connection lost. It ends once the requests that run
/// have ended, which takes as long as the storage takes for them.
pub fn note_leaving(arena: &Arena) {
    arena.header().is_leaving.store(1, Ordering::Release);
}

/// Whether a worker has found the connection lost, and its keeper has not noted that yet.
pub fn is_leaving(arena: &Arena) -> bool {
    arena.header().is_leaving.load(Ordering::Acquire) != 0
}

/// For how long the guest has had no connection while its session is kept. `None` if it has one.
pub fn disconnected_for(arena: &Arena) -> Option<Duration> {
    let since = arena.header().disconnected.load(Ordering::Acquire);
    (since != 0).then(|| Duration::from_nanos(now().saturating_sub(since)))
}

/// The guest's frontend has connected again and has set up `state`. The worker that follows does
/// so as well. Returns false, and changes nothing, if the state is too large.
#[must_use]
pub fn note_reconnected(arena: &Arc<Arena>, state: &DeviceState) -> bool {
    let is_stored = state.store(arena);
    if is_stored {
        let header = arena.header();
        // Also if a successor has taken it over meanwhile.
        header.last_signal.store(DISCONNECTED, Ordering::Relaxed);
        // By a program that did not know this.
        header.is_leaving.store(0, Ordering::Relaxed);
        header.disconnected.store(0, Ordering::Release);
    }
    is_stored
}

/// The value of the header's `last_signal` after a worker that was stopped for its successor.
pub const STOPPED: u32 = u32::MAX;

/// Notes that a worker was stopped so that another goes on.
pub fn note_stop(arena: &Arena) {
    let header = arena.header();
    header.last_signal.store(STOPPED, Ordering::Relaxed);
    begin_pause(arena);
}

/// Whether the last worker was stopped for its successor.
pub fn is_after_stop(arena: &Arena) -> bool {
    arena.header().last_signal.load(Ordering::Relaxed) == STOPPED
}

/// The value of the header's `last_signal` after a worker that ended because its guest's connection
/// was lost.
pub const DISCONNECTED: u32 = u32::MAX - 1;

/// Whether the last worker ended because the guest's connection was lost.
pub fn is_after_disconnection(arena: &Arena) -> bool {
    arena.header().last_signal.load(Ordering::Relaxed) == DISCONNECTED
}

/// Whether the calling worker follows one that died, or was stopped.
pub fn is_after_death(arena: &Arena) -> bool {
    arena.header().died.load(Ordering::Acquire) != 0
}

/// How much the last death counts against the requests that were running.
pub fn blame(arena: &Arena) -> Blame {
    if is_after_stop(arena) || is_after_disconnection(arena) {
        return Blame::Stopped;
    }
    match i32::try_from(arena.header().last_signal.load(Ordering::Relaxed)) {
        Ok(libc::SIGKILL | libc::SIGTERM) => Blame::Killed,
        _ => Blame::Failed,
    }
}

/// The guest is served again. Returns for how long it was not.
pub fn note_recovered(arena: &Arena) -> Duration {
    let header = arena.header();
    let pause = now().saturating_sub(header.died.load(Ordering::Relaxed));
    header.last_pause.store(pause, Ordering::Relaxed);
    header.longest_pause.fetch_max(pause, Ordering::Relaxed);
    header.paused.fetch_add(pause, Ordering::Relaxed);
    header.died.store(0, Ordering::Release);
    Duration::from_nanos(pause)
}

/// The descriptors that the state in the arena refers to.
pub fn descriptors(arena: &Arc<Arena>) -> Vec<RawFd> {
    DeviceState::load(arena).unwrap_or_default().descriptors()
}

/// `CLOCK_MONOTONIC` in nanoseconds.
fn now() -> u64 {
    clock::now(ClockId::Monotonic).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_begins_with_the_first_death() {
        let arena = Arena::small();
        assert!(!is_after_death(&arena));
        assert_eq!(note_death(&arena, Some(libc::SIGKILL)), Some(libc::SIGKILL));
        assert_eq!(blame(&arena), Blame::Killed);
        std::thread::sleep(Duration::from_millis(2));
        note_death(&arena, None);
        assert_eq!(blame(&arena), Blame::Failed);
        assert!(is_after_death(&arena));
        assert!(note_recovered(&arena) >= Duration::from_millis(2));
        assert!(!is_after_death(&arena));
        note_stop(&arena);
        assert!(is_after_death(&arena) && is_after_stop(&arena));
        assert_eq!(blame(&arena), Blame::Stopped);
        assert_eq!(arena.header().deaths.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_panic_is_told_from_other_deaths_by_the_same_signal() {
        let arena = Arena::small();
        let abort = Some(libc::SIGABRT);
        assert_eq!(note_death(&arena, abort), abort);
        note_panic(&arena);
        assert_eq!(note_death(&arena, abort), None);
        assert_eq!(arena.header().last_signal.load(Ordering::Relaxed), 0);
        assert_eq!(blame(&arena), Blame::Failed);
        // It is killed before it ends itself.
        note_panic(&arena);
        let killed = Some(libc::SIGKILL);
        assert_eq!(note_death(&arena, killed), killed);
        assert_eq!(note_death(&arena, abort), abort);
    }

    #[test]
    fn without_a_connection_the_rings_that_ran_and_the_memory_of_requests_stay() {
        use super::super::device::{InflightState, RingState};

        let arena = Arena::small();
        let running = RingState {
            kick: Some(7),
            call: Some(8),
            ..RingState::default()
        };
        let inflight = InflightState {
            file: 9,
            ..InflightState::default()
        };
        let state = DeviceState {
            is_owned: true,
            inflight: Some(inflight),
            rings: vec![running, RingState::default()],
            ..DeviceState::default()
        };
        assert!(state.store(&arena));
        let rings = [0, 1].map(|ring| RingRequests::new(&arena, ring).unwrap());
        rings.iter().for_each(|ring| ring.begin());
        assert!(disconnected_for(&arena).is_none() && !is_leaving(&arena));
        note_leaving(&arena);
        assert!(is_leaving(&arena));
        assert_eq!(note_disconnected(&arena), [7, 8]);
        assert!(!is_leaving(&arena));
        let since = arena.header().disconnected.load(Ordering::Relaxed);
        let left = DeviceState::load(&arena).unwrap();
        assert_eq!((left.inflight, left.is_owned), (Some(inflight), false));
        assert!(rings[0].is_carried_over() && !rings[1].is_carried_over());
        assert!(is_after_disconnection(&arena) && is_after_death(&arena));
        // Its next keeper notes the same.
        note_stop(&arena);
        assert!(note_disconnected(&arena).is_empty());
        assert_eq!(arena.header().disconnected.load(Ordering::Relaxed), since);
        assert!(rings[0].is_carried_over() && disconnected_for(&arena).is_some());
        assert!(note_reconnected(&arena, &state));
        assert!(disconnected_for(&arena).is_none());
        assert_eq!(blame(&arena), Blame::Stopped);
        rings[0].begin();
        assert!(!rings[0].is_carried_over());
    }
}
