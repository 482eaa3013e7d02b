//! What a bound endpoint does while it asks: waits for the answer, lets itself be copied with, asks again.

use std::time::{Duration, Instant};

use super::bound::{Bound, Trouble};
use super::lane::{Failure, Lane, Patience};
use super::question::{Asking, Event, Next};
use crate::abi::{Code, Command, Endpoint, Header, MAX_PAYLOAD, Message};
use crate::endpoint::Lent;

impl Bound {
    pub(super) fn try_sendrec(
        &self,
        to: Endpoint,
        message: &Message,
        lent: &mut Lent<'_>,
        limit: Duration,
    ) -> Result<Message, Trouble> {
        let deadline = Instant::now() + limit;
        let peer = self.must_be_partner(to)?;
        let lane = self.lane(peer, to)?;
        let asking = self.desk.question.ask(to, peer, deadline);
        let mut asking = asking.ok_or(Failure::TimedOut)?;
        let mut header = self.carrying(Command::SNDREC_MSG, to, message);
        header.ack_seq = asking.mark();
        if let Err(failure) = lane.tell(header, &[], deadline) {
            asking.never_asked();
            return Err(failure.into());
        }
        self.answered(&mut asking, &lane, &header, lent, deadline)
    }

    /// Waits for the answer to `question`, and copies meanwhile. One that comes while its partner moves to another node is
    /// asked again.
    fn answered(
        &self,
        asking: &mut Asking<'_>,
        lane: &Lane,
        question: &Header,
        lent: &mut Lent<'_>,
        deadline: Instant,
    ) -> Result<Message, Trouble> {
        let mut patience = Patience::default();
        let mut again: Option<Instant> = None;
        loop {
            match asking.next(again.unwrap_or(deadline)) {
                Next::Event(Event::CopyOut(header)) => self.copy_out(lane, lent, &header),
                Next::Event(Event::CopyIn(header, bytes)) => {
                    self.copy_in(lane, lent, &header, &bytes);
                }
                Next::Event(Event::Answer(message)) => return Ok(message),
                Next::Event(Event::Failed(Code::EDVSMIGRATE))
                    if let Some(time) = patience.until(deadline) =>
                {
                    asking.goes_on();
                    again = Some(time);
                }
                Next::Event(Event::Failed(code)) => return Err(code.into()),
                Next::Event(Event::Lost) => return Err(Failure::NotConnected.into()),
                Next::Nothing if again.take().is_some() => {
                    lane.tell(*question, &[], deadline)?;
                }
                Next::Nothing => return Err(Failure::TimedOut.into()),
                Next::Closed => return Err(Failure::Unbound.into()),
            }
        }
    }

    /// Answers a copy from what is lent.
    fn copy_out(&self, lane: &Lane, lent: &Lent<'_>, header: &Header) {
        let asked = usize::try_from(header.copy.bytes).ok();
        let asked = asked.filter(|bytes| (1..=MAX_PAYLOAD).contains(bytes));
        let code = match asked {
            Some(bytes) if header.copy.src == self.desk.endpoint.raw() => {
                let mut data = vec![0; bytes];
                if lent.read(header.copy.src_address, &mut data).is_ok() {
                    lane.acknowledge(header.answer(Command::COPYOUT_DATA, 0), &data);
                    return;
                }
                Code::EFAULT
            }
            Some(_) => Code::EDVSBADPROC,
            None => Code::EDVSBADRANGE,
        };
        lane.acknowledge(header.answer(Command::COPYOUT_DATA, code.result()), &[]);
    }

    /// Answers a copy to what is lent.
    fn copy_in(&self, lane: &Lane, lent: &mut Lent<'_>, header: &Header, bytes: &[u8]) {
        let result = if header.copy.dst != self.desk.endpoint.raw() {
            Code::EDVSBADPROC.result()
        } else if usize::try_from(header.copy.bytes) != Ok(bytes.len()) || bytes.is_empty() {
            Code::EDVSBADRANGE.result()
        } else if lent.write(header.copy.dst_address, bytes).is_err() {
            Code::EFAULT.result()
        } else {
            header.copy.bytes
        };
        lane.acknowledge(header.answer(Command::COPYIN_ACK, result), &[]);
    }
}
