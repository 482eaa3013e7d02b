//! Programs at a switch that runs in a thread.

use std::thread;

use tempfile::TempDir;

use super::*;
use crate::abi::{M1, Message};
use crate::endpoint::{Delivery, Gone, RequestId, SharedBuffers};
use crate::switch::{Admission, Stop, Switch, SwitchConfig};

const LIMIT: Duration = Duration::from_secs(20);
const SERVER: Endpoint = Endpoint::from_raw(1);
const CLIENT: Endpoint = Endpoint::from_raw(10);

fn dc() -> DcId {
    DcId::new(0).unwrap()
}

fn second_dc() -> DcId {
    DcId::new(7).unwrap()
}

/// A switch that stops when it is dropped.
struct RunningSwitch {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl RunningSwitch {
    fn start(directory: &TempDir, admission: Admission) -> Self {
        let switch = Switch::new(SwitchConfig {
            admission,
            dcs: [dc(), second_dc()].map(|dc| (dc, DcLimits::USUAL)).into(),
            status: Some(directory.path().join("status")),
            ..SwitchConfig::new(directory.path().join("switch"))
        });
        let switch = switch.unwrap();
        Self {
            stop: switch.stopper(),
            thread: Some(thread::spawn(move || switch.run().unwrap())),
        }
    }
}

impl Drop for RunningSwitch {
    fn drop(&mut self) {
        self.stop.stop();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_some_and(|it| it.is_ok()) || thread::panicking());
    }
}

fn everything() -> Admission {
    Admission::only(rustix::process::geteuid().as_raw())
}

fn program(directory: &TempDir) -> Local {
    let mut config = LocalConfig::new(directory.path().join("switch"));
    config.retry = Duration::from_millis(20);
    config.dcs.insert(second_dc(), DcLimits::USUAL);
    Local::start(config).unwrap()
}

fn request() -> Message {
    Message::new(33, &M1::default())
}

/// Waits for the next request.
fn next_request(server: &dyn BoundEndpoint) -> (RequestId, Option<i32>, Message) {
    match server.receive(LIMIT).unwrap() {
        Delivery::Request {
            request,
            pid,
            message,
        } => (request, pid, message),
        other => panic!("no request but {other:?}"),
    }
}

#[test]
fn a_call_is_answered_with_copies() {
    let directory = TempDir::new().unwrap();
    let _switch = RunningSwitch::start(&directory, everything());
    let (left, right) = (program(&directory), program(&directory));
    let server = right.bind(dc(), SERVER, "server").unwrap();
    let client = left.bind(dc(), CLIENT, "client").unwrap();
    let serving = thread::spawn(move || {
        let (request, pid, message) = next_request(&*server);
        let M1 { p1, p2, .. } = message.arm();
        let mut bytes = vec![0; 200_000];
        server.copy_from(request, p1, &mut bytes).unwrap();
        bytes.reverse();
        server.copy_to(request, p2, &bytes).unwrap();
        server.reply(request, &message.answer(0)).unwrap();
        pid
    });
    let data: Vec<u8> = (0..200_000u32).map(|index| (index % 241) as u8).collect();
    let mut buffer = vec![0; data.len()];
    let mut buffers = SharedBuffers::new();
    let (p1, p2) = (buffers.read_only(&data), buffers.writable(&mut buffer));
    let request = Message::new(
        1,
        &M1 {
            p1,
            p2,
            ..M1::default()
        },
    );
    let answer = client
        .sendrec(SERVER, &request, &mut buffers, LIMIT)
        .unwrap();
    assert_eq!(answer.kind, 0);
    assert!(buffer.iter().rev().eq(&data));
    let pid = serving.join().unwrap();
    assert_eq!(
        pid,
        i32::try_from(std::process::id()).ok(),
        "the switch vouches for it"
    );
}

#[test]
fn a_slot_is_bound_once_and_free_again() {
    let directory = TempDir::new().unwrap();
    let _switch = RunningSwitch::start(&directory, everything());
    let (left, right) = (program(&directory), program(&directory));
    let first = left.bind(dc(), SERVER, "first").unwrap();
    let error = right.bind(dc(), SERVER, "second").err().unwrap();
    assert_eq!(
        error.to_string(),
        "cannot bind endpoint 1 of container 0: slot is in use (EDVSSLOTUSED)"
    );
    drop(first);
    while right.bind(dc(), SERVER, "second").is_err() {
        thread::yield_now();
    }
}

#[test]
fn containers_have_the_same_endpoints_with_different_processes() {
    let directory = TempDir::new().unwrap();
    let _switch = RunningSwitch::start(&directory, everything());
    let (left, right) = (program(&directory), program(&directory));
    let both = [dc(), second_dc()].map(|dc| {
        let server = right.bind(dc, SERVER, "server").unwrap();
        let client = left.bind(dc, CLIENT, "client").unwrap();
        let asking = thread::spawn(move || {
            client.sendrec(SERVER, &request(), &mut SharedBuffers::new(), LIMIT)
        });
        (dc, server, asking)
    });
    for (dc, server, asking) in both {
        let (request, _, message) = next_request(&*server);
        server.reply(request, &message.answer(dc.raw())).unwrap();
        assert_eq!(asking.join().unwrap().unwrap().kind, dc.raw());
    }
    let unknown = DcId::new(3).unwrap();
    let error = left.bind(unknown, CLIENT, "client").err().unwrap();
    assert_eq!(error.code(), Code::EDVSBADDCID);
}

