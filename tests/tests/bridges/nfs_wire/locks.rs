//! NLM and NSM on the wire. What a stock lockd makes of them is tested in `nfs/locks.rs`.

use std::fs::{self, File};
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nfs3_types::nfs3::nfs_fh3;
use nfs3_types::xdr_codec::{Opaque, Pack, Void};
use rustix::fs::{FlockOperation, fcntl_lock};

use gangplank_tests::wait;

use crate::OPEN;
use crate::client::{Client, Fixture, NLM, NSM};

/// Limit for the daemon to free a dead server's lock.
const LIMIT: Duration = Duration::from_secs(30);

const TEST: u32 = 1;
const LOCK: u32 = 2;
const CANCEL: u32 = 3;
const UNLOCK: u32 = 4;
const FREE_ALL: u32 = 23;
const NOTIFY: u32 = 6;

const GRANTED: u32 = 0;
const DENIED: u32 = 1;
const NO_LOCKS: u32 = 2;
const BLOCKED: u32 = 3;
const GRACE: u32 = 4;
const STALE: u32 = 7;
const TOO_BIG: u32 = 8;

/// A lock of one owner.
#[derive(Clone)]
struct Lock {
    file: nfs_fh3,
    svid: u32,
    offset: u64,
    length: u64,
    block: bool,
    reclaim: bool,
    state: u32,
}

impl Lock {
    fn new(file: &nfs_fh3, svid: u32) -> Self {
        Self {
            file: file.clone(),
            svid,
            offset: 0,
            length: 0,
            block: false,
            reclaim: false,
            state: 0,
        }
    }

    fn at(mut self, offset: u64, length: u64) -> Self {
        (self.offset, self.length) = (offset, length);
        self
    }

    /// The arguments of `procedure`.
    fn args(&self, procedure: u32) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        Opaque::borrowed(b"cookie").pack(&mut bytes)?;
        if procedure == LOCK || procedure == CANCEL {
            self.block.pack(&mut bytes)?;
        }
        if procedure != UNLOCK {
            // Exclusive.
            true.pack(&mut bytes)?;
        }
        Opaque::borrowed(b"client").pack(&mut bytes)?;
        self.file.data.pack(&mut bytes)?;
        Opaque::borrowed(format!("{}@client", self.svid).as_bytes()).pack(&mut bytes)?;
        self.svid.pack(&mut bytes)?;
        self.offset.pack(&mut bytes)?;
        self.length.pack(&mut bytes)?;
        if procedure == LOCK {
            self.reclaim.pack(&mut bytes)?;
            self.state.pack(&mut bytes)?;
        }
        Ok(bytes)
    }

    /// Calls `procedure`: the status, and what follows.
    fn call(&self, client: &mut Client, procedure: u32) -> Result<(u32, Vec<u8>)> {
        let results = client.raw(NLM, procedure, &self.args(procedure)?)?;
        // Behind the cookie, which is repeated.
        let cookie = results.get(..12).context("too short")?;
        ensure!(cookie == b"\0\0\0\x06cookie\0\0");
        let (status, rest) = results[12..].split_first_chunk().context("too short")?;
        Ok((u32::from_be_bytes(*status), rest.to_vec()))
    }

    fn status(&self, client: &mut Client, procedure: u32) -> Result<u32> {
        Ok(self.call(client, procedure)?.0)
    }
}

/// A server on a daemon with the host's locks, a client, and a file.
fn locked_share() -> Result<(Fixture, Client, nfs_fh3)> {
    let fixture = Fixture::with_daemon(OPEN, &["--locks=host"])?;
    fs::write(fixture.share.path().join("file"), "")?;
    let mut client = fixture.server.client(0, 0)?;
    let root = client.mount("/")?;
    let file = client.lookup(&root, "file")?;
    Ok((fixture, client, file))
}

