//! Three guests on one directory: User Mode Linux and QEMU by virtio-fs, and a second User Mode
//! Linux without virtio-fs, by `gangplank-dvk mount` over its network.

use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::daemon::{Daemon, TAG};
use crate::dvk::{Server, Topology};
use crate::guest::{Guest, Machine, Options};
use crate::network::{CARD, GUEST, Network};
use crate::tools;

/// Where each guest mounts the directory.
pub const MOUNT: &str = "/mnt";

/// The guests and what they need.
pub struct ThreeGuests {
    /// User Mode Linux with a virtio-fs device.
    pub uml: Guest,
    /// QEMU with a virtio-fs device.
    pub qemu: Guest,
    /// User Mode Linux with a network card.
    pub far: Guest,
    /// The server for the third guest.
    pub server: Server,
    network: Network,
}

impl ThreeGuests {
    /// Boots all three on the share of `daemon`. No guest has mounted it yet. The network needs
    /// root.
    ///
    /// # Errors
    /// When one does not boot.
    pub fn boot(daemon: &Daemon) -> Result<Self> {
        let network = Network::new()?;
        let server = Server::start(&Topology::network(&network), daemon.socket())?;
        let mut far = Options::new(Machine::Uml).program("gangplank-dvk", &tools::dvk()?);
        far.network = Some(network.namespace());
        let by_virtio = |machine| Options::new(machine).share(daemon.socket(), TAG);
        let guests = [
            ("User Mode Linux", by_virtio(Machine::Uml)),
            ("QEMU", by_virtio(Machine::QemuX86_64)),
            ("User Mode Linux with a network", far),
        ];
        // All at once, because a booting guest waits half of the time.
        let [uml, qemu, far] = thread::scope(|scope| {
            guests
                .each_ref()
                .map(|(name, options)| (name, scope.spawn(|| Guest::boot(options))))
                .map(|(name, booting)| {
                    let booted = booting.join().map_err(|_| anyhow!("it panicked"));
                    booted.flatten().with_context(|| format!("booting {name}"))
                })
        });
        Ok(Self {
            uml: uml?,
            qemu: qemu?,
            far: far?,
            server,
            network,
        })
    }

    /// The command that sets the address of the third guest.
    #[must_use]
    pub fn address_command() -> String {
        format!(
            "ip link set lo up && ip address add {GUEST}/24 dev {CARD} && ip link set {CARD} up"
        )
    }

    /// The command that mounts the directory in the third guest, with further options.
    #[must_use]
    pub fn mount_command(&self, options: &str) -> String {
        let words = Topology::network(&self.network).mount_arguments(MOUNT);
        format!("gangplank-dvk {} {options}", words.join(" "))
    }

    /// Mounts the directory in all three guests. Each caches names for a second.
    ///
    /// # Errors
    /// When one cannot mount it; with the server's log.
    pub fn mount(&mut self) -> Result<()> {
        self.uml.mount(TAG, MOUNT)?;
        self.qemu.mount(TAG, MOUNT)?;
        self.far.sh(&Self::address_command())?;
        let command = self.mount_command("");
        self.far
            .sh(&command)
            .with_context(|| self.server.log())
            .map(drop)
    }

    /// The guests with their names for messages.
    pub fn guests(&mut self) -> [(&'static str, &mut Guest); 3] {
        [
            ("uml", &mut self.uml),
            ("qemu", &mut self.qemu),
            ("far", &mut self.far),
        ]
    }
}
