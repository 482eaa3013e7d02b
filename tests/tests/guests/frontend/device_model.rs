//! The frontend's device model against released daemons, gangplankd and virtiofsd: a guest's
//! accesses and memory on one side, as from a hypervisor, and a share on the other.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_device_model::config::DeviceConfig;
use gangplank_device_model::fake::{FakeGuest, FakePort, fake};
use gangplank_device_model::hypervisor::{GuestRange, Operation, Port};
use gangplank_device_model::mmio::Register;
use gangplank_device_model::model::{RunningDevice, SocketConnector};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::tools;
use gangplank_vhost_user::client::{Deadlines, Socket};
use rustix::process::Signal;
use tempfile::TempDir;

/// Limit for everything without faults.
const LIMIT: Duration = Duration::from_secs(20);

/// Guest address and length of the shared memory.
const MEMORY: u64 = 0x1000_0000;
const MEMORY_LEN: u64 = 0x10_0000;

/// Offsets of the request queue's parts and of its buffers in the memory.
const DESCRIPTORS: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x1_4000;
const USED: u64 = 0x1_8000;
const REQUEST: u64 = 0x2_0000;
const REPLY: u64 = 0x3_0000;

/// Bytes for a reply.
const REPLY_LEN: u32 = 0x2000;

/// Entries of a queue.
const SIZE: u64 = 64;

/// The features that a guest needs: VERSION_1 and ACCESS_PLATFORM.
const REQUIRED_HIGH: u64 = 3;

/// FUSE opcodes (`include/uapi/linux/fuse.h`) and the root's node.
const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const INIT: u32 = 26;
const ROOT: u64 = 1;

/// A guest without a kernel, which does what a driver does.
struct Guest {
    cpu: FakeGuest,
    memory: File,
    requests: u16,
}

/// Header and body of a reply.
struct Reply {
    error: i32,
    body: Vec<u8>,
}

impl Guest {
    fn read(&self, offset: u64, width: u64) -> Result<u64> {
        Ok(self.cpu.access(offset, width, Operation::Read, LIMIT)?)
    }

    fn get(&self, register: Register) -> Result<u64> {
        self.read(register.offset(), 4)
    }

    fn set(&self, register: Register, value: u64) -> Result<()> {
        let write = Operation::Write(value);
        self.cpu.access(register.offset(), 4, write, LIMIT)?;
        Ok(())
    }

    /// Resets the device and sets it up, as Linux does.
    fn probe(&mut self) -> Result<()> {
        self.requests = 0;
        self.set(Register::Status, 0)?;
        ensure!(self.get(Register::Status)? == 0, "not reset");
        self.set(Register::Status, 1)?;
        self.set(Register::Status, 3)?;
        self.set(Register::DriverFeaturesSel, 1)?;
        self.set(Register::DriverFeatures, REQUIRED_HIGH)?;
        self.set(Register::DriverFeaturesSel, 0)?;
        self.set(Register::DriverFeatures, 0)?;
        self.set(Register::Status, 0xb)?;
        ensure!(self.get(Register::Status)? == 0xb, "features refused");
        self.memory.write_all_at(&vec![0; 0x2_0000], 0)?;
        for (queue, base) in [(0, 0), (1, DESCRIPTORS)] {
            self.set(Register::QueueSel, queue)?;
            ensure!(self.get(Register::QueueReady)? == 0, "ready already");
            ensure!(self.get(Register::QueueNumMax)? >= SIZE, "queue too small");
            self.set(Register::QueueNum, SIZE)?;
            self.set(Register::QueueDescLow, MEMORY + base)?;
            self.set(
                Register::QueueDriverLow,
                MEMORY + base + AVAILABLE - DESCRIPTORS,
            )?;
            self.set(Register::QueueDeviceLow, MEMORY + base + USED - DESCRIPTORS)?;
            self.set(Register::QueueReady, 1)?;
        }
        self.set(Register::Status, 0xf)?;
        Ok(())
    }

