//! The faults that a device injects: errors of its calls, and moments at which it kills its device
//! model.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::process::Pid;

use super::Device;
use super::calls::Caller;
use crate::bao::abi::Request;
use crate::bao::seccomp::Answer;

/// The pending faults.
#[derive(Default)]
pub(super) struct Script {
    pub(super) attach: VecDeque<Errno>,
    pub(super) complete: VecDeque<Errno>,
    pub(super) hold: Option<Hold>,
    pub(super) strike: Option<Pid>,
}

/// The point at which a COMPLETE is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Before it takes effect.
    Before,
    /// After it took effect and the guest's CPU continues.
    After,
}

/// A held COMPLETE.
pub(super) struct Held {
    pub(super) caller: Caller,
    pub(super) hold: Hold,
    /// The completed request, once one is held.
    pub(super) given: Option<Request>,
}

impl Device {
    /// Makes the present or next wait for an access return an error without an access.
    pub fn fail_attach(&self, errno: Errno) {
        let mut state = self.state();
        match state.attached.take() {
            Some(caller) if caller.fail(errno) => {}
            _ => state.script.attach.push_back(errno),
        }
    }

    /// Refuses the next COMPLETE, as the hypervisor does for a request that it no longer waits for.
    /// The CPU that made the access continues all the same.
    pub fn fail_complete(&self, errno: Errno) {
        self.state().script.complete.push_back(errno);
    }

    /// Holds the next COMPLETE.
    pub fn hold_completion(&self, hold: Hold) {
        self.state().script.hold = Some(hold);
    }

    /// Waits until a COMPLETE is held.
    ///
    /// # Errors
    /// None is within `limit`.
    pub fn until_held(&self, limit: Duration) -> Result<()> {
        self.until(limit, "a completion to hold", |state| state.held.is_some())
    }

    /// Drops the held COMPLETE. Its caller has been killed, and never learns whether it took
    /// effect.
    ///
    /// # Errors
    /// There is none.
    pub fn abandon(&self) -> Result<()> {
        let mut state = self.state();
        let held = state.held.take().context("no completion is held")?;
        state.doubtful.extend(held.given);
        Ok(())
    }

    /// Lets the held COMPLETE return. Its caller is alive.
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

    /// Kills `process` when it takes the next access: SIGKILL arrives before it can handle the
    /// access.
    pub fn strike_at_delivery(&self, process: Pid) {
        self.state().script.strike = Some(process);
    }
}
