//! Stock guests: booted from Debian's kernels, driven over their console.

pub mod console;
pub mod cpio;
pub mod initramfs;
pub mod kernel;
mod qemu;
mod qmp;
mod registers;
mod uml;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use self::console::{Console, Output};
use self::initramfs::Extra;
use self::kernel::{Kernel, Release};
use crate::packages::Arch;
use crate::process::{self, User};

/// Limit for a guest command, unless the test sets another.
pub const USUAL: Duration = Duration::from_secs(120);

/// Limit for booting under emulation on a busy machine.
const BOOT: Duration = Duration::from_secs(240);

/// The kinds of machines that the project supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// User Mode Linux, `virtio_uml`.
    Uml,
    /// QEMU's q35 machine, `vhost-user-fs-pci`.
    QemuX86_64,
    /// QEMU's aarch64 virt machine, `vhost-user-fs-pci`.
    QemuAarch64,
}

impl Machine {
    /// The architecture of programs that run in it.
    #[must_use]
    pub const fn arch(self) -> Arch {
        match self {
            Self::Uml | Self::QemuX86_64 => Arch::Amd64,
            Self::QemuAarch64 => Arch::Arm64,
        }
    }

    /// Its stock kernel.
    ///
    /// # Errors
    /// When the kernel's package cannot be had.
    pub fn kernel(self, release: Release) -> Result<Kernel> {
        match self {
            Self::Uml => Kernel::uml(),
            Self::QemuX86_64 | Self::QemuAarch64 => Kernel::debian(self.arch(), release),
        }
    }
}

/// Which QEMU runs a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qemu {
    /// The host's: Debian 12 has 7.2.
    Host,
    /// That of Debian 12's backports: 10.0 ([`Machine::QemuX86_64`] alone).
    Backports,
}

/// What a guest's memory is, with QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// A file that others can map.
    Shared,
    /// A file of which the guest has a private copy (`share=off`).
    PrivateFile,
    /// No file.
    Anonymous,
}

/// A share in the form that the hypervisor needs.
#[derive(Clone, Debug)]
pub struct Share {
    /// The daemon's vhost-user socket.
    pub socket: PathBuf,
    /// The tag; for User Mode Linux the daemon alone decides it.
    pub tag: String,
}

/// A socket of a virtual Ethernet switch, by what kind of socket it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Of packets: User Mode Linux' `transport=bess`.
    Packets(PathBuf),
    /// Of streams: QEMU's `-netdev stream`.
    Streams(PathBuf),
    /// Of datagrams: QEMU's `-netdev dgram`.
    Datagrams(PathBuf),
}

/// What the guest does after it has booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Serves commands from its initramfs.
    Agent,
    /// Mounts this tag as its root file system and serves commands from there.
    Root(String),
    /// Mounts an export (`SERVER:PATH`) as its root file system by NFS, from the address that comes
    /// second, and serves commands from there.
    NfsRoot(String, String),
    /// Has its first disk as its root file system, whose systemd is the first process
    /// ([`crate::systemd_host`]), and serves commands from there (QEMU).
    Systemd,
    /// Mounts this tag on `/mnt` and gives the console to a person.
    Shell(String),
}

/// How to boot a guest.
#[derive(Clone, Debug)]
pub struct Options {
    /// The machine.
    pub machine: Machine,
    /// The program (QEMU).
    pub qemu: Qemu,
    /// Whether it connects to the shares again after it has lost them (QEMU's `reconnect=`). It
    /// makes its devices once it is connected, since a `vhost-user-fs` device does not wait.
    pub reconnects: bool,
    /// The socket at which it waits for a guest that moves here, instead of booting one (QEMU).
    pub incoming: Option<PathBuf>,
    /// The kernel, if there is a choice.
    pub release: Release,
    /// What it does after booting.
    pub role: Role,
    /// Its virtio-fs devices.
    pub shares: Vec<Share>,
    /// Directories that the hypervisor serves by 9P, with their tags (QEMU).
    pub plan9: Vec<(PathBuf, String)>,
    /// Images of its disks, `/dev/vda` and so on (QEMU).
    pub disks: Vec<PathBuf>,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// What the memory is (QEMU).
    pub memory: Memory,
    /// Virtual processors (QEMU).
    pub processors: u32,
    /// Entries of each virtqueue (QEMU; a power of two up to 1024).
    pub queue_size: u16,
    /// Request queues of each device (QEMU).
    pub request_queues: u16,
    /// The host's user who runs it; `None` is the caller.
    pub user: Option<User>,
    /// The network namespace in which it runs and has a card (User Mode Linux), at the tap device
    /// [`crate::network::TAP`].
    pub network: Option<PathBuf>,
    /// The virtual Ethernet switch to which its card is connected.
    pub switch: Option<Switch>,
    /// Further words of its kernel's command line.
    pub kernel_words: Vec<&'static str>,
    /// Modules that its init loads beside the usual ones.
    pub modules: Vec<&'static str>,
    /// Files added to the initramfs.
    pub extras: Vec<Extra>,
}

