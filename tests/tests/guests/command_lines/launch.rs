//! Starts the daemon as a manager of virtual machines does: with exactly its command line, its
//! user, and its way to hand a socket over.

use std::fs::{self, File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::cgroup::Cgroup;
use gangplank_tests::process::{self, User};
use gangplank_tests::promises::FIRST_SUB_ID;
use gangplank_tests::sockets::listens;
use gangplank_tests::tools;
use gangplank_tests::wait;
use tempfile::TempDir;

use crate::by_option;
use crate::environment::{self, SYSLOG, Submount, Syslog};

/// Limit for the daemon to listen, and to end with its guest.
const LIMIT: Duration = Duration::from_secs(20);

/// Number of ids from [`FIRST_SUB_ID`] on.
pub(crate) const SUB_IDS: u32 = 65_536;

/// Who runs the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    /// The host's root.
    Root,
    /// An ordinary user without privileges.
    User,
    /// The same, to whom the administrator has given further ids.
    UserWithSubIds,
    /// A user in a container that may gain no privileges.
    Restricted,
    /// Root of a user namespace, which is [`FIRST_SUB_ID`] outside.
    Container,
    /// An ordinary user who is root of a user namespace with this one user.
    UserInNamespace,
}

impl As {
    /// The user who runs it; `None` for root.
    pub(crate) const fn user(self) -> Option<User> {
        match self {
            Self::Root | Self::Container => None,
            Self::User | Self::UserWithSubIds | Self::UserInNamespace => Some(User::NOBODY),
            Self::Restricted => Some(User { uid: 107, gid: 107 }),
        }
    }

    /// Who owns the share on the host.
    pub(crate) const fn owner(self) -> u32 {
        match (self, self.user()) {
            (Self::Container, _) => FIRST_SUB_ID,
            (_, Some(user)) => user.uid,
            (_, None) => 0,
        }
    }
}

/// Bytes of memory, and percent of a processor, of KubeVirt's container (`virtiofs.go`).
const CONTAINER: (u64, u32) = (80 << 20, 10);

/// Options that are tried with a mount below the share.
const SUBMOUNT_OPTIONS: &[&str] = &[
    "--announce-submounts",
    "announce_submounts",
    "--no-announce-submounts",
];

/// How a manager starts the daemon.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start<'a> {
    /// The command line, in which `P` at the end of a word stands for the share and `S` for a
    /// socket. `--fd` gets a listening socket, which is descriptor 3.
    pub(crate) words: &'a [&'a str],
    pub(crate) who: As,
    /// The share's name.
    pub(crate) share: &'a str,
    /// Variables of the environment.
    pub(crate) environment: &'a [(&'a str, &'a str)],
}

/// A running daemon; killed when dropped.
pub(crate) struct Launched {
    child: Child,
    /// The process whose namespace the daemon is in.
    container: Option<Child>,
    /// The group in which a container's processes are.
    cgroup: Option<Cgroup>,
    syslog: Option<Syslog>,
    /// Mounted below the share.
    _submount: Option<Submount>,
    dir: TempDir,
    share: PathBuf,
}