#[test]
fn the_exit_of_a_program_is_reported_to_its_partners() {
    let directory = TempDir::new().unwrap();
    let _switch = RunningSwitch::start(&directory, everything());
    let (left, right) = (program(&directory), program(&directory));
    let server = right.bind(dc(), SERVER, "server").unwrap();
    let client = left.bind(dc(), CLIENT, "client").unwrap();
    let asking =
        thread::spawn(move || client.sendrec(SERVER, &request(), &mut SharedBuffers::new(), LIMIT));
    next_request(&*server);
    drop(left);
    assert_eq!(
        asking.join().unwrap().unwrap_err().code(),
        Code::EDVSNOTCONN
    );
    let reason = Gone::Unbound;
    assert_eq!(
        server.receive(LIMIT).unwrap(),
        Delivery::Gone {
            client: CLIENT,
            reason
        }
    );

    let left = program(&directory);
    let client = left.bind(dc(), CLIENT, "client").unwrap();
    let asking =
        thread::spawn(move || client.sendrec(SERVER, &request(), &mut SharedBuffers::new(), LIMIT));
    next_request(&*server);
    drop((server, right));
    assert_eq!(
        asking.join().unwrap().unwrap_err().code(),
        Code::EDVSSRCDIED
    );
}

#[test]
fn answers_and_copies_for_an_exited_process_do_not_reach_the_next_at_its_endpoint() {
    let directory = TempDir::new().unwrap();
    let _switch = RunningSwitch::start(&directory, everything());
    let right = program(&directory);
    let server = right.bind(dc(), SERVER, "server").unwrap();
    let ask = |kind| {
        let left = program(&directory);
        thread::spawn(move || {
            let client = left.bind(dc(), CLIENT, "client").unwrap();
            let mut buffer = [0; 4];
            let mut buffers = SharedBuffers::new();
            let p1 = buffers.writable(&mut buffer);
            let message = Message::new(
                kind,
                &M1 {
                    p1,
                    ..M1::default()
                },
            );
            let limit = if kind == 1 { LIMIT / 100 } else { LIMIT };
            let answer = client.sendrec(SERVER, &message, &mut buffers, limit);
            (answer, buffer)
        })
    };
    let first = ask(1);
    let (gone, _, _) = next_request(&*server);
    assert!(first.join().unwrap().0.is_err(), "the program gives up");
    let reason = Gone::Unbound;
    let client = CLIENT;
    assert_eq!(
        server.receive(LIMIT).unwrap(),
        Delivery::Gone { client, reason }
    );
    let second = ask(2);
    let (request, _, message) = next_request(&*server);
    let at: M1 = message.arm();
    let late = [
        server.copy_to(gone, at.p1, &[7; 4]),
        server.copy_from(gone, at.p1, &mut [0; 4]),
        server.reply(gone, &message.answer(-5)),
    ];
    for late in late {
        assert_eq!(late.unwrap_err().code(), Code::EDVSPROCSTS);
    }
    server.reply(request, &message.answer(0)).unwrap();
    let (answer, buffer) = second.join().unwrap();
    assert_eq!((answer.unwrap().kind, buffer), (0, [0; 4]));
}

#[test]
fn a_message_to_a_served_client_is_its_answer() {
    let directory = TempDir::new().unwrap();
    let _switch = RunningSwitch::start(&directory, everything());
    let (left, right) = (program(&directory), program(&directory));
    let server = right.bind(dc(), SERVER, "server").unwrap();
    let client = left.bind(dc(), CLIENT, "client").unwrap();
    for kind in [5, 6] {
        let client = client.clone();
        let asking = thread::spawn(move || {
            client.sendrec(SERVER, &request(), &mut SharedBuffers::new(), LIMIT)
        });
        let (_, _, message) = next_request(&*server);
        server.send(CLIENT, &message.answer(kind), LIMIT).unwrap();
        assert_eq!(asking.join().unwrap().unwrap().kind, kind);
    }
}

