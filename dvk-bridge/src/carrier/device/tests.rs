//! Endpoints at a fake kernel.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::fake_kernel::{Client, FakeKernel, MEMORY};
use super::*;
use crate::abi::{M1, MBLegacy, Message};
use crate::endpoint::{Delivery, Gone, RequestId, SharedBuffers};

mod binding;

/// Time limit for anything that must happen.
const LIMIT: Duration = Duration::from_secs(10);

/// Shorter than the 1 s that a receive lasts when no notification ends it.
const AT_ONCE: Duration = Duration::from_millis(700);

const SERVER: i32 = 1;

fn device(kernel: &Arc<FakeKernel>) -> Device {
    Device::on(kernel.clone(), PATH.into()).unwrap()
}

fn bind(kernel: &Arc<FakeKernel>, slot: i32) -> Result<Arc<dyn BoundEndpoint>, EndpointError> {
    device(kernel).bind(DcId::FIRST, Endpoint::from_raw(slot), "server")
}

fn request(kind: i32) -> Message {
    let arm = M1 {
        i1: 3,
        p1: MEMORY,
        ..M1::default()
    };
    Message::new(kind, &arm)
}

/// The next request and its id.
fn next_request(server: &dyn BoundEndpoint) -> (RequestId, Message) {
    match server.receive(LIMIT).unwrap() {
        Delivery::Request {
            request, message, ..
        } => (request, message),
        other => panic!("{other:?} is no request"),
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, EndpointError>) -> Code {
    result.unwrap_err().code()
}

#[test]
fn a_request_is_received_copied_and_answered_with_either_message_size() {
    for size in [36, 76] {
        let kernel = FakeKernel::new();
        kernel.state.lock().size = size;
        let device = device(&kernel);
        let server = device.bind(DcId::FIRST, Endpoint::from_raw(SERVER), "server");
        let server = server.unwrap();
        let client = kernel.client(10, Some(77));
        client.ask(SERVER, &request(196)).unwrap();

        let delivery = server.receive(LIMIT).unwrap();
        let Delivery::Request {
            request: from,
            pid,
            message,
        } = delivery
        else {
            panic!("{delivery:?}");
        };
        assert_eq!(
            (from.client().raw(), pid, message.kind),
            (10, Some(77), 196)
        );
        assert_eq!(message.source, from.client());
        let mut name = [0; 4];
        server.copy_from(from, MEMORY + 2, &mut name).unwrap();
        assert_eq!(name, [2, 3, 4, 5]);
        server.copy_to(from, MEMORY + 250, b"answer").unwrap();
        let mut answer = message.answer(0);
        answer.set_arm(&MBLegacy {
            nr: 1,
            md5: [9; 16],
        });
        server.reply(from, &answer).unwrap();

        let answered = client.answer().unwrap();
        assert_eq!((answered.source.raw(), answered.kind), (SERVER, 0));
        assert_eq!(client.memory()[250..], *b"answer");
        let mut text = String::new();
        device.report(&mut text);
        assert!(
            text.contains(&format!("messages of {size} bytes")),
            "{text}"
        );
    }
}

/// Serves until told to stop, with a thread for each request: two copies and an answer.
fn serve(server: &Arc<dyn BoundEndpoint>, stop: &AtomicBool) {
    std::thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            let Ok(Delivery::Request {
                request, message, ..
            }) = server.receive(Duration::from_millis(100))
            else {
                continue;
            };
            scope.spawn(move || {
                let mut bytes = [0; 16];
                server.copy_from(request, MEMORY, &mut bytes).unwrap();
                server.copy_to(request, MEMORY + 16, &bytes).unwrap();
                server.reply(request, &message.answer(7)).unwrap();
            });
        }
    });
}

#[test]
fn many_clients_are_served_by_many_threads_and_all_calls_are_one_threads() {
    let kernel = FakeKernel::new();
    let server = bind(&kernel, SERVER).unwrap();
    let clients: Vec<Client> = (30..50)
        .map(|slot| kernel.client(slot, Some(slot)))
        .collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&server, &stop));
        let asking = clients.iter().map(|client| {
            scope.spawn(move || {
                for kind in 1..=20 {
                    client.ask(SERVER, &request(kind)).unwrap();
                    assert_eq!(client.answer().unwrap().kind, 7);
                }
                assert_eq!(client.memory()[16..32], client.memory()[..16]);
            })
        });
        for client in asking.collect::<Vec<_>>() {
            client.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let made = kernel.state.lock().made.clone();
    let calls = ["BIND", "RECEIVE", "REPLY", "VCOPY"];
    let threads = made.iter().filter(|(call, _)| calls.contains(call));
    let threads: HashSet<_> = threads.map(|(_, thread)| thread).collect();
    assert_eq!(threads.len(), 1);
    let count = |call| made.iter().filter(|(made, _)| *made == call).count();
    assert_eq!((count("REPLY"), count("VCOPY")), (400, 800));
    let woken: HashSet<_> = made.iter().filter(|(call, _)| *call == "WAKE").collect();
    assert!(woken.len() > 1, "others wake it");
}

