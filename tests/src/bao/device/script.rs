//! What is to go wrong in a device, and when: the errors of its calls, and the moments at which its
//! device model is killed.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::process::Pid;

use super::Device;
use super::calls::Caller;
use crate::bao::abi::Request;
use crate::bao::seccomp::Answer;

/// What is to go wrong.
#[derive(Default)]
pub(super) struct Script {
    pub(super) attach: VecDeque<Errno>,
    pub(super) complete: VecDeque<Errno>,
    pub(super) hold: Option<Hold>,
    pub(super) strike: Option<Pid>,
}

/// At which point a COMPLETE is kept from returning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Before the hypervisor has heard of it.
    Before,
    /// When the guest's CPU goes on already.
    After,
}

/// A COMPLETE that is kept from returning.
pub(super) struct Held {
    pub(super) caller: Caller,
    pub(super) hold: Hold,
    /// What was given back, where that has come about.
    pub(super) given: Option<Request>,
}

impl Device {
    /// Has the present or next wait for an access end with an error, and no access.
    pub fn fail_attach(&self, errno: Errno) {
        let mut state = self.state();
        match state.attached.take() {
            Some(caller) if caller.fail(errno) => {}
            _ => state.script.attach.push_back(errno),
        }
    }

    /// Has the next COMPLETE refused, as the hypervisor does for a request that it is not waiting
    /// for any more: the CPU that made the access goes on all the same.
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

    /// Forgets the COMPLETE that is kept from returning: who made it has been killed, and never
    /// heard whether it came about.
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

    /// Kills `process` as soon as it has been given the next access: SIGKILL is sent before it can
    /// do anything with it.
    pub fn strike_at_delivery(&self, process: Pid) {
        self.state().script.strike = Some(process);
    }
}