#[test]
fn a_released_endpoint_refuses_all_operations() {
    let directory = TempDir::new().unwrap();
    let _switch = RunningSwitch::start(&directory, everything());
    let (left, right) = (program(&directory), program(&directory));
    let server = right.bind(dc(), SERVER, "server").unwrap();
    let client = left.bind(dc(), CLIENT, "client").unwrap();
    let asking =
        thread::spawn(move || client.sendrec(SERVER, &request(), &mut SharedBuffers::new(), LIMIT));
    let (request, _, message) = next_request(&*server);
    server.unbind();
    let refused = [
        server.reply(request, &message).unwrap_err(),
        server.copy_from(request, 0, &mut [0]).unwrap_err(),
        server.send(CLIENT, &message, LIMIT).unwrap_err(),
        server.notify(CLIENT).unwrap_err(),
        server
            .sendrec(CLIENT, &message, &mut SharedBuffers::new(), LIMIT)
            .unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(error, EndpointError::Unbound { .. }), "{error}");
    }
    assert_eq!(
        asking.join().unwrap().unwrap_err().code(),
        Code::EDVSSRCDIED
    );
}

#[test]
fn endpoints_outlive_the_switch() {
    let directory = TempDir::new().unwrap();
    let switch = RunningSwitch::start(&directory, everything());
    let (left, right) = (program(&directory), program(&directory));
    let server = right.bind(dc(), SERVER, "server").unwrap();
    let client = left.bind(dc(), CLIENT, "client").unwrap();
    drop(switch);
    let _switch = RunningSwitch::start(&directory, everything());
    let serving = thread::spawn(move || {
        let (request, _, message) = next_request(&*server);
        server.reply(request, &message.answer(5)).unwrap();
    });
    let answer = loop {
        // Until both programs are connected again.
        match client.sendrec(SERVER, &request(), &mut SharedBuffers::new(), LIMIT) {
            Ok(answer) => break answer,
            Err(_) => thread::yield_now(),
        }
    };
    assert_eq!(answer.kind, 5);
    serving.join().unwrap();
}

#[test]
fn the_status_names_endpoints_and_waiting_clients() {
    let directory = TempDir::new().unwrap();
    let _switch = RunningSwitch::start(&directory, everything());
    let (left, right) = (program(&directory), program(&directory));
    let server = right.bind(dc(), SERVER, "server").unwrap();
    let client = left.bind(dc(), CLIENT, "client").unwrap();
    let asking =
        thread::spawn(move || client.sendrec(SERVER, &request(), &mut SharedBuffers::new(), LIMIT));
    let (request, _, message) = next_request(&*server);

    let text = crate::status::ask(&directory.path().join("status")).unwrap();
    assert!(
        text.contains("endpoint 1 of container 0, \"server\""),
        "{text}"
    );
    let mut text = String::new();
    right.report(&mut text);
    assert!(
        text.contains("endpoint 1 of container 0, \"server\": 1 clients, 1 of them wait"),
        "{text}"
    );
    assert!(text.contains("client 10 waits for an answer"), "{text}");
    let mut text = String::new();
    left.report(&mut text);
    assert!(text.contains("waits for an answer of 1"), "{text}");

    server.reply(request, &message.answer(0)).unwrap();
    asking.join().unwrap().unwrap();
}

#[test]
fn many_clients_are_served_at_once() {
    let directory = TempDir::new().unwrap();
    let _switch = RunningSwitch::start(&directory, everything());
    let (left, right) = (program(&directory), program(&directory));
    let server = right.bind(dc(), SERVER, "server").unwrap();
    let asking: Vec<_> = (30..220)
        .map(|slot| {
            let client = left.bind(dc(), Endpoint::from_raw(slot), "client").unwrap();
            thread::spawn(move || {
                client.sendrec(SERVER, &request(), &mut SharedBuffers::new(), LIMIT)
            })
        })
        .collect();
    // All calls are pending before the first is answered, so none delays another.
    let asked: Vec<_> = asking.iter().map(|_| next_request(&*server)).collect();
    for (request, _, message) in asked.into_iter().rev() {
        server
            .reply(request, &message.answer(request.client().raw()))
            .unwrap();
    }
    for (slot, asking) in (30..220).zip(asking) {
        assert_eq!(asking.join().unwrap().unwrap().kind, slot);
    }
}

#[test]
fn a_user_without_permissions_is_refused() {
    let directory = TempDir::new().unwrap();
    let mut admission = Admission::only(4_000_000);
    let own = rustix::process::geteuid().as_raw();
    let switch = RunningSwitch::start(&directory, admission.clone());
    let program = program(&directory);
    assert!(program.bind(dc(), SERVER, "server").is_err());
    drop(switch);

    admission.add(format!("{own}=10").parse().unwrap());
    let _switch = RunningSwitch::start(&directory, admission);
    let error = program.bind(dc(), SERVER, "server").err().unwrap();
    assert_eq!(error.code(), Code::EACCES);
    program.bind(dc(), CLIENT, "client").unwrap();
}

#[test]
fn a_missing_switch_is_an_error_after_the_limit() {
    let directory = TempDir::new().unwrap();
    let mut config = LocalConfig::new(directory.path().join("switch"));
    config.answer = Duration::from_millis(50);
    let program = Local::start(config).unwrap();
    let error = program.bind(dc(), SERVER, "server").err().unwrap();
    assert_eq!(error.code(), Code::EDVSNOTCONN);
}
