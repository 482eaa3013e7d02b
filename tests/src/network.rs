//! A network of its own for a test: a namespace with a tap device that a guest's network card is
//! the other end of.
//!
//! It takes root. Nothing of it is left when the test program ends, however that ends: the
//! namespace goes with the last process in it, and those are tied to this one.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::packages;
use crate::process;

/// The tap device's name in its namespace.
pub const TAP: &str = "tap0";

/// The guest's network card, in the guest.
pub const CARD: &str = "vec0";

/// The host's address on the tap device.
pub const HOST: &str = "10.97.0.1";

/// The address that a guest is to take.
pub const GUEST: &str = "10.97.0.2";

/// How long making a namespace may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A namespace with the loopback device and a tap device.
pub struct Network {
    holder: Child,
}

impl Network {
    /// Makes one; the tap device has the address [`HOST`].
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

    /// The namespace, for as long as this lives.
    #[must_use]
    pub fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    /// Waits until the process that holds the namespace has it.
    fn wait(&self) -> Result<()> {
        let own = fs::read_link("/proc/self/ns/net")?;
        let deadline = Instant::now() + LIMIT;
        loop {
            let its = fs::read_link(self.namespace()).context("making a network namespace")?;
            if its != own {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("there was no network namespace within {LIMIT:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
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
