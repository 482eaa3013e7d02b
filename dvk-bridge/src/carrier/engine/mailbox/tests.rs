//! The order of events, and what happens when a client sends a newer request or leaves.

use std::time::Duration;

use super::*;
use crate::abi::M1;

const PEER: PeerId = PeerId(3);
const ACK_SEQ: u32 = 5;
const ROUTE: ReplyRoute = ReplyRoute {
    peer: PEER,
    ack_seq: ACK_SEQ,
};

fn from(raw: i32) -> Sender {
    Sender {
        endpoint: Endpoint::from_raw(raw),
        peer: PEER,
        pid: Some(77),
        ack_seq: ACK_SEQ,
    }
}

fn message(kind: i32) -> Message {
    Message::new(kind, &M1::default())
}

/// The next event, without waiting.
fn receive(mailbox: &Mailbox) -> Received {
    mailbox.receive(Instant::now())
}

fn id(client: i32, number: u64) -> RequestId {
    RequestId::new(Endpoint::from_raw(client), number)
}

fn request(client: i32, number: u64, kind: i32) -> Received {
    let request = Delivery::Request {
        request: id(client, number),
        pid: Some(77),
        message: message(kind),
    };
    Received::Event(request, None)
}

fn gone(client: i32, reason: Gone) -> Received {
    let client = Endpoint::from_raw(client);
    Received::Event(Delivery::Gone { client, reason }, None)
}

/// Whether the answer to `request` is to be sent.
fn answer(mailbox: &Mailbox, request: RequestId) -> Result<bool, RequestEnded> {
    mailbox.answer(request).map(|held| held.is_some())
}

fn serving(mailbox: &Mailbox, request: RequestId) -> Result<(), RequestEnded> {
    mailbox.serving(request).map(|_| ())
}

#[test]
fn requests_are_received_in_order_and_answered_once() {
    let mailbox = Mailbox::default();
    mailbox.request(from(10), message(1)).unwrap();
    mailbox.request(from(11), message(2)).unwrap();
    assert_eq!(receive(&mailbox), request(10, 0, 1));
    assert_eq!(receive(&mailbox), request(11, 1, 2));
    assert_eq!(receive(&mailbox), Received::Nothing);
    let first = id(10, 0);
    assert_eq!(mailbox.route(first), Ok(ROUTE));
    assert_eq!(serving(&mailbox, first), Ok(()));
    assert_eq!(answer(&mailbox, first), Ok(true));
    assert_eq!(answer(&mailbox, first), Err(RequestEnded::NotWaiting));
    assert_eq!(serving(&mailbox, first), Err(RequestEnded::NotWaiting));
}

#[test]
fn a_client_gets_the_answer_to_its_newest_request() {
    let mailbox = Mailbox::default();
    for kind in 1..=3 {
        mailbox.request(from(10), message(kind)).unwrap();
    }
    assert_eq!(receive(&mailbox), request(10, 0, 1));
    assert_eq!(receive(&mailbox), Received::Nothing, "one at a time");
    assert_eq!(
        serving(&mailbox, id(10, 0)),
        Err(RequestEnded::NotWaiting),
        "no copies for the old one"
    );
    assert_eq!(answer(&mailbox, id(10, 0)), Ok(false));
    assert_eq!(receive(&mailbox), request(10, 1, 3));
    assert_eq!(answer(&mailbox, id(10, 1)), Ok(true));
}

#[test]
fn an_answered_request_ends_when_its_client_sends_the_next() {
    let mailbox = Mailbox::default();
    mailbox.request(from(10), message(1)).unwrap();
    receive(&mailbox);
    assert_eq!(answer(&mailbox, id(10, 0)), Ok(true));
    mailbox.request(from(10), message(2)).unwrap();
    receive(&mailbox);
    assert_eq!(serving(&mailbox, id(10, 0)), Err(RequestEnded::NotWaiting));
    assert_eq!(answer(&mailbox, id(10, 0)), Err(RequestEnded::NotWaiting));
    assert_eq!(answer(&mailbox, id(10, 1)), Ok(true));
}

#[test]
fn an_answer_is_sent_again_until_its_client_asks_the_next_or_goes() {
    let again = |mailbox: &Mailbox, number| mailbox.answered(id(10, number)).map(|_| ());
    let mailbox = Mailbox::default();
    mailbox.request(from(10), message(1)).unwrap();
    receive(&mailbox);
    assert_eq!(
        again(&mailbox, 0),
        Err(RequestEnded::NotWaiting),
        "not answered"
    );
    assert_eq!(answer(&mailbox, id(10, 0)), Ok(true));
    assert_eq!(again(&mailbox, 0), Ok(()));
    mailbox.request(from(10), message(2)).unwrap();
    assert_eq!(again(&mailbox, 0), Err(RequestEnded::NotWaiting));
    receive(&mailbox);
    assert_eq!(answer(&mailbox, id(10, 1)), Ok(true));
    assert_eq!(again(&mailbox, 1), Ok(()));
    mailbox.gone(Endpoint::from_raw(10), Gone::Unbound);
    assert_eq!(again(&mailbox, 1), Err(RequestEnded::NotWaiting));
}

