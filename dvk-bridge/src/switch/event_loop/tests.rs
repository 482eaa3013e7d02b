//! Programs that do not read what waits for them, with commands encoded by hand.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use gangplank_service::captured_log;
use gangplank_service::rate_limit::BURST;
use tempfile::TempDir;

use super::*;
use crate::abi::{CopyBlock, DcId, DcLimits, MAX_PAYLOAD};
use crate::carrier::local::GENERATION;

const LIMIT: Duration = Duration::from_secs(20);
const READ_TIMEOUT: Duration = Duration::from_millis(200);

/// A program that only does what a test tells it.
struct RawProgram(UnixStream);

impl RawProgram {
    fn connect(directory: &TempDir) -> Self {
        let stream = UnixStream::connect(directory.path().join("switch")).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Self(stream)
    }

    fn send(&mut self, header: Header, payload: &[u8]) -> io::Result<()> {
        let len = i32::try_from(payload.len()).unwrap();
        let mut bytes = Vec::new();
        Header { len, ..header }.encode(GENERATION, &mut bytes);
        bytes.extend_from_slice(payload);
        self.0.write_all(&bytes)
    }

    fn receive(&mut self) -> Header {
        let mut bytes = [0; 120];
        self.0.read_exact(&mut bytes).unwrap();
        let header = Header::decode(&bytes, GENERATION).unwrap();
        let mut payload = vec![0; usize::try_from(header.len).unwrap()];
        self.0.read_exact(&mut payload).unwrap();
        header
    }

    fn bind(&mut self, endpoint: i32) {
        self.bind_in(0, endpoint);
    }

    fn bind_in(&mut self, dc: i32, endpoint: i32) {
        let src = Endpoint::from_raw(endpoint);
        let binding = Header {
            dc,
            src,
            ..Header::new(Command::PROCBIND)
        };
        self.send(binding, b"raw").unwrap();
        // Unbinds of other programs arrive as well.
        let verdict = loop {
            let header = self.receive();
            if header.command != Command::PROCUNBIND {
                break header;
            }
        };
        assert_eq!((verdict.command, verdict.rcode), (Command::PROCBIND_ACK, 0));
    }

    /// Sends the largest copy to a program of another endpoint.
    fn copy_to(&mut self, from: i32, to: i32) -> io::Result<()> {
        let header = Header {
            src: Endpoint::from_raw(from),
            dst: Endpoint::from_raw(to),
            copy: CopyBlock {
                src: from,
                dst: to,
                requester: from,
                ..CopyBlock::default()
            },
            ..Header::new(Command::COPYIN_DATA)
        };
        self.send(header, &[0x5a; MAX_PAYLOAD])
    }
}

fn start(directory: &TempDir) -> (Stop, thread::JoinHandle<()>) {
    start_with(directory, READ_TIMEOUT)
}

fn start_with(directory: &TempDir, read_timeout: Duration) -> (Stop, thread::JoinHandle<()>) {
    let switch = Switch::new(SwitchConfig {
        read_timeout,
        status: Some(directory.path().join("status")),
        ..SwitchConfig::new(directory.path().join("switch"))
    });
    let switch = switch.unwrap();
    (
        switch.stopper(),
        thread::spawn(move || switch.run().unwrap()),
    )
}

#[test]
fn a_program_that_does_not_read_is_dropped_and_its_partners_continue() {
    let directory = TempDir::new().unwrap();
    let (stop, thread) = start(&directory);
    let [mut deaf, mut partner, mut other] = [2, 3, 4].map(|endpoint| {
        let mut program = RawProgram::connect(&directory);
        program.bind(endpoint);
        program
    });
    // More than the switch and the sockets can hold: the partner is paused, and continues when the
    // other is dropped.
    for _ in 0..64 {
        partner.copy_to(3, 2).unwrap();
    }
    let gone = partner.receive();
    assert_eq!(
        (gone.command, gone.src),
        (Command::PROCUNBIND, Endpoint::from_raw(2))
    );
    let refused = partner.receive();
    assert_eq!(
        (refused.command, refused.rcode),
        (Command::COPYIN_ACK, Code::EDVSDSTDIED.result())
    );
    // A program without a part in this is told, and served.
    assert_eq!(other.receive().command, Command::PROCUNBIND);
    other.bind(5);
    // Commands that were sent to it before can still be read, then the end.
    let mut rest = Vec::new();
    let ended = deaf.0.read_to_end(&mut rest);
    assert!(ended.is_ok() || ended.is_err_and(|it| it.kind() == ErrorKind::ConnectionReset));
    assert!(rest.len() >= MAX_PAYLOAD);
    stop.stop();
    thread.join().unwrap();
}

