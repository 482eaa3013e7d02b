//! A hypervisor in memory with one device and its guest, for tests.
//!
//! It is strict: it records as a fault what a real hypervisor might not survive, such as an access
//! that is completed twice.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::fs::MemfdFlags;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::hypervisor::{Access, GuestMemory, GuestRange, Operation, Port, PortError, Token};
use crate::mmio::Register;

/// The device model's end.
#[derive(Debug)]
pub struct FakePort {
    window: GuestRange,
    memory: GuestMemory,
    is_wait_fragile: bool,
    shared: Arc<Shared>,
}

/// The guest's end. Clones are CPUs of the same guest.
#[derive(Clone, Debug)]
pub struct FakeGuest {
    window: GuestRange,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    made: u64,
    waiting: VecDeque<Access>,
    in_hand: HashSet<u64>,
    answers: HashMap<u64, u64>,
    attached: bool,
    gone: bool,
    interruptions: u32,
    kicks: Vec<(u16, EventFd)>,
    interrupts: Vec<EventFd>,
    faults: Vec<String>,
}

/// A guest's access was not completed.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("the access to {address:#x} was not completed within {limit:?}")]
pub struct Frozen {
    /// Guest address of the access.
    pub address: u64,
    /// How long the CPU has waited.
    pub limit: Duration,
}

/// A guest with `memory` of shared memory and a device at `window`. Fails as `memfd_create` does.
pub fn fake(window: GuestRange, memory: GuestRange) -> std::io::Result<(FakePort, FakeGuest)> {
    let descriptor = rustix::fs::memfd_create("fake guest", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&descriptor, memory.len())?;
    let shared = Arc::new(Shared::default());
    let port = FakePort {
        window,
        is_wait_fragile: false,
        memory: GuestMemory {
            descriptor,
            range: memory,
        },
        shared: Arc::clone(&shared),
    };
    Ok((port, FakeGuest { window, shared }))
}

