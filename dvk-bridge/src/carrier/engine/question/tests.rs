//! Questions that are answered, given up, answered late, or lost.

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

fn answer(kind: i32) -> Event {
    Event::Answer(Message::new(kind, &M1::default()))
}

fn is_answer(next: &Next, kind: i32) -> bool {
    matches!(next, Next::Event(Event::Answer(message)) if message.kind == kind)
}

#[test]
fn the_answer_comes_to_who_asked() {
    let question = Question::new(false);
    let mut asking = question.ask(SERVER, PEER, now()).unwrap();
    assert_eq!(
        question.offer(Endpoint::from_raw(2), PEER, 0, answer(7)),
        Taken::No
    );
    assert_eq!(question.offer(SERVER, PEER, 0, answer(8)), Taken::Yes);
    assert!(is_answer(&asking.next(now()), 8));
    drop(asking);
    assert_eq!(
        question.offer(SERVER, PEER, 0, answer(9)),
        Taken::No,
        "it was answered"
    );
}

#[test]
fn a_late_answer_is_not_taken_for_the_next() {
    let question = Question::new(false);
    let mut asking = question.ask(SERVER, PEER, now()).unwrap();
    assert!(matches!(asking.next(now()), Next::Nothing));
    drop(asking);
    assert!(
        question.ask(SERVER, PEER, soon()).is_none(),
        "it owes an answer"
    );
    assert!(question.ask(Endpoint::from_raw(2), PEER, now()).is_some());
    assert_eq!(question.offer(SERVER, PEER, 0, answer(7)), Taken::Late);
    let mut asking = question.ask(SERVER, PEER, now()).unwrap();
    question.offer(SERVER, PEER, 0, answer(8));
    assert!(is_answer(&asking.next(now()), 8));
}

#[test]
fn a_lost_peer_owes_nothing() {
    let question = Question::new(false);
    drop(question.ask(SERVER, PEER, now()).unwrap());
    question.peer_lost(PeerId(4));
    assert!(question.ask(SERVER, PEER, soon()).is_none());
    question.peer_lost(PEER);
    let mut asking = question.ask(SERVER, PEER, now()).unwrap();
    question.peer_lost(PEER);
    assert!(matches!(asking.next(now()), Next::Event(Event::Lost)));
}

#[test]
fn what_was_never_asked_is_not_owed() {
    let question = Question::new(false);
    question.ask(SERVER, PEER, now()).unwrap().never_asked();
    assert!(question.ask(SERVER, PEER, now()).is_some());
}

#[test]
fn what_is_said_of_another_question_is_not_taken() {
    let question = Question::new(true);
    let given_up = question.ask(SERVER, PEER, now()).unwrap();
    let late = given_up.mark();
    drop(given_up);
    assert_eq!(question.offer(SERVER, PEER, late, answer(7)), Taken::Late);
    let mut asking = question.ask(SERVER, PEER, now()).unwrap();
    let mark = asking.mark();
    assert_ne!(mark, late);
    let copy = || Event::CopyOut(Header::new(crate::abi::Command::COPYOUT_RQST));
    assert_eq!(question.offer(SERVER, PEER, late, copy()), Taken::No);
    assert_eq!(question.offer(SERVER, PEER, late, answer(7)), Taken::No);
    assert_eq!(question.offer(SERVER, PEER, mark, answer(8)), Taken::Yes);
    assert!(is_answer(&asking.next(now()), 8));
}

#[test]
fn one_asks_at_a_time() {
    let question = Question::new(false);
    let first = question.ask(SERVER, PEER, now()).unwrap();
    assert!(question.ask(Endpoint::from_raw(2), PEER, soon()).is_none());
    drop(first);
}

#[test]
fn an_endpoint_that_is_given_up_asks_no_more() {
    let question = Question::new(false);
    let mut asking = question.ask(SERVER, PEER, now()).unwrap();
    question.close();
    assert!(matches!(asking.next(now()), Next::Closed));
}

#[test]
fn another_peers_process_of_the_same_number_answers_nothing() {
    for marked in [false, true] {
        let question = Question::new(marked);
        let mut asking = question.ask(SERVER, PEER, now()).unwrap();
        let mark = asking.mark();
        let stranger = PeerId(4);
        assert_eq!(question.offer(SERVER, stranger, mark, answer(7)), Taken::No);
        assert!(matches!(asking.next(now()), Next::Nothing));
        drop(asking);
        assert_eq!(
            question.offer(SERVER, stranger, mark, answer(7)),
            Taken::No,
            "it is not what is owed either"
        );
        assert_eq!(question.offer(SERVER, PEER, mark, answer(8)), Taken::Late);
    }
}
