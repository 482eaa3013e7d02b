//! The server that a client without a kernel talks to.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gangplank_tests::daemon::{self, Daemon};
pub(crate) use gangplank_tests::nfs_client::{Client, NLM, NSM, entry, results, some};
use gangplank_tests::{process, tools};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
use tempfile::TempDir;

/// Limit for a server to start.
const LIMIT: Duration = Duration::from_secs(20);

/// A share with its daemon, and a server on the loopback device.
pub(crate) struct Fixture {
    pub(crate) share: TempDir,
    pub(crate) daemon: Daemon,
    pub(crate) server: Server,
}

impl Fixture {
    pub(crate) fn new(rules: &str) -> Result<Self> {
        Self::with_daemon(rules, &[])
    }

    /// The same on a daemon with `arguments`.
    pub(crate) fn with_daemon(rules: &str, arguments: &[&str]) -> Result<Self> {
        let share = tempfile::Builder::new().prefix("gangplank-").tempdir()?;
        let options = daemon::Options::new(share.path()).arguments(arguments);
        let daemon = Daemon::start(&options)?;
        let server = Server::start(daemon.socket(), rules)?;
        Ok(Self {
            share,
            daemon,
            server,
        })
    }

    /// Kills the daemon and starts another.
    pub(crate) fn replace_daemon(&mut self) -> Result<()> {
        let options = daemon::Options::new(self.share.path());
        self.daemon.replace(&options)
    }
}

/// A server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    dir: TempDir,
    /// Where it serves NFS, and where it answers datagrams.
    addresses: (SocketAddr, SocketAddr),
}

impl Server {
    fn start(backend: &Path, rules: &str) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-nfs-")
            .tempdir()?;
        fs::create_dir(dir.path().join("state"))?;
        fs::write(dir.path().join("exports"), rules)?;
        fs::write(
            dir.path().join("backend"),
            backend.as_os_str().as_encoded_bytes(),
        )?;
        let (child, addresses) = spawn(dir.path())?;
        Ok(Self {
            child,
            dir,
            addresses,
        })
    }

    /// Kills it and starts another with the same state.
    pub(crate) fn restart(&mut self) -> Result<()> {
        process::kill_group(&mut self.child);
        (self.child, self.addresses) = spawn(self.dir.path())?;
        Ok(())
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.addresses.0
    }

    /// Where the port mapper answers datagrams.
    pub(crate) const fn portmap(&self) -> SocketAddr {
        self.addresses.1
    }

    /// A new connection of the user with these ids.
    pub(crate) fn client(&self, uid: u32, gid: u32) -> Result<Client> {
        Client::new(TcpStream::connect(self.address())?, uid, gid)
    }

    /// A connection of root from another address of this machine.
    pub(crate) fn client_from(&self, address: &str) -> Result<Client> {
        self.client_at(SocketAddr::new(address.parse()?, 0))
    }

    /// A connection of root from a reserved port, which needs root.
    pub(crate) fn client_from_reserved_port(&self) -> Result<Client> {
        let mut ports = (600..1024).rev();
        loop {
            let port = ports.next().context("all reserved ports are in use")?;
            match self.client_at(SocketAddr::from(([127, 0, 0, 1], port))) {
                Err(error) if error.downcast_ref() == Some(&Errno::ADDRINUSE) => {}
                connected => return connected,
            }
        }
    }

    fn client_at(&self, from: SocketAddr) -> Result<Client> {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        rustix::net::bind(&socket, &from)?;
        rustix::net::connect(&socket, &self.address())?;
        Client::new(TcpStream::from(socket), 0, 0)
    }

    /// What it has written on standard error.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.path().join("log"))?)
    }

    /// Bytes of the files in which it keeps its state.
    pub(crate) fn state_size(&self) -> Result<u64> {
        let mut size = 0;
        for file in fs::read_dir(self.dir.path().join("state"))? {
            size += file?.metadata()?.len();
        }
        Ok(size)
    }

    /// The peak of its memory, in KiB.
    pub(crate) fn peak_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no VmHWM")?.parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}

fn spawn(dir: &Path) -> Result<(Child, (SocketAddr, SocketAddr))> {
    let log_path = dir.join("log");
    let log = File::create(&log_path)?;
    let mut command = process::tied(tools::nfs()?, None);
    command
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--portmap",
            "127.0.0.1:0",
        ])
        .arg("--backend")
        .arg(fs::read_to_string(dir.join("backend"))?)
        .arg("--exports")
        .arg(dir.join("exports"))
        .arg("--state")
        .arg(dir.join("state"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let mut child = process::spawn(command)?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let log = fs::read_to_string(&log_path)?;
        let address = |before: &str| {
            let (_, rest) = log.split_once(before)?;
            rest.split([',', '\n']).next()?.trim().parse().ok()
        };
        let addresses = address("listening at ").zip(address("port mapper at "));
        if let (Some(addresses), true) = (addresses, log.contains("connected to the daemon")) {
            return Ok((child, addresses));
        }
        if Instant::now() > deadline || child.try_wait()?.is_some() {
            process::kill_group(&mut child);
            bail!("the server does not start\n{log}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
