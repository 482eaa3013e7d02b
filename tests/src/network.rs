//! A private network for a test: a namespace with a tap device, whose other end is a guest's
//! network card.
//!
//! This needs root. The namespace ends with the last process in it, and those processes end with
//! the test program.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::packages;
use crate::process;
use crate::wait;

/// The tap device's name in its namespace.
pub const TAP: &str = "tap0";

/// The guest's network card, in the guest.
pub const CARD: &str = "vec0";

/// The host's address on the tap device.
pub const HOST: &str = "10.97.0.1";

/// The guest's address.
pub const GUEST: &str = "10.97.0.2";

/// Limit for making a namespace.
const LIMIT: Duration = Duration::from_secs(20);

/// A namespace with the loopback device and a tap device.
pub struct Network {
    holder: Child,
}

impl Network {
    /// Makes a network. The tap device has the address [`HOST`].
    ///
    /// # Errors
    /// When the caller is not root, or the kernel has no tap devices.
    pub fn new() -> Result<Self> {
        let mut command = process::tied("unshare", None);
        command.args(["--net", "--", "sleep", "infinity"]);
        let holder = process::spawn(command).context("starting what holds the network")?;
        let network = Self { holder };
        network.wait()?;
        for arguments in [
            "link set lo up",
            "tuntap add dev tap0 mode tap",
            "address add 10.97.0.1/24 dev tap0",
            "link set tap0 up",
        ] {
            packages::run(network.command("ip").args(arguments.split(' ')))
                .context("setting up a network")?;
        }
        Ok(network)
    }

    /// A command for `program` in this network, tied to this process.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        command(&self.namespace(), program)
    }

    /// The path of the namespace, valid while this value lives.
    #[must_use]
    pub fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    /// Waits until the process that holds the namespace has made it.
    fn wait(&self) -> Result<()> {
        let own = fs::read_link("/proc/self/ns/net")?;
        wait::until("there is a network namespace", LIMIT, || {
            Ok(fs::read_link(self.namespace())? != own)
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        process::kill_group(&mut self.holder);
    }
}

/// A command for `program` in the network namespace `namespace`, tied to this process.
pub(crate) fn command(namespace: &std::path::Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = process::tied("nsenter", None);
    command
        .arg(format!("--net={}", namespace.display()))
        .arg("--")
        .arg(program);
    command
}
