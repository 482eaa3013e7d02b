//! Copies from and to processes here that wait for their server, and copies that servers here
//! request.

use super::super::ProcessAddress;
use super::super::layout::{Field, Frame};
use super::tables::{Exchange, Reason};
use super::{Kernel, Outgoing, command};

impl Kernel {
    pub(super) fn copy_in(&mut self, frame: &Frame) -> Outgoing {
        let copy = frame.copy();
        let code = self.copy_code(frame, copy[4], |memory| {
            memory.copy_from_slice(&frame.payload)
        });
        if code < 0 {
            let stale = self.stale;
            return self.answer(frame, command::COPYIN_ACK, code, stale);
        }
        self.stale = copy;
        self.answer(frame, command::COPYIN_ACK, copy[5], copy)
    }

    pub(super) fn copy_out(&mut self, frame: &Frame) -> Option<Outgoing> {
        let copy = frame.copy();
        let in_order = copy[0] == frame.get(Field::Destination) && (1..=65_536).contains(&copy[5]);
        if !in_order {
            self.lose(frame, Reason::Copy);
            return None;
        }
        let mut data = Vec::new();
        let code = self.copy_code(frame, copy[3], |memory| data.extend_from_slice(memory));
        match code {
            // If the process is running, the handler drops the error.
            -324 => {
                self.lose(frame, Reason::Copy);
                None
            }
            0 => {
                self.stale = copy;
                let answer = self.answer(frame, command::COPYOUT_DATA, 0, copy);
                Some(Outgoing {
                    frame: answer.frame.with_payload(&data),
                    ..answer
                })
            }
            code => {
                let stale = self.stale;
                Some(self.answer(frame, command::COPYOUT_DATA, code, stale))
            }
        }
    }

    /// Passes the bytes of a copy to `done`, or returns the code of the error.
    fn copy_code(&mut self, frame: &Frame, address: i32, done: impl FnOnce(&mut [u8])) -> i32 {
        let length = usize::try_from(frame.copy()[5]).unwrap_or(usize::MAX);
        let process = self.processes.get_mut(&ProcessAddress::destination(frame));
        let Some(process) = process.filter(|it| it.waits_for == Some(frame.get(Field::Source)))
        else {
            return -324;
        };
        let address = address.cast_unsigned();
        let below = process.memory.range_mut(..=address).next_back();
        let found = below.and_then(|(&start, bytes)| {
            let from = usize::try_from(address - start).ok()?;
            bytes.get_mut(from..from.checked_add(length)?)
        });
        match found {
            Some(bytes) => {
                done(bytes);
                0
            }
            None => -14,
        }
    }

    /// VCOPY by a server here, from the memory of a process elsewhere.
    pub(crate) fn ask_for_copy(
        &mut self,
        process_address: ProcessAddress,
        from: i32,
        address: u32,
        bytes: i32,
    ) -> Frame {
        self.expect(process_address, command::COPYOUT_DATA, from);
        let me = process_address.endpoint;
        let copy = [from, me, me, address.cast_signed(), 0x7000, bytes];
        self.frame(command::COPYOUT, process_address, from)
            .with_copy(copy)
    }

    /// VCOPY by a server here, to the memory of a process elsewhere.
    pub(crate) fn copy(
        &mut self,
        process_address: ProcessAddress,
        to: i32,
        address: u32,
        bytes: &[u8],
    ) -> Frame {
        self.expect(process_address, command::COPYIN_ACK, to);
        let length = i32::try_from(bytes.len()).expect("a chunk is short");
        let me = process_address.endpoint;
        let copy = [me, to, me, 0x7000, address.cast_signed(), length];
        let frame = self
            .frame(command::COPYIN, process_address, to)
            .with_copy(copy);
        frame.with_payload(bytes)
    }

    fn expect(&mut self, process_address: ProcessAddress, ack: i32, partner: i32) {
        self.process(process_address).exchange = Some(Exchange {
            ack,
            partner,
            done: None,
        });
    }

    /// Completes a copy of a server here, successfully or not.
    pub(super) fn copied(&mut self, frame: &Frame) {
        self.complete(frame, frame.get(Field::Result), frame.payload.clone());
    }
}