impl FakePort {
    /// The same port, but with [`Port::is_wait_fragile`] set.
    #[must_use]
    pub fn fragile(self) -> Self {
        Self {
            is_wait_fragile: true,
            ..self
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl Port for FakePort {
    fn window(&self) -> GuestRange {
        self.window
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn next_access(&self) -> Result<Access, PortError> {
        let mut state = self.shared.state();
        if std::mem::replace(&mut state.attached, true) {
            state.faults.push("two threads waited".to_owned());
            return Err(PortError::Busy);
        }
        let next = loop {
            if state.gone {
                break Err(PortError::Gone);
            }
            if state.interruptions > 0 {
                state.interruptions -= 1;
                break Err(PortError::Interrupted);
            }
            if let Some(access) = state.waiting.pop_front() {
                let number = access.token.0[0];
                state.in_hand.insert(number);
                break Ok(access);
            }
            self.shared.changed.wait(&mut state);
        };
        state.attached = false;
        next
    }

    fn is_wait_fragile(&self) -> bool {
        self.is_wait_fragile
    }

    fn complete(&self, access: Access, answer: u64) -> Result<(), PortError> {
        let mut state = self.shared.state();
        let number = access.token.0[0];
        if !state.in_hand.remove(&number) {
            state.faults.push(format!("{access:?} was not in hand"));
            return Err(PortError::Gone);
        }
        let answer = match access.operation {
            Operation::Read => answer,
            Operation::Write(_) | Operation::Unknown(_) => 0,
        };
        state.answers.insert(number, answer);
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }

    fn connect_kick(&self, queue: u16, kick: &EventFd) -> Result<(), PortError> {
        let kick = duplicate(kick)?;
        let mut state = self.shared.state();
        match state.kicks.iter().find(|(known, _)| *known == queue) {
            None => state.kicks.push((queue, kick)),
            Some((_, known)) if identity(known)? == identity(&kick)? => {}
            Some(_) => {
                let fault =
                    format!("queue {queue} got a second kick descriptor, which is not registered");
                state.faults.push(fault);
            }
        }
        Ok(())
    }

    fn connect_interrupt(&self, interrupt: &EventFd) -> Result<(), PortError> {
        let interrupt = duplicate(interrupt)?;
        let mut state = self.shared.state();
        for known in &state.interrupts {
            if identity(known)? == identity(&interrupt)? {
                return Ok(());
            }
        }
        state.interrupts.push(interrupt);
        Ok(())
    }

    fn disconnect_kick(&self, queue: u16, _: &EventFd) -> Result<(), PortError> {
        let mut state = self.shared.state();
        state.kicks.retain(|(known, _)| *known != queue);
        Ok(())
    }

    fn disconnect_interrupt(&self, _: &EventFd) -> Result<(), PortError> {
        self.shared.state().interrupts.clear();
        Ok(())
    }
}

/// The kernel's id of an eventfd.
fn identity(eventfd: &EventFd) -> Result<String, PortError> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", eventfd.as_raw_fd()));
    let info = info.map_err(|source| PortError::Failed {
        doing: "tell eventfds apart",
        source,
    })?;
    let id = info.lines().find(|line| line.starts_with("eventfd-id:"));
    Ok(id.unwrap_or_default().to_owned())
}

fn duplicate(eventfd: &EventFd) -> Result<EventFd, PortError> {
    eventfd.try_clone().map_err(|source| PortError::Failed {
        doing: "keep an eventfd",
        source,
    })
}

impl FakeGuest {
    /// One load or store of `width` bytes at `offset` of the window. The CPU waits until the access
    /// is completed, at most `limit`. A store returns 0.
    pub fn access(
        &self,
        offset: u64,
        width: u64,
        operation: Operation,
        limit: Duration,
    ) -> Result<u64, Frozen> {
        let mut state = self.shared.state();
        if let Operation::Write(value) = operation
            && offset == Register::QueueNotify.offset()
            && width <= 4
            && !state.kicks.is_empty()
        {
            // The hypervisor takes the write, whether it finds the queue's eventfd or not.
            if let Some((_, kick)) = state
                .kicks
                .iter()
                .find(|(queue, _)| u64::from(*queue) == value)
            {
                // A full counter is a pending kick already.
                let _ = kick.write(1);
            }
            return Ok(0);
        }
        state.made += 1;
        let number = state.made;
        let address = self.window.start().wrapping_add(offset);
        state.waiting.push_back(Access {
            address,
            width,
            operation,
            token: Token([number, 0, 0, 0, 0, 0, 0, 0]),
        });
        self.shared.changed.notify_all();
        let deadline = Instant::now() + limit;
        loop {
            if let Some(answer) = state.answers.remove(&number) {
                return Ok(answer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Frozen { address, limit });
            }
            self.shared.changed.wait_for(&mut state, left);
        }
    }

    /// Whether the interrupt line is raised within `limit`. The line stays raised until the device
    /// model reads its counter. Fails as `epoll_wait` does.
    pub fn interrupted(&self, limit: Duration) -> std::io::Result<bool> {
        let epoll = Epoll::new()?;
        for interrupt in &self.shared.state().interrupts {
            let readable = EpollEvent::new(EventSet::IN, 0);
            epoll.ctl(ControlOperation::Add, interrupt.as_raw_fd(), readable)?;
        }
        let limit = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        Ok(epoll.wait(limit, &mut [EpollEvent::default()])? > 0)
    }

    /// Ends the present or next wait for an access without an access, as a signal would.
    pub fn interrupt_wait(&self) {
        self.shared.state().interruptions += 1;
        self.shared.changed.notify_all();
    }

    /// Whether the device model waits for an access and none is queued.
    pub fn is_awaited(&self) -> bool {
        let state = self.shared.state();
        state.attached && state.waiting.is_empty()
    }

    /// Takes the device away: waits for accesses end with [`PortError::Gone`].
    pub fn take_away(&self) {
        self.shared.state().gone = true;
        self.shared.changed.notify_all();
    }

    /// What the device model did that a real hypervisor might not survive.
    pub fn faults(&self) -> Vec<String> {
        self.shared.state().faults.clone()
    }

    /// The number of accesses that the device model has not taken, and the number that it has taken
    /// and not completed.
    pub fn unanswered(&self) -> (usize, usize) {
        let state = self.shared.state();
        (state.waiting.len(), state.in_hand.len())
    }
}