#[test]
fn owners_exclude_each_other_and_are_told_who_is_in_the_way() -> Result<()> {
    let (_fixture, mut client, file) = locked_share()?;
    let client = &mut client;
    let (one, other) = (Lock::new(&file, 1), Lock::new(&file, 2));
    ensure!(one.clone().at(10, 10).status(client, LOCK)? == GRANTED);
    ensure!(one.clone().at(10, 10).status(client, LOCK)? == GRANTED);
    ensure!(other.clone().at(0, 10).status(client, LOCK)? == GRANTED);
    ensure!(other.clone().at(20, 0).status(client, LOCK)? == GRANTED);
    let middle = other.clone().at(15, 1);
    ensure!(middle.status(client, LOCK)? == DENIED);
    let (status, holder) = middle.call(client, TEST)?;
    ensure!(status == DENIED);
    let mut expected = Vec::new();
    true.pack(&mut expected)?;
    1_u32.pack(&mut expected)?;
    Opaque::borrowed(b"1@client").pack(&mut expected)?;
    10_u64.pack(&mut expected)?;
    10_u64.pack(&mut expected)?;
    ensure!(holder == expected, "{holder:?}");
    // A wait is begun once, and ended once.
    let waiting = Lock {
        block: true,
        ..middle.clone()
    };
    ensure!(waiting.status(client, LOCK)? == BLOCKED);
    ensure!(waiting.status(client, LOCK)? == BLOCKED);
    ensure!(waiting.status(client, CANCEL)? == GRANTED);
    ensure!(waiting.status(client, CANCEL)? == DENIED);
    ensure!(one.clone().at(12, 5).status(client, UNLOCK)? == GRANTED);
    ensure!(middle.status(client, LOCK)? == GRANTED);
    ensure!(other.clone().at(11, 1).status(client, LOCK)? == DENIED);
    // Ranges and handles that are none.
    ensure!(one.clone().at(u64::MAX, 2).status(client, LOCK)? == TOO_BIG);
    let nothing = nfs_fh3 {
        data: Opaque::borrowed(&[7; 32]),
    };
    ensure!(Lock::new(&nothing, 1).status(client, LOCK)? == STALE);
    Ok(())
}

#[test]
fn locks_are_those_of_the_host_and_outlive_the_daemon() -> Result<()> {
    let (mut fixture, mut client, file) = locked_share()?;
    let on_host = File::options()
        .read(true)
        .write(true)
        .open(fixture.share.path().join("file"))?;
    let lock = Lock::new(&file, 1);
    fcntl_lock(&on_host, FlockOperation::NonBlockingLockExclusive)?;
    ensure!(lock.status(&mut client, TEST)? == DENIED);
    ensure!(lock.status(&mut client, LOCK)? == DENIED);
    fcntl_lock(&on_host, FlockOperation::Unlock)?;
    ensure!(lock.status(&mut client, TEST)? == GRANTED);
    ensure!(lock.status(&mut client, LOCK)? == GRANTED);
    let held = || fcntl_lock(&on_host, FlockOperation::NonBlockingLockExclusive).is_err();
    ensure!(held());
    let options = gangplank_tests::daemon::Options::new(fixture.share.path());
    fixture
        .daemon
        .replace(&options.arguments(&["--locks=host"]))?;
    // The server takes it again by itself, or with the next call.
    loop {
        match Lock::new(&file, 2).status(&mut client, TEST)? {
            GRACE => {}
            status => break ensure!(status == DENIED, "{status}"),
        }
    }
    ensure!(held(), "the lock was lost with the daemon");
    ensure!(lock.status(&mut client, UNLOCK)? == GRANTED);
    ensure!(!held());
    Ok(())
}

#[test]
fn a_client_that_starts_again_frees_its_locks_and_a_late_notice_does_not() -> Result<()> {
    let (_fixture, mut client, file) = locked_share()?;
    let client = &mut client;
    let lock = |svid, state| Lock {
        state,
        ..Lock::new(&file, svid)
    };
    let notify = |client: &mut Client, state: u32| -> Result<()> {
        let mut args = Vec::new();
        Opaque::borrowed(b"client").pack(&mut args)?;
        state.pack(&mut args)?;
        ensure!(client.raw(NSM, NOTIFY, &args)?.is_empty());
        Ok(())
    };
    ensure!(lock(1, 3).status(client, LOCK)? == GRANTED);
    notify(client, 3)?;
    ensure!(lock(2, 3).status(client, LOCK)? == DENIED);
    notify(client, 5)?;
    ensure!(lock(2, 5).status(client, LOCK)? == GRANTED);
    notify(client, 5)?;
    ensure!(lock(1, 5).status(client, LOCK)? == DENIED);
    // It says so itself.
    ensure!(lock(1, 7).status(client, LOCK)? == GRANTED);
    let mut args = Vec::new();
    Opaque::borrowed(b"client").pack(&mut args)?;
    9_u32.pack(&mut args)?;
    client.raw(NLM, FREE_ALL, &args)?;
    ensure!(lock(2, 7).status(client, LOCK)? == GRANTED);
    Ok(())
}

