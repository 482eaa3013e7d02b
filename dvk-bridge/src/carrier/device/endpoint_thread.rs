//! The thread that the kernel knows as an endpoint, which makes all calls of that endpoint.

use std::collections::HashMap;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use gangplank_service::rate_limited;

use super::driver::{Driver, Sending};
use super::message_buffer::{MessageBuffer, MessageSize};
use super::queued_call::QueuedCall;
use super::work_queue::{Task, Work, WorkQueue};
use crate::abi::ioctl::{ONCOPY, ProcUsr, REMOTE, SLOT_FREE};
use crate::abi::{Code, Command, DcId, Endpoint, Header, MAX_PAYLOAD, Message};
use crate::carrier::engine::{EndpointTable, PeerId};
use crate::endpoint::Gone;

/// Time limit for the kernel to deliver an answer to another node.
const REMOTE_SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// Interval at which the thread checks whether its partners still exist.
const PARTNER_CHECK_INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 5000 });

/// Time limit for the first notification to the own endpoint. It arrives at once or never.
const WAKE_TEST_TIMEOUT: Duration = Duration::from_millis(200);

/// Pause after an unexpected failure of the kernel, so that the thread does not retry in a busy
/// loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// Interval at which the thread checks whether a copy has ended.
const COPY_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// A process that has sent a request.
struct Partner {
    endpoint: Endpoint,
    /// Its process on this machine. `None` if it is on another node.
    pid: Option<i32>,
}

/// The state of an endpoint's thread.
pub(super) struct EndpointThread {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) dc: DcId,
    pub(super) endpoint: Endpoint,
    pub(super) table: Arc<EndpointTable>,
    /// The kernel's id as a peer in the endpoint table.
    pub(super) kernel: PeerId,
    pub(super) queue: Arc<WorkQueue>,
    pub(super) size: Arc<MessageSize>,
    /// Keyed by slot, so bounded by the container's slots.
    pub(super) partners: Partners,
}

/// The known partners.
#[derive(Default)]
pub(super) struct Partners {
    known: HashMap<i32, Partner>,
    checked: Option<Instant>,
}

/// The result of one receive.
enum Received {
    Message(Message),
    /// A notification that only wakes the thread.
    Wake,
    Nothing,
}

impl EndpointThread {
    /// Binds the endpoint, reports the result, and serves until it is told to stop.
    pub(super) fn run(mut self, bound: &mpsc::SyncSender<Result<(), Code>>) {
        let outcome = self.bind();
        let is_bound = outcome.is_ok();
        if is_bound {
            self.test_wakeup();
        }
        // The binding thread may have stopped waiting.
        let wanted = bound.send(outcome).is_ok();
        if is_bound {
            if wanted {
                self.serve();
            }
            if let Err(code) = self.driver.unbind(self.dc, self.endpoint) {
                // The end of the thread unbinds the endpoint as well.
                log::debug!("cannot release endpoint {}: {code}", self.endpoint);
            }
        }
    }

    fn bind(&self) -> Result<(), Code> {
        let Err(code) = self.driver.bind(self.dc, self.endpoint) else {
            return Ok(());
        };
        // A negative endpoint looks like an error.
        if code.result() != self.endpoint.raw() {
            return Err(code);
        }
        let process = self.driver.process(self.dc, self.endpoint.slot())?;
        if process.rts_flags & SLOT_FREE == 0 {
            Ok(())
        } else {
            Err(code)
        }
    }

    /// Tests whether a notification ends a receive, and learns the size of messages.
    fn test_wakeup(&mut self) {
        if let Err(code) = self.driver.wake(self.dc, self.endpoint) {
            log::info!(
                "endpoint {}: the kernel cannot interrupt receives, so each is short: {code}",
                self.endpoint
            );
            return;
        }
        let deadline = Instant::now() + WAKE_TEST_TIMEOUT;
        while Instant::now() < deadline {
            match self.receive(WAKE_TEST_TIMEOUT, true) {
                Ok(Received::Wake) => {
                    self.queue.set_wakeable(true);
                    return;
                }
                Ok(Received::Message(message)) => self.deliver(message),
                Ok(Received::Nothing) => {}
                Err(_) => return,
            }
        }
        log::info!(
            "endpoint {}: notifications do not interrupt receives, so each is short",
            self.endpoint
        );
    }

