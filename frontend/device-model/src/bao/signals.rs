//! Blocks signals on the thread that waits for a guest.

use std::cell::Cell;
use std::ops::RangeInclusive;

use vmm_sys_util::signal::{SIGRTMAX, SIGRTMIN, block_signal};

/// The signals that are not real-time signals.
const PLAIN: RangeInclusive<i32> = 1..=31;

thread_local! {
    static BLOCKED: Cell<bool> = const { Cell::new(false) };
}

/// Blocks all signals on this thread. A signal that ends the wait for a request makes the driver of
/// generation A unlock a lock that it does not hold. The signals that cannot be blocked end the
/// process, and the wait with it.
pub(super) fn block_all() {
    if BLOCKED.replace(true) {
        return;
    }
    for signal in PLAIN.chain(SIGRTMIN()..=SIGRTMAX()) {
        // Fails only for a signal that is blocked already.
        let _ = block_signal(signal);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::process::Signal;
    use vmm_sys_util::signal::get_blocked_signals;

    use super::*;

    #[test]
    fn thread_that_blocked_all_lets_only_the_unblockable_in() {
        let blocked = thread::spawn(|| {
            block_all();
            block_all();
            get_blocked_signals().unwrap()
        });
        let blocked = blocked.join().unwrap();
        let open: Vec<i32> = PLAIN.filter(|signal| !blocked.contains(signal)).collect();
        assert_eq!(open, [Signal::KILL.as_raw(), Signal::STOP.as_raw()]);
        assert!(blocked.contains(&SIGRTMIN()) && blocked.contains(&SIGRTMAX()));
        assert!(
            !get_blocked_signals()
                .unwrap()
                .contains(&Signal::TERM.as_raw())
        );
    }
}