impl Launched {
    /// Starts the daemon. The working directory is the share if the share is `.`, else the socket's
    /// directory. Options get what they need of the host: `--socket-group=kvm` the group,
    /// `--syslog` a socket at `/dev/log`, `--[no-]announce-submounts` a mount below the share.
    pub(crate) fn start(start: &Start<'_>) -> Result<Self> {
        let (words, who) = (start.words, start.who);
        let dir = tempfile::Builder::new()
            .prefix("gangplank-line-")
            .tempdir()?;
        let share = dir.path().join(start.share);
        fs::create_dir(&share)?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        for path in [dir.path(), &share] {
            chown(path, Some(who.owner()), Some(who.owner()))?;
        }
        let submount = match has_option(words, SUBMOUNT_OPTIONS) {
            true => Some(Submount::below(&share, who.owner())?),
            false => None,
        };
        let program = dir.path().join("gangplankd");
        fs::copy(tools::gangplankd()?, &program).context("copying the daemon for its user")?;

        let container = match who {
            As::Container => Some(container()?),
            _ => None,
        };
        let (bytes, percent) = CONTAINER;
        let cgroup = match who {
            As::Restricted => Cgroup::of_container(bytes, percent),
            _ => None,
        };
        if who == As::Restricted && cgroup.is_none() {
            eprintln!("no control group can be made here: the container has no limits");
        }
        let syslog = match has_option(words, &["--syslog"]) {
            true => Some(Syslog::listen(&dir.path().join(SYSLOG))?),
            false => None,
        };
        let environment = environment::Environment {
            dir: dir.path(),
            who,
            container: container.as_ref(),
            cgroup: cgroup.as_ref(),
            has_syslog: syslog.is_some(),
            has_kvm: has_option(words, &["--socket-group=kvm"]),
        };
        let mut command = environment.command()?;
        command.envs(start.environment.iter().copied());
        let takes_socket = by_option::value(words, "--fd").is_some();
        let socket = dir.path().join("fs.sock");
        let listener = takes_socket
            .then(|| UnixListener::bind(&socket))
            .transpose()?;
        if listener.is_some() {
            command.args(["sh", "-c", r#"exec "$0" "$@" 3<&0 0</dev/null"#]);
        }
        let arguments = words.iter().map(|word| filled_in(word, &socket, &share));
        let directory = match words.contains(&".") {
            true => &share,
            false => dir.path(),
        };
        command
            .arg(&program)
            .args(arguments)
            .current_dir(directory)
            .stdin(listener.map_or_else(Stdio::null, |one| Stdio::from(OwnedFd::from(one))))
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log"))?);
        let described = format!("{command:?}");
        let child = process::spawn(command).with_context(|| described.clone())?;
        let mut launched = Self {
            child,
            container,
            cgroup,
            syslog,
            _submount: submount,
            dir,
            share,
        };
        if !takes_socket {
            launched
                .wait_for_socket()
                .with_context(|| format!("{described}\n{}", launched.log()))?;
        }
        Ok(launched)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("fs.sock")
    }

    /// The shared directory on the host.
    pub(crate) fn share(&self) -> &Path {
        &self.share
    }

    /// What it has written to standard error and to syslog.
    pub(crate) fn log(&self) -> String {
        self.standard_error() + &self.syslog()
    }

    pub(crate) fn standard_error(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The messages that it has sent to syslog.
    pub(crate) fn syslog(&self) -> String {
        self.syslog
            .as_ref()
            .map(Syslog::messages)
            .unwrap_or_default()
    }

    /// The process that serves its guest.
    pub(crate) fn worker(&self) -> Result<u32> {
        let named_worker = |process: &u32| {
            fs::read_to_string(format!("/proc/{process}/comm"))
                .is_ok_and(|name| name.starts_with("worker"))
        };
        let processes = process::with_descendants(self.child.id());
        let worker = processes.into_iter().rfind(named_worker);
        worker.context("the daemon has no worker")
    }

    /// Fails if the kernel has killed a process of it for lack of memory.
    pub(crate) fn has_memory(&self) -> Result<()> {
        let kills = self.cgroup.as_ref().map_or(Ok(0), Cgroup::kills)?;
        ensure!(
            kills == 0,
            "{kills} processes were killed for lack of memory"
        );
        Ok(())
    }

    /// Waits until the daemon has ended with its last guest.
    pub(crate) fn ends_with_its_guest(&mut self) -> Result<()> {
        let status = process::wait_within(&mut self.child, LIMIT)?;
        ensure!(status.success(), "{status}\n{}", self.log());
        Ok(())
    }

    fn wait_for_socket(&mut self) -> Result<()> {
        let socket = self.socket().to_owned();
        wait::until("the daemon listens", LIMIT, || {
            let is_ready = listens(self.child.id(), &socket);
            wait::ready(&mut self.child, is_ready)
        })
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
        if let Some(container) = &mut self.container {
            process::kill_group(container);
        }
    }
}

fn filled_in(word: &str, socket: &Path, share: &Path) -> String {
    let share = share.display().to_string();
    match word.split_once("source=P") {
        // Commas are doubled there.
        Some((before, rest)) => format!("{before}source={}{rest}", share.replace(',', ",,")),
        None => match word.strip_suffix("P") {
            Some(before) if before.is_empty() || before.ends_with('=') => {
                format!("{before}{share}")
            }
            _ => match word.strip_suffix("S") {
                Some(before) if before.is_empty() || before.ends_with('=') => {
                    format!("{before}{}", socket.display())
                }
                _ => word.to_owned(),
            },
        },
    }
}

/// Whether one of `options` is a word.
fn has_option(words: &[&str], options: &[&str]) -> bool {
    words.iter().any(|word| options.contains(word))
}

/// A process in a user namespace whose ids from 0 on are those from [`FIRST_SUB_ID`] on outside.
fn container() -> Result<Child> {
    let mut command = process::tied("unshare", None);
    command.args(["--user", "sleep", "infinity"]);
    let mut child = process::spawn(command)?;
    let until = Instant::now() + LIMIT;
    let own = fs::read_link("/proc/self/ns/user")?;
    while fs::read_link(format!("/proc/{}/ns/user", child.id())).is_ok_and(|one| one == own) {
        if Instant::now() > until {
            process::kill_group(&mut child);
            bail!("no user namespace");
        }
        thread::sleep(Duration::from_millis(5));
    }
    for file in ["uid_map", "gid_map"] {
        let map = format!("0 {FIRST_SUB_ID} {SUB_IDS}\n");
        fs::write(format!("/proc/{}/{file}", child.id()), map)?;
    }
    Ok(child)
}
