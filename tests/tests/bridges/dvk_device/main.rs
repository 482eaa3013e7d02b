//! The 32-bit program at an emulated DVK device: its own calls, and a share for the processes of
//! such a machine.

#[path = "../dvk_rhostfs/client/mod.rs"]
#[allow(dead_code, reason = "it is also other tests'")]
mod client;
mod tunnel;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_dvk::abi::{DcId, Endpoint};
use gangplank_dvk::endpoint::Carrier;
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::dvk::{CLIENT_NODE, SERVER_NODE, Server, Switch, Topology};
use gangplank_tests::dvk_device::{self, Clients, EmulatedDevice, LAUNCH, Program};
use gangplank_tests::harmless_signals::{StatusAt, survive};
use gangplank_tests::runner::Runner;
use gangplank_tests::tools;
use gangplank_tests::wait;
use tempfile::TempDir;

use crate::client::Client;

/// Limit for events that must come.
const LIMIT: Duration = Duration::from_secs(60);

/// First port, with 64 for each fixture.
const PORTS: u16 = 21_000;

const SERVER: Endpoint = Endpoint::from_raw(1);
const CLIENT: Endpoint = Endpoint::from_raw(10);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == LAUNCH) {
        let Err(error) = dvk_device::become_program(arguments);
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let mut runner = Runner::from_arguments();
    if cfg!(not(target_arch = "x86_64")) {
        runner.skip("everything", "32-bit programs of i386 do not run here");
        return runner.finish();
    }
    runner.run(
        "the_32_bit_program_says_what_it_is_for",
        says_what_it_is_for,
    );
    runner.run("programs_that_cannot_reach_dvk_say_what_can", refusals);
    runner.run("a_share_is_worked_with_whatever_messages_are_long", || {
        work_on_a_share(36, Transport::Nodes(0))?;
        work_on_a_share(76, Transport::Switch)
    });
    runner.run("several_processes_work_at_once", several_clients);
    runner.run("what_a_process_held_goes_with_it", what_is_held_goes);
    runner.run("a_server_that_comes_back_serves_on", server_comes_back);
    runner.run(
        "a_guest_behind_a_tunnel_has_a_share_by_way_of_the_device",
        tunnel::a_guest_behind_a_tunnel_has_a_share_by_way_of_the_device,
    );
    runner.run(
        "the_endpoint_is_given_up_in_the_end_and_by_no_other_signal",
        the_end,
    );
    runner.finish()
}

/// A share, its daemon and its server, and the 32-bit program that forwards to it from the emulated
/// machine.
struct Fixture {
    share: TempDir,
    daemon: Daemon,
    topology: Topology,
    server: Option<Server>,
    emulated: Arc<EmulatedDevice>,
    forward: Program,
    _switch: Option<Switch>,
    _files: TempDir,
}

/// The transport to the server.
#[derive(Clone, Copy)]
enum Transport {
    /// Over TCP, at ports of this number.
    Nodes(u16),
    Switch,
}

impl Fixture {
    fn start(size: usize, transport: Transport) -> Result<Self> {
        let share = tempfile::tempdir()?;
        let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
        let files = tempfile::tempdir()?;
        // The filter diverts every call of this type.
        let mut arguments = vec!["forward".to_owned(), "--device=/dev/null".to_owned()];
        arguments.push("--log-level=debug".to_owned());
        let (topology, switch) = match transport {
            Transport::Nodes(number) => {
                let base = PORTS + 64 * number;
                arguments.push(format!("--peer=127.0.0.1:{SERVER_NODE}"));
                arguments.push(format!("--node={CLIENT_NODE}"));
                arguments.push(format!("--ports={}:{base}", base + 32));
                (Topology::loopback(base), None)
            }
            Transport::Switch => {
                let socket = files.path().join("switch");
                arguments.push(format!("--switch={}", socket.display()));
                let switch = Switch::start(&socket)?;
                (Topology::switch(socket), Some(switch))
            }
        };
        let server = Some(Server::start(&topology, daemon.socket())?);
        let emulated = EmulatedDevice::new(size);
        let log = files.path().join("forward");
        let forward = Program::start(&emulated, &tools::dvk_i686()?, &arguments, &log)?;
        let fixture = Self {
            share,
            daemon,
            topology,
            server,
            emulated,
            forward,
            _switch: switch,
            _files: files,
        };
        fixture.wait_until("the endpoint is bound", || fixture.emulated.has(SERVER))?;
        Ok(fixture)
    }

