//! Where a test has a worker die: only in builds with the feature `crash-hook`, never in the
//! released program.
//!
//! A test orders a death by a file, whose path is in the daemon's environment
//! ([`VARIABLE`]). The daemon maps the file before it confines itself. The file's content is an
//! [`Order`], which the test may change at any time.

/// The environment variable with the path of the file.
pub const VARIABLE: &str = "GANGPLANK_CRASH";

/// What a test's build adds to the version of guests' states: to the released program, it is one
/// that keeps them in another way.
pub(crate) const LAYOUT_DIFFERENCE: u32 = if cfg!(feature = "crash-hook") { 1 } else { 0 };

/// The points in a request's life at which a worker can be made to die, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Point {
    /// The ring's requests are noted as taken. At this point, no opcode is known.
    Taken = 1,
    /// The operation is noted, and the host has not been asked for it.
    Begun = 2,
    /// The host has carried the operation out.
    CarriedOut = 3,
    /// The reply is in guest memory, and noted as complete.
    Done = 4,
    /// The index in the used ring is noted, and the reply is not there.
    Publishing = 5,
    /// The reply is in the used ring.
    Published = 6,
    /// The request is noted as returned, and the driver is not notified.
    Freed = 7,
    /// A vhost-user message is noted as carried out, and its reply is not sent. The operation's
    /// number is that of the message.
    Replying = 8,
}

impl Point {
    /// All points of a FUSE request, in their order.
    pub const ALL: [Self; 7] = [
        Self::Taken,
        Self::Begun,
        Self::CarriedOut,
        Self::Done,
        Self::Publishing,
        Self::Published,
        Self::Freed,
    ];
}

/// How a worker dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Death {
    /// The thread stands still until the test kills the worker.
    Killed = 1,
    /// The thread panics.
    Fault = 2,
}

/// What the file says: numbers of 32 bits, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// The [`Point`]; 0 for none.
    pub point: u32,
    /// The operation's number; 0 for any.
    pub opcode: u32,
    /// The [`Death`].
    pub death: u32,
    /// Times that the point is passed before the first death.
    pub passes: u32,
    /// Deaths that are left. The daemon counts them down.
    pub deaths: u32,
    /// Deaths so far. The daemon counts them.
    pub died: u32,
}

impl Order {
    /// Bytes of the file.
    pub const LEN: usize = 24;

    /// The file's content.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let words = [
            self.point,
            self.opcode,
            self.death,
            self.passes,
            self.deaths,
            self.died,
        ];
        let mut bytes = [0; Self::LEN];
        for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// The calling thread passes `point` with a request of operation number `opcode`; 0 if it is not
/// known. Does nothing in the released program.
#[inline]
pub(crate) fn pass(point: Point, opcode: impl FnOnce() -> u32) {
    #[cfg(feature = "crash-hook")]
    active::pass(point, opcode());
    #[cfg(not(feature = "crash-hook"))]
    let _ = (point, opcode);
}

#[cfg(feature = "crash-hook")]
pub use active::start;

#[cfg(feature = "crash-hook")]
mod active {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, OnceLock};
    use std::time::Duration;
    use std::{fs, io, thread};

    use super::{Death, Order, Point, VARIABLE};
    use crate::sys::shared_memory::{SharedMemory, SharedSlice};

    static ORDER: OnceLock<SharedSlice<AtomicU32>> = OnceLock::new();

    /// Maps the file that the environment names, if it names one. To be called before any process
    /// is forked.
    ///
    /// # Errors
    /// The file cannot be mapped.
    pub fn start() -> io::Result<()> {
        let Some(path) = std::env::var_os(VARIABLE) else {
            return Ok(());
        };
        log::warn!("this is a test's build: it dies when {path:?} says so");
        let file = fs::File::options().read(true).write(true).open(path)?;
        let memory = Arc::new(SharedMemory::of_file(file.into(), Order::LEN)?);
        let words = SharedSlice::new(&memory, 0, Order::LEN / size_of::<u32>());
        let _ = ORDER.set(words);
        Ok(())
    }

    pub(super) fn pass(wanted: Point, with: u32) {
        let Some([point, opcode, death, passes, deaths, died]) = ORDER.get().map(|words| &**words)
        else {
            return;
        };
        let load = |word: &AtomicU32| word.load(Ordering::Acquire);
        let is_ordered = load(point) == wanted as u32
            && [0, with].contains(&load(opcode))
            && !counts_down(passes)
            && counts_down(deaths);
        if !is_ordered {
            return;
        }
        died.fetch_add(1, Ordering::AcqRel);
        if load(death) == Death::Fault as u32 {
            panic!("a test has ordered this");
        }
        loop {
            thread::sleep(Duration::from_secs(3600));
        }
    }

    /// Subtracts one unless the number is zero. Returns whether it was not.
    fn counts_down(number: &AtomicU32) -> bool {
        let less = |number: u32| number.checked_sub(1);
        let changed = number.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        changed.is_ok()
    }
}
