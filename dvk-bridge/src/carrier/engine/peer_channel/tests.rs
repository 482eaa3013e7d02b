//! One exchange at a time, whatever the peer answers and when.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;
use crate::abi::CopyBlock;

const CLIENT: Endpoint = Endpoint::from_raw(10);
const LIMIT: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(30);

/// A transport that records what is sent.
#[derive(Default)]
struct Kept {
    sent: Mutex<Vec<Command>>,
    more: Condvar,
    down: AtomicBool,
}

impl Kept {
    /// Waits until `count` commands were sent, and returns them.
    fn sent(&self, count: usize) -> Vec<Command> {
        let mut sent = self.sent.lock();
        while sent.len() < count {
            let late = self
                .more
                .wait_until(&mut sent, Instant::now() + LIMIT)
                .timed_out();
            assert!(!late, "only {} were sent", sent.len());
        }
        sent.clone()
    }
}

impl PeerTransport for Kept {
    fn post(&self, header: Header, _: &[u8]) -> Result<(), NotConnected> {
        if self.down.load(Ordering::Relaxed) {
            return Err(NotConnected);
        }
        self.sent.lock().push(header.command);
        self.more.notify_all();
        Ok(())
    }

    fn wait(&self, _: Instant) -> bool {
        true
    }
}

fn channel() -> (Arc<Kept>, Arc<PeerChannel>) {
    let transport = Arc::new(Kept::default());
    (
        transport.clone(),
        Arc::new(PeerChannel::new(transport, false)),
    )
}

fn to_client(command: Command) -> Header {
    Header {
        dst: CLIENT,
        ..Header::new(command)
    }
}

fn from_client(command: Command, rcode: i32, tag: u32) -> Header {
    Header {
        src: CLIENT,
        rcode,
        copy: CopyBlock {
            src_address: tag,
            dst_address: tag,
            ..CopyBlock::default()
        },
        ..Header::new(command)
    }
}

/// Permits the exchange.
fn at_once() -> Result<Option<()>, ExchangeError> {
    Ok(Some(()))
}

/// Starts an exchange in a thread.
fn start(
    channel: &Arc<PeerChannel>,
    command: Command,
    expected: ExpectedAck,
) -> thread::JoinHandle<Result<Vec<u8>, ExchangeError>> {
    let channel = channel.clone();
    thread::spawn(move || channel.exchange(to_client(command), &[], expected, LIMIT, at_once))
}

#[test]
fn the_next_command_waits_for_the_acknowledgement() {
    let (transport, channel) = channel();
    let first = start(&channel, Command::REPLY_MSG, ExpectedAck::Sent);
    transport.sent(1);
    let second = start(&channel, Command::SEND_MSG, ExpectedAck::Sent);
    channel.acknowledge(to_client(Command::COPYIN_ACK), &[]);
    assert_eq!(
        transport.sent(1),
        [Command::REPLY_MSG],
        "nothing goes past it"
    );

    assert!(channel.acknowledged(&from_client(Command::SEND_ACK, 0, 0), &[]));
    assert_eq!(first.join().unwrap(), Ok(Vec::new()));
    let sent = transport.sent(3);
    assert_eq!(
        sent,
        [Command::REPLY_MSG, Command::COPYIN_ACK, Command::SEND_MSG]
    );
    assert!(channel.acknowledged(&from_client(Command::SEND_ACK, -109, 0), &[]));
    assert_eq!(
        second.join().unwrap(),
        Err(ExchangeError::Refused(Code::EDVSDSTDIED))
    );
}

#[test]
fn data_of_an_earlier_copy_is_ignored() {
    let (transport, channel) = channel();
    let copy = start(
        &channel,
        Command::COPYOUT_RQST,
        ExpectedAck::CopiedOut { bytes: 2, tag: 5 },
    );
    transport.sent(1);
    assert!(!channel.acknowledged(&from_client(Command::COPYOUT_DATA, 0, 4), b"xx"));
    assert!(!channel.acknowledged(&from_client(Command::COPYIN_ACK, 2, 5), &[]));
    assert!(channel.acknowledged(&from_client(Command::COPYOUT_DATA, 0, 5), b"ab"));
    assert_eq!(copy.join().unwrap(), Ok(b"ab".to_vec()));
}

