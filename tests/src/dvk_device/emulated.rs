//! The module's process table and its rules for messages and copies.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gangplank_dvk::abi::{Code, Endpoint, M9, Message};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::io::Errno;

use super::calls;
use crate::bao::seccomp::{Answer, Listener, Notification};

/// A copy with a client's memory, which the client's own thread does.
pub(super) struct Copy {
    pub(super) address: u32,
    pub(super) bytes: Bytes,
}

/// The bytes of a copy.
pub(super) enum Bytes {
    /// This many, from the client.
    Out(usize),
    /// These, to the client.
    In(Vec<u8>),
}

/// One process.
#[derive(Default)]
pub(super) struct Process {
    /// The program's thread that has bound it; `None` for a client in the test.
    pub(super) thread: Option<u32>,
    pub(super) pid: i32,
    /// The process that it has asked, and whether the request was received.
    pub(super) asks: Option<Endpoint>,
    pub(super) received: bool,
    pub(super) got: Option<Result<Message, Code>>,
    pub(super) copy: Option<Copy>,
    pub(super) copied: Option<Result<Vec<u8>, Code>>,
    senders: VecDeque<(i32, Message)>,
    notified: bool,
}

/// The table.
#[derive(Default)]
pub(super) struct State {
    pub(super) processes: BTreeMap<i32, Process>,
    /// Numbers of calls by name.
    made: BTreeMap<&'static str, usize>,
    next_pid: i32,
}

/// The module.
pub struct EmulatedDevice {
    state: Mutex<State>,
    pub(super) changed: Condvar,
    /// Length of a message in bytes.
    pub(super) size: usize,
}

impl EmulatedDevice {
    /// The module of a generation whose messages have `size` bytes.
    #[must_use]
    pub fn new(size: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            size,
        })
    }

    /// How often the call with DVK's name `call` was made.
    #[must_use]
    pub fn made(&self, call: &str) -> usize {
        self.lock().made.get(call).copied().unwrap_or_default()
    }

    /// Whether a process has bound `endpoint`.
    #[must_use]
    pub fn has(&self, endpoint: Endpoint) -> bool {
        self.lock().processes.contains_key(&endpoint.slot())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits for a change, at most until `deadline`. Returns the lock, and whether the deadline has
    /// passed.
    pub(super) fn wait<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        deadline: Instant,
    ) -> (MutexGuard<'a, State>, bool) {
        let left = deadline.saturating_duration_since(Instant::now());
        self.changed.wait_for(&mut state, left);
        (state, left.is_zero())
    }

    /// Answers a call of the program.
    pub(super) fn answer(&self, listener: &Listener, note: Notification) {
        let result = calls::answer(self, note);
        let answer = match result {
            Ok(number) => Answer::Returns(number),
            Err(code) => Answer::Fails(Errno::from_raw_os_error(code.number())),
        };
        // The caller may have been killed.
        let _ = listener.answer(note.id, answer);
    }

    pub(super) fn count(&self, call: &'static str) {
        *self.lock().made.entry(call).or_default() += 1;
    }

    /// Frees what the threads of the program had bound, after its end.
    pub(super) fn ended(&self) {
        let mut state = self.lock();
        let theirs = state.processes.iter();
        let theirs = theirs.filter(|(_, process)| process.thread.is_some());
        let slots: Vec<i32> = theirs.map(|(&slot, _)| slot).collect();
        for slot in slots {
            state.remove(slot);
        }
        self.changed.notify_all();
    }

    /// RECEIVE.
    pub(super) fn receive(&self, slot: i32, limit: Duration) -> Result<Message, Code> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        let mut late = false;
        loop {
            let process = state.processes.get_mut(&slot).ok_or(Code::EDVSNOTBIND)?;
            if std::mem::take(&mut process.notified) {
                // The sender is its own slot, in the hardware's name.
                let own = Endpoint::from_raw(slot);
                let mut message = Message::notification(own, &M9::default());
                message.source = Endpoint::HARDWARE;
                return Ok(message);
            }
            if let Some((sender, message)) = process.senders.pop_front() {
                if let Some(sender) = state.processes.get_mut(&sender) {
                    sender.received = true;
                }
                return Ok(message);
            }
            if late {
                return Err(Code::EDVSTIMEDOUT);
            }
            (state, late) = self.wait(state, deadline);
        }
    }

    /// REPLY.
    pub(super) fn reply(&self, from: i32, to: Endpoint, message: Message) -> Result<i32, Code> {
        let mut state = self.lock();
        let client = state.processes.get_mut(&to.slot());
        let client = client.ok_or(Code::EDVSDSTDIED)?;
        if client.asks != Some(Endpoint::from_raw(from)) || !client.received {
            return Err(Code::EDVSPROCSTS);
        }
        let mut message = message;
        message.source = Endpoint::from_raw(from);
        client.got = Some(Ok(message));
        self.changed.notify_all();
        Ok(0)
    }

    /// NOTIFY in the hardware's name.
    pub(super) fn notify(&self, to: Endpoint) -> Result<i32, Code> {
        let mut state = self.lock();
        let process = state.processes.get_mut(&to.slot());
        let process = process.ok_or(Code::EDVSDSTDIED)?;
        if std::mem::replace(&mut process.notified, true) {
            return Err(Code::EDVSOVERRUN);
        }
        self.changed.notify_all();
        Ok(0)
    }

    /// VCOPY, which the client's thread executes.
    pub(super) fn copy(&self, with: Endpoint, copy: Copy) -> Result<Vec<u8>, Code> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut state = self.lock();
        let client = state.processes.get_mut(&with.slot());
        let client = client.ok_or(Code::EDVSDSTDIED)?;
        if client.asks.is_none() {
            return Err(Code::EDVSPROCSTS);
        }
        client.copy = Some(copy);
        self.changed.notify_all();
        loop {
            let late;
            (state, late) = self.wait(state, deadline);
            let client = state.processes.get_mut(&with.slot());
            let client = client.ok_or(Code::EDVSDSTDIED)?;
            if let Some(copied) = client.copied.take() {
                return copied;
            }
            if late {
                return Err(Code::EDVSTIMEDOUT);
            }
        }
    }
}

