//! One device of the emulated driver: accesses of a guest wait in it, go to the device model, and
//! return.
//!
//! ```text
//!   Device::access ── queue ── ATTACH ──> in hand ── COMPLETE ──> answered
//!        │                                   └ even if the device model dies meanwhile
//!        └ in the range of an ioeventfd: the kernel's own client, at once
//! ```

mod calls;
mod script;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{File, Metadata};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use parking_lot::{Condvar, Mutex, MutexGuard};

use self::calls::Caller;
pub use self::script::Hold;
use self::script::{Held, Script};
use super::abi::{Abi, Request, WRITE, word};
use super::eventfds::{EventFds, Kick};
use super::faults::Faults;
use super::seccomp;

/// Device number and inode number. The latter alone is not unique.
pub(super) type Inode = (u64, u64);

/// The inode of a file with these attributes.
pub(super) fn inode_of(file: &Metadata) -> Inode {
    (file.dev(), file.ino())
}

/// One device.
pub struct Device {
    /// The ID of the device model.
    pub id: u32,
    abi: Abi,
    /// The file whose openings are the device model's descriptors.
    file: File,
    memory: File,
    /// Number of openings so far.
    openings: AtomicU64,
    /// Its eventfds.
    pub eventfds: EventFds,
    state: Mutex<State>,
    changed: Condvar,
    faults: Faults,
}

#[derive(Default)]
struct State {
    made: u64,
    /// Accesses that no thread has taken.
    waiting: VecDeque<Made>,
    /// The thread that waits for an access.
    attached: Option<Caller>,
    /// Accesses that were taken, by slot.
    in_hand: HashMap<u64, Made>,
    answers: HashMap<u64, u64>,
    /// The last completed request of each slot.
    over: HashMap<u64, Request>,
    /// Requests whose completing thread was killed before the call returned.
    doubtful: Vec<Request>,
    completions: u64,
    script: Script,
    held: Option<Held>,
    /// Threads known to block signals.
    quiet: HashSet<u32>,
}

/// An access.
#[derive(Clone, Copy)]
struct Made {
    number: u64,
    request: Request,
}

impl State {
    /// The first free slot.
    fn free_place(&self) -> u64 {
        let taken = |place: &u64| {
            self.in_hand.contains_key(place)
                || self
                    .waiting
                    .iter()
                    .any(|made| made.request[word::PLACE] == *place)
        };
        (0..).find(|place| !taken(place)).unwrap_or_default()
    }
}

impl Device {
    /// A device of generation `abi` with `memory`. From generation B on, the device's file maps the
    /// memory too.
    ///
    /// # Errors
    /// The host has no room for it.
    pub fn new(id: u32, abi: Abi, memory: File, faults: Faults) -> Result<Self> {
        let file = if abi.creates {
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            File::from(rustix::fs::memfd_create("bao-dm", flags)?)
        } else {
            memory.try_clone()?
        };
        Ok(Self {
            id,
            abi,
            file,
            memory,
            openings: AtomicU64::new(0),
            eventfds: EventFds::new()?,
            state: Mutex::default(),
            changed: Condvar::new(),
            faults,
        })
    }

    /// The memory of its guest.
    pub const fn memory(&self) -> &File {
        &self.memory
    }

    /// Whether `inode` is the device's or its memory's.
    pub(super) fn is_at(&self, inode: Inode) -> bool {
        self.opens(inode)
            || self
                .memory
                .metadata()
                .is_ok_and(|memory| inode_of(&memory) == inode)
    }

    /// Whether `inode` is the device's.
    pub(super) fn opens(&self, inode: Inode) -> bool {
        let file = self.file.metadata();
        file.is_ok_and(|file| inode_of(&file) == inode)
    }

