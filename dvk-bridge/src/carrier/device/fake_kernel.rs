//! A fake kernel that follows DVK's rules, with client processes that tests control.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

pub(super) use client::Client;

use super::driver::{Driver, Sending};
use super::message_buffer::MessageBuffer;
use crate::abi::ioctl::{DcUsr, ProcUsr, RECEIVING, REMOTE, SLOT_FREE};
use crate::abi::{Code, DcId, Endpoint, M9, Message};

mod client;

/// Longest copy (`d_max_copylen`).
const MAX_COPY: usize = 1 << 20;

/// Start of a fake client's memory.
pub(super) const MEMORY: u32 = 0x4000_0000;

/// Whether a sender waits for an answer.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Send,
    SendRec,
}

/// An entry of the process table.
struct Process {
    /// The thread that is bound. A fake client has none.
    thread: Option<ThreadId>,
    pid: i32,
    remote: bool,
    /// The endpoint from which it waits for a message (`p_getfrom`).
    waits_for: Option<Endpoint>,
    /// Its own message was not received yet.
    sending: bool,
    /// The message or code that has ended its wait.
    got: Option<Result<Message, Code>>,
    senders: VecDeque<(i32, Message, Kind)>,
    notified: Vec<Message>,
    memory: Vec<u8>,
}

