//! An NFS server under test, with an address of its own, and the mounts of guests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::guest::Guest;
use crate::process;
use crate::tools;

/// The server's address.
pub const SERVER: &str = "10.0.2.1";

/// The modules that an NFS client needs.
pub const CLIENT_MODULES: [&str; 3] = ["virtio_net", "nfsv3", "lockd"];

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
        for socket in [self.packets(), self.streams()] {
            let _ = fs::remove_file(socket);
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
    pub fn packets(&self) -> PathBuf {
        self.dir.path().join("packet")
    }

    /// The switch's socket for streams, as QEMU connects to it.
    #[must_use]
    pub fn streams(&self) -> PathBuf {
        self.dir.path().join("stream")
    }

    /// What it has written on standard error.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !self.streams().exists() || !self.packets().exists() {
            let ended = self.child.try_wait()?;
            ensure!(
                ended.is_none(),
                "the server ended: {ended:?}\n{}",
                self.log()
            );
            ensure!(
                Instant::now() < deadline,
                "the server made no socket within {LIMIT:?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
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

/// Gives the guest's card the address 10.0.2.`host`.
///
/// # Errors
/// When it has no card.
pub fn configure(guest: &mut Guest, host: u8) -> Result<()> {
    guest
        .sh(&format!(
            "card=$(ls /sys/class/net | grep -v lo | head -n 1) && \
             ifconfig lo 127.0.0.1 up && \
             ifconfig $card 10.0.2.{host} netmask 255.255.255.0 up || \
             {{ dmesg | tail -n 30; cat /proc/cmdline; exit 1; }}"
        ))
        .map(drop)
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
