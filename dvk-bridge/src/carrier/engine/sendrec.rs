//! The sendrec operation: sends a request, serves copies while it waits, and retries during a
//! migration.

use std::time::{Duration, Instant};

use super::endpoint::EngineEndpoint;
use super::peer_channel::{ExchangeError, PeerChannel, RetryBackoff};
use super::pending_call::{CallEvent, CallHandle, Next};
use crate::abi::{Code, Command, Endpoint, Header, MAX_PAYLOAD, Message};
use crate::endpoint::SharedBuffers;

impl EngineEndpoint {
    pub(super) fn try_sendrec(
        &self,
        to: Endpoint,
        message: &Message,
        buffers: &mut SharedBuffers<'_>,
        limit: Duration,
    ) -> Result<Message, ExchangeError> {
        let deadline = Instant::now() + limit;
        let peer = self.must_be_partner(to)?;
        let channel = self.channel(peer, to)?;
        let call = self.state.pending_call.ask(to, peer, deadline);
        let mut call = call.ok_or(ExchangeError::TimedOut)?;
        let mut header = self.carrying(Command::SNDREC_MSG, to, message);
        header.ack_seq = call.ack_seq();
        if let Err(failure) = channel.send(header, &[], deadline) {
            call.cancel_unsent();
            return Err(failure);
        }
        self.answered(&mut call, &channel, &header, buffers, deadline)
    }

    /// Waits for the answer to `request` and serves copies meanwhile. Sends the request again while
    /// the partner migrates to another node.
    fn answered(
        &self,
        call: &mut CallHandle<'_>,
        channel: &PeerChannel,
        request: &Header,
        buffers: &mut SharedBuffers<'_>,
        deadline: Instant,
    ) -> Result<Message, ExchangeError> {
        let mut backoff = RetryBackoff::default();
        let mut again: Option<Instant> = None;
        loop {
            match call.next(again.unwrap_or(deadline)) {
                Next::Event(CallEvent::CopyOut(header)) => self.copy_out(channel, buffers, &header),
                Next::Event(CallEvent::CopyIn(header, bytes)) => {
                    self.copy_in(channel, buffers, &header, &bytes);
                }
                Next::Event(CallEvent::Answer(message)) => return Ok(message),
                Next::Event(CallEvent::Failed(Code::EDVSMIGRATE))
                    if let Some(time) = backoff.until(deadline) =>
                {
                    call.resume();
                    again = Some(time);
                }
                Next::Event(CallEvent::Failed(code)) => return Err(code.into()),
                Next::Event(CallEvent::Lost) => return Err(ExchangeError::NotConnected),
                Next::Nothing if again.take().is_some() => {
                    channel.send(*request, &[], deadline)?;
                }
                Next::Nothing => return Err(ExchangeError::TimedOut),
                Next::Closed => return Err(ExchangeError::Unbound),
            }
        }
    }

    /// Answers a copy from a shared buffer.
    fn copy_out(&self, channel: &PeerChannel, buffers: &SharedBuffers<'_>, header: &Header) {
        let asked = usize::try_from(header.copy.bytes).ok();
        let asked = asked.filter(|bytes| (1..=MAX_PAYLOAD).contains(bytes));
        let code = match asked {
            Some(bytes) if header.copy.src == self.state.endpoint.raw() => {
                let mut data = vec![0; bytes];
                if buffers.read(header.copy.src_address, &mut data).is_ok() {
                    channel.acknowledge(header.answer(Command::COPYOUT_DATA, 0), &data);
                    return;
                }
                Code::EFAULT
            }
            Some(_) => Code::EDVSBADPROC,
            None => Code::EDVSBADRANGE,
        };
        channel.acknowledge(header.answer(Command::COPYOUT_DATA, code.result()), &[]);
    }

    /// Answers a copy to a shared buffer.
    fn copy_in(
        &self,
        channel: &PeerChannel,
        buffers: &mut SharedBuffers<'_>,
        header: &Header,
        bytes: &[u8],
    ) {
        let result = if header.copy.dst != self.state.endpoint.raw() {
            Code::EDVSBADPROC.result()
        } else if usize::try_from(header.copy.bytes) != Ok(bytes.len()) || bytes.is_empty() {
            Code::EDVSBADRANGE.result()
        } else if buffers.write(header.copy.dst_address, bytes).is_err() {
            Code::EFAULT.result()
        } else {
            header.copy.bytes
        };
        channel.acknowledge(header.answer(Command::COPYIN_ACK, result), &[]);
    }
}