#[test]
fn requests_of_a_process_end_when_another_has_its_endpoint() {
    let mailbox = Mailbox::default();
    mailbox.request(from(10), message(1)).unwrap();
    receive(&mailbox);
    mailbox.gone(Endpoint::from_raw(10), Gone::Unbound);
    mailbox.request(from(10), message(2)).unwrap();
    assert_eq!(receive(&mailbox), gone(10, Gone::Unbound));
    assert_eq!(receive(&mailbox), request(10, 1, 2));
    assert_eq!(serving(&mailbox, id(10, 0)), Err(RequestEnded::NotWaiting));
    assert_eq!(answer(&mailbox, id(10, 0)), Err(RequestEnded::NotWaiting));
    assert_eq!(serving(&mailbox, id(10, 1)), Ok(()));
}

#[test]
fn a_request_is_found_by_its_client() {
    let mailbox = Mailbox::default();
    let client = Endpoint::from_raw(10);
    mailbox.request(from(10), message(1)).unwrap();
    assert_eq!(mailbox.served(client), None, "not received");
    receive(&mailbox);
    assert_eq!(mailbox.served(client), Some(id(10, 0)));
    assert_eq!(answer(&mailbox, id(10, 0)), Ok(true));
    assert_eq!(mailbox.served(client), None);
}

#[test]
fn a_sender_is_told_when_its_message_is_received() {
    let mailbox = Mailbox::default();
    mailbox.message(from(2), message(5)).unwrap();
    assert_eq!(
        mailbox.message(from(2), message(6)),
        Err(Code::EDVSENQUEUED)
    );
    let delivery = Delivery::Message {
        client: Endpoint::from_raw(2),
        message: message(5),
    };
    assert_eq!(receive(&mailbox), Received::Event(delivery, Some(ROUTE)));
    mailbox.message(from(2), message(6)).unwrap();
}

#[test]
fn notifications_are_merged() {
    let mailbox = Mailbox::default();
    for _ in 0..3 {
        mailbox.notification(from(4)).unwrap();
    }
    let source = Endpoint::from_raw(4);
    let delivery = Delivery::Notification { source };
    assert_eq!(receive(&mailbox), Received::Event(delivery, None));
    assert_eq!(receive(&mailbox), Received::Nothing);
}

#[test]
fn the_unreceived_messages_of_an_exited_process_are_dropped() {
    let mailbox = Mailbox::default();
    mailbox.request(from(10), message(1)).unwrap();
    assert_eq!(receive(&mailbox), request(10, 0, 1));
    mailbox.request(from(11), message(2)).unwrap();
    mailbox.peer_lost(PEER);
    assert_eq!(receive(&mailbox), gone(10, Gone::NodeLost));
    assert_eq!(
        receive(&mailbox),
        Received::Nothing,
        "11 was never heard of"
    );
}

#[test]
fn another_in_the_same_slot_replaces_the_first() {
    let mailbox = Mailbox::default();
    mailbox.request(from(10), message(1)).unwrap();
    assert_eq!(receive(&mailbox), request(10, 0, 1));
    let later = Endpoint::new(1, 10).unwrap().raw();
    mailbox.request(from(later), message(2)).unwrap();
    assert_eq!(receive(&mailbox), gone(10, Gone::Replaced));
    assert_eq!(receive(&mailbox), request(later, 1, 2));
    assert_eq!(answer(&mailbox, id(10, 0)), Err(RequestEnded::NotWaiting));
}

#[test]
fn a_slot_belongs_to_one_peer_while_it_is_connected() {
    let mailbox = Mailbox::default();
    let elsewhere = Sender {
        peer: PeerId(4),
        ..from(10)
    };
    mailbox.request(from(10), message(1)).unwrap();
    assert_eq!(receive(&mailbox), request(10, 0, 1));
    let later = Sender {
        endpoint: Endpoint::new(1, 10).unwrap(),
        ..elsewhere
    };
    for stranger in [elsewhere, later] {
        let refused = [
            mailbox.request(stranger, message(2)),
            mailbox.message(stranger, message(2)),
            mailbox.notification(stranger),
        ];
        assert_eq!(refused, [Err(Code::EDVSNONODE); 3]);
    }
    assert_eq!(receive(&mailbox), Received::Nothing);
    assert_eq!(answer(&mailbox, id(10, 0)), Ok(true));

    mailbox.peer_lost(PEER);
    assert_eq!(receive(&mailbox), gone(10, Gone::NodeLost));
    mailbox.request(elsewhere, message(2)).unwrap();
    assert_eq!(receive(&mailbox), request(10, 1, 2));
}

#[test]
fn releasing_returns_the_waiting_clients() {
    let mailbox = Mailbox::default();
    mailbox.request(from(10), message(1)).unwrap();
    mailbox.message(from(2), message(5)).unwrap();
    mailbox.notification(from(4)).unwrap();
    let waiting: Vec<_> = mailbox
        .close()
        .into_iter()
        .map(|it| (it.endpoint.raw(), it.asks))
        .collect();
    assert_eq!(waiting, [(2, false), (10, true)]);
    assert_eq!(receive(&mailbox), Received::Closed);
    assert_eq!(
        mailbox.request(from(10), message(1)),
        Err(Code::EDVSDSTDIED)
    );
}

#[test]
fn a_message_wakes_a_waiter() {
    let mailbox = std::sync::Arc::new(Mailbox::default());
    let here = mailbox.clone();
    let waiting =
        std::thread::spawn(move || here.receive(Instant::now() + Duration::from_secs(20)));
    mailbox.request(from(10), message(1)).unwrap();
    assert_eq!(waiting.join().unwrap(), request(10, 0, 1));
}
