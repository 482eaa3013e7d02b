//! A tunnel of a guest's virtqueues over DVK: `gangplank-dvk serve` before a daemon, and
//! `gangplank-dvk tunnel` before a guest, each on a host of its own, on one, or at a switch.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::dvk::{CLIENT_NODE, SERVER_NODE, Switch};
use crate::hosts::{self, Hosts};
use crate::process;
use crate::sockets::listens;
use crate::tools;
use crate::wait;

/// Limit for a program to start or to end, and for a status to show something.
const LIMIT: Duration = Duration::from_secs(30);

/// The first endpoint of the server.
const ENDPOINT: u8 = 4;

/// What is between the server and the tunnel.
pub enum Between {
    /// A network, each on a host of its own. This needs root.
    Hosts(Hosts),
    /// The loopback device, at ports from this one on: 32 for each.
    Loopback(u16),
    /// A switch.
    Switch(Switch),
    /// The tunnel is at a switch, and the server at the loopback device, at ports from this one on.
    /// A test connects both.
    Apart(Switch, u16),
}

/// A server and a tunnel; killed when dropped.
pub struct Tunnel {
    between: Between,
    server: Option<Child>,
    tunnel: Option<Child>,
    daemon: PathBuf,
    server_keys: String,
    arguments: Vec<String>,
    dir: TempDir,
    /// The directory of the switch's socket, if it is of this tunnel alone.
    switch_dir: Option<TempDir>,
}

impl Tunnel {
    /// Starts both for the share of the daemon at `daemon`. `server_keys` are further lines of the
    /// server's block, `arguments` those of the tunnel.
    ///
    /// # Errors
    /// When one does not start; with its log.
    pub fn start(
        between: Between,
        daemon: &Path,
        server_keys: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-tunnel-")
            .tempdir()?;
        let mut started = Self {
            between,
            server: None,
            tunnel: None,
            daemon: daemon.to_owned(),
            server_keys: server_keys.to_owned(),
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            dir,
            switch_dir: None,
        };
        started.start_server()?;
        started.start_tunnel()?;
        Ok(started)
    }

    /// A tunnel at a switch.
    ///
    /// # Errors
    /// As [`Tunnel::start`].
    pub fn at_switch(daemon: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-switch-")
            .tempdir()?;
        let switch = Switch::start(&dir.path().join("dvk.sock"))?;
        let mut tunnel = Self::start(Between::Switch(switch), daemon, "", &[])?;
        tunnel.switch_dir = Some(dir);
        Ok(tunnel)
    }

    /// What is between both.
    #[must_use]
    pub const fn between(&self) -> &Between {
        &self.between
    }