    /// Puts a request into its queue and kicks: `body` goes to `node`.
    fn submit(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<()> {
        let len = u32::try_from(40 + body.len())?;
        let mut request = Vec::new();
        request.extend(len.to_le_bytes());
        request.extend(opcode.to_le_bytes());
        request.extend((u64::from(self.requests) + 1).to_le_bytes());
        request.extend(node.to_le_bytes());
        request.extend([0; 16]); // uid, gid, pid, extensions
        request.extend(body);
        self.memory.write_all_at(&request, REQUEST)?;

        let mut chain = Vec::new();
        for (address, len, flags, next) in [(REQUEST, len, 1u16, 1u16), (REPLY, REPLY_LEN, 2, 0)] {
            chain.extend((MEMORY + address).to_le_bytes());
            chain.extend(len.to_le_bytes());
            chain.extend(flags.to_le_bytes());
            chain.extend(next.to_le_bytes());
        }
        self.memory.write_all_at(&chain, DESCRIPTORS)?;
        // Each entry of the ring is head 0, because the memory was zeroed: only one request is in
        // flight at a time.
        self.requests += 1;
        let index = self.requests.to_le_bytes();
        self.memory.write_all_at(&index, AVAILABLE + 2)?;
        self.set(Register::QueueNotify, 1)
    }

    /// Waits for the interrupt of the reply.
    fn reply(&self) -> Result<Reply> {
        ensure!(self.cpu.interrupted(LIMIT)?, "no interrupt");
        let status = self.get(Register::InterruptStatus)?;
        ensure!(status == 1, "interrupted for {status:#x}");
        self.set(Register::InterruptAck, status)?;
        ensure!(
            self.get(Register::InterruptStatus)? == 0,
            "not acknowledged"
        );
        let mut used = [0; 2];
        self.memory.read_exact_at(&mut used, USED + 2)?;
        ensure!(u16::from_le_bytes(used) == self.requests, "nothing used");
        let mut reply = vec![0; usize::try_from(REPLY_LEN)?];
        self.memory.read_exact_at(&mut reply, REPLY)?;
        let word = |at: usize| -> Result<[u8; 4]> { Ok(reply[at..at + 4].try_into()?) };
        let len = usize::try_from(u32::from_le_bytes(word(0)?))?;
        Ok(Reply {
            error: i32::from_le_bytes(word(4)?),
            body: reply.get(16..len).context("a reply too short")?.to_vec(),
        })
    }

    fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Reply> {
        self.submit(opcode, node, body)?;
        self.reply()
    }

    /// INIT of FUSE 7.31 without flags.
    fn init(&mut self) -> Result<()> {
        let mut body = Vec::new();
        for word in [7u32, 31, 0x2_0000, 0] {
            body.extend(word.to_le_bytes());
        }
        let reply = self.call(INIT, 0, &body)?;
        ensure!(reply.error == 0, "INIT: {}", reply.error);
        ensure!(reply.body.starts_with(&7u32.to_le_bytes()), "another FUSE");
        Ok(())
    }

    /// The size of the root's file `name`, or the error.
    fn size_of(&mut self, name: &str) -> Result<std::result::Result<u64, i32>> {
        let reply = self.call(LOOKUP, ROOT, format!("{name}\0").as_bytes())?;
        if reply.error != 0 {
            return Ok(Err(reply.error));
        }
        // `fuse_entry_out`: 40 bytes before the attributes, of which the size is the second word.
        let size = reply.body.get(48..56).context("no attributes")?;
        Ok(Ok(u64::from_le_bytes(size.try_into()?)))
    }
}

struct Fixture {
    share: TempDir,
    daemon: Daemon,
}

/// One fixture for each daemon that this machine can build.
fn each() -> Result<Vec<Fixture>> {
    let share = tempfile::tempdir()?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()).tag("model"))?;
    let mut places = vec![Fixture { share, daemon }];
    let theirs = tools::virtiofsd().and_then(|program| {
        let share = tempfile::tempdir()?;
        let options = daemon::Options::new(share.path())
            .program(&program)
            .tag("model")
            .arguments(&["--sandbox=none"]);
        let daemon = Daemon::start(&options)?;
        Ok(Fixture { share, daemon })
    });
    match theirs {
        Ok(fixture) => places.push(fixture),
        Err(error) => eprintln!("SKIPPED virtiofsd, which does not build: {error:#}"),
    }
    Ok(places)
}