#[test]
fn after_a_restart_locks_are_reclaimed_before_others_are_taken() -> Result<()> {
    let (mut fixture, mut client, file) = locked_share()?;
    let lock = Lock::new(&file, 1);
    // Nobody had a lock, so nobody reclaims one.
    fixture.server.restart()?;
    let mut after = fixture.server.client(0, 0)?;
    ensure!(lock.status(&mut after, LOCK)? == GRANTED);
    ensure!(client.is_closed());
    fixture.server.restart()?;
    let mut after = fixture.server.client(0, 0)?;
    let reclaim = Lock {
        reclaim: true,
        ..lock.clone()
    };
    ensure!(Lock::new(&file, 2).status(&mut after, LOCK)? == GRACE);
    ensure!(Lock::new(&file, 2).status(&mut after, TEST)? == GRACE);
    ensure!(reclaim.status(&mut after, LOCK)? == GRANTED);
    ensure!(lock.status(&mut after, UNLOCK)? == GRANTED);
    Ok(())
}

/// The daemon may need a moment to free what a killed server held, and a client that is denied
/// gives its lock up.
#[test]
fn a_lock_that_is_reclaimed_may_be_held_for_a_moment_longer() -> Result<()> {
    let (mut fixture, mut client, file) = locked_share()?;
    let lock = Lock::new(&file, 1);
    ensure!(lock.status(&mut client, LOCK)? == GRANTED);
    fixture.server.restart()?;
    let path = fixture.share.path().join("file");
    let on_host = File::options().read(true).write(true).open(path)?;
    // As long as the daemon holds it for the dead server, it cannot be taken.
    wait::until("the dead server's lock is free", LIMIT, || {
        Ok(fcntl_lock(&on_host, FlockOperation::NonBlockingLockExclusive).is_ok())
    })?;
    let mut after = fixture.server.client(0, 0)?;
    let holder = thread::spawn(move || {
        thread::sleep(Duration::from_millis(500));
        fcntl_lock(&on_host, FlockOperation::Unlock)
    });
    let reclaim = Lock {
        reclaim: true,
        ..lock
    };
    let status = reclaim.status(&mut after, LOCK)?;
    ensure!(status == GRANTED, "{status}");
    holder.join().map_err(|_| anyhow!("it panicked"))??;
    Ok(())
}

#[test]
fn a_daemon_without_locks_leaves_those_of_nfs_clients() -> Result<()> {
    let fixture = Fixture::new(OPEN)?;
    fs::write(fixture.share.path().join("file"), "")?;
    let mut client = fixture.server.client(0, 0)?;
    let root = client.mount("/")?;
    let file = client.lookup(&root, "file")?;
    ensure!(Lock::new(&file, 1).status(&mut client, LOCK)? == GRANTED);
    ensure!(Lock::new(&file, 2).status(&mut client, LOCK)? == DENIED);
    Ok(())
}

#[test]
fn a_client_with_too_many_locks_and_waits_is_refused() -> Result<()> {
    let (_fixture, mut client, file) = locked_share()?;
    let client = &mut client;
    ensure!(Lock::new(&file, 0).status(client, LOCK)? == GRANTED);
    let mut waits = 0;
    let refused = loop {
        waits += 1;
        let waiting = Lock {
            block: true,
            ..Lock::new(&file, waits)
        };
        match waiting.status(client, LOCK)? {
            BLOCKED => ensure!(waits < 10_000, "no limit"),
            status => break status,
        }
    };
    ensure!(refused == NO_LOCKS && waits > 100, "{refused} {waits}");
    Ok(())
}

