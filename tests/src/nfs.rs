//! An NFS server under test, with an address of its own, and the mounts of guests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::guest::{Guest, Machine, Switch};
use crate::process;
use crate::sockets::listens;
use crate::tools;
use crate::wait;

/// The server's address.
pub const SERVER: &str = "10.0.2.1";

/// The modules that an NFS client needs.
pub const CLIENT_MODULES: [&str; 3] = ["virtio_net", "nfsv3", "lockd"];

/// The switch's sockets in the server's directory.
const SOCKETS: [&str; 3] = ["packet", "stream", DATAGRAMS];

/// The one of them that takes datagrams.
const DATAGRAMS: &str = "dgram";

/// The programs that the port mapper tells, with version and protocol.
const PROGRAMS: [[&str; 3]; 8] = [
    ["100000", "2", "tcp"],
    ["100000", "2", "udp"],
    ["100003", "3", "tcp"],
    ["100005", "3", "tcp"],
    ["100021", "4", "tcp"],
    ["100021", "4", "udp"],
    ["100024", "1", "tcp"],
    ["100024", "1", "udp"],
];

/// Limit for the server to start, and to end.
const LIMIT: Duration = Duration::from_secs(20);

/// A running server; killed when dropped.
pub struct NfsServer {
    child: Child,
    backend: PathBuf,
    arguments: Vec<String>,
    dir: TempDir,
}

impl NfsServer {
    /// Starts a server on the daemon at `backend` that exports the share by `arguments`, at
    /// [`SERVER`] on a virtual switch, and waits until machines can connect.
    ///
    /// # Errors
    /// When it ends instead, or takes too long; with its log.
    pub fn start(backend: &Path, arguments: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-nfs-")
            .tempdir()
            .context("creating the server's directory")?;
        let arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
        let mut server = Self {
            child: spawn(dir.path(), backend, &arguments)?,
            backend: backend.to_owned(),
            arguments,
            dir,
        };
        server.wait()?;
        Ok(server)
    }

    /// Kills it as `kill -9` does, and starts another with the same state.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        // The sockets' files are left by a killed server.
        for socket in SOCKETS {
            let _ = fs::remove_file(self.dir.path().join(socket));
        }
        self.child = spawn(self.dir.path(), &self.backend, &self.arguments)?;
        self.wait()
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) {
        process::kill_group(&mut self.child);
    }

    /// Ends it as a service manager does.
    ///
    /// # Errors
    /// When it does not end in time, or with an error.
    pub fn end(mut self) -> Result<()> {
        process::signal(&self.child, Signal::TERM)?;
        let status = process::wait_within(&mut self.child, LIMIT)?;
        ensure!(status.success(), "{status}\n{}", self.log());
        Ok(())
    }

    /// Its process ID.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When its status cannot be asked for.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// The switch's socket for packets, to which User Mode Linux connects.
    #[must_use]
    pub fn packets(&self) -> Switch {
        Switch::Packets(self.dir.path().join("packet"))
    }

    /// The switch's socket for streams. QEMU 7.2 does not connect again after a restart.
    #[must_use]
    pub fn streams(&self) -> Switch {
        Switch::Streams(self.dir.path().join("stream"))
    }

    /// The switch's socket for datagrams, to which QEMU sends also after a restart.
    #[must_use]
    pub fn datagrams(&self) -> Switch {
        Switch::Datagrams(self.dir.path().join(DATAGRAMS))
    }

    /// The directory of the switch's sockets: `packet`, `stream` and `dgram`.
    #[must_use]
    pub fn sockets(&self) -> &Path {
        self.dir.path()
    }

    /// What it has written on standard error.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn wait(&mut self) -> Result<()> {
        let pid = self.child.id();
        let is_ready = |name: &&str| match self.dir.path().join(name) {
            // Nobody listens at a socket of datagrams.
            socket if *name == DATAGRAMS => socket.exists(),
            socket => listens(pid, &socket),
        };
        let waited = wait::until("the server listens", LIMIT, || {
            let are_ready = SOCKETS.iter().all(is_ready);
            wait::ready(&mut self.child, are_ready)
        });
        waited.with_context(|| self.log())
    }
}

fn spawn(dir: &Path, backend: &Path, arguments: &Vec<String>) -> Result<Child> {
    let state = dir.join("state");
    fs::create_dir_all(&state)?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))?;
    let mut command = process::tied(tools::nfs()?, None);
    command
        .args(["serve", "--address"])
        .arg(format!("{SERVER}/24"))
        .arg("--backend")
        .arg(backend)
        .arg("--state")
        .arg(&state)
        .arg("--switch-stream")
        .arg(dir.join("stream"))
        .arg("--switch-packet")
        .arg(dir.join("packet"))
        .arg("--switch-dgram")
        .arg(dir.join(DATAGRAMS))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    process::spawn(command).context("starting the NFS server")
}

impl Drop for NfsServer {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}