    fn serve(&mut self) {
        // A wake-up notification that was sent and has not arrived yet.
        let mut owed = false;
        loop {
            match self.queue.next() {
                Task::Stop => return,
                Task::Work(Work::Command(header, payload)) => self.run_command(&header, &payload),
                Task::Work(Work::QueuedCall(call)) => self.ask(&call),
                Task::Receive(limit) => {
                    let received = self.receive(limit, owed);
                    // The thread may have been woken while a message arrived.
                    owed |= self.queue.received();
                    match received {
                        Ok(Received::Message(message)) if owed && self.is_wake(&message) => {
                            owed = false;
                        }
                        Ok(Received::Message(message)) => self.deliver(message),
                        Ok(Received::Wake) => owed = false,
                        Ok(Received::Nothing) => {}
                        Err(code) if is_lost(code) => {
                            log::error!(
                                "endpoint {} of container {} is lost: {code}",
                                self.endpoint,
                                self.dc
                            );
                            return;
                        }
                        Err(code) => {
                            rate_limited!(
                                warn,
                                "endpoint {} cannot receive: {code}",
                                self.endpoint
                            );
                            thread::sleep(FAILURE_PAUSE);
                        }
                    }
                }
            }
            self.check_partners();
        }
    }

    /// Receives once. A notification counts as a wake-up only if a thread has sent one.
    fn receive(&self, limit: Duration, woken: bool) -> Result<Received, Code> {
        let mut buffer = MessageBuffer::blank();
        let received = self.driver.receive(&mut buffer, limit);
        // A message may arrive just as the time limit passes. It is in the buffer, and its sender
        // waits for an answer.
        let message = self.size.received(&buffer)?;
        match (received, message) {
            (Ok(_), Some(message)) if woken && self.is_wake(&message) => Ok(Received::Wake),
            (Ok(_), Some(message)) => Ok(Received::Message(message)),
            (Ok(_), None) => Ok(Received::Nothing),
            (Err(code), message) if is_harmless(code) => {
                Ok(message.map_or(Received::Nothing, Received::Message))
            }
            (Err(code), _) => Err(code),
        }
    }

    /// Whether `message` is the notification in the hardware's name. Its type carries the own slot.
    fn is_wake(&self, message: &Message) -> bool {
        message.source == Endpoint::HARDWARE || message.source == self.endpoint
    }

    fn deliver(&mut self, message: Message) {
        let mut command = Command::SNDREC_MSG;
        let mut pid = None;
        if self.is_wake(&message) || message.is_notification() {
            command = Command::NTFY_MSG;
        } else {
            pid = self.note_partner(message.source);
        }
        let header = Header {
            dc: self.dc.raw(),
            src: message.source,
            dst: self.endpoint,
            pid: pid.unwrap_or_default(),
            message,
            ..Header::new(command)
        };
        self.table.deliver(self.kernel, &header, &[]);
    }

    /// Records a partner and returns its process, if it is on this machine.
    fn note_partner(&mut self, endpoint: Endpoint) -> Option<i32> {
        let process = self.driver.process(self.dc, endpoint.slot()).ok();
        let pid = process.as_ref().and_then(local_pid);
        let known = self
            .partners
            .known
            .insert(endpoint.slot(), Partner { endpoint, pid });
        if let Some(known) = known
            && (known.endpoint != endpoint || (pid.is_some() && known.pid != pid))
        {
            self.table
                .partner_gone(self.dc, known.endpoint, Gone::Replaced);
        }
        pid
    }

    /// Checks from time to time which partners are gone, which a kernel does not report.
    fn check_partners(&mut self) {
        let now = Instant::now();
        let checked = *self.partners.checked.get_or_insert(now);
        if now.saturating_duration_since(checked) < PARTNER_CHECK_INTERVAL {
            return;
        }
        self.partners.checked = Some(now);
        let mut gone = Vec::new();
        for (&slot, partner) in &self.partners.known {
            let Ok(process) = self.driver.process(self.dc, slot) else {
                continue;
            };
            if let Err(reason) = partner.is(&process) {
                gone.push((slot, partner.endpoint, reason));
            }
        }
        for (slot, endpoint, reason) in gone {
            self.partners.known.remove(&slot);
            self.table.partner_gone(self.dc, endpoint, reason);
        }
    }

    /// Checks that `endpoint` is still the process that has sent the request, and returns where it
    /// is.
    fn locate_partner(&self, endpoint: Endpoint) -> Result<PartnerLocation, Code> {
        let process = self.driver.process(self.dc, endpoint.slot())?;
        let partner = self.partners.known.get(&endpoint.slot());
        if partner.is_some_and(|partner| partner.is(&process).is_err()) {
            return Err(Code::EDVSDSTDIED);
        }
        Ok(if process.rts_flags & REMOTE == 0 {
            PartnerLocation::Local
        } else {
            PartnerLocation::Remote
        })
    }

