//! Hosts in the form of network namespaces, joined by a bridge.
//!
//! This needs root. The namespaces end with the last process in them, and those processes end with
//! the test program. Files and mounts are the machine's own.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::network;
use crate::packages;
use crate::process;
use crate::wait;

/// The address of the servers' host.
pub const SERVERS: &str = "10.96.0.1";

/// The address of the first other host.
pub const FIRST: &str = "10.96.0.2";

/// Limit for making a namespace.
const LIMIT: Duration = Duration::from_secs(20);

/// A host.
struct Host {
    holder: Child,
}

/// A host with servers, and others.
pub struct Hosts {
    servers: Host,
    others: Vec<Host>,
}

impl Hosts {
    /// Makes the servers' host and `others` more.
    ///
    /// # Errors
    /// When the caller is not root, or the kernel has no bridges.
    pub fn new(others: usize) -> Result<Self> {
        let servers = Host::new()?;
        let address = format!("address add {SERVERS}/24 dev bridge");
        for arguments in [
            "link set lo up",
            "link add bridge type bridge",
            &address,
            "link set bridge up",
        ] {
            servers.ip(arguments)?;
        }
        let mut hosts = Self {
            servers,
            others: Vec::new(),
        };
        for number in 1..=others {
            let other = Host::new()?;
            let pid = other.holder.id();
            hosts.servers.ip(&format!(
                "link add host{number} type veth peer name card netns {pid}"
            ))?;
            hosts
                .servers
                .ip(&format!("link set host{number} master bridge up"))?;
            for arguments in [
                "link set lo up",
                &format!("address add 10.96.0.{}/24 dev card", number + 1),
                "link set card up",
            ] {
                other.ip(arguments)?;
            }
            hosts.others.push(other);
        }
        Ok(hosts)
    }

    /// Has connections break after two retransmissions of TCP, which take one or two seconds, and
    /// not after a quarter of an hour.
    ///
    /// # Errors
    /// When the kernel's settings cannot be written.
    pub fn break_connections_soon(&self) -> Result<()> {
        for host in std::iter::once(&self.servers).chain(&self.others) {
            let mut command = network::command(&host.namespace(), "sh");
            command.args(["-c", "echo 2 >/proc/sys/net/ipv4/tcp_retries2"]);
            packages::run(&mut command).context("setting up a host's network")?;
        }
        Ok(())
    }

    /// The network namespace of the servers' host.
    #[must_use]
    pub fn servers_namespace(&self) -> PathBuf {
        self.servers.namespace()
    }

    /// Cuts the network between another host, by its number from 0 on, and all others, or mends it.
    /// No connection is told: packets are lost.
    ///
    /// # Errors
    /// There is no such host.
    pub fn cut(&self, number: usize, is_cut: bool) -> Result<()> {
        let state = if is_cut { "down" } else { "up" };
        self.servers
            .ip(&format!("link set host{} {state}", number + 1))
    }

    /// A command on the servers' host, tied to this process.
    pub fn on_servers(&self, program: impl AsRef<OsStr>) -> Command {
        network::command(&self.servers.namespace(), program)
    }

    /// A command on another host, by its number from 0 on.
    ///
    /// # Errors
    /// There is no such host.
    pub fn on(&self, number: usize, program: impl AsRef<OsStr>) -> Result<Command> {
        let host = self.others.get(number).context("no such host")?;
        Ok(network::command(&host.namespace(), program))
    }
}

impl Host {
    fn new() -> Result<Self> {
        let mut command = process::tied("unshare", None);
        command.args(["--net", "--", "sleep", "infinity"]);
        let holder = process::spawn(command).context("starting what holds a host's network")?;
        let host = Self { holder };
        let own = fs::read_link("/proc/self/ns/net")?;
        wait::until("there is a network namespace", LIMIT, || {
            Ok(fs::read_link(host.namespace())? != own)
        })?;
        Ok(host)
    }

    fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    fn ip(&self, arguments: &str) -> Result<()> {
        let mut command = network::command(&self.namespace(), "ip");
        packages::run(command.args(arguments.split(' '))).context("setting up a host's network")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        process::kill_group(&mut self.holder);
    }
}
