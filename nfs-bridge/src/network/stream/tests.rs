//! Clients that are slow, silent or gone.

use std::io::{Read as _, Write};
use std::net::TcpListener;

use super::*;
use crate::network::connections::Connections;
use crate::rpc::program::{CallError, Caller, Program};
use crate::xdr::Reader;

#[test]
fn a_client_that_does_not_complete_a_record_is_disconnected_and_a_silent_one_is_not() {
    let limit = Duration::from_secs(1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = || {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, peer) = listener.accept().unwrap();
        let (stream, connections) = (Arc::new(stream), Connections::default());
        let (_, activity) = connections.add(&stream, peer).unwrap();
        let server = Server::new(Vec::new());
        let ended = thread::spawn(move || {
            let served = serve(&server, &stream, peer, &activity, limit, Duration::ZERO);
            (served, activity)
        });
        (client, ended)
    };
    let (silent, silent_ended) = connected();
    let (mut slow, slow_ended) = connected();
    let started = Instant::now();
    // A record of 100 bytes, each of which comes in time.
    slow.write_all(&(100_u32 | 1 << 31).to_be_bytes()).unwrap();
    while !slow_ended.is_finished() {
        let _ = slow.write_all(&[0]);
        thread::sleep(limit / 20);
        assert!(started.elapsed() < limit * 4, "not within {limit:?}");
    }
    let (served, _) = slow_ended.join().unwrap();
    assert_eq!(served.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(!silent_ended.is_finished());
    drop(silent);
    silent_ended.join().unwrap().0.unwrap();
}

/// Procedure 1 waits for procedure 2.
struct Waiting {
    woken: Mutex<bool>,
    changed: parking_lot::Condvar,
}

impl Program for Waiting {
    fn number(&self) -> u32 {
        7
    }

    fn version(&self) -> u32 {
        1
    }

    fn call(
        &self,
        _: Caller<'_>,
        procedure: u32,
        _: Reader<'_>,
        _: &mut Reply,
    ) -> Result<(), CallError> {
        let mut woken = self.woken.lock();
        match procedure {
            1 => self.changed.wait_while(&mut woken, |woken| !*woken),
            _ => *woken = true,
        }
        self.changed.notify_all();
        Ok(())
    }
}

/// The thread that has read the first call executes it, and the other one takes the second.
#[test]
fn a_call_is_executed_while_the_one_before_it_waits() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (stream, peer) = listener.accept().unwrap();
    let (stream, connections) = (Arc::new(stream), Connections::default());
    let (_, activity) = connections.add(&stream, peer).unwrap();
    let waiting = Waiting {
        woken: Mutex::new(false),
        changed: parking_lot::Condvar::new(),
    };
    let server = Arc::new(Server::new(vec![Arc::new(waiting)]));
    server.start(1).unwrap();
    let ended = thread::spawn(move || {
        serve(
            &server,
            &stream,
            peer,
            &activity,
            Duration::from_secs(60),
            Duration::from_micros(200),
        )
    });
    client
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut call = |xid: u32, procedure: u32| {
        // A call with AUTH_NONE and without arguments.
        let words = [40 | 1 << 31, xid, 0, 2, 7, 1, procedure, 0, 0, 0, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        client.write_all(&bytes).unwrap();
    };
    call(1, 1);
    thread::sleep(Duration::from_millis(100));
    call(2, 2);
    let mut replies = [[0; 28]; 2];
    for reply in &mut replies {
        client.read_exact(reply).unwrap();
    }
    let mut xids = replies.map(|reply| reply[7]);
    xids.sort_unstable();
    assert_eq!(xids, [1, 2]);
    drop(client);
    ended.join().unwrap().unwrap();
}