impl State {
    /// The slot that `thread` has bound.
    pub(super) fn caller(&self, thread: u32) -> Result<i32, Code> {
        let mut bound = self.processes.iter();
        let own = bound.find(|(_, process)| process.thread == Some(thread));
        own.map(|(&slot, _)| slot).ok_or(Code::EDVSNOTBIND)
    }

    /// BIND, for a thread of the program or for a client in the test.
    pub(super) fn bind(&mut self, slot: i32, thread: Option<u32>) -> Result<(), Code> {
        if self.processes.contains_key(&slot) {
            return Err(Code::EDVSSLOTUSED);
        }
        self.next_pid += 1;
        let process = Process {
            thread,
            pid: 1000 + self.next_pid,
            ..Process::default()
        };
        self.processes.insert(slot, process);
        Ok(())
    }

    /// The first half of SENDREC.
    pub(super) fn ask(&mut self, from: i32, to: Endpoint, message: &Message) -> Result<(), Code> {
        let partner = self.processes.get_mut(&to.slot());
        let partner = partner.ok_or(Code::EDVSDEADSRCDST)?;
        let mut message = *message;
        message.source = Endpoint::from_raw(from);
        partner.senders.push_back((from, message));
        let own = self.processes.get_mut(&from).ok_or(Code::EDVSNOTBIND)?;
        own.asks = Some(to);
        own.received = false;
        own.got = None;
        Ok(())
    }

    /// UNBIND, or the end of a process. Processes that wait for it are released.
    pub(super) fn remove(&mut self, slot: i32) {
        self.processes.remove(&slot);
        for process in self.processes.values_mut() {
            process.senders.retain(|(sender, _)| *sender != slot);
            if process.asks == Some(Endpoint::from_raw(slot)) && process.got.is_none() {
                process.got = Some(Err(Code::EDVSSRCDIED));
            }
        }
    }
}