    /// The socket for the guest.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("guest.sock")
    }

    /// Starts the server, which was killed.
    ///
    /// # Errors
    /// As [`Tunnel::start`].
    pub fn start_server(&mut self) -> Result<()> {
        let config = self.dir.path().join("rhostfs.cfg");
        fs::write(&config, self.configuration())?;
        let mut command = match &self.between {
            Between::Hosts(hosts) => hosts.on_servers(tools::dvk()?),
            _ => process::tied(tools::dvk()?, None),
        };
        command
            .arg("serve")
            .arg("--config")
            .arg(config)
            .arg("--status")
            .arg(self.dir.path().join("serve-status.sock"));
        self.server = Some(self.spawn(command, "server.log", "serve-status.sock")?);
        Ok(())
    }

    /// Starts the tunnel, which was killed.
    ///
    /// # Errors
    /// As [`Tunnel::start`].
    pub fn start_tunnel(&mut self) -> Result<()> {
        let mut command = match &self.between {
            Between::Hosts(hosts) => hosts.on(0, tools::dvk()?)?,
            _ => process::tied(tools::dvk()?, None),
        };
        command.args(["tunnel", "--endpoint", &ENDPOINT.to_string(), "--listen"]);
        command.arg(self.socket());
        match &self.between {
            Between::Hosts(_) => {
                let server = format!("{}:{SERVER_NODE}", hosts::SERVERS);
                command.args(["--peer", &server, "--address", hosts::FIRST]);
                command.args(["--node", &CLIENT_NODE.to_string()]);
            }
            Between::Loopback(port) => {
                let server = format!("127.0.0.1:{SERVER_NODE}");
                let ports = format!("{}:{port}", port.saturating_add(32));
                command.args(["--peer", &server, "--ports", &ports]);
                command.args(["--node", &CLIENT_NODE.to_string()]);
            }
            Between::Switch(switch) | Between::Apart(switch, _) => {
                command.arg("--switch").arg(switch.socket());
            }
        }
        command.args(&self.arguments).arg("--status");
        command.arg(self.dir.path().join("tunnel-status.sock"));
        self.tunnel = Some(self.spawn(command, "tunnel.log", "guest.sock")?);
        Ok(())
    }

    /// Spawns a program and waits until it listens at its socket.
    fn spawn(&self, mut command: Command, log: &str, socket: &str) -> Result<Child> {
        let socket = self.dir.path().join(socket);
        // It is left behind by a program that was killed.
        let _ = fs::remove_file(&socket);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join(log))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut child = process::spawn(command).context("starting an end of the tunnel")?;
        let started = wait::until("an end of the tunnel listens", LIMIT, || {
            let is_ready = listens(child.id(), &socket);
            wait::ready(&mut child, is_ready)
        });
        started.with_context(|| self.log())?;
        Ok(child)
    }

    fn configuration(&self) -> String {
        let (carrier, transport) = match &self.between {
            Between::Switch(switch) => (
                "local",
                format!(
                    "local SWITCH {{ local_socket \"{}\"; }};\n",
                    switch.socket().display()
                ),
            ),
            Between::Hosts(_) => ("node", nodes(hosts::SERVERS, hosts::FIRST, (3000, 3000))),
            Between::Loopback(port) | Between::Apart(_, port) => {
                let ports = (*port, port.saturating_add(32));
                ("node", nodes("127.0.0.1", "127.0.0.1", ports))
            }
        };
        format!(
            "virtqueue SHARE {{\n vq_dcid 0;\n vq_ep {ENDPOINT};\n vq_socket \"{}\";\n \
             vq_carrier {carrier};\n {}\n}};\n{transport}",
            self.daemon.display(),
            self.server_keys
        )
    }

    /// The process ids of server and tunnel.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let both = [&self.server, &self.tunnel];
        both.into_iter().flatten().map(Child::id).collect()
    }

    /// Kills the server.
    pub fn kill_server(&mut self) {
        if let Some(mut child) = self.server.take() {
            process::kill_group(&mut child);
        }
    }

    /// Kills the tunnel.
    pub fn kill_tunnel(&mut self) {
        if let Some(mut child) = self.tunnel.take() {
            process::kill_group(&mut child);
        }
    }

    /// Ends the tunnel by SIGTERM.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn end_tunnel(&mut self) -> Result<()> {
        let mut child = self.tunnel.take().context("no tunnel runs")?;
        process::signal_group(&child, Signal::TERM).context("signalling the tunnel")?;
        process::wait_within(&mut child, LIMIT).inspect_err(|_| process::kill_group(&mut child))?;
        Ok(())
    }

    /// Sends the server a signal, such as SIGSTOP.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal_server(&self, signal: Signal) -> Result<()> {
        let server = self.server.as_ref().context("no server runs")?;
        process::signal_group(server, signal).context("signalling the server")
    }

    /// Whether the tunnel runs.
    ///
    /// # Errors
    /// When its state cannot be asked for.
    pub fn tunnel_runs(&mut self) -> Result<bool> {
        let tunnel = self.tunnel.as_mut().context("no tunnel was started")?;
        Ok(tunnel.try_wait()?.is_none())
    }

    /// Cuts the network between the hosts, or mends it.
    ///
    /// # Errors
    /// When there is none.
    pub fn cut(&self, is_cut: bool) -> Result<()> {
        let Between::Hosts(hosts) = &self.between else {
            bail!("there is no network to cut");
        };
        hosts.cut(0, is_cut)
    }

    /// The server's status.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn server_status(&self) -> Result<String> {
        self.status("serve-status.sock")
    }

    /// The tunnel's status.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn tunnel_status(&self) -> Result<String> {
        self.status("tunnel-status.sock")
    }

    /// How many requests the tunnel has sent again after a broken connection, for its present
    /// guest.
    ///
    /// # Errors
    /// It does not say, or has no guest.
    pub fn sent_again(&self) -> Result<u64> {
        let status = self.tunnel_status()?;
        let mut counters = status.split(", ");
        let sent_again = counters.find_map(|counter| counter.strip_suffix(" sent again"));
        let sent_again = sent_again.with_context(|| format!("the status is {status}"))?;
        Ok(sent_again.parse()?)
    }

    fn status(&self, socket: &str) -> Result<String> {
        let mut command = Command::new(tools::dvk()?);
        command.arg("status").arg(self.dir.path().join(socket));
        crate::packages::output(&mut command)
    }

    /// Waits until the server's status contains `text`, or does not.
    ///
    /// # Errors
    /// When it is not so in time.
    pub fn wait_for_server(&self, text: &str, is_there: bool) -> Result<()> {
        let mut status = String::new();
        let waited = wait::until(&format!("{text:?} there: {is_there}"), LIMIT, || {
            status = self.server_status()?;
            Ok(status.contains(text) == is_there)
        });
        waited.with_context(|| format!("{status}\n{}", self.log()))
    }

    /// What both have logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        format!(
            "server:\n{}tunnel:\n{}",
            read("server.log"),
            read("tunnel.log")
        )
    }
}

/// The blocks of both nodes in the server's configuration.
fn nodes(server: &str, client: &str, ports: (u16, u16)) -> String {
    format!(
        "node HERE {{\n node_id {SERVER_NODE};\n node_address {server};\n node_port_base {};\n}};\n\
         peer GUEST {{\n peer_id {CLIENT_NODE};\n peer_host {client};\n peer_port_base {};\n}};\n",
        ports.0, ports.1
    )
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.kill_tunnel();
        self.kill_server();
    }
}