#[test]
fn a_failures_copy_block_may_be_stale() {
    let (transport, channel) = channel();
    let copy = start(
        &channel,
        Command::COPYIN_DATA,
        ExpectedAck::CopiedIn { bytes: 2, tag: 5 },
    );
    transport.sent(1);
    assert!(channel.acknowledged(&from_client(Command::COPYIN_ACK, -324, 99), &[]));
    assert_eq!(
        copy.join().unwrap(),
        Err(ExchangeError::Refused(Code::EDVSPROCSTS))
    );
}

#[test]
fn less_than_was_asked_for_is_a_failure() {
    let (transport, channel) = channel();
    let copy = start(
        &channel,
        Command::COPYOUT_RQST,
        ExpectedAck::CopiedOut { bytes: 3, tag: 5 },
    );
    transport.sent(1);
    assert!(channel.acknowledged(&from_client(Command::COPYOUT_DATA, 0, 5), b"ab"));
    assert_eq!(
        copy.join().unwrap(),
        Err(ExchangeError::Refused(Code::EFAULT))
    );
}

#[test]
fn a_missing_acknowledgement_times_out_and_the_channel_stays_usable() {
    let (transport, channel) = channel();
    let late = channel.exchange(
        to_client(Command::REPLY_MSG),
        &[],
        ExpectedAck::Sent,
        SHORT,
        at_once,
    );
    assert_eq!(late, Err(ExchangeError::TimedOut));
    assert!(!channel.acknowledged(&from_client(Command::SEND_ACK, 0, 0), &[]));
    let next = start(&channel, Command::REPLY_MSG, ExpectedAck::Sent);
    transport.sent(2);
    assert!(channel.acknowledged(&from_client(Command::SEND_ACK, 0, 0), &[]));
    assert_eq!(next.join().unwrap(), Ok(Vec::new()));
}

#[test]
fn a_lost_connection_ends_the_exchange() {
    let (transport, channel) = channel();
    let copy = start(&channel, Command::REPLY_MSG, ExpectedAck::Sent);
    transport.sent(1);
    channel.acknowledge(to_client(Command::COPYIN_ACK), &[]);
    transport.down.store(true, Ordering::Relaxed);
    channel.lost();
    assert_eq!(copy.join().unwrap(), Err(ExchangeError::NotConnected));
    let next = channel.exchange(
        to_client(Command::REPLY_MSG),
        &[],
        ExpectedAck::Sent,
        LIMIT,
        at_once,
    );
    assert_eq!(next, Err(ExchangeError::NotConnected));
    assert_eq!(
        transport.sent(1),
        [Command::REPLY_MSG],
        "what was kept back is dropped"
    );
}

#[test]
fn nothing_is_sent_for_a_released_endpoint() {
    let (transport, channel) = channel();
    let first = start(&channel, Command::REPLY_MSG, ExpectedAck::Sent);
    transport.sent(1);
    let others = [(); 2].map(|()| start(&channel, Command::REPLY_MSG, ExpectedAck::Sent));
    let started = Instant::now();
    channel.close();
    for exchange in others.into_iter().chain([first]) {
        assert_eq!(exchange.join().unwrap(), Err(ExchangeError::Unbound));
    }
    let route_of_sender = channel.send(to_client(Command::SNDREC_MSG), &[], started + LIMIT);
    assert_eq!(route_of_sender, Err(ExchangeError::Unbound));
    assert!(started.elapsed() < LIMIT / 2);
    assert_eq!(transport.sent(1), [Command::REPLY_MSG]);
}