#[test]
fn a_slow_reader_is_not_dropped() {
    let directory = TempDir::new().unwrap();
    let (stop, thread) = start_with(&directory, LIMIT / 10);
    let [mut slow, mut partner] = [2, 3].map(|endpoint| {
        let mut program = RawProgram::connect(&directory);
        program.bind(endpoint);
        program
    });
    let sending = thread::spawn(move || {
        for _ in 0..128 {
            partner.copy_to(3, 2).unwrap();
        }
        partner
    });
    for _ in 0..128 {
        // A quarter of the time limit for each read, and longer than the limit in all.
        thread::sleep(LIMIT / 640);
        assert_eq!(slow.receive().command, Command::COPYIN_DATA);
    }
    drop(sending.join().unwrap());
    assert_eq!(slow.receive().command, Command::PROCUNBIND);
    stop.stop();
    thread.join().unwrap();
}

#[test]
fn the_status_says_whose_partner_does_not_read() {
    let directory = TempDir::new().unwrap();
    let (stop, thread) = start(&directory);
    let [deaf, mut partner] = [2, 3].map(|endpoint| {
        let mut program = RawProgram::connect(&directory);
        program.bind(endpoint);
        program
    });
    let sending = thread::spawn(move || (0..64).all(|_| partner.copy_to(3, 2).is_ok()));
    loop {
        let text = status::ask(&directory.path().join("status")).unwrap();
        if text.contains("paused until the receiver reads") {
            break;
        }
        assert!(!sending.is_finished(), "{text}");
        thread::yield_now();
    }
    assert!(sending.join().unwrap());
    drop(deaf);
    stop.stop();
    thread.join().unwrap();
}

#[test]
fn programs_cannot_send_commands_of_the_switch() {
    for command in [
        Command::PROCBIND_ACK,
        Command::PROCUNBIND_ACK,
        Command::PROCINFO,
        Command::SHUTDOWN,
        Command::REPLY_ACK,
    ] {
        let directory = TempDir::new().unwrap();
        let (stop, thread) = start(&directory);
        let [mut victim, mut rogue] = [1, 20].map(|endpoint| {
            let mut program = RawProgram::connect(&directory);
            program.bind(endpoint);
            program
        });
        let order = Header {
            src: Endpoint::from_raw(20),
            dst: Endpoint::from_raw(1),
            rcode: -1,
            ..Header::new(command)
        };
        rogue.send(order, &[]).unwrap();
        // The rogue program was dropped, so the victim sees only its end.
        let heard = victim.receive();
        assert_eq!(
            (heard.command, heard.src),
            (Command::PROCUNBIND, Endpoint::from_raw(20)),
            "{command}"
        );
        assert_eq!(rogue.0.read(&mut [0]).unwrap(), 0);
        stop.stop();
        thread.join().unwrap();
    }
}

#[test]
fn a_server_is_read_even_if_a_client_does_not_read() {
    let directory = TempDir::new().unwrap();
    let (stop, thread) = start_with(&directory, 10 * LIMIT);
    let [mut server, mut deaf, mut client] = [1, 20, 10].map(|endpoint| {
        let mut program = RawProgram::connect(&directory);
        program.bind(endpoint);
        program
    });
    let serving = thread::spawn(move || {
        loop {
            let request = server.receive();
            let (command, payload): (_, &[u8]) = match request.command {
                Command::COPYOUT_RQST => (Command::COPYOUT_DATA, &[0; MAX_PAYLOAD]),
                Command::SNDREC_MSG => (Command::REPLY_MSG, &[]),
                _ => return,
            };
            let answer = Header {
                src: request.dst,
                dst: request.src,
                ..Header::new(command)
            };
            server.send(answer, payload).unwrap();
        }
    });
    let to_server = |from, command| Header {
        src: Endpoint::from_raw(from),
        dst: Endpoint::from_raw(1),
        ..Header::new(command)
    };
    for _ in 0..256 {
        let flood = to_server(20, Command::COPYOUT_RQST);
        deaf.send(flood, &[]).unwrap();
    }
    for _ in 0..4 {
        let request = to_server(10, Command::SNDREC_MSG);
        client.send(request, &[]).unwrap();
        assert_eq!(client.receive().command, Command::REPLY_MSG);
    }
    // The server does not handle notifications and ends.
    let goodbye = to_server(10, Command::NTFY_MSG);
    client.send(goodbye, &[]).unwrap();
    serving.join().unwrap();
    drop(deaf);
    stop.stop();
    thread.join().unwrap();
}

