//! One device of the played driver: a guest's accesses wait in it, are handed to the device model, and come back.
//!
//! ```text
//!   Device::access ── queue ── ATTACH ──> in hand ── COMPLETE ──> answered
//!        │                                   └ as long as it takes, whoever dies meanwhile
//!        └ in the range of an ioeventfd: the kernel's own client, at once
//! ```

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::abi::{Abi, READ, Request, WRITE, word};
use super::faults::Faults;
use super::seccomp::{self, Answer, Listener, Notification};
use super::wires::{Kick, Wires};

/// How long a killed process may take to be gone.
const DEATH: Duration = Duration::from_secs(20);

/// Every signal but SIGKILL and SIGSTOP, which nobody keeps out, and 32 to 34, which are the C library's.
const SIGNALS: u64 = !(1 << (9 - 1) | 1 << (19 - 1) | 0b111 << (32 - 1));

/// One device.
pub struct Device {
    /// The device model's id.
    pub id: u32,
    abi: Abi,
    /// What the device model's descriptors of it are openings of.
    file: File,
    memory: File,
    /// Openings so far.
    openings: AtomicU64,
    /// Its eventfds.
    pub wires: Wires,
    state: Mutex<State>,
    changed: Condvar,
    faults: Faults,
}

#[derive(Default)]
struct State {
    made: u64,
    /// Accesses nobody has taken.
    waiting: VecDeque<Made>,
    /// Who waits for one.
    attached: Option<Caller>,
    /// Accesses that were taken, by their places.
    in_hand: HashMap<u64, Made>,
    answers: HashMap<u64, u64>,
    /// What was given back last from each place.
    over: HashMap<u64, Request>,
    /// What was given back by somebody who did not live to hear of it.
    doubtful: Vec<Request>,
    completions: u64,
    script: Script,
    held: Option<Held>,
    /// Threads known to keep signals out.
    quiet: HashSet<u32>,
}

/// An access.
#[derive(Clone, Copy)]
struct Made {
    number: u64,
    request: Request,
}

impl State {
    /// The first place that no access takes.
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

/// What is to go wrong.
#[derive(Default)]
struct Script {
    attach: VecDeque<Errno>,
    complete: VecDeque<Errno>,
    hold: Option<Hold>,
    strike: Option<Pid>,
}

/// Somebody in a call.
#[derive(Clone)]
struct Caller {
    listener: Arc<Listener>,
    note: Notification,
    argument: u64,
}

/// At which point a COMPLETE is kept from returning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Before the hypervisor has heard of it.
    Before,
    /// When the guest's CPU goes on already.
    After,
}

struct Held {
    caller: Caller,
    hold: Hold,
    /// What was given back, where that has come about.
    given: Option<Request>,
}

impl Caller {
    fn is_waiting(&self) -> bool {
        self.listener.is_waiting(self.note.id)
    }

    /// Ends the call; the caller may have been killed.
    fn answer(&self, answer: Answer) -> bool {
        self.listener.answer(self.note.id, answer).is_ok()
    }

    fn fail(&self, errno: Errno) -> bool {
        self.answer(Answer::Fails(errno))
    }
}