#[test]
fn locks_are_served_by_datagrams_too() -> Result<()> {
    let fixture = Fixture::new(OPEN)?;
    let client = fixture.server.client(0, 0)?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    socket.send_to(&client.record(NLM, 0, &Void)?, fixture.server.address())?;
    let mut buffer = [0; 512];
    let len = socket.recv(&mut buffer)?;
    crate::results::<Void>(&buffer[..len]).map(drop)
}

/// A client's port mapper and lock manager, at an address of its own.
struct ClientPrograms {
    port_mapper: UdpSocket,
    lock_manager: UdpSocket,
}

impl ClientPrograms {
    fn new() -> Result<Self> {
        let socket = |port: u16| -> Result<UdpSocket> {
            let socket = UdpSocket::bind((OTHER_CLIENT, port))?;
            socket.set_read_timeout(Some(Duration::from_secs(20)))?;
            Ok(socket)
        };
        Ok(Self {
            port_mapper: socket(111)?,
            lock_manager: socket(0)?,
        })
    }

    /// Answers the call of `procedure` with `needle` in its arguments by `results`. Others are
    /// repetitions of earlier ones.
    fn answer(socket: &UdpSocket, procedure: u32, needle: &[u8], results: &[u8]) -> Result<()> {
        let mut buffer = [0; 2048];
        loop {
            let (len, from) = socket.recv_from(&mut buffer)?;
            let call = &buffer[..len];
            let called = call.get(20..24).context("too short")?;
            let is_meant = needle.is_empty() || call.windows(needle.len()).any(|at| at == needle);
            if called != procedure.to_be_bytes() || !is_meant {
                continue;
            }
            let mut reply = call[..4].to_vec();
            // REPLY, accepted, no verifier, SUCCESS.
            for number in [1_u32, 0, 0, 0, 0] {
                reply.extend(number.to_be_bytes());
            }
            reply.extend_from_slice(results);
            socket.send_to(&reply, from)?;
            return Ok(());
        }
    }

    fn tell_port(&self) -> Result<()> {
        let port = u32::from(self.lock_manager.local_addr()?.port());
        Self::answer(&self.port_mapper, 3, b"", &port.to_be_bytes())
    }
}

/// The address of another client.
const OTHER_CLIENT: &str = "127.0.0.2";

/// The lock comes to a client that waits by GRANTED, and from one that does not take it goes to the
/// next. Results of the procedures for old clients come in calls, too.
#[test]
fn a_waiting_client_is_called_and_loses_a_lock_that_it_does_not_take() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root, for the port of a port mapper");
        return Ok(());
    }
    let (fixture, mut client, file) = locked_share()?;
    let programs = ClientPrograms::new()?;
    let mut other = fixture.server.client_from(OTHER_CLIENT)?;
    let waiting = |svid| Lock {
        block: true,
        ..Lock::new(&file, svid)
    };
    ensure!(Lock::new(&file, 1).status(&mut client, LOCK)? == GRANTED);
    ensure!(waiting(2).status(&mut other, LOCK)? == BLOCKED);
    ensure!(waiting(3).status(&mut other, LOCK)? == BLOCKED);
    ensure!(Lock::new(&file, 1).status(&mut client, UNLOCK)? == GRANTED);
    programs.tell_port()?;
    let lock_manager = &programs.lock_manager;
    // An empty cookie, and LCK_DENIED.
    let denied = [0, 0, 0, 0, 0, 0, 0, 1];
    ClientPrograms::answer(lock_manager, 5, b"2@client", &denied)?;
    ClientPrograms::answer(lock_manager, 5, b"3@client", &[0; 8])?;
    ensure!(Lock::new(&file, 2).status(&mut client, LOCK)? == DENIED);
    // UNLOCK_MSG, and UNLOCK_RES.
    let message = Lock::new(&file, 3).args(UNLOCK)?;
    ensure!(other.raw(NLM, 9, &message)?.is_empty());
    let done = b"\0\0\0\x06cookie\0\0\0\0\0\0";
    ClientPrograms::answer(lock_manager, 14, done, &[])?;
    ensure!(Lock::new(&file, 2).status(&mut client, LOCK)? == GRANTED);
    Ok(())
}