    fn wait_until(&self, what: &str, mut there: impl FnMut() -> bool) -> Result<()> {
        wait::until(what, LIMIT, || Ok(there())).with_context(|| self.forward.log())
    }

    /// A process of the emulated machine, after the share is available there.
    fn client(&self, endpoint: Endpoint) -> Result<Client> {
        let bound = Clients::of(&self.emulated).bind(DcId::FIRST, endpoint, "client")?;
        let client = Client::new(bound, SERVER);
        self.wait_until("the share is there", || client.lstat64("//").is_ok())?;
        Ok(client)
    }

    /// Works as `client` in a directory of the share of its own.
    fn work(&self, client: &Client, directory: &str) -> Result<()> {
        let done = |what: &str, errno: i32| format!("{what}: {errno}\n{}", self.forward.log());
        let fail = |what: &'static str| move |errno| anyhow::Error::msg(done(what, errno));
        let name = format!("//{directory}/file");
        client
            .mkdir(&format!("//{directory}"), 0o755)
            .map_err(fail("mkdir"))?;
        let file = client.create(&name, 0o640).map_err(fail("create"))?;
        // More than one copy of the kernel moves.
        let data: Vec<u8> = (0..150_000_u32).map(|index| (index % 251) as u8).collect();
        let written = client.pwrite(file, &data, 0).map_err(fail("pwrite"))?;
        ensure!(written == data.len());
        let read = client.pread(file, data.len(), 0).map_err(fail("pread"))?;
        ensure!(read == data, "what is read was written");
        client.close(file).map_err(fail("close"))?;
        let moved = format!("//{directory}/moved");
        client.rename(&name, &moved).map_err(fail("rename"))?;
        ensure!(
            client.lstat64(&name).err() == Some(2),
            "there is nothing any more"
        );
        let size = client.lstat64(&moved).map_err(fail("lstat64"))?.size;
        ensure!(usize::try_from(size)? == data.len());
        let there = self.share.path().join(directory).join("moved");
        ensure!(fs::read(there)? == data, "and the host has it");
        Ok(())
    }
}

fn work_on_a_share(size: usize, transport: Transport) -> Result<()> {
    let fixture = Fixture::start(size, transport)?;
    let client = fixture.client(CLIENT)?;
    fixture.work(&client, "work")?;
    for call in ["BIND", "RECEIVE", "REPLY", "VCOPY", "NOTIFY"] {
        ensure!(fixture.emulated.made(call) > 0, "{call}");
    }
    Ok(())
}

fn several_clients() -> Result<()> {
    let fixture = Fixture::start(36, Transport::Nodes(1))?;
    let clients = (10..16).map(|slot| fixture.client(Endpoint::from_raw(slot)));
    let clients = clients.collect::<Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let fixture = &fixture;
        let working = clients.iter().enumerate().map(|(number, client)| {
            scope.spawn(move || {
                (0..3).try_for_each(|round| fixture.work(client, &format!("{number}-{round}")))
            })
        });
        for worker in working.collect::<Vec<_>>() {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        Ok(())
    })
}