impl Device {
    /// A device of `abi`'s kind with `memory`, which its own file gives too from generation B on.
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
            wires: Wires::new()?,
            state: Mutex::default(),
            changed: Condvar::new(),
            faults,
        })
    }

    /// The memory that its guest shares.
    pub const fn memory(&self) -> &File {
        &self.memory
    }

    /// Whether `inode` is that of the device or of its memory.
    pub(super) fn is_at(&self, inode: u64) -> bool {
        self.opens(inode)
            || self
                .memory
                .metadata()
                .is_ok_and(|memory| memory.ino() == inode)
    }

    /// Whether `inode` is the device's.
    pub(super) fn opens(&self, inode: u64) -> bool {
        self.file.metadata().is_ok_and(|file| file.ino() == inode)
    }

    /// Opens it once more.
    pub(super) fn open(&self) -> Result<File> {
        let path = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&self.file)
        );
        let opening = File::options().read(true).write(true).open(path)?;
        seccomp::mark(
            opening.as_fd(),
            self.openings.fetch_add(1, Ordering::AcqRel),
        )?;
        Ok(opening)
    }

    /// Whether it was ever opened.
    pub fn is_created(&self) -> bool {
        self.openings.load(Ordering::Acquire) > 0
    }

    /// Notes a fault if the last descriptor of any opening was closed: the driver frees the device then, and uses it still.
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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the device from doing anything until the guard is dropped.
    pub(super) fn freeze(&self) -> impl Sized + '_ {
        self.state()
    }

    /// One load or store of a guest's CPU, which stands still until it is completed, but no longer than `limit`: the
    /// answer of a load, and 0 of a store. `op` is what the hypervisor would say.
    ///
    /// # Errors
    /// Nobody has completed it.
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
        if self.wires.takes(&kick) {
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
                    "device {}: the access to {address:#x} (op {op}, width {width}) was not completed within \
                     {limit:?}: {place}",
                    self.id
                );
            }
            state = self.wait(state, left);
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, limit: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
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

    /// Waits until an access waits that nobody has taken.
    ///
    /// # Errors
    /// None does within `limit`.
    pub fn until_waiting(&self, limit: Duration) -> Result<()> {
        self.until(limit, "an access that waits", |state| {
            !state.waiting.is_empty()
        })
    }

    /// Waits until `count` accesses have been given back since the beginning.
    ///
    /// # Errors
    /// They are not within `limit`.
    pub fn until_completed(&self, count: u64, limit: Duration) -> Result<()> {
        self.until(limit, "further accesses", |state| {
            state.completions >= count
        })
    }

    /// Waits until somebody waits for an access.
    ///
    /// # Errors
    /// Nobody does within `limit`.
    pub fn until_attached(&self, limit: Duration) -> Result<()> {
        self.until(limit, "a wait for accesses", |state| {
            state.attached.as_ref().is_some_and(Caller::is_waiting)
        })
    }

    /// Accesses that nobody has taken, and those that were taken and not given back.
    #[must_use]
    pub fn unanswered(&self) -> (usize, usize) {
        let state = self.state();
        (state.waiting.len(), state.in_hand.len())
    }

    /// How often an access was given back.
    #[must_use]
    pub fn completions(&self) -> u64 {
        self.state().completions
    }

    /// Has the present or next wait for an access end with an error, and no access.
    pub fn fail_attach(&self, errno: Errno) {
        let mut state = self.state();
        match state.attached.take() {
            Some(caller) if caller.fail(errno) => {}
            _ => state.script.attach.push_back(errno),
        }
    }

    /// Has the next COMPLETE refused, as the hypervisor does for a request that it is not waiting for any more: the CPU
    /// that made the access goes on all the same.
    pub fn fail_complete(&self, errno: Errno) {
        self.state().script.complete.push_back(errno);
    }

    /// Keeps the next COMPLETE from returning.
    pub fn hold_completion(&self, hold: Hold) {
        self.state().script.hold = Some(hold);
    }

    /// Waits until a COMPLETE is kept from returning.
    ///
    /// # Errors
    /// None is within `limit`.
    pub fn until_held(&self, limit: Duration) -> Result<()> {
        self.until(limit, "a completion to hold", |state| state.held.is_some())
    }

    /// Forgets the COMPLETE that is kept from returning: who made it has been killed, and never heard whether it came about.
    ///
    /// # Errors
    /// There is none.
    pub fn abandon(&self) -> Result<()> {
        let mut state = self.state();
        let held = state.held.take().context("no completion is held")?;
        state.doubtful.extend(held.given);
        Ok(())
    }

    /// Lets the COMPLETE that is kept from returning go on, whoever made it being alive.
    ///
    /// # Errors
    /// There is none.
    pub fn release(&self) -> Result<()> {
        let mut state = self.state();
        let held = state.held.take().context("no completion is held")?;
        match held.hold {
            Hold::Before => self.complete_now(&mut state, &held.caller),
            Hold::After => drop(held.caller.answer(Answer::Returns(0))),
        }
        Ok(())
    }

    /// Kills `process` as soon as it has been given the next access: SIGKILL is sent before it can do anything with it.
    pub fn strike_at_delivery(&self, process: Pid) {
        self.state().script.strike = Some(process);
    }

    /// ATTACH.
    pub(super) fn attach(&self, listener: &Arc<Listener>, note: Notification, argument: u64) {
        let caller = Caller {
            listener: Arc::clone(listener),
            note,
            argument,
        };
        let mut state = self.state();
        if state.quiet.insert(note.thread) {
            match seccomp::blocked_signals(note.thread) {
                Ok(blocked) if blocked & SIGNALS == SIGNALS => {}
                Ok(blocked) => self.faults.add(format!(
                    "device {}: ATTACH on a thread that lets signals in: {:#x}",
                    self.id,
                    SIGNALS & !blocked
                )),
                Err(_) => {} // it was killed
            }
        }
        if let Some(errno) = state.script.attach.pop_front() {
            caller.fail(errno);
            return;
        }
        if state.attached.as_ref().is_some_and(Caller::is_waiting) {
            self.faults
                .add(format!("device {}: two threads in ATTACH at once", self.id));
            caller.fail(Errno::BUSY);
            return;
        }
        state.attached = Some(caller);
        self.deliver(&mut state);
        self.changed.notify_all();
    }

    /// Hands the oldest access to whoever waits for one.
    fn deliver(&self, state: &mut State) {
        let Some(&made) = state.waiting.front() else {
            return;
        };
        // Whoever was killed meanwhile takes nothing.
        let Some(caller) = state.attached.take().filter(Caller::is_waiting) else {
            return;
        };
        let bytes = to_bytes(&made.request);
        let written = bytes
            .get(..self.abi.request_len())
            .map_or(Err(Errno::INVAL.into()), |bytes| {
                seccomp::write(caller.note.thread, caller.argument, bytes)
            });
        if written.is_err() {
            caller.fail(Errno::FAULT);
            return;
        }
        if !caller.answer(Answer::Returns(0)) {
            return;
        }
        state.waiting.pop_front();
        state.in_hand.insert(made.request[word::PLACE], made);
        if let Some(process) = state.script.strike.take()
            && let Err(error) = kill_and_wait(process)
        {
            self.faults
                .add(format!("the process could not be killed: {error:#}"));
        }
    }

    /// COMPLETE.
    pub(super) fn complete(&self, listener: &Arc<Listener>, note: Notification, argument: u64) {
        let caller = Caller {
            listener: Arc::clone(listener),
            note,
            argument,
        };
        let mut state = self.state();
        match state.script.hold.take() {
            Some(Hold::Before) => {
                state.held = Some(Held {
                    caller,
                    hold: Hold::Before,
                    given: None,
                });
                self.changed.notify_all();
            }
            hold => {
                if hold.is_some() {
                    // The effect comes first, and its answer later.
                    let caller = caller.clone();
                    state.held = Some(Held {
                        caller,
                        hold: Hold::After,
                        given: None,
                    });
                }
                self.complete_now(&mut state, &caller);
            }
        }
    }

    fn complete_now(&self, state: &mut State, caller: &Caller) {
        let mut bytes = [0; 64];
        let read = bytes
            .get_mut(..self.abi.request_len())
            .map_or(Err(Errno::INVAL.into()), |bytes| {
                seccomp::read(caller.note.thread, caller.argument, bytes)
            });
        if !caller.is_waiting() {
            return; // killed before the hypervisor has heard of it
        }
        let outcome = match read {
            Ok(()) => {
                let given = from_bytes(&bytes);
                if let Some(held) = &mut state.held {
                    held.given = Some(given);
                }
                self.take_back(state, &given)
            }
            Err(_) => Err(Errno::FAULT),
        };
        if !matches!(&state.held, Some(held) if held.caller.note.id == caller.note.id) {
            caller.answer(match outcome {
                Ok(()) => Answer::Returns(0),
                Err(errno) => Answer::Fails(errno),
            });
        }
        self.changed.notify_all();
    }

    fn take_back(&self, state: &mut State, given: &Request) -> Result<(), Errno> {
        let id = self.id;
        let place = given[word::PLACE];
        if given[word::OP] == super::abi::NOTIFY {
            self.wires.raise();
            return Ok(());
        }
        let Some(Made { number, request }) = state.in_hand.get(&place).copied() else {
            // Whoever comes after one that died while it gave this back cannot know, and asks.
            if let Some(at) = state.doubtful.iter().position(|doubtful| doubtful == given) {
                state.doubtful.swap_remove(at);
                return Err(Errno::PERM);
            }
            let again = |over: &Request| over == given;
            let what = if state.over.get(&place).is_some_and(again) {
                "a second time"
            } else {
                "without having it"
            };
            self.faults
                .add(format!("device {id}: completed {given:x?} {what}"));
            return Err(Errno::PERM);
        };
        let mut expected = request;
        if request[word::OP] == READ {
            expected[word::VALUE] = given[word::VALUE];
        }
        let words = self.abi.request_len() / 8;
        if expected.get(..words) != given.get(..words) {
            self.faults
                .add(format!("device {id}: {request:x?} came back as {given:x?}"));
        }
        let is_read = request[word::OP] == READ;
        state.in_hand.remove(&place);
        state.over.insert(place, *given);
        state.completions += 1;
        state
            .answers
            .insert(number, if is_read { given[word::VALUE] } else { 0 });
        state.script.complete.pop_front().map_or(Ok(()), Err)
    }
}

/// Kills `process` and waits until it is gone, though its parent has not asked for it.
///
/// # Errors
/// It cannot be killed.
pub fn kill_and_wait(process: Pid) -> Result<()> {
    let handle = pidfd_open(process, PidfdFlags::empty())?;
    pidfd_send_signal(&handle, Signal::KILL)?;
    let limit = Timespec::try_from(DEATH)?;
    let mut ready = [PollFd::new(&handle, PollFlags::IN)];
    ensure!(
        poll(&mut ready, Some(&limit))? == 1,
        "not gone within {DEATH:?}"
    );
    Ok(())
}

fn to_bytes(request: &Request) -> [u8; 64] {
    let mut bytes = [0; 64];
    for (to, word) in bytes.chunks_exact_mut(8).zip(request) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn from_bytes(bytes: &[u8; 64]) -> Request {
    let mut request = [0; 8];
    for (word, from) in request.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*from);
    }
    request
}
