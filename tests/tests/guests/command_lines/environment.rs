//! What a manager's host has around the daemon: users, namespaces, groups, a syslog daemon, mounts.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use gangplank_tests::cgroup::Cgroup;
use gangplank_tests::packages::{self, Arch};
use gangplank_tests::process;
use gangplank_tests::promises::FIRST_SUB_ID;
use parking_lot::Mutex;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::launch::{As, SUB_IDS};

/// The socket of the syslog daemon, in the daemon's directory. It is at `/dev/log` for the daemon.
pub(crate) const SYSLOG: &str = "syslog.sock";

/// The name of the mount below a share, and of the file in it.
pub(crate) const SUBMOUNT: &str = "below";
pub(crate) const IN_SUBMOUNT: &str = "in-another-file-system";

/// The group of the virtual machine monitor, which a host without it gets for one daemon.
pub(crate) const KVM: &str = "kvm";
const KVM_GID: u32 = 991;

/// What surrounds one daemon.
pub(crate) struct Environment<'a> {
    /// The daemon's directory.
    pub(crate) dir: &'a Path,
    pub(crate) who: As,
    /// The process whose user namespace it is in.
    pub(crate) container: Option<&'a Child>,
    pub(crate) cgroup: Option<&'a Cgroup>,
    pub(crate) has_syslog: bool,
    pub(crate) has_kvm: bool,
}

impl Environment<'_> {
    /// A command that runs its arguments in this environment.
    pub(crate) fn command(&self) -> Result<Command> {
        let mut command = process::tied("env", None);
        // Root prepares what the daemon's user then has.
        let mut preparation = String::new();
        for entrance in self.cgroup.into_iter().flat_map(Cgroup::entrances) {
            preparation += &format!("echo $$ >'{}' && ", entrance.display());
        }
        let mut binds = Vec::new();
        if self.who == As::UserWithSubIds {
            let bin = install_id_programs(self.dir)?;
            let path = std::env::var("PATH").unwrap_or_default();
            command.arg(format!("PATH={}:{path}", bin.display()));
            binds.extend(["subuid", "subgid"]);
        }
        if self.has_kvm {
            write_groups(&self.dir.join("group"))?;
            binds.push("group");
        }
        for name in &binds {
            let given = self.dir.join(name);
            preparation += &format!("mount --bind '{}' /etc/{name} && ", given.display());
        }
        if self.has_syslog {
            preparation += &self.devices_with_syslog()?;
        }
        if !binds.is_empty() || self.has_syslog {
            command.args(["unshare", "--mount"]);
        }
        if !preparation.is_empty() {
            command.args(["sh", "-c", &format!("{preparation}exec \"$0\" \"$@\"")]);
        }
        if let Some(user) = self.who.user() {
            command.args(["setpriv", "--pdeathsig=KILL", "--clear-groups"]);
            command.arg(format!("--reuid={}", user.uid));
            command.arg(format!("--regid={}", user.gid));
        }
        if self.who == As::UserInNamespace {
            command.args(["unshare", "--user", "--map-root-user"]);
        }
        if self.who == As::Restricted {
            command.args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]);
        }
        if let Some(container) = self.container {
            let namespace = format!("--user=/proc/{}/ns/user", container.id());
            command.args(["nsenter", &namespace, "-S", "0", "-G", "0"]);
        }
        Ok(command)
    }

    /// Shell text that replaces `/dev` by one with few devices and the syslog daemon's socket. The
    /// host's own may have no socket, and is not to get one.
    fn devices_with_syslog(&self) -> Result<String> {
        let devices = self.dir.join("dev");
        fs::create_dir(&devices)?;
        let (devices, socket) = (devices.display(), self.dir.join(SYSLOG));
        Ok(format!(
            "mount -t tmpfs -o mode=755 devices '{devices}' && \
             for name in null zero full random urandom; do \
             touch '{devices}'/$name && mount --bind /dev/$name '{devices}'/$name || exit; done && \
             ln -s /proc/self/fd '{devices}/fd' && touch '{devices}/log' && \
             mount --bind '{}' '{devices}/log' && mount --rbind '{devices}' /dev && ",
            socket.display()
        ))
    }
}

/// newuidmap and newgidmap with their set-user-ID bits, and the files that say which ids `nobody`
/// has. Returns the directory of the programs.
fn install_id_programs(dir: &Path) -> Result<PathBuf> {
    let package = packages::unpacked("uidmap", Arch::Amd64)?;
    let bin = dir.join("bin");
    fs::create_dir(&bin)?;
    for name in ["newuidmap", "newgidmap"] {
        let program = bin.join(name);
        fs::copy(package.join("usr/bin").join(name), &program)?;
        fs::set_permissions(&program, Permissions::from_mode(0o4755))?;
    }
    for name in ["subuid", "subgid"] {
        fs::write(dir.join(name), format!("nobody:{FIRST_SUB_ID}:{SUB_IDS}\n"))?;
    }
    Ok(bin)
}

/// Writes the host's groups, with [`KVM`] among them.
fn write_groups(path: &Path) -> Result<()> {
    let mut groups = fs::read_to_string("/etc/group")?;
    if number_of(KVM, &groups).is_none() {
        groups += &format!("{KVM}:x:{KVM_GID}:\n");
    }
    Ok(fs::write(path, groups)?)
}

/// The number of the group [`KVM`] for a daemon that has it.
pub(crate) fn kvm_gid() -> Result<u32> {
    let groups = fs::read_to_string("/etc/group")?;
    Ok(number_of(KVM, &groups).unwrap_or(KVM_GID))
}

fn number_of(group: &str, groups: &str) -> Option<u32> {
    let line = groups
        .lines()
        .find(|line| line.split(':').next() == Some(group))?;
    line.split(':').nth(2)?.parse().ok()
}

/// A syslog daemon.
pub(crate) struct Syslog {
    messages: Arc<Mutex<String>>,
}

impl Syslog {
    /// Receives at `path`, where everybody may send, until the test program ends.
    pub(crate) fn listen(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o666))?;
        let messages = Arc::new(Mutex::new(String::new()));
        let received = Arc::clone(&messages);
        // A daemon waits while the socket is full, so somebody has to receive at any time.
        thread::spawn(move || {
            let mut message = [0; 8192];
            while let Ok(len) = socket.recv(&mut message) {
                let text = String::from_utf8_lossy(message.get(..len).unwrap_or_default());
                let mut received = received.lock();
                received.push_str(&text);
                received.push('\n');
            }
        });
        Ok(Self { messages })
    }

    pub(crate) fn messages(&self) -> String {
        self.messages.lock().clone()
    }
}

/// Another file system below a share, with a file in it; unmounted when dropped.
pub(crate) struct Submount(PathBuf);

impl Submount {
    pub(crate) fn below(share: &Path, owner: u32) -> Result<Self> {
        let path = share.join(SUBMOUNT);
        fs::create_dir(&path)?;
        let options = std::ffi::CString::new(format!("mode=755,uid={owner},gid={owner}"))?;
        mount("below", &path, "tmpfs", MountFlags::empty(), &*options)
            .context("mounting below the share")?;
        let submount = Self(path);
        let file = submount.0.join(IN_SUBMOUNT);
        fs::write(&file, "below\n")?;
        std::os::unix::fs::chown(&file, Some(owner), Some(owner))?;
        Ok(submount)
    }
}

impl Drop for Submount {
    fn drop(&mut self) {
        // A process that still uses it keeps it, but not the directory.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