fn what_is_held_goes() -> Result<()> {
    // A switch reports which process has ended; a node does not.
    let fixture = Fixture::start(36, Transport::Switch)?;
    fs::write(fixture.share.path().join("file"), b"contents")?;
    drop(fixture.client(CLIENT)?);
    let idle = fixture.daemon.descriptors()?;
    let client = fixture.client(CLIENT)?;
    for _ in 0..20 {
        let opened = client.open("//file", 0);
        ensure!(opened.is_ok(), "{opened:?}");
    }
    ensure!(fixture.daemon.descriptors()? >= idle + 20);
    client.leave();
    fixture.wait_until("the files are closed", || {
        fixture
            .daemon
            .descriptors()
            .is_ok_and(|now| now <= idle + 2)
    })
}

fn server_comes_back() -> Result<()> {
    let mut fixture = Fixture::start(36, Transport::Nodes(2))?;
    let client = fixture.client(CLIENT)?;
    fixture.server = None;
    let lost = client.lstat64("//");
    ensure!(lost.as_ref().err() == Some(&5), "{lost:?}");
    fixture.server = Some(Server::start(&fixture.topology, fixture.daemon.socket())?);
    fixture.wait_until("the share is there again", || client.lstat64("//").is_ok())?;
    fixture.work(&client, "later")
}

fn the_end() -> Result<()> {
    let mut fixture = Fixture::start(36, Transport::Nodes(3))?;
    let client = fixture.client(CLIENT)?;
    fixture.work(&client, "work")?;
    let forward = &fixture.forward;
    survive(forward.pid(), StatusAt::Usr1AndHup, || forward.log())?;
    let before = Instant::now();
    let ended = fixture.forward.stop()?;
    ensure!(ended.success(), "{ended}\n{}", fixture.forward.log());
    // Less than the 35 s that an exchange may take.
    ensure!(before.elapsed() < Duration::from_secs(19));
    ensure!(fixture.emulated.made("UNBIND") == 1 && !fixture.emulated.has(SERVER));
    Ok(())
}

/// Runs a program whose calls no one answers.
fn run(program: &Path, arguments: &[&str]) -> Result<(bool, String)> {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| program.display().to_string())?;
    let said = [stdout, stderr].concat();
    Ok((
        status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

fn says_what_it_is_for() -> Result<()> {
    let (well, said) = run(&tools::dvk_i686()?, &["--help"])?;
    ensure!(
        well && said.contains("forward") && said.contains("mount"),
        "{said}"
    );
    let program: PathBuf = tools::dvk_i686()?;
    // An ELF file of 32 bits, for a 386.
    let head = fs::read(program)?;
    ensure!(head.get(..5) == Some(b"\x7fELF\x01") && head.get(18) == Some(&3));
    Ok(())
}

fn refusals() -> Result<()> {
    let (wide, narrow) = (tools::dvk()?, tools::dvk_i686()?);
    let at = ["forward", "--peer=127.0.0.1:1", "--node=2"];
    let missing = [&at[..], &["--device=/dev/no-such-device"]].concat();
    let other = [&at[..], &["--device=/dev/null"]].concat();
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("rhostfs.cfg");
    let block = "rhs SERVER1 { rhs_dcid 0; rhs_ep 1; rhs_dir \"/\"; };\n";
    fs::write(&config, block)?;
    let config = config.to_str().context("a name in UTF-8")?;
    let serve = ["serve", "--socket=/run/fs.sock", "--config", config];
    for (program, arguments, text) in [
        (
            &narrow,
            &missing[..],
            "/dev/no-such-device does not exist: load DVK's module",
        ),
        (
            &narrow,
            &other[..],
            "/dev/null does not support DVK's calls",
        ),
        (&wide, &missing[..], "of the i686 build"),
        (&wide, &serve[..], "SERVER1: cannot use rhs_carrier device"),
        (
            &narrow,
            &serve[..],
            "run the 64-bit one on a 64-bit machine",
        ),
    ] {
        let (well, said) = run(program, arguments)?;
        ensure!(!well && said.contains(text), "{arguments:?}: {said}");
    }
    Ok(())
}
