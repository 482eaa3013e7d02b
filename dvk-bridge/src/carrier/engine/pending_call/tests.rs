//! Calls that are answered, abandoned, answered late, or lost.

use std::time::Duration;

use super::*;
use crate::abi::M1;

const PEER: PeerId = PeerId(3);
const SERVER: Endpoint = Endpoint::from_raw(1);

fn now() -> Instant {
    Instant::now()
}

fn soon() -> Instant {
    now() + Duration::from_millis(20)
}

fn answer(kind: i32) -> CallEvent {
    CallEvent::Answer(Message::new(kind, &M1::default()))
}

fn is_answer(next: &Next, kind: i32) -> bool {
    matches!(next, Next::Event(CallEvent::Answer(message)) if message.kind == kind)
}

#[test]
fn the_caller_gets_the_answer() {
    let pending_call = PendingCall::new(false);
    let mut call = pending_call.ask(SERVER, PEER, now()).unwrap();
    assert_eq!(
        pending_call.offer(Endpoint::from_raw(2), PEER, 0, answer(7)),
        Disposition::Unexpected
    );
    assert_eq!(
        pending_call.offer(SERVER, PEER, 0, answer(8)),
        Disposition::Accepted
    );
    assert!(is_answer(&call.next(now()), 8));
    drop(call);
    assert_eq!(
        pending_call.offer(SERVER, PEER, 0, answer(9)),
        Disposition::Unexpected,
        "it was answered"
    );
}

#[test]
fn a_late_answer_is_not_taken_for_the_next() {
    let pending_call = PendingCall::new(false);
    let mut call = pending_call.ask(SERVER, PEER, now()).unwrap();
    assert!(matches!(call.next(now()), Next::Nothing));
    drop(call);
    assert!(
        pending_call.ask(SERVER, PEER, soon()).is_none(),
        "it owes an answer"
    );
    assert!(
        pending_call
            .ask(Endpoint::from_raw(2), PEER, now())
            .is_some()
    );
    assert_eq!(
        pending_call.offer(SERVER, PEER, 0, answer(7)),
        Disposition::Late
    );
    let mut call = pending_call.ask(SERVER, PEER, now()).unwrap();
    pending_call.offer(SERVER, PEER, 0, answer(8));
    assert!(is_answer(&call.next(now()), 8));
}

#[test]
fn a_lost_peer_has_no_late_answer() {
    let pending_call = PendingCall::new(false);
    drop(pending_call.ask(SERVER, PEER, now()).unwrap());
    pending_call.peer_lost(PeerId(4));
    assert!(pending_call.ask(SERVER, PEER, soon()).is_none());
    pending_call.peer_lost(PEER);
    let mut call = pending_call.ask(SERVER, PEER, now()).unwrap();
    pending_call.peer_lost(PEER);
    assert!(matches!(call.next(now()), Next::Event(CallEvent::Lost)));
}

#[test]
fn a_call_that_was_not_sent_has_no_late_answer() {
    let pending_call = PendingCall::new(false);
    pending_call
        .ask(SERVER, PEER, now())
        .unwrap()
        .cancel_unsent();
    assert!(pending_call.ask(SERVER, PEER, now()).is_some());
}

#[test]
fn results_of_another_call_are_ignored() {
    let pending_call = PendingCall::new(true);
    let given_up = pending_call.ask(SERVER, PEER, now()).unwrap();
    let late = given_up.ack_seq();
    drop(given_up);
    assert_eq!(
        pending_call.offer(SERVER, PEER, late, answer(7)),
        Disposition::Late
    );
    let mut call = pending_call.ask(SERVER, PEER, now()).unwrap();
    let ack_seq = call.ack_seq();
    assert_ne!(ack_seq, late);
    let copy = || CallEvent::CopyOut(Header::new(crate::abi::Command::COPYOUT_RQST));
    assert_eq!(
        pending_call.offer(SERVER, PEER, late, copy()),
        Disposition::Unexpected
    );
    assert_eq!(
        pending_call.offer(SERVER, PEER, late, answer(7)),
        Disposition::Unexpected
    );
    assert_eq!(
        pending_call.offer(SERVER, PEER, ack_seq, answer(8)),
        Disposition::Accepted
    );
    assert!(is_answer(&call.next(now()), 8));
}

#[test]
fn one_call_runs_at_a_time() {
    let pending_call = PendingCall::new(false);
    let first = pending_call.ask(SERVER, PEER, now()).unwrap();
    assert!(
        pending_call
            .ask(Endpoint::from_raw(2), PEER, soon())
            .is_none()
    );
    drop(first);
}

#[test]
fn a_released_endpoint_sends_no_call() {
    let pending_call = PendingCall::new(false);
    let mut call = pending_call.ask(SERVER, PEER, now()).unwrap();
    pending_call.close();
    assert!(matches!(call.next(now()), Next::Closed));
}

#[test]
fn a_process_of_another_peer_with_the_same_number_cannot_answer() {
    for has_ack_seq in [false, true] {
        let pending_call = PendingCall::new(has_ack_seq);
        let mut call = pending_call.ask(SERVER, PEER, now()).unwrap();
        let ack_seq = call.ack_seq();
        let stranger = PeerId(4);
        assert_eq!(
            pending_call.offer(SERVER, stranger, ack_seq, answer(7)),
            Disposition::Unexpected
        );
        assert!(matches!(call.next(now()), Next::Nothing));
        drop(call);
        assert_eq!(
            pending_call.offer(SERVER, stranger, ack_seq, answer(7)),
            Disposition::Unexpected,
            "it is not what is owed either"
        );
        assert_eq!(
            pending_call.offer(SERVER, PEER, ack_seq, answer(8)),
            Disposition::Late
        );
    }
}