#[test]
fn an_answer_does_not_wait_behind_a_receive() {
    let kernel = FakeKernel::new();
    let server = bind(&kernel, SERVER).unwrap();
    let client = kernel.client(10, Some(77));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        client.ask(SERVER, &request(5)).unwrap();
        let (from, message) = next_request(&*server);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let nothing = server.receive(Duration::from_millis(50));
                assert!(nothing.is_err(), "{nothing:?}: what wakes is nobody's");
            }
        });
        let mut took: Vec<_> = (0..20)
            .map(|round| {
                // Into the middle of a receive, and near its beginning and end.
                std::thread::sleep(Duration::from_millis(round * 3));
                let before = Instant::now();
                server.copy_to(from, MEMORY, &[1]).unwrap();
                before.elapsed()
            })
            .collect();
        // A busy machine may be what delays one or two.
        took.sort_unstable();
        assert!(took[took.len() - 3] < AT_ONCE, "{took:?}");
        server.reply(from, &message.answer(0)).unwrap();
        client.answer().unwrap();
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn without_notifications_a_receive_is_short() {
    let answer = || {
        let kernel = FakeKernel::new();
        kernel.state.lock().wake = Err(Code::EDVSPRIVILEGES);
        let server = bind(&kernel, SERVER).unwrap();
        let client = kernel.client(10, Some(77));
        client.ask(SERVER, &request(5)).unwrap();
        let (from, message) = next_request(&*server);
        let before = Instant::now();
        server.copy_to(from, MEMORY, &[1]).unwrap();
        server.reply(from, &message.answer(0)).unwrap();
        client.answer().unwrap();
        before.elapsed()
    };
    // A busy machine may be what delays one.
    assert!((0..3).any(|_| answer() < AT_ONCE));
}

#[test]
fn a_notification_differs_from_a_call_of_the_same_number() {
    let kernel = FakeKernel::new();
    let server = bind(&kernel, SERVER).unwrap();
    // The type looks like get_rootpath from endpoint 4.
    let source = Endpoint::from_raw(4);
    kernel.notification(source, SERVER);
    assert_eq!(server.receive(LIMIT), Ok(Delivery::Notification { source }));
    let source = Endpoint::HARDWARE;
    // No wake-up: the queue holds no work.
    Driver::wake(&*kernel, DcId::FIRST, Endpoint::from_raw(SERVER)).unwrap();
    assert_eq!(server.receive(LIMIT), Ok(Delivery::Notification { source }));
    assert_eq!(
        code(server.receive(Duration::from_millis(50))),
        Code::EDVSTIMEDOUT
    );
}

#[test]
fn a_message_that_comes_as_the_limit_passes_is_not_lost() {
    let kernel = FakeKernel::new();
    let server = bind(&kernel, SERVER).unwrap();
    kernel.state.lock().late = true;
    let client = kernel.client(10, Some(77));
    client.ask(SERVER, &request(5)).unwrap();
    let (from, message) = next_request(&*server);
    server.reply(from, &message.answer(0)).unwrap();
    client.answer().unwrap();
}

#[test]
fn the_exit_of_a_client_is_detected() {
    let kernel = FakeKernel::new();
    let server = bind(&kernel, SERVER).unwrap();
    let client = kernel.client(10, Some(77));
    client.ask(SERVER, &request(5)).unwrap();
    let (from, message) = next_request(&*server);
    client.end();
    let gone = Delivery::Gone {
        client: from.client(),
        reason: Gone::Unbound,
    };
    assert_eq!(server.receive(LIMIT), Ok(gone));
    let copied = server.copy_from(from, MEMORY, &mut [0]);
    assert_eq!(code(copied), Code::EDVSPROCSTS);
    assert_eq!(
        code(server.reply(from, &message.answer(0))),
        Code::EDVSPROCSTS
    );
}

#[test]
fn the_next_process_in_a_slot_gets_neither_answer_nor_copies_of_the_previous() {
    let kernel = FakeKernel::new();
    let server = bind(&kernel, SERVER).unwrap();
    let first = kernel.client(10, Some(77));
    first.ask(SERVER, &request(5)).unwrap();
    let (from, message) = next_request(&*server);
    first.end();
    let second = kernel.client(10, Some(78));
    let other = kernel.client(2, Some(2));
    // It waits for another endpoint, so the kernel would copy.
    second.ask(other.slot, &request(6)).unwrap();
    let copied = server.copy_to(from, MEMORY, &[9]);
    assert!(copied.is_err(), "{copied:?}");
    assert!(server.reply(from, &message.answer(0)).is_err());
    assert_eq!(second.memory()[0], 0);
    second.interrupt();

    second.ask(SERVER, &request(8)).unwrap();
    let gone = server.receive(LIMIT).unwrap();
    assert!(
        matches!(gone, Delivery::Gone { client, .. } if client == from.client()),
        "{gone:?}"
    );
    let (from, message) = next_request(&*server);
    assert_eq!(message.kind, 8);
    server.reply(from, &message.answer(1)).unwrap();
    assert_eq!(second.answer().unwrap().kind, 1);
}

