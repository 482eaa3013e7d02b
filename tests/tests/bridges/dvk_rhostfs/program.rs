//! The program `gangplank-dvk serve`.

use std::collections::BTreeMap;
use std::fs;
use std::mem::ManuallyDrop;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_dvk::abi::{Endpoint, M1, Message, NodeId};
use gangplank_dvk::carrier::node::{Node, NodeConfig, PeerConfig};
use gangplank_dvk::endpoint::{Carrier, SharedBuffers};
use gangplank_dvk::status;
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::dvk_peer::{Layout, Peer, PeerSetup};
use gangplank_tests::{process, tools};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::carriers::{Switching, client_of, client_on};
use crate::fixture::{CLIENT, SERVER, dc};

const LIMIT: Duration = Duration::from_secs(60);

/// How long the program may take to end on a busy machine: less than the 30 s that an exchange with
/// a peer may take.
const SOON: Duration = Duration::from_secs(20);

/// The program with a configuration, in a directory of its own. It is killed on drop.
struct Program {
    child: Child,
    place: TempDir,
}

impl Program {
    fn start(config: &str, arguments: &[&str]) -> Result<Self> {
        let place = tempfile::tempdir()?;
        fs::write(place.path().join("rhostfs.cfg"), config)?;
        let mut command = process::tied(tools::dvk()?, None);
        command
            .args(["serve", "--config", "rhostfs.cfg"])
            .args(arguments)
            .current_dir(place.path())
            .stdin(Stdio::null())
            .stdout(fs::File::create(place.path().join("out"))?)
            .stderr(fs::File::create(place.path().join("log"))?);
        let child = process::spawn(command).context("starting gangplank-dvk")?;
        Ok(Self { child, place })
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.place.path().join(name)).unwrap_or_default()
    }

    /// Waits until it ends. Returns whether it succeeded, and its output.
    fn end(&mut self) -> Result<(bool, String)> {
        let (status, said) = self.end_with_status()?;
        Ok((status.success(), said))
    }

    /// Waits until it ends. Returns its exit status and its output.
    fn end_with_code(&mut self) -> Result<(i32, String)> {
        let (status, said) = self.end_with_status()?;
        Ok((status.code().context("ended by a signal")?, said))
    }

    fn end_with_status(&mut self) -> Result<(ExitStatus, String)> {
        let status =
            process::wait_within(&mut self.child, LIMIT).with_context(|| self.text("log"))?;
        Ok((status, self.text("out") + &self.text("log")))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}

/// A configuration of a server on node 1, and node 0 that knows it.
fn nodes(socket: &Path) -> Result<(String, NodeConfig)> {
    let own = crate::fixture::ports();
    let theirs = own + 1;
    let config = format!(
        "rhs SERVER {{ rhs_dcid 0; rhs_ep 1; rhs_dir \"/\"; rhs_socket \"{}\"; rhs_carrier node; \
         }};\n\
         node HERE {{ node_id 1; node_port_base {own}; }};\n\
         peer THERE {{ peer_id 0; peer_host 127.0.0.1; peer_port_base {theirs}; }};\n",
        socket.display()
    );
    let id = |raw| NodeId::new(raw).context("there are 32 nodes");
    let mut client = NodeConfig::new(id(0)?);
    client.port_base = theirs;
    client.peers = vec![PeerConfig {
        port_base: own,
        endpoints: vec![(dc(), SERVER)],
        ..PeerConfig::new(id(1)?, "127.0.0.1")
    }];
    client.limits.retry = Duration::from_millis(50);
    Ok((config, client))
}