impl Options {
    /// A guest on `machine` without shares: 512 MiB, one processor, one request queue.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        Self {
            machine,
            qemu: Qemu::Host,
            reconnects: false,
            incoming: None,
            release: Release::Stable,
            role: Role::Agent,
            shares: Vec::new(),
            plan9: Vec::new(),
            disks: Vec::new(),
            memory_mib: 512,
            memory: Memory::Shared,
            processors: 1,
            queue_size: 1024,
            request_queues: 1,
            user: None,
            network: None,
            switch: None,
            kernel_words: Vec::new(),
            modules: Vec::new(),
            extras: Vec::new(),
        }
    }

    /// The same with one more virtio-fs device.
    #[must_use]
    pub fn share(mut self, socket: &Path, tag: &str) -> Self {
        self.shares.push(Share {
            socket: socket.to_owned(),
            tag: tag.to_owned(),
        });
        self
    }

    /// The same with `host` in the initramfs as the program `/bin/<name>`.
    #[must_use]
    pub fn program(mut self, name: &str, host: &Path) -> Self {
        self.extras.push(Extra {
            guest: format!("bin/{name}"),
            host: host.to_owned(),
            mode: 0o755,
        });
        self
    }

    /// What `init.sh` reads from the kernel command line, and what the test adds.
    fn kernel_arguments(&self) -> Vec<String> {
        let (mode, tag) = match &self.role {
            Role::Agent => ("agent", None),
            Role::Root(tag) => ("root", Some(tag)),
            Role::NfsRoot(export, _) => ("nfsroot", Some(export)),
            Role::Systemd => ("systemd", None),
            Role::Shell(tag) => ("shell", Some(tag)),
        };
        let mut arguments = vec![format!("gangplank={mode}")];
        arguments.extend(tag.map(|tag| format!("gangplank.tag={tag}")));
        if let Role::NfsRoot(_, address) = &self.role {
            arguments.push(format!("gangplank.address={address}"));
        }
        arguments.extend(self.kernel_words.iter().map(|word| (*word).to_owned()));
        arguments
    }

    /// The command that boots this guest with its console on standard input and output, and the
    /// directory it needs while it runs.
    ///
    /// # Errors
    /// When the kernel cannot be had or the initramfs cannot be written.
    pub fn command(&self) -> Result<(Command, TempDir)> {
        let mut kernel = self.machine.kernel(self.release)?;
        let dir = tempfile::Builder::new()
            .prefix("gangplank-guest-")
            .tempdir()
            .context("creating the guest's directory")?;
        let initrd = dir.path().join("initramfs.cpio");
        initramfs::write(
            &initrd,
            &kernel,
            self.machine.arch(),
            &self.modules,
            &self.extras,
        )?;
        if let Some(user) = self.user {
            std::os::unix::fs::chown(dir.path(), Some(user.uid), Some(user.gid))?;
            // The user may not be able to enter the cache.
            let copy = dir.path().join("kernel");
            std::fs::copy(&kernel.image, &copy).context("copying the kernel for its user")?;
            kernel.image = copy;
        }
        let command = match self.machine {
            Machine::Uml => uml::command(&kernel, self, &initrd, dir.path())?,
            Machine::QemuX86_64 | Machine::QemuAarch64 => {
                qemu::command(&kernel, self, &initrd, dir.path())?
            }
        };
        Ok((command, dir))
    }
}

/// A running guest; killed when dropped.
pub struct Guest {
    machine: Machine,
    console: Console,
    child: Child,
    /// The reason why no further command can be sent: an earlier one had no reply.
    stuck: Option<String>,
    dir: TempDir,
}

