//! One exchange at a time, whatever the peer answers, and when.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;
use crate::abi::CopyBlock;

const CLIENT: Endpoint = Endpoint::from_raw(10);
const LIMIT: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(30);

/// A line that keeps what is sent.
#[derive(Default)]
struct Kept {
    sent: Mutex<Vec<Command>>,
    more: Condvar,
    down: AtomicBool,
}

impl Kept {
    /// Waits until so many commands were sent: they.
    fn sent(&self, count: usize) -> Vec<Command> {
        let mut sent = lock(&self.sent);
        while sent.len() < count {
            let late;
            (sent, late) = wait_until(&self.more, sent, Instant::now() + LIMIT);
            assert!(!late, "only {} were sent", sent.len());
        }
        sent.clone()
    }
}

impl Line for Kept {
    fn post(&self, header: Header, _: &[u8]) -> Result<(), NotConnected> {
        if self.down.load(Ordering::Relaxed) {
            return Err(NotConnected);
        }
        lock(&self.sent).push(header.command);
        self.more.notify_all();
        Ok(())
    }

    fn wait(&self, _: Instant) -> bool {
        true
    }
}

fn lane() -> (Arc<Kept>, Arc<Lane>) {
    let line = Arc::new(Kept::default());
    (line.clone(), Arc::new(Lane::new(line, false)))
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

/// Nothing speaks against it.
fn at_once() -> Result<Option<()>, Failure> {
    Ok(Some(()))
}

/// Starts an exchange in a thread.
fn start(
    lane: &Arc<Lane>,
    command: Command,
    awaited: Awaited,
) -> thread::JoinHandle<Result<Vec<u8>, Failure>> {
    let lane = lane.clone();
    thread::spawn(move || lane.exchange(to_client(command), &[], awaited, LIMIT, at_once))
}

#[test]
fn the_next_command_waits_for_the_acknowledgement() {
    let (line, lane) = lane();
    let first = start(&lane, Command::REPLY_MSG, Awaited::Sent);
    line.sent(1);
    let second = start(&lane, Command::SEND_MSG, Awaited::Sent);
    lane.acknowledge(to_client(Command::COPYIN_ACK), &[]);
    assert_eq!(line.sent(1), [Command::REPLY_MSG], "nothing goes past it");

    assert!(lane.acknowledged(&from_client(Command::SEND_ACK, 0, 0), &[]));
    assert_eq!(first.join().unwrap(), Ok(Vec::new()));
    let sent = line.sent(3);
    assert_eq!(
        sent,
        [Command::REPLY_MSG, Command::COPYIN_ACK, Command::SEND_MSG]
    );
    assert!(lane.acknowledged(&from_client(Command::SEND_ACK, -109, 0), &[]));
    assert_eq!(
        second.join().unwrap(),
        Err(Failure::Refused(Code::EDVSDSTDIED))
    );
}

#[test]
fn data_of_an_earlier_copy_is_not_taken_for_this_ones() {
    let (line, lane) = lane();
    let copy = start(
        &lane,
        Command::COPYOUT_RQST,
        Awaited::CopiedOut { bytes: 2, tag: 5 },
    );
    line.sent(1);
    assert!(!lane.acknowledged(&from_client(Command::COPYOUT_DATA, 0, 4), b"xx"));
    assert!(!lane.acknowledged(&from_client(Command::COPYIN_ACK, 2, 5), &[]));
    assert!(lane.acknowledged(&from_client(Command::COPYOUT_DATA, 0, 5), b"ab"));
    assert_eq!(copy.join().unwrap(), Ok(b"ab".to_vec()));
}

#[test]
fn a_failures_copy_block_may_be_stale() {
    let (line, lane) = lane();
    let copy = start(
        &lane,
        Command::COPYIN_DATA,
        Awaited::CopiedIn { bytes: 2, tag: 5 },
    );
    line.sent(1);
    assert!(lane.acknowledged(&from_client(Command::COPYIN_ACK, -324, 99), &[]));
    assert_eq!(
        copy.join().unwrap(),
        Err(Failure::Refused(Code::EDVSPROCSTS))
    );
}

#[test]
fn less_than_was_asked_for_is_a_failure() {
    let (line, lane) = lane();
    let copy = start(
        &lane,
        Command::COPYOUT_RQST,
        Awaited::CopiedOut { bytes: 3, tag: 5 },
    );
    line.sent(1);
    assert!(lane.acknowledged(&from_client(Command::COPYOUT_DATA, 0, 5), b"ab"));
    assert_eq!(copy.join().unwrap(), Err(Failure::Refused(Code::EFAULT)));
}

#[test]
fn silence_ends_at_the_limit_and_not_the_lane() {
    let (line, lane) = lane();
    let late = lane.exchange(
        to_client(Command::REPLY_MSG),
        &[],
        Awaited::Sent,
        SHORT,
        at_once,
    );
    assert_eq!(late, Err(Failure::TimedOut));
    assert!(!lane.acknowledged(&from_client(Command::SEND_ACK, 0, 0), &[]));
    let next = start(&lane, Command::REPLY_MSG, Awaited::Sent);
    line.sent(2);
    assert!(lane.acknowledged(&from_client(Command::SEND_ACK, 0, 0), &[]));
    assert_eq!(next.join().unwrap(), Ok(Vec::new()));
}

#[test]
fn a_lost_connection_ends_what_goes_on() {
    let (line, lane) = lane();
    let copy = start(&lane, Command::REPLY_MSG, Awaited::Sent);
    line.sent(1);
    lane.acknowledge(to_client(Command::COPYIN_ACK), &[]);
    line.down.store(true, Ordering::Relaxed);
    lane.lost();
    assert_eq!(copy.join().unwrap(), Err(Failure::NotConnected));
    let next = lane.exchange(
        to_client(Command::REPLY_MSG),
        &[],
        Awaited::Sent,
        LIMIT,
        at_once,
    );
    assert_eq!(next, Err(Failure::NotConnected));
    assert_eq!(
        line.sent(1),
        [Command::REPLY_MSG],
        "what was kept back is dropped"
    );
}

#[test]
fn nothing_is_sent_for_an_endpoint_that_was_given_up() {
    let (line, lane) = lane();
    let first = start(&lane, Command::REPLY_MSG, Awaited::Sent);
    line.sent(1);
    let others = [(); 2].map(|()| start(&lane, Command::REPLY_MSG, Awaited::Sent));
    let started = Instant::now();
    lane.close();
    for exchange in others.into_iter().chain([first]) {
        assert_eq!(exchange.join().unwrap(), Err(Failure::Unbound));
    }
    let told = lane.tell(to_client(Command::SNDREC_MSG), &[], started + LIMIT);
    assert_eq!(told, Err(Failure::Unbound));
    assert!(started.elapsed() < LIMIT / 2);
    assert_eq!(line.sent(1), [Command::REPLY_MSG]);
}

#[test]
fn an_acknowledgement_that_comes_a_moment_too_late_is_not_taken_for_the_next() {
    let (line, lane) = lane();
    let limit = Duration::from_secs(3);
    let reply = to_client(Command::REPLY_MSG);
    let late = lane.exchange(reply, &[], Awaited::Sent, limit / 30, at_once);
    assert_eq!(late, Err(Failure::TimedOut));
    lane.state.lock().unwrap().late = Some((CLIENT, Instant::now() + LIMIT));
    let here = lane.clone();
    let next = thread::spawn(move || here.exchange(reply, &[], Awaited::Sent, LIMIT, at_once));
    while lane.turn.is_free() {
        thread::yield_now();
    }
    assert_eq!(line.sent(1).len(), 1, "the next waits");
    assert!(!lane.acknowledged(&from_client(Command::SEND_ACK, 0, 0), &[]));
    line.sent(2);
    assert!(lane.acknowledged(&from_client(Command::SEND_ACK, 0, 0), &[]));
    assert_eq!(next.join().unwrap(), Ok(Vec::new()));

    // Nobody else is held up by that.
    let other = Header {
        dst: Endpoint::from_raw(11),
        ..reply
    };
    lane.state.lock().unwrap().late = Some((CLIENT, Instant::now() + LIMIT));
    let started = Instant::now();
    let silent = lane.exchange(other, &[], Awaited::Sent, SHORT, at_once);
    assert_eq!(silent, Err(Failure::TimedOut));
    assert!(started.elapsed() < LIMIT / 2);
}

#[test]
fn what_is_sent_again_while_its_partner_moves_is_permitted_again() {
    let (line, lane) = lane();
    let here = lane.clone();
    let moving = thread::spawn(move || {
        let times = std::cell::Cell::new(0);
        let once = || match times.replace(times.get() + 1) {
            0 => Ok(Some(())),
            _ => Err(Failure::Refused(Code::EDVSPROCSTS)),
        };
        let header = to_client(Command::REPLY_MSG);
        here.exchange(header, &[], Awaited::Sent, LIMIT, once)
    });
    line.sent(1);
    let moves = Code::EDVSMIGRATE.result();
    assert!(lane.acknowledged(&from_client(Command::SEND_ACK, moves, 0), &[]));
    let refused = Failure::Refused(Code::EDVSPROCSTS);
    assert_eq!(moving.join().unwrap(), Err(refused));
    assert_eq!(line.sent(1).len(), 1, "it was not");
}

#[test]
fn what_is_not_to_be_sent_any_more_when_its_turn_comes_is_not() {
    let (line, lane) = lane();
    let header = to_client(Command::REPLY_MSG);
    let refused = Failure::Refused(Code::EDVSPROCSTS);
    let permit = || -> Result<Option<()>, Failure> { Err(refused) };
    let done = lane.exchange(header, &[], Awaited::Sent, LIMIT, permit);
    assert_eq!(done, Err(refused));
    let spare = || -> Result<Option<()>, Failure> { Ok(None) };
    let done = lane.exchange(header, &[], Awaited::Sent, LIMIT, spare);
    assert_eq!(done, Ok(Vec::new()));
    assert_eq!(line.sent(0), []);
}

#[test]
fn an_acknowledgement_of_another_mark_is_not_taken_for_this_ones() {
    let line = Arc::new(Kept::default());
    let lane = Arc::new(Lane::new(line.clone(), true));
    let here = lane.clone();
    let header = Header {
        ack_seq: 8,
        ..to_client(Command::REPLY_MSG)
    };
    let reply = thread::spawn(move || here.exchange(header, &[], Awaited::Sent, LIMIT, at_once));
    line.sent(1);
    let mut ack = from_client(Command::SEND_ACK, 0, 0);
    ack.ack_seq = 7;
    assert!(!lane.acknowledged(&ack, &[]));
    ack.ack_seq = 8;
    assert!(lane.acknowledged(&ack, &[]));
    assert_eq!(reply.join().unwrap(), Ok(Vec::new()));
}