#[test]
fn copies_are_whole_or_fail() {
    let kernel = FakeKernel::new();
    let server = bind(&kernel, SERVER).unwrap();
    let client = kernel.client(10, Some(77));
    client.ask(SERVER, &request(5)).unwrap();
    let (from, _) = next_request(&*server);
    let over = server.copy_from(from, MEMORY + 250, &mut [0; 7]);
    assert_eq!(code(over), Code::EFAULT);
    assert_eq!(code(server.copy_to(from, MEMORY + 256, &[1])), Code::EFAULT);
    client.interrupt();
    assert_eq!(code(server.copy_to(from, MEMORY, &[1])), Code::EDVSPROCSTS);
}

#[test]
fn a_copy_with_another_node_reports_no_count() {
    let kernel = FakeKernel::new();
    let server = bind(&kernel, SERVER).unwrap();
    let client = kernel.client(70, None);
    client.ask(SERVER, &request(5)).unwrap();
    let (from, message) = next_request(&*server);
    let mut bytes = [0; 3];
    server.copy_from(from, MEMORY + 7, &mut bytes).unwrap();
    assert_eq!(bytes, [7, 8, 9]);
    server.copy_to(from, MEMORY, &[5, 5]).unwrap();
    assert_eq!(client.memory()[..3], [5, 5, 2]);
    server.reply(from, &message.answer(2)).unwrap();
    assert_eq!(client.answer().unwrap().kind, 2);
}

#[test]
fn an_interrupted_client_gets_the_answer_to_its_newest_request() {
    let kernel = FakeKernel::new();
    let server = bind(&kernel, SERVER).unwrap();
    let client = kernel.client(10, Some(77));
    client.ask(SERVER, &request(5)).unwrap();
    let (from, first) = next_request(&*server);
    client.interrupt();
    assert_eq!(
        code(server.reply(from, &first.answer(0))),
        Code::EDVSPROCSTS
    );
    client.ask(SERVER, &request(6)).unwrap();
    let (from, second) = next_request(&*server);
    server.reply(from, &second.answer(0)).unwrap();
    client.answer().unwrap();
}

#[test]
fn an_endpoint_sends_a_request_and_gets_the_answer() {
    let kernel = FakeKernel::new();
    let endpoint = bind(&kernel, 10).unwrap();
    let server = kernel.client(SERVER, Some(77));
    let to = Endpoint::from_raw(SERVER);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut buffers = SharedBuffers::new();
            endpoint.sendrec(to, &request(33), &mut buffers, LIMIT)
        });
        let asked = server.receive().unwrap();
        assert_eq!((asked.source.raw(), asked.kind), (10, 33));
        let answer = asked.answer(-2);
        server.reply(10, &answer);
        assert_eq!(asking.join().unwrap(), Ok(answer));
    });
}

#[test]
fn a_call_ends_at_its_limit_and_with_its_partner() {
    let kernel = FakeKernel::new();
    let endpoint = bind(&kernel, 10).unwrap();
    let to = Endpoint::from_raw(SERVER);
    let ask = |limit| endpoint.sendrec(to, &request(33), &mut SharedBuffers::new(), limit);
    assert_eq!(code(ask(LIMIT)), Code::EDVSDEADSRCDST);
    let server = kernel.client(SERVER, Some(77));
    let limit = Duration::from_millis(20);
    let operation = Operation::SendRec { to };
    assert_eq!(
        ask(limit),
        Err(EndpointError::TimedOut { operation, limit })
    );
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(LIMIT));
        server.receive().unwrap();
        server.end();
        assert_eq!(code(asking.join().unwrap()), Code::EDVSSRCDIED);
    });
}

#[test]
fn an_endpoint_sends_and_notifies() {
    let kernel = FakeKernel::new();
    let endpoint = bind(&kernel, SERVER).unwrap();
    let partner = kernel.client(2, Some(77));
    let to = Endpoint::from_raw(2);
    endpoint.notify(to).unwrap();
    assert!(partner.receive().unwrap().is_notification());
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| endpoint.send(to, &request(9), LIMIT));
        assert_eq!(partner.receive().unwrap().kind, 9);
        sending.join().unwrap().unwrap();
    });
    let nobody = Endpoint::from_raw(3);
    assert_eq!(
        code(endpoint.send(nobody, &request(9), LIMIT)),
        Code::EDVSDSTDIED
    );
}

#[cfg(target_pointer_width = "64")]
#[test]
fn an_rhostfs_server_answers_through_the_device() {
    use crate::rhostfs::server::{Options, Server};

    let kernel = FakeKernel::new();
    let server = bind(&kernel, SERVER).unwrap();
    let client = kernel.client(10, Some(77));
    let server = Server::start(server, &Options::new("/no/such/daemon".into())).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| server.run(&stop));
        client.ask(SERVER, &request(196)).unwrap();
        assert_eq!(client.answer().unwrap().kind, -5, "it has no daemon");
        client.ask(SERVER, &request(4711)).unwrap();
        assert_eq!(client.answer().unwrap().kind, -38, "there is no such call");
        stop.store(true, Ordering::Relaxed);
    });
}