fn run(fixture: &Fixture) -> Result<(RunningDevice<FakePort, Socket>, Guest)> {
    let config = DeviceConfig {
        id: 0,
        window: GuestRange::new(0xa00_3e00, 0x200).context("no window")?,
        memory: None,
        socket: fixture.daemon.socket().to_owned(),
        tag: None,
        num_request_queues: 1,
        queue_size: 128,
    };
    let memory = GuestRange::new(MEMORY, MEMORY_LEN).context("no memory")?;
    let (port, cpu) = fake(config.window, memory)?;
    let memory = File::from(port.memory().try_clone()?.descriptor);
    let connector = SocketConnector {
        path: config.socket.clone(),
        deadlines: Deadlines::default(),
        absence_limit: Duration::from_secs(30),
    };
    let running = RunningDevice::start(&config, Arc::new(port), connector)?;
    let guest = Guest {
        cpu,
        memory,
        requests: 0,
    };
    Ok((running, guest))
}

#[test]
fn guest_finds_files_and_finds_them_again_after_a_reset() -> Result<()> {
    for fixture in each()? {
        fs::write(fixture.share.path().join("file"), [7; 4321])?;
        let (running, mut guest) = run(&fixture)?;
        for _ in 0..3 {
            guest.probe()?;
            ensure!(
                guest.get(Register::Status)? == 0xf,
                "{}",
                fixture.daemon.log()
            );
            let tag: Vec<u64> = (0..5)
                .map(|at| guest.read(0x100 + at, 1))
                .collect::<Result<_>>()?;
            ensure!(tag == b"model".map(u64::from), "another tag: {tag:?}");
            guest.init()?;
            let attributes = guest.call(GETATTR, ROOT, &[0; 16])?;
            ensure!(attributes.error == 0, "GETATTR: {}", attributes.error);
            ensure!(guest.size_of("file")? == Ok(4321), "another size");
            ensure!(
                guest.size_of("none")? == Err(-2),
                "a file that is not there"
            );
        }
        let report = running.report();
        ensure!(report.connections == 1 && report.faults == 0, "{report}");
        running.end();
        ensure!(guest.cpu.faults().is_empty(), "{:?}", guest.cpu.faults());
    }
    Ok(())
}

#[test]
fn guest_whose_daemon_is_killed_gets_errors_and_is_never_frozen() -> Result<()> {
    for fixture in each()? {
        fs::write(fixture.share.path().join("file"), [7; 4321])?;
        let (running, mut guest) = run(&fixture)?;
        guest.probe()?;
        guest.init()?;
        let _ = fs::remove_file(fixture.daemon.socket());
        fixture.daemon.signal_all(Signal::KILL)?;
        // The rings change hands, of which the driver may be notified.
        while guest.cpu.interrupted(Duration::from_millis(500))? {
            let status = guest.get(Register::InterruptStatus)?;
            guest.set(Register::InterruptAck, status)?;
        }
        let begun = Instant::now();
        for _ in 0..3 {
            ensure!(guest.size_of("file")? == Err(-107), "ENOTCONN");
        }
        ensure!(guest.get(Register::Status)? == 0xf, "broken");
        guest.set(Register::Status, 0)?;
        ensure!(guest.get(Register::Status)? == 0, "not reset");
        // Less than the time that requests wait for a daemon.
        ensure!(begun.elapsed() < Duration::from_secs(20), "frozen");
        ensure!(!running.report().daemon, "a daemon that is not there");
        running.end();
    }
    Ok(())
}