/// A call and the thread that made it.
pub(super) type Made = (&'static str, ThreadId);

pub(super) struct State {
    /// The result of GETDVSINFO.
    pub(super) dvs: Result<i32, Code>,
    pub(super) container: DcUsr,
    /// Size of a message in bytes.
    pub(super) size: usize,
    /// The result of notifications in the hardware's name.
    pub(super) wake: Result<i32, Code>,
    /// The result of BIND.
    pub(super) bind: Option<Code>,
    /// The next message arrives just as the receive's time limit passes.
    pub(super) late: bool,
    pub(super) made: Vec<Made>,
    processes: BTreeMap<i32, Process>,
}

/// The fake kernel.
pub(super) struct FakeKernel {
    pub(super) state: Mutex<State>,
    changed: Condvar,
}

impl FakeKernel {
    pub(super) fn new() -> Arc<Self> {
        let container = DcUsr {
            nr_procs: 221,
            nr_tasks: 34,
            nr_sysprocs: 64,
            ..DcUsr::default()
        };
        Arc::new(Self {
            state: Mutex::new(State {
                dvs: Ok(0),
                container,
                size: 36,
                wake: Ok(0),
                bind: None,
                late: false,
                made: Vec::new(),
                processes: BTreeMap::new(),
            }),
            changed: Condvar::new(),
        })
    }

    /// A client in `slot` with 256 bytes of memory: on this node, or on another if `pid` is `None`.
    pub(super) fn client(self: &Arc<Self>, slot: i32, pid: Option<i32>) -> Client {
        let mut state = self.state.lock();
        let mut process = Process::new(None, pid.unwrap_or(-1));
        process.remote = pid.is_none();
        process.memory = (0..=255).collect();
        state.processes.insert(slot, process);
        Client {
            kernel: self.clone(),
            slot,
        }
    }

    /// Notifies `to` in the name of `source`.
    pub(super) fn notification(&self, source: Endpoint, to: i32) {
        let message = Message::notification(source, &M9::default());
        self.state.lock().notify(to, message);
        self.changed.notify_all();
    }

    /// Whether `slot` is in use.
    pub(super) fn has(&self, slot: i32) -> bool {
        self.state.lock().processes.contains_key(&slot)
    }

    fn made(&self, call: &'static str) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        state.made.push((call, thread::current().id()));
        state
    }

    /// Waits until `slot` has received something, and returns it.
    fn wait(&self, slot: i32, limit: Duration) -> Result<Message, Code> {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock();
        let mut late = false;
        loop {
            let process = state.processes.get_mut(&slot).ok_or(Code::EDVSNOTBIND)?;
            if let Some(got) = process.got.take() {
                process.waits_for = None;
                return got;
            }
            if late {
                process.waits_for = None;
                process.sending = false;
                for process in state.processes.values_mut() {
                    process.senders.retain(|(sender, ..)| *sender != slot);
                }
                return Err(Code::EDVSTIMEDOUT);
            }
            late = self.changed.wait_until(&mut state, deadline).timed_out();
        }
    }

    fn write(&self, buffer: &mut MessageBuffer, message: &Message) -> i32 {
        let size = self.state.lock().size;
        message.encode(buffer.bytes_mut().get_mut(..size).unwrap());
        i32::try_from(size).unwrap()
    }
}

impl Process {
    fn new(thread: Option<ThreadId>, pid: i32) -> Self {
        Self {
            thread,
            pid,
            remote: false,
            waits_for: None,
            sending: false,
            got: None,
            senders: VecDeque::new(),
            notified: Vec::new(),
            memory: Vec::new(),
        }
    }

    fn takes_from(&self, slot: i32) -> bool {
        let from = [Some(Endpoint::ANY), Some(Endpoint::from_raw(slot))];
        !self.sending
            && self.got.is_none()
            && from.contains(&self.waits_for)
            && self.waits_for.is_some()
    }
}

impl State {
    /// The slot of the calling thread.
    fn caller(&self) -> Result<i32, Code> {
        let this = Some(thread::current().id());
        let own = self.processes.iter().find(|(_, it)| it.thread == this);
        own.map(|(&slot, _)| slot).ok_or(Code::EDVSNOTBIND)
    }

    fn notify(&mut self, to: i32, message: Message) {
        let process = self.processes.get_mut(&to).unwrap();
        if process.waits_for == Some(Endpoint::ANY) && process.got.is_none() {
            process.got = Some(Ok(message));
        } else {
            process.notified.push(message);
        }
    }

    /// Delivers a message at once if `to` waits for it, and queues it otherwise.
    fn send(&mut self, from: i32, to: i32, message: &Message, kind: Kind) -> Result<bool, Code> {
        let mut message = *message;
        message.source = Endpoint::from_raw(from);
        let died = match kind {
            Kind::Send => Code::EDVSDSTDIED,
            Kind::SendRec => Code::EDVSDEADSRCDST,
        };
        let partner = self.processes.get_mut(&to).ok_or(died)?;
        let at_once = partner.takes_from(from);
        if at_once {
            partner.got = Some(Ok(message));
        } else {
            partner.senders.push_back((from, message, kind));
        }
        let own = self.processes.get_mut(&from).ok_or(Code::EDVSNOTBIND)?;
        own.sending = !at_once;
        own.got = None;
        own.waits_for = (kind == Kind::SendRec).then_some(Endpoint::from_raw(to));
        Ok(at_once)
    }

    /// The next message for `slot`, notifications first.
    fn take(&mut self, slot: i32) -> Option<Message> {
        let process = self.processes.get_mut(&slot)?;
        if !process.notified.is_empty() {
            return Some(process.notified.remove(0));
        }
        let (sender, message, kind) = process.senders.pop_front()?;
        if let Some(sender) = self.processes.get_mut(&sender) {
            sender.sending = false;
            if kind == Kind::Send {
                sender.got = Some(Ok(message));
            }
        }
        Some(message)
    }

    fn remove(&mut self, slot: i32) {
        let Some(gone) = self.processes.remove(&slot) else {
            return;
        };
        for (sender, _, kind) in gone.senders {
            if let Some(sender) = self.processes.get_mut(&sender) {
                sender.got = Some(Err(match kind {
                    Kind::Send => Code::EDVSDSTDIED,
                    Kind::SendRec => Code::EDVSSRCDIED,
                }));
            }
        }
        for process in self.processes.values_mut() {
            process.senders.retain(|(sender, ..)| *sender != slot);
            if process.waits_for == Some(Endpoint::from_raw(slot)) && process.got.is_none() {
                process.got = Some(Err(Code::EDVSSRCDIED));
            }
        }
    }

    /// The bytes of `slot` that a copy of the caller covers. Fewer where its memory ends.
    fn copied(&mut self, slot: i32, at: u32, bytes: usize) -> Result<(bool, &mut [u8]), Code> {
        self.caller()?;
        if bytes > MAX_COPY {
            return Err(Code::EDVSBADRANGE);
        }
        let process = self.processes.get_mut(&slot).ok_or(Code::EDVSDSTDIED)?;
        if !process.remote && process.waits_for.is_none() {
            return Err(Code::EDVSPROCSTS);
        }
        let from = at
            .checked_sub(MEMORY)
            .and_then(|from| usize::try_from(from).ok());
        let from = from.filter(|&from| from < process.memory.len());
        let memory = process.memory.get_mut(from.ok_or(Code::EFAULT)?..);
        let memory = memory.unwrap_or_default();
        let there = memory.len().min(bytes);
        Ok((process.remote, memory.get_mut(..there).unwrap_or_default()))
    }
}

/// The result of a copy: the number of bytes, or zero if another node did it.
fn count(remote: bool, bytes: usize) -> i32 {
    if remote {
        0
    } else {
        i32::try_from(bytes).unwrap()
    }
}

impl Driver for FakeKernel {
    fn dvs(&self) -> Result<i32, Code> {
        self.made("GETDVSINFO").dvs
    }

    fn container(&self, dc: DcId) -> Result<DcUsr, Code> {
        let state = self.made("GETDCINFO");
        if dc == DcId::FIRST {
            Ok(state.container)
        } else {
            Err(Code::EDVSBADDCID)
        }
    }

    fn process(&self, _: DcId, slot: i32) -> Result<ProcUsr, Code> {
        let state = self.made("GETPROCINFO");
        let Some(process) = state.processes.get(&slot) else {
            return Ok(ProcUsr {
                rts_flags: SLOT_FREE,
                nodeid: -1,
                ..ProcUsr::default()
            });
        };
        let mut rts_flags = 0;
        if process.remote {
            rts_flags |= REMOTE;
        }
        if process.waits_for.is_some() {
            rts_flags |= RECEIVING;
        }
        Ok(ProcUsr {
            nr: slot,
            endpoint: slot,
            lpid: process.pid,
            rts_flags,
            ..ProcUsr::default()
        })
    }

    fn bind(&self, _: DcId, endpoint: Endpoint) -> Result<i32, Code> {
        let mut state = self.made("BIND");
        if let Some(code) = state.bind {
            return Err(code);
        }
        if state.processes.contains_key(&endpoint.slot()) {
            return Err(Code::EDVSSLOTUSED);
        }
        let process = Process::new(Some(thread::current().id()), 1);
        state.processes.insert(endpoint.slot(), process);
        Code::from_result(endpoint.raw()).map_or(Ok(endpoint.raw()), Err)
    }

    fn unbind(&self, _: DcId, endpoint: Endpoint) -> Result<i32, Code> {
        self.made("UNBIND").remove(endpoint.slot());
        self.changed.notify_all();
        Ok(0)
    }

    fn receive(&self, buffer: &mut MessageBuffer, limit: Duration) -> Result<i32, Code> {
        let slot = {
            let mut state = self.made("RECEIVE");
            let slot = state.caller()?;
            if let Some(message) = state.take(slot) {
                drop(state);
                self.changed.notify_all();
                self.write(buffer, &message);
                return Ok(0);
            }
            let process = state.processes.get_mut(&slot).unwrap();
            process.waits_for = Some(Endpoint::ANY);
            process.got = None;
            slot
        };
        let message = self.wait(slot, limit)?;
        let size = self.write(buffer, &message);
        let late = std::mem::take(&mut self.state.lock().late);
        if late {
            Err(Code::EDVSTIMEDOUT)
        } else {
            Ok(size)
        }
    }

    fn send(
        &self,
        sending: Sending,
        to: Endpoint,
        buffer: &mut MessageBuffer,
        limit: Duration,
    ) -> Result<i32, Code> {
        let message = Message::decode(buffer.bytes_mut()).unwrap();
        let mut state = self.made(match sending {
            Sending::Send => "SEND",
            Sending::Reply => "REPLY",
            Sending::SendRec => "SENDREC",
        });
        let own = state.caller()?;
        if sending == Sending::Reply {
            let mut message = message;
            message.source = Endpoint::from_raw(own);
            let partner = state.processes.get_mut(&to.slot());
            let partner = partner.ok_or(Code::EDVSDSTDIED)?;
            let waits = partner.waits_for == Some(Endpoint::from_raw(own)) && !partner.sending;
            if !waits && !partner.remote {
                return Err(Code::EDVSPROCSTS);
            }
            partner.got = Some(Ok(message));
            drop(state);
            self.changed.notify_all();
            return Ok(0);
        }
        let kind = if sending == Sending::Send {
            Kind::Send
        } else {
            Kind::SendRec
        };
        let at_once = state.send(own, to.slot(), &message, kind)?;
        drop(state);
        self.changed.notify_all();
        if kind == Kind::Send {
            if !at_once {
                self.wait(own, limit)?;
            }
            return Ok(0);
        }
        let answer = self.wait(own, limit)?;
        Ok(self.write(buffer, &answer))
    }

    fn notify(&self, to: Endpoint) -> Result<i32, Code> {
        let mut state = self.made("NOTIFY");
        let own = Endpoint::from_raw(state.caller()?);
        if !state.processes.contains_key(&to.slot()) {
            return Err(Code::EDVSDSTDIED);
        }
        state.notify(to.slot(), Message::notification(own, &M9::default()));
        self.changed.notify_all();
        Ok(0)
    }

    fn wake(&self, _: DcId, endpoint: Endpoint) -> Result<i32, Code> {
        let mut state = self.made("WAKE");
        state.wake?;
        let slot = endpoint.slot();
        let process = state.processes.get(&slot).ok_or(Code::EDVSDSTDIED)?;
        // The type carries the receiver's own slot.
        let mut message = Message::notification(endpoint, &M9::default());
        message.source = Endpoint::HARDWARE;
        if process.notified.contains(&message) {
            return Err(Code::EDVSOVERRUN);
        }
        state.notify(slot, message);
        self.changed.notify_all();
        Ok(0)
    }

    fn copy_from(&self, from: Endpoint, address: u32, into: &mut [u8]) -> Result<i32, Code> {
        let mut state = self.made("VCOPY");
        let (remote, memory) = state.copied(from.slot(), address, into.len())?;
        into.get_mut(..memory.len())
            .unwrap()
            .copy_from_slice(memory);
        Ok(count(remote, memory.len()))
    }

    fn copy_to(&self, to: Endpoint, address: u32, from: &[u8]) -> Result<i32, Code> {
        let mut state = self.made("VCOPY");
        let (remote, memory) = state.copied(to.slot(), address, from.len())?;
        memory.copy_from_slice(from.get(..memory.len()).unwrap());
        Ok(count(remote, memory.len()))
    }
}