impl Guest {
    /// Boots a guest and waits until it serves commands. With [`Options::incoming`], waits until
    /// another guest can move here; only then it serves commands.
    ///
    /// # Errors
    /// When it cannot be started or does not come up; with the end of its console.
    pub fn boot(options: &Options) -> Result<Self> {
        ensure!(
            !matches!(options.role, Role::Shell(_)),
            "a guest with a shell serves no commands"
        );
        let (mut command, dir) = options.command()?;
        let log = std::fs::File::create(dir.path().join("stderr"))?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        let described = format!("{command:?}");
        let mut child =
            process::spawn(command).with_context(|| format!("starting the guest: {described}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            process::kill_group(&mut child);
            bail!("the guest has no console");
        };
        let mut guest = Self {
            machine: options.machine,
            console: Console::new(input, output),
            child,
            stuck: None,
            dir,
        };
        let begun = match options.reconnects {
            true => qmp::begin(&guest.dir.path().join("qmp.sock")),
            false => Ok(()),
        };
        let mut ready = || match &options.incoming {
            Some(socket) => process::wait_for_path(socket, BOOT),
            None => guest.wait_ready(),
        };
        begun.and_then(|()| ready()).with_context(|| {
            let said = std::fs::read_to_string(guest.dir.path().join("stderr"));
            format!("{described}: {}", said.unwrap_or_default())
        })?;
        Ok(guest)
    }

    /// The machine it runs on.
    #[must_use]
    pub const fn machine(&self) -> Machine {
        self.machine
    }

    /// Whether a command had no reply. The guest then has to be replaced.
    #[must_use]
    pub const fn is_stuck(&self) -> bool {
        self.stuck.is_some()
    }

    /// Runs shell text in the guest, whatever its exit status.
    ///
    /// # Errors
    /// When it does not end within `limit` or the guest is gone.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output> {
        if let Some(stuck) = &self.stuck {
            bail!("the guest is stuck since an earlier command: {stuck}");
        }
        self.console.run(command, limit).inspect_err(|error| {
            self.stuck = Some(format!("{error:#}"));
        })
    }

    /// Runs shell text that has to succeed; returns what it printed.
    ///
    /// # Errors
    /// As [`Guest::run`], and when the exit status is not 0.
    pub fn sh(&mut self, command: &str) -> Result<String> {
        self.sh_within(command, USUAL)
    }

    /// [`Guest::sh`] with another limit than [`USUAL`].
    ///
    /// # Errors
    /// As [`Guest::sh`].
    pub fn sh_within(&mut self, command: &str, limit: Duration) -> Result<String> {
        let output = self.run(command, limit)?;
        ensure!(
            output.status == 0,
            "in the {:?} guest, status {}: {command}\n{}",
            self.machine,
            output.status,
            output.text
        );
        Ok(output.text)
    }

    /// Mounts the share `tag` on `directory`, which is made.
    ///
    /// # Errors
    /// When the guest's mount fails.
    pub fn mount(&mut self, tag: &str, directory: &str) -> Result<()> {
        self.sh(&format!(
            "mkdir -p {directory} && mount -t virtiofs {tag} {directory} || {{ s=$?; dmesg | tail \
             -n 15; exit $s; }}"
        ))
        .map(drop)
    }

    /// Reboots the guest from inside without unmounting anything, and waits until it serves again.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn reboot(&mut self) -> Result<()> {
        self.console.send_only("reboot -f || busybox reboot -f")?;
        self.wait_ready()
    }

    /// Presses the machine's reset button (QEMU), and waits until it serves again.
    ///
    /// # Errors
    /// When QEMU cannot be told or the guest does not come back.
    pub fn reset(&mut self) -> Result<()> {
        qmp::execute(&self.dir.path().join("qmp.sock"), "system_reset")?;
        self.wait_ready()
    }

    /// Moves the guest, as it runs, to another QEMU with the same devices that waits at the socket
    /// `to` ([`Options::incoming`]). This one is empty then.
    ///
    /// # Errors
    /// When QEMU refuses, or one of the two fails. The guest then goes on here.
    pub fn migrate(&mut self, to: &Path) -> Result<()> {
        qmp::migrate(&self.dir.path().join("qmp.sock"), to)
    }

    /// The number of the guest's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the guest at once, as `kill -9` does.
    pub fn kill(mut self) {
        process::kill_group(&mut self.child);
    }

    /// Lets the guest power itself off and waits until its process has ended.
    ///
    /// # Errors
    /// When it does not end.
    pub fn power_off(mut self) -> Result<()> {
        self.console
            .send_only("poweroff -f || busybox poweroff -f")?;
        process::wait_within(&mut self.child, USUAL)
            .with_context(|| format!("powering the guest off\n{}", self.console.tail()))?;
        Ok(())
    }

    /// What its hypervisor has written on standard error.
    #[must_use]
    pub fn complaints(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default()
    }

    /// The last lines of its console.
    #[must_use]
    pub fn console_tail(&self) -> String {
        self.console.tail()
    }

    fn wait_ready(&mut self) -> Result<()> {
        self.console.wait_ready(BOOT)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}