/// A server without a switch; killed when dropped.
pub struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        process::kill_group(&mut self.0);
    }
}

/// Starts a server by `command`, of [`tools::nfs`], on `daemon`. Clients in 10.97.0.0/24 may write.
/// It writes its log to the file `log`.
///
/// # Errors
/// When it cannot be started.
pub fn serve(
    mut command: Command,
    daemon: &Daemon,
    arguments: &[&str],
    stdin: impl Into<Stdio>,
    log: &Path,
) -> Result<Serving> {
    command
        .args(["serve", "--backend"])
        .arg(daemon.socket())
        .args(["--client", "10.97.0.0/24(rw)", "--client", "*(ro)"])
        .args(arguments)
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(File::create(log)?);
    Ok(Serving(process::spawn(command)?))
}

/// Gives the guest's card the address 10.0.2.`host`.
///
/// # Errors
/// When it has no card.
pub fn configure(guest: &mut Guest, host: u8) -> Result<()> {
    configure_in(guest, "10.0.2", host)
}

/// As [`configure`], in another network: `network` is the first three numbers.
///
/// # Errors
/// As [`configure`].
pub fn configure_in(guest: &mut Guest, network: &str, host: u8) -> Result<()> {
    guest
        .sh(&format!(
            "card=$(ls /sys/class/net | grep -v lo | head -n 1) && \
             ifconfig lo 127.0.0.1 up && \
             ifconfig $card {network}.{host} netmask 255.255.255.0 up || \
             {{ dmesg | tail -n 30; cat /proc/cmdline; exit 1; }}"
        ))
        .map(drop)
}

/// Has the guest's card connect again after the server was restarted: User Mode Linux does so when
/// the card is brought up.
///
/// # Errors
/// When it has no card.
pub fn reconnect(guest: &mut Guest) -> Result<()> {
    if guest.machine() == Machine::Uml {
        guest.sh("ifconfig vec0 down && ifconfig vec0 up")?;
    }
    Ok(())
}

/// Fails unless `told`, by `rpcinfo -p`, has all programs of a server.
///
/// # Errors
/// When one is missing; with what was told.
pub fn check_programs(told: &str) -> Result<()> {
    for program in PROGRAMS {
        let is_told = told.lines().any(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.starts_with(&program)
        });
        ensure!(is_told, "{program:?} is not in\n{told}");
    }
    Ok(())
}

/// Asks the server at `address` by rpcinfo and showmount of Debian, which find it by the port
/// mapper, and mounts its share by mount.nfs. Their packages are in the guest's `tree`
/// ([`crate::debian_tree::copy_nfs_client`]). Returns the exports.
///
/// # Errors
/// When one of them fails, or is told too little.
pub fn ask_by_stock_programs(guest: &mut Guest, tree: &str, address: &str) -> Result<String> {
    check_programs(&guest.sh(&format!("chroot {tree} /usr/sbin/rpcinfo -p {address}"))?)?;
    let exports = guest.sh(&format!("chroot {tree} /usr/sbin/showmount -e {address}"))?;
    guest.sh(&format!(
        "mkdir -p {tree}/stock && echo stock >{tree}/../asked && \
         chroot {tree} /sbin/mount.nfs {address}:/ /stock -o vers=3,proto=tcp,nolock && \
         cat {tree}/stock/asked && grep ' {tree}/stock nfs ' /proc/mounts && \
         umount {tree}/stock && rm {tree}/../asked"
    ))?;
    Ok(exports)
}

/// Mounts `path` of the server on `directory`, which is made, by the guest's own kernel.
///
/// # Errors
/// When the guest's mount fails; with the end of its kernel's log.
pub fn mount(guest: &mut Guest, path: &str, directory: &str, options: &str) -> Result<()> {
    guest
        .sh(&format!(
            "mkdir -p {directory} && \
             mount -i -t nfs -o vers=3,proto=tcp,mountproto=tcp,addr={SERVER}{options} \
             {SERVER}:{path} {directory} || {{ s=$?; dmesg | tail -n 15; exit $s; }}"
        ))
        .map(drop)
}

/// Starts rpcbind and rpc.statd, which the kernel's lock manager needs, in a guest in whose `tree`
/// their packages are ([`crate::debian_tree::copy_nfs_client`]).
///
/// # Errors
/// When one does not start.
pub fn start_status_monitor(guest: &mut Guest, tree: &str) -> Result<()> {
    guest
        .sh(&format!(
            "mount -t proc proc {tree}/proc && mount -t devtmpfs devtmpfs {tree}/dev && \
             mount -t tmpfs tmpfs {tree}/run && \
             mkdir -p {tree}/run/rpcbind {tree}/run/sendsigs.omit.d && \
             chroot {tree} /sbin/rpcbind -i -w && chroot {tree} /sbin/rpc.statd --no-notify && \
             chroot {tree} /usr/sbin/rpcinfo -p 127.0.0.1"
        ))
        .map(drop)
}