#[test]
fn the_program_serves_what_its_configuration_says_until_it_is_told_to_end() -> Result<()> {
    let share = tempfile::tempdir()?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let (config, client) = nodes(daemon.socket())?;
    let mut program = Program::start(&config, &["--status", "status"])?;
    let clients = Node::start(client)?;
    let client = client_on(&clients, CLIENT)?;
    crate::fixture::wait_until("the share is there", || client.lstat64("//").is_ok())?;
    let file = client.create("//made", 0o600).unwrap();
    ensure!(client.pwrite(file, b"over a node", 0) == Ok(11));
    ensure!(fs::read(share.path().join("made"))? == b"over a node");
    let status = status::ask(&program.place.path().join("status"))?;
    for told in [
        "node 1 at 127.0.0.1",
        "serves / of",
        "client 10: 1 open files, idle",
    ] {
        ensure!(status.contains(told), "{status}");
    }
    let started = Instant::now();
    process::signal(&program.child, Signal::TERM)?;
    let (well, said) = program.end()?;
    ensure!(well && started.elapsed() < SOON, "{said}");
    ensure!(
        said.contains("SERVER: endpoint 1 of container 0 serves / of"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_configuration_is_examined_without_serving() -> Result<()> {
    let (config, _) = nodes(&PathBuf::from("/nonexistent/fs.sock"))?;
    let (well, said) = Program::start(&config, &["--check"])?.end()?;
    ensure!(
        well && said.contains("serves / of /nonexistent/fs.sock"),
        "{said}"
    );
    let (well, said) =
        Program::start(&config.replace("rhs_ep 1", "rhs_ep 1 rhs_x"), &["--check"])?.end()?;
    ensure!(
        !well && said.contains("rhostfs.cfg:1: rhs_x: it is on the line of rhs_ep"),
        "{said}"
    );
    Ok(())
}

/// One rule for all programs: 2 for a wrong configuration, 1 for what this machine cannot do.
#[test]
fn exit_status_tells_a_wrong_file_from_a_machine_that_lacks_something() -> Result<()> {
    // The original's default carrier. No kernel of the tests has DVK.
    let device = "rhs SERVER {\n rhs_dcid 0;\n rhs_ep 1;\n rhs_dir \"/\";\n \
                  rhs_socket \"/nonexistent/fs.sock\";\n rhs_carrier device;\n };\n";
    let (code, said) = Program::start(device, &["--check"])?.end_with_code()?;
    ensure!(
        code == 1 && said.contains("cannot use rhs_carrier device"),
        "{code}: {said}"
    );
    ensure!(said.contains("serves / of /nonexistent/fs.sock"), "{said}");
    // Another file by mistake: the first errors, and a count.
    let other = "root:x:0:0:root:/root:/bin/bash\n".repeat(300);
    for arguments in [&["--check"][..], &[]] {
        let (code, said) = Program::start(&other, arguments)?.end_with_code()?;
        ensure!(code == 2, "{code}: {said}");
        ensure!(said.lines().count() <= 11, "{said}");
    }
    let many = device.replace("rhs_ep 1;", &"rhs_wrong 1;\n".repeat(300));
    let (code, said) = Program::start(&many, &["--check"])?.end_with_code()?;
    ensure!(code == 2 && said.contains(" more errors"), "{code}: {said}");
    ensure!(said.lines().count() == 11, "{said}");
    Ok(())
}

#[test]
fn what_cannot_be_served_ends_the_program_with_the_reason() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let (config, client) = nodes(Path::new("/nonexistent/fs.sock"))?;
    let own = format!("node_port_base {}", client.peers[0].port_base);
    let port = taken.local_addr()?.port();
    let config = config.replace(&own, &format!("node_port_base {port}"));
    let (well, said) = Program::start(&config, &[])?.end()?;
    ensure!(!well, "{said}");
    ensure!(
        said.contains(&format!(
            "cannot listen for node 0 at 127.0.0.1 port {port}"
        )),
        "{said}"
    );
    Ok(())
}

#[test]
fn several_servers_wait_for_their_switch_and_serve_what_is_theirs() -> Result<()> {
    let share = tempfile::tempdir()?;
    for name in ["first", "second"] {
        fs::create_dir(share.path().join(name))?;
        fs::write(share.path().join(name).join("file"), name)?;
    }
    let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let place = tempfile::tempdir()?;
    let switch = place.path().join("dvk.sock");
    let block = |name: &str, endpoint: i32| {
        format!(
            "rhs {name} {{ rhs_dcid 0; rhs_ep {endpoint}; rhs_dir \"/{name}\"; rhs_socket \"{}\"; \
             rhs_carrier local }};\n",
            daemon.socket().display()
        )
    };
    let config = format!(
        "{}{}local HERE {{ local_socket \"{}\" }};\n",
        block("first", 1),
        block("second", 2),
        switch.display()
    );
    let program = Program::start(&config, &[])?;
    crate::fixture::wait_until("the servers look for the switch", || {
        program.text("log").contains("cannot connect to the switch")
    })?;
    let switch = Switching::start_at(&switch)?;
    let clients = switch.join()?;
    for (name, server) in [("first", 1), ("second", 2)] {
        let endpoint = Endpoint::from_raw(10 + server);
        let client = client_of(&clients, endpoint, Endpoint::from_raw(server))?;
        crate::fixture::wait_until("the share is there", || client.lstat64("//").is_ok())?;
        ensure!(
            client.contents("//file").as_deref() == Ok(name.as_bytes()),
            "{name}"
        );
        ensure!(client.root_path() == Ok(format!("/{name}")));
    }
    Ok(())
}

/// The program ends on request, whatever it waits for.
#[test]
fn a_client_that_acknowledges_nothing_does_not_keep_the_program_from_ending() -> Result<()> {
    const NAME_AT: u32 = 0x47d1_1000;
    let share = tempfile::tempdir()?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let (own, theirs) = (Ipv4Addr::new(127, 78, 1, 2), Ipv4Addr::new(127, 78, 1, 1));
    let config = format!(
        "rhs SERVER {{ rhs_dcid 0; rhs_ep 1; rhs_dir \"/\"; rhs_socket \"{}\"; rhs_carrier node; \
         }};\n\
         node HERE {{ node_id 1; node_address {own}; }};\n\
         peer THERE {{ peer_id 0; peer_host {theirs}; }};\n",
        daemon.socket().display()
    );
    let mut program = Program::start(&config, &["--status", "status"])?;
    let silent = Peer::start(PeerSetup {
        servers: vec![1],
        queued: Duration::from_secs(3600),
        ..PeerSetup::new(Layout::Current, (0, theirs), (1, own))
    })?;
    silent.wait_connected();
    let status = program.place.path().join("status");
    // Without its daemon it refuses clients at once.
    crate::fixture::wait_until("the share is there", || {
        status::ask(&status).is_ok_and(|told| told.contains("daemon in use"))
    })?;
    // The program would wait for its threads as long as the daemon is silent.
    let silent = ManuallyDrop::new(silent);
    let clients = 10..90;
    for client in clients.clone() {
        // access("//", X_OK): the server requests the name, which never comes.
        let words = [client, 33, 3, 1, 0, NAME_AT.cast_signed(), 0, 0, 0];
        let request: Vec<u8> = words.into_iter().flat_map(i32::to_le_bytes).collect();
        let memory = BTreeMap::from([(NAME_AT, b"//\0".to_vec())]);
        silent.ask(client, 1, &request, memory);
    }
    let asked = crate::fixture::wait_until("all of them have asked", || {
        let told = status::ask(&status).unwrap_or_default();
        told.matches("being served").count() == clients.len()
    });
    asked.with_context(|| status::ask(&status).unwrap_or_default() + &program.text("log"))?;
    let started = Instant::now();
    process::signal(&program.child, Signal::TERM)?;
    let (well, said) = program.end()?;
    ensure!(well && started.elapsed() < SOON, "{said}");
    Ok(())
}

/// The program waits for a silent daemon only, and that wait can be avoided.
#[test]
fn a_second_signal_ends_the_program_at_once() -> Result<()> {
    let share = tempfile::tempdir()?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let (config, client) = nodes(daemon.socket())?;
    let mut program = Program::start(&config, &["--status", "status"])?;
    let clients = Node::start(client)?;
    let client = client_on(&clients, CLIENT)?;
    crate::fixture::wait_until("the share is there", || client.lstat64("//").is_ok())?;
    client.leave();
    let bound = clients.bind(dc(), CLIENT, "client")?;
    daemon.signal_all(Signal::STOP)?;
    let asking = thread::spawn(move || {
        let mut lent = SharedBuffers::new();
        let opendir = M1 {
            i1: 3,
            p1: lent.read_only(b"//\0"),
            ..M1::default()
        };
        bound.sendrec(SERVER, &Message::new(0x1000, &opendir), &mut lent, LIMIT)
    });
    let status = program.place.path().join("status");
    crate::fixture::wait_until("the daemon is asked", || {
        status::ask(&status).is_ok_and(|told| told.contains("being served"))
    })?;
    process::signal(&program.child, Signal::TERM)?;
    crate::fixture::wait_until("it is about to end", || {
        program.text("log").contains("ending")
    })?;
    ensure!(
        program.child.try_wait()?.is_none(),
        "it waits for the daemon"
    );
    process::signal(&program.child, Signal::TERM)?;
    let started = Instant::now();
    let (_, said) = program.end()?;
    ensure!(started.elapsed() < SOON, "{said}");
    daemon.signal_all(Signal::CONT)?;
    let answer = asking.join();
    ensure!(
        answer.is_ok_and(|answer| answer.is_err()),
        "there was nobody to answer"
    );
    Ok(())
}