#[test]
fn a_late_acknowledgement_is_not_taken_for_the_next() {
    let (transport, channel) = channel();
    let limit = Duration::from_secs(3);
    let reply = to_client(Command::REPLY_MSG);
    let late = channel.exchange(reply, &[], ExpectedAck::Sent, limit / 30, at_once);
    assert_eq!(late, Err(ExchangeError::TimedOut));
    channel.state.lock().late = Some((CLIENT, Instant::now() + LIMIT));
    let here = channel.clone();
    let next = thread::spawn(move || here.exchange(reply, &[], ExpectedAck::Sent, LIMIT, at_once));
    while channel.send_lock.is_free() {
        thread::yield_now();
    }
    assert_eq!(transport.sent(1).len(), 1, "the next waits");
    assert!(!channel.acknowledged(&from_client(Command::SEND_ACK, 0, 0), &[]));
    transport.sent(2);
    assert!(channel.acknowledged(&from_client(Command::SEND_ACK, 0, 0), &[]));
    assert_eq!(next.join().unwrap(), Ok(Vec::new()));

    // Other partners are not delayed.
    let other = Header {
        dst: Endpoint::from_raw(11),
        ..reply
    };
    channel.state.lock().late = Some((CLIENT, Instant::now() + LIMIT));
    let started = Instant::now();
    let silent = channel.exchange(other, &[], ExpectedAck::Sent, SHORT, at_once);
    assert_eq!(silent, Err(ExchangeError::TimedOut));
    assert!(started.elapsed() < LIMIT / 2);
}

#[test]
fn a_repeated_command_is_checked_again() {
    let (transport, channel) = channel();
    let here = channel.clone();
    let moving = thread::spawn(move || {
        let times = std::cell::Cell::new(0);
        let once = || match times.replace(times.get() + 1) {
            0 => Ok(Some(())),
            _ => Err(ExchangeError::Refused(Code::EDVSPROCSTS)),
        };
        let header = to_client(Command::REPLY_MSG);
        here.exchange(header, &[], ExpectedAck::Sent, LIMIT, once)
    });
    transport.sent(1);
    let moves = Code::EDVSMIGRATE.result();
    assert!(channel.acknowledged(&from_client(Command::SEND_ACK, moves, 0), &[]));
    let refused = ExchangeError::Refused(Code::EDVSPROCSTS);
    assert_eq!(moving.join().unwrap(), Err(refused));
    assert_eq!(transport.sent(1).len(), 1, "it was not");
}

#[test]
fn a_cancelled_command_is_not_sent() {
    let (transport, channel) = channel();
    let header = to_client(Command::REPLY_MSG);
    let refused = ExchangeError::Refused(Code::EDVSPROCSTS);
    let permit = || -> Result<Option<()>, ExchangeError> { Err(refused) };
    let done = channel.exchange(header, &[], ExpectedAck::Sent, LIMIT, permit);
    assert_eq!(done, Err(refused));
    let spare = || -> Result<Option<()>, ExchangeError> { Ok(None) };
    let done = channel.exchange(header, &[], ExpectedAck::Sent, LIMIT, spare);
    assert_eq!(done, Ok(Vec::new()));
    assert_eq!(transport.sent(0), []);
}

#[test]
fn an_acknowledgement_with_another_mark_is_ignored() {
    let transport = Arc::new(Kept::default());
    let channel = Arc::new(PeerChannel::new(transport.clone(), true));
    let here = channel.clone();
    let header = Header {
        ack_seq: 8,
        ..to_client(Command::REPLY_MSG)
    };
    let reply =
        thread::spawn(move || here.exchange(header, &[], ExpectedAck::Sent, LIMIT, at_once));
    transport.sent(1);
    let mut ack = from_client(Command::SEND_ACK, 0, 0);
    ack.ack_seq = 7;
    assert!(!channel.acknowledged(&ack, &[]));
    ack.ack_seq = 8;
    assert!(channel.acknowledged(&ack, &[]));
    assert_eq!(reply.join().unwrap(), Ok(Vec::new()));
}
