//! `gangplank-dvk` as a server and as a mount, each as a node of a DVS of two nodes, or both at a
//! switch.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::network::{self, Network};
use crate::process;
use crate::tools;
use crate::wait;

/// Limit for a server or a mount to start, and to end.
const LIMIT: Duration = Duration::from_secs(60);

/// The server's node.
pub const SERVER_NODE: u8 = 1;
/// The mount's node.
pub const CLIENT_NODE: u8 = 2;

/// How server and mount are connected.
#[derive(Clone, Debug)]
pub struct Topology {
    transport: Transport,
    namespace: Option<PathBuf>,
}

#[derive(Clone, Debug)]
enum Transport {
    /// Over TCP, from node to node.
    Nodes {
        /// The server's address.
        server: String,
        /// The mount's address.
        client: String,
        /// First port of the server, and of the mount.
        ports: (u16, u16),
    },
    /// At the switch with this socket.
    Switch(PathBuf),
}

impl Topology {
    /// Both on the loopback device, at ports from `base` on: 32 for each.
    #[must_use]
    pub fn loopback(base: u16) -> Self {
        let transport = Transport::Nodes {
            server: "127.0.0.1".to_owned(),
            client: "127.0.0.1".to_owned(),
            ports: (base, base.saturating_add(32)),
        };
        Self {
            transport,
            namespace: None,
        }
    }

    /// The server on the host's side of `network` and the mount in the guest, both at the default
    /// ports of a DVS.
    #[must_use]
    pub fn network(network: &Network) -> Self {
        let transport = Transport::Nodes {
            server: network::HOST.to_owned(),
            client: network::GUEST.to_owned(),
            ports: (3000, 3000),
        };
        Self {
            transport,
            namespace: Some(network.namespace()),
        }
    }

    /// Both at the switch with this socket.
    #[must_use]
    pub const fn switch(socket: PathBuf) -> Self {
        Self {
            transport: Transport::Switch(socket),
            namespace: None,
        }
    }

    fn command(&self, program: &Path) -> Command {
        match &self.namespace {
            Some(namespace) => network::command(namespace, program),
            None => process::tied(program, None),
        }
    }

    /// The arguments of `gangplank-dvk` that mount on `directory`.
    #[must_use]
    pub fn mount_arguments(&self, directory: &str) -> Vec<String> {
        let mut words = vec!["mount".to_owned(), "--background".to_owned()];
        match &self.transport {
            Transport::Nodes {
                server,
                client,
                ports,
            } => words.extend([
                "--peer".to_owned(),
                format!("{server}:{SERVER_NODE}"),
                "--node".to_owned(),
                CLIENT_NODE.to_string(),
                "--address".to_owned(),
                client.clone(),
                "--ports".to_owned(),
                format!("{}:{}", ports.1, ports.0),
            ]),
            Transport::Switch(socket) => {
                words.extend(["--switch".to_owned(), socket.display().to_string()]);
            }
        }
        words.push(directory.to_owned());
        words
    }
}