    /// Carries out a command of the engine and reports the result to it.
    fn run_command(&self, header: &Header, payload: &[u8]) {
        let partner = header.dst;
        match header.command {
            Command::REPLY_MSG => {
                let outcome = self.locate_partner(partner);
                let outcome = outcome.and_then(|_| self.send(Sending::Reply, header));
                self.acknowledge(header, Command::SEND_ACK, outcome.map(|_| 0), &[]);
            }
            Command::SEND_MSG => {
                let outcome = self.send(Sending::Send, header);
                self.acknowledge(header, Command::SEND_ACK, outcome.map(|_| 0), &[]);
            }
            Command::COPYOUT_RQST => {
                let asked = usize::try_from(header.copy.bytes).unwrap_or(0);
                let mut data = vec![0; asked.min(MAX_PAYLOAD)];
                let outcome = self.locate_partner(partner).and_then(|location| {
                    let from = header.copy.src_address;
                    location
                        .check_copied(self.driver.copy_from(partner, from, &mut data), data.len())
                });
                let data = if outcome.is_ok() { &data[..] } else { &[] };
                self.acknowledge(header, Command::COPYOUT_DATA, outcome.map(|_| 0), data);
            }
            Command::COPYIN_DATA => {
                let outcome = self.locate_partner(partner).and_then(|location| {
                    let to = header.copy.dst_address;
                    location.check_copied(self.driver.copy_to(partner, to, payload), payload.len())
                });
                let outcome = outcome.map(|()| header.copy.bytes);
                self.acknowledge(header, Command::COPYIN_ACK, outcome, &[]);
            }
            Command::NTFY_MSG => {
                if let Err(code) = self.driver.notify(partner) {
                    log::debug!("cannot notify {partner}: {code}");
                }
            }
            // The queue holds no other command.
            _ => {}
        }
    }

    fn send(&self, sending: Sending, header: &Header) -> Result<i32, Code> {
        let mut buffer = MessageBuffer::with_message(&header.message);
        self.driver
            .send(sending, header.dst, &mut buffer, REMOTE_SEND_TIMEOUT)
    }

    fn acknowledge(
        &self,
        header: &Header,
        command: Command,
        outcome: Result<i32, Code>,
        payload: &[u8],
    ) {
        let acknowledgement = header.answer(command, outcome.unwrap_or_else(Code::result));
        self.table.deliver(self.kernel, &acknowledgement, payload);
    }

    /// Does a sendrec call and waits for the answer.
    fn ask(&self, call: &QueuedCall) {
        let Some(limit) = call.take() else {
            return;
        };
        let mut buffer = MessageBuffer::with_message(&call.message);
        let sent = self
            .driver
            .send(Sending::SendRec, call.to, &mut buffer, limit);
        if sent.is_err() {
            self.wait_for_copies();
        }
        call.end(sent.map(|_| self.size.answered(&buffer)));
    }

    /// Waits for copies that an abandoned call has left in progress, to or from the shared buffers.
    /// Only the kernel's time limit ends them.
    fn wait_for_copies(&self) {
        let slot = self.endpoint.slot();
        while let Ok(process) = self.driver.process(self.dc, slot)
            && process.rts_flags & ONCOPY != 0
        {
            thread::sleep(COPY_POLL_INTERVAL);
        }
    }
}

impl Drop for EndpointThread {
    /// Wakes all waiting threads, however this thread ends.
    fn drop(&mut self) {
        self.queue.end();
        self.table.release(self.dc, self.endpoint);
    }
}

impl Partner {
    /// Whether `process`, which has the partner's slot, is the partner.
    fn is(&self, process: &ProcUsr) -> Result<(), Gone> {
        if process.rts_flags & SLOT_FREE != 0 {
            return Err(match self.pid {
                Some(_) => Gone::Unbound,
                // A DVK unbinds the processes of a lost node.
                None => Gone::NodeLost,
            });
        }
        let other = self.pid.is_some() && local_pid(process) != self.pid;
        if other || process.endpoint != self.endpoint.raw() {
            return Err(Gone::Replaced);
        }
        Ok(())
    }
}

/// Where a partner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PartnerLocation {
    Local,
    Remote,
}

impl PartnerLocation {
    /// Checks that a copy of `bytes` is complete. A copy with another node is complete or fails,
    /// and reports no number.
    fn check_copied(self, copied: Result<i32, Code>, bytes: usize) -> Result<(), Code> {
        let copied = copied?;
        if self == Self::Local && usize::try_from(copied) != Ok(bytes) {
            return Err(Code::EFAULT);
        }
        Ok(())
    }
}

/// The process of this machine in a slot.
fn local_pid(process: &ProcUsr) -> Option<i32> {
    let local = process.rts_flags & (REMOTE | SLOT_FREE) == 0 && process.lpid > 0;
    local.then_some(process.lpid)
}

/// Whether a receive that failed with `code` can be repeated.
fn is_harmless(code: Code) -> bool {
    matches!(
        code,
        Code::EINTR | Code::EAGAIN | Code::EDVSTIMEDOUT | Code::EDVSWOKENUP | Code::EDVSRESTARTSYS
    )
}

/// Whether the endpoint no longer exists.
fn is_lost(code: Code) -> bool {
    matches!(
        code,
        Code::EDVSNOTBIND
            | Code::EDVSDCNOTRUN
            | Code::EDVSBADDCID
            | Code::EDVSDVSINIT
            | Code::EDVSMSGSIZE
            | Code::ENOTTY
            | Code::EBADF
            | Code::ENODEV
    )
}
