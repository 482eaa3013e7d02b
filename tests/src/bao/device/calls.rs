//! The calls of a device: ATTACH takes an access, COMPLETE completes it.

use std::sync::Arc;

use rustix::io::Errno;

use super::script::{Held, Hold};
use super::{Device, Made, State};
use crate::bao::abi::{NOTIFY, READ, Request, word};
use crate::bao::launch::kill_and_wait;
use crate::bao::seccomp::{self, Answer, Listener, Notification};

/// Every signal but SIGKILL and SIGSTOP, which no thread can block, and 32 to 34, which belong to
/// the C library.
const SIGNALS: u64 = !(1 << (9 - 1) | 1 << (19 - 1) | 0b111 << (32 - 1));

/// A thread in a call.
#[derive(Clone)]
pub(super) struct Caller {
    listener: Arc<Listener>,
    pub(super) note: Notification,
    argument: u64,
}

impl Caller {
    pub(super) fn is_waiting(&self) -> bool {
        self.listener.is_waiting(self.note.id)
    }

    /// Ends the call. Returns whether the caller still lives.
    pub(super) fn answer(&self, answer: Answer) -> bool {
        self.listener.answer(self.note.id, answer).is_ok()
    }

    pub(super) fn fail(&self, errno: Errno) -> bool {
        self.answer(Answer::Fails(errno))
    }
}

impl Device {
    /// ATTACH.
    pub(in crate::bao) fn attach(
        &self,
        listener: &Arc<Listener>,
        note: Notification,
        argument: u64,
    ) {
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

    /// Gives the oldest access to the waiting thread.
    pub(super) fn deliver(&self, state: &mut State) {
        let Some(&made) = state.waiting.front() else {
            return;
        };
        // A thread that was killed meanwhile takes nothing.
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
    pub(in crate::bao) fn complete(
        &self,
        listener: &Arc<Listener>,
        note: Notification,
        argument: u64,
    ) {
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
                    // The completion takes effect before the call returns.
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

    pub(super) fn complete_now(&self, state: &mut State, caller: &Caller) {
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
        if given[word::OP] == NOTIFY {
            self.eventfds.raise();
            return Ok(());
        }
        let Some(Made { number, request }) = state.in_hand.get(&place).copied() else {
            // The successor of a device model that died in COMPLETE cannot know whether it took
            // effect, and asks.
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