#[test]
fn a_program_that_reads_too_little_is_dropped() {
    let directory = TempDir::new().unwrap();
    let (stop, thread) = start(&directory);
    let [mut sly, mut partner] = [2, 3].map(|endpoint| {
        let mut program = RawProgram::connect(&directory);
        program.bind(endpoint);
        program
    });
    let reading = thread::spawn(move || {
        // Just enough for the system to accept some more.
        let mut few = [0; MAX_PAYLOAD];
        while sly.0.read(&mut few).is_ok_and(|read| read > 0) {
            thread::sleep(READ_TIMEOUT / 4);
        }
    });
    for _ in 0..64 {
        partner.copy_to(3, 2).unwrap();
    }
    assert_eq!(partner.receive().command, Command::PROCUNBIND);
    reading.join().unwrap();
    stop.stop();
    thread.join().unwrap();
}

#[test]
fn a_program_that_does_not_read_answers_is_dropped() {
    let directory = TempDir::new().unwrap();
    let (stop, thread) = start(&directory);
    let mut deaf = RawProgram::connect(&directory);
    let say = |command| Header {
        src: Endpoint::from_raw(2),
        ..Header::new(command)
    };
    let started = Instant::now();
    while deaf.send(say(Command::PROCBIND), b"deaf").is_ok()
        && deaf.send(say(Command::PROCUNBIND), &[]).is_ok()
    {
        assert!(started.elapsed() < LIMIT, "it is kept");
    }
    stop.stop();
    thread.join().unwrap();
}

#[test]
fn a_thousand_endpoints_are_bound_and_free_again_when_their_programs_go() {
    let directory = TempDir::new().unwrap();
    let ids = 0..5;
    let dcs = ids.clone().filter_map(DcId::new);
    let switch = Switch::new(SwitchConfig {
        dcs: dcs.map(|dc| (dc, DcLimits::USUAL)).collect(),
        ..SwitchConfig::new(directory.path().join("switch"))
    });
    let switch = switch.unwrap();
    let stop = switch.stopper();
    let thread = thread::spawn(move || switch.run().unwrap());
    let mut first = RawProgram::connect(&directory);
    first.bind(2);
    // In the second round the endpoints of the first must be free again.
    for _ in 0..2 {
        let programs: Vec<RawProgram> = (0..20)
            .map(|number| {
                let mut program = RawProgram::connect(&directory);
                for slot in 10 * (number + 1)..10 * (number + 2) {
                    for dc in ids.clone() {
                        program.bind_in(dc, slot);
                    }
                }
                program
            })
            .collect();
        assert_eq!(programs.len(), 20);
        drop(programs);
        for _ in 0..1000 {
            assert_eq!(first.receive().command, Command::PROCUNBIND);
        }
    }
    stop.stop();
    thread.join().unwrap();
}

#[test]
fn other_users_cannot_take_all_connections() {
    assert_eq!(max_programs(1000, 1000), MAX_PROGRAMS);
    assert!(max_programs(1000, 0) <= MAX_PROGRAMS / 4);
    assert!(max_programs(0, 1000) <= MAX_PROGRAMS / 4);
}

#[test]
fn the_number_of_programs_has_a_limit() {
    let directory = TempDir::new().unwrap();
    let switch = Switch::new(SwitchConfig::new(directory.path().join("switch")));
    let mut switch = switch.unwrap();
    let own = geteuid().as_raw();
    for _ in 0..MAX_PROGRAMS {
        assert_eq!(switch.refusal_reason(own), None);
        let (_, there) = UnixStream::pair().unwrap();
        let program = Program::new(there.into()).unwrap();
        switch.programs.insert(switch.next, program);
        switch.next += 1;
    }
    let refusal_reason = switch.refusal_reason(own).unwrap();
    assert_eq!(refusal_reason, "there are 512 programs already");
    let stranger = switch.refusal_reason(own.wrapping_add(1)).unwrap();
    assert_eq!(stranger, "its user may bind nothing (--allow)");
}

#[test]
fn a_user_that_connects_again_and_again_fills_no_log() {
    captured_log::start();
    let directory = TempDir::new().unwrap();
    let (stop, thread) = start(&directory);
    for _ in 0..200 {
        let mut program = RawProgram::connect(&directory);
        program.bind(2);
    }
    stop.stop();
    thread.join().unwrap();
    // Two intervals at most.
    let most = 2 * usize::try_from(BURST).unwrap();
    for text in ["has connected", "has gone"] {
        assert!(captured_log::count(text) <= most, "{text}");
    }
}