/// A running switch. It is killed on drop; its socket's file remains.
pub struct Switch {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Switch {
    /// Starts a switch with the socket `socket` and its log beside that.
    ///
    /// # Errors
    /// When there is no socket in time; with its log.
    pub fn start(socket: &Path) -> Result<Self> {
        let log = socket.with_extension("log");
        let mut command = process::tied(tools::dvk()?, None);
        command
            .args(["switch", "--socket"])
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let child = process::spawn(command).context("starting the switch")?;
        let mut switch = Self {
            child,
            socket: socket.to_owned(),
            log,
        };
        let started = wait::until("the switch is there", LIMIT, || {
            wait::ready(&mut switch.child, UnixStream::connect(socket).is_ok())
        });
        started.with_context(|| switch.log())?;
        Ok(switch)
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    dir: TempDir,
}

impl Server {
    /// Serves the share of the daemon at `socket`. Server and mount wait for each other and for a
    /// switch between them.
    ///
    /// # Errors
    /// When it ends at once; with its log.
    pub fn start(topology: &Topology, socket: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-dvk-")
            .tempdir()?;
        let config = dir.path().join("rhostfs.cfg");
        fs::write(&config, configuration(topology, socket))?;
        let mut command = topology.command(&tools::dvk()?);
        command
            .args(["serve", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log"))?);
        let child = process::spawn(command).context("starting the rhostfs server")?;
        let mut server = Self { child, dir };
        if let Ok(status) = process::wait_within(&mut server.child, Duration::from_millis(50)) {
            bail!(
                "the rhostfs server ended at once: {status}\n{}",
                server.log()
            );
        }
        Ok(server)
    }

    /// Its process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Sends it a signal, such as SIGSTOP or SIGCONT.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        process::signal_group(&self.child, signal).context("signalling the rhostfs server")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}

/// The server's configuration: the share's root at endpoint 1 of container 0, with links for
/// clients that can read them.
fn configuration(topology: &Topology, socket: &Path) -> String {
    let (carrier, transport) = match &topology.transport {
        Transport::Nodes {
            server,
            client,
            ports,
        } => (
            "node",
            format!(
                "node HERE {{\n node_id {SERVER_NODE};\n node_address {server};\n node_port_base \
                 {};\n }};\n\
                 peer GUEST {{\n peer_id {CLIENT_NODE};\n peer_host {client};\n peer_port_base \
                 {};\n }};\n",
                ports.0, ports.1
            ),
        ),
        Transport::Switch(switch) => (
            "local",
            format!(
                "local SWITCH {{\n local_socket \"{}\";\n }};\n",
                switch.display()
            ),
        ),
    };
    format!(
        "rhs SHARE {{\n rhs_dcid 0;\n rhs_ep 1;\n rhs_dir \"/\";\n rhs_socket \"{}\";\n \
         rhs_carrier {carrier};\n rhs_links patched;\n }};\n{transport}",
        socket.display()
    )
}

/// A mount on this machine. It is unmounted on drop.
pub struct Mount {
    child: Child,
    dir: TempDir,
    point: PathBuf,
}

impl Mount {
    /// Mounts the share of the server at `topology`, with further options.
    ///
    /// # Errors
    /// When there is no mount in time; with its log.
    pub fn start(topology: &Topology, options: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-mount-")
            .tempdir()?;
        let point = dir.path().join("mnt");
        fs::create_dir(&point)?;
        let mut command = process::tied(tools::dvk()?, None);
        let arguments = topology.mount_arguments(&point.to_string_lossy());
        command
            .args(arguments.iter().filter(|word| *word != "--background"))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log"))?);
        let child = process::spawn(command).context("starting the mount")?;
        let mut mount = Self { child, dir, point };
        let started = wait::until("the share is mounted", LIMIT, || {
            let is_mounted = mount.is_mounted()?;
            wait::ready(&mut mount.child, is_mounted)
        });
        started.with_context(|| mount.log())?;
        Ok(mount)
    }

    /// The directory.
    #[must_use]
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Whether it is mounted.
    ///
    /// # Errors
    /// When the table of mounts cannot be read.
    pub fn is_mounted(&self) -> Result<bool> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let line = format!(" {} fuse.rhostfs ", self.point.display());
        Ok(mounts.contains(&line))
    }

    /// Its process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Ends it by a signal and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time, or badly.
    pub fn end(&mut self) -> Result<()> {
        process::signal(&self.child, Signal::TERM)?;
        self.ended()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time, or badly.
    pub fn ended(&mut self) -> Result<()> {
        let status = process::wait_within(&mut self.child, LIMIT)
            .with_context(|| format!("ending the mount\n{}", self.log()))?;
        ensure!(
            status.success(),
            "the mount ended with {status}\n{}",
            self.log()
        );
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
        // A dead mount remains.
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(&self.point, flags);
    }
}