    /// Opens the device once more.
    pub(super) fn open(&self) -> Result<File> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let opening = File::options().read(true).write(true).open(path)?;
        seccomp::mark(
            opening.as_fd(),
            self.openings.fetch_add(1, Ordering::AcqRel),
        )?;
        Ok(opening)
    }

    /// Whether the device was ever opened.
    pub fn is_created(&self) -> bool {
        self.openings.load(Ordering::Acquire) > 0
    }

    /// Records a fault if the last descriptor of an opening was closed: the driver then frees the
    /// device and still uses it.
    ///
    /// # Errors
    /// The host does not tell.
    pub fn check_openings(&self) -> Result<()> {
        for number in 0..self.openings.load(Ordering::Acquire) {
            if !seccomp::is_marked(self.file.as_fd(), number)? {
                self.faults.add(format!(
                    "device {}'s descriptor (opening {number}) was closed by the last who had it",
                    self.id
                ));
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Blocks the device until the guard is dropped.
    pub(super) fn freeze(&self) -> impl Sized + '_ {
        self.state()
    }

    /// One load or store of a guest's CPU. The CPU waits until the access is completed, at most for
    /// `limit`. Returns the value of a load, and 0 for a store. `op` is the hypervisor's number of
    /// the operation.
    ///
    /// # Errors
    /// No device model has completed it.
    pub fn access(
        &self,
        address: u64,
        width: u64,
        op: u64,
        value: u64,
        limit: Duration,
    ) -> Result<u64> {
        let kick = Kick {
            address,
            width,
            written: (op == WRITE).then_some(value),
        };
        if self.eventfds.takes(&kick) {
            return Ok(0);
        }
        let mut state = self.state();
        state.made += 1;
        let number = state.made;
        let [place, second, third] = self.abi.own_words(state.free_place(), number);
        let request = [
            self.id.into(),
            address,
            op,
            value,
            width,
            place,
            second,
            third,
        ];
        state.waiting.push_back(Made { number, request });
        self.deliver(&mut state);
        self.changed.notify_all();
        let deadline = Instant::now() + limit;
        loop {
            if let Some(answer) = state.answers.remove(&number) {
                return Ok(answer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let place = if state.in_hand.values().any(|made| made.number == number) {
                    "in hand"
                } else {
                    "not taken"
                };
                bail!(
                    "device {}: the access to {address:#x} (op {op}, width {width}) was not \
                     completed within \
                     {limit:?}: {place}",
                    self.id
                );
            }
            state = self.wait(state, left);
        }
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_for(&mut state, limit);
        state
    }

    fn until(&self, limit: Duration, what: &str, is: impl Fn(&State) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut state = self.state();
        while !is(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(
                !left.is_zero(),
                "device {}: {what} did not come about within {limit:?}",
                self.id
            );
            state = self.wait(state, left);
        }
        Ok(())
    }

    /// Waits until there is an access that no thread has taken.
    ///
    /// # Errors
    /// None does within `limit`.
    pub fn until_waiting(&self, limit: Duration) -> Result<()> {
        self.until(limit, "an access that waits", |state| {
            !state.waiting.is_empty()
        })
    }

    /// Waits until `count` accesses have been completed since the beginning.
    ///
    /// # Errors
    /// They are not within `limit`.
    pub fn until_completed(&self, count: u64, limit: Duration) -> Result<()> {
        self.until(limit, "further accesses", |state| {
            state.completions >= count
        })
    }

    /// Waits until a thread waits for an access.
    ///
    /// # Errors
    /// No thread does within `limit`.
    pub fn until_attached(&self, limit: Duration) -> Result<()> {
        self.until(limit, "a wait for accesses", |state| {
            state.attached.as_ref().is_some_and(Caller::is_waiting)
        })
    }

    /// The number of accesses that no thread has taken, and of those that were taken and not
    /// completed.
    #[must_use]
    pub fn unanswered(&self) -> (usize, usize) {
        let state = self.state();
        (state.waiting.len(), state.in_hand.len())
    }

    /// The number of completed accesses.
    #[must_use]
    pub fn completions(&self) -> u64 {
        self.state().completions
    }
}
