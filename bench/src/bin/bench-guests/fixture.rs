//! One guest that mounts a host directory in each of the compared ways.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::debian_tree;
use gangplank_tests::guest::kernel::Release;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::relay::Relay;
use gangplank_tests::{packages, tools};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use tempfile::TempDir;

/// The names of gangplankd and of the host's own file system in the results.
pub(crate) const OURS: &str = "gangplankd";
pub(crate) const HOST: &str = "host";

/// Longest message of 9P, in bytes.
const PLAN9_MSIZE: u32 = 512 << 10;

/// Limit of one workload on all file systems of a guest, for each round.
const LIMIT: Duration = Duration::from_secs(300);

/// Tag of the share that holds the programs.
const TOOLS: &str = "tools";

/// The guest, the daemons, and the directory whose parts they share.
pub(crate) struct Fixture {
    guest: Guest,
    peers: Vec<&'static str>,
    percent: u32,
    /// A Debian tree; the compared directories are in its `work`.
    tree: PathBuf,
    program: PathBuf,
    // Fields drop in this order.
    _relay: Option<Relay>,
    _daemons: Vec<Daemon>,
    _dir: TempDir,
}

/// Makes the devices that programs open on the host. A guest has its own.
fn make_devices(tree: &Path) -> Result<()> {
    let (kind, mode) = (FileType::CharacterDevice, Mode::from_raw_mode(0o666));
    for (name, minor) in [("null", 3), ("zero", 5), ("urandom", 9)] {
        let path = tree.join("dev").join(name);
        match mknodat(CWD, &path, kind, mode, makedev(1, minor)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("making the programs' /dev/{name}, which takes root")
                });
            }
        }
    }
    Ok(())
}

impl Fixture {
    /// Starts everything on `machine`. Workloads do `percent` of their usual amount.
    pub(crate) fn new(machine: Machine, percent: u32) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-bench-")
            .tempdir()?;
        let tree = dir.path().join("tree");
        debian_tree::copy_to(&tree, machine.arch())?;
        make_devices(&tree)?;
        let work = |name: &str| -> Result<PathBuf> {
            let path = tree.join("work").join(name);
            fs::create_dir_all(&path)?;
            Ok(path)
        };
        let cached = daemon::Options::new(&tree)
            .tag(TOOLS)
            .arguments(&["--cache=always"]);
        let mut daemons = vec![
            Daemon::start(&cached)?,
            Daemon::start(&daemon::Options::new(&work(OURS)?).tag(OURS))?,
        ];
        let theirs = daemon::Options::new(&work("virtiofsd")?)
            .tag("virtiofsd")
            .program(&tools::virtiofsd()?);
        daemons.push(Daemon::start(&theirs)?);
        let mut relay = None;
        let mut sockets: Vec<PathBuf> = daemons
            .iter()
            .map(|daemon| daemon.socket().to_owned())
            .collect();
        if machine == Machine::Uml
            && let Some(last) = sockets.last_mut()
        {
            // User Mode Linux reaches virtiofsd only through the relay.
            let started = Relay::start(last, &[])?;
            *last = started.socket();
            relay = Some(started);
        }
        let program = gangplank_bench::guest_bench(machine.arch())?;
        let mut options = Options::new(machine).program("guest-bench", &program);
        options.memory_mib = 1024;
        for (socket, tag) in sockets.iter().zip([TOOLS, OURS, "virtiofsd"]) {
            options = options.share(socket, tag);
        }
        // The file system that the hypervisor serves without a daemon.
        let own = match machine {
            Machine::Uml => "hostfs",
            _ => "9p",
        };
        let directory = work(own)?;
        if own == "9p" {
            options.release = Release::General;
            options.plan9.push((directory.clone(), own.to_owned()));
        }
        let mut guest = Guest::boot(&options)?;
        guest.mount(TOOLS, "/tools")?;
        guest.sh(
            "mount -t tmpfs tmpfs /tools/tmp && mount -o bind /dev /tools/dev && mount -t \
            proc proc /tools/proc",
        )?;
        for name in [OURS, "virtiofsd"] {
            guest.sh(&format!("mount -t virtiofs {name} /tools/work/{name}"))?;
        }
        let how = match own {
            // The size that QEMU's documentation advises.
            "9p" => format!("-t 9p -o trans=virtio,version=9p2000.L,msize={PLAN9_MSIZE} 9p"),
            _ => format!("-t hostfs -o {} none", directory.display()),
        };
        guest.sh(&format!("mount {how} /tools/work/{own}"))?;
        work(HOST)?;
        Ok(Self {
            guest,
            peers: vec!["virtiofsd", own, HOST],
            percent,
            tree,
            program,
            _relay: relay,
            _daemons: daemons,
            _dir: dir,
        })
    }

    /// What gangplankd is compared with, the host's own file system last.
    pub(crate) fn peers(&self) -> &[&'static str] {
        &self.peers
    }

    /// The names of all workloads.
    pub(crate) fn workloads(&self) -> Result<Vec<String>> {
        let listed = packages::output(Command::new(&self.program).arg("--list"))?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// Runs `workload` on every file system of the guest in turn, `rounds` times. Returns the
    /// output of guest-bench.
    pub(crate) fn in_guest(&mut self, workload: &str, rounds: u32) -> Result<String> {
        let places: Vec<String> = std::iter::once(OURS)
            .chain(self.peers.iter().copied().filter(|peer| *peer != HOST))
            .map(|name| format!("{name}=/tools/work/{name}"))
            .collect();
        let command = format!(
            "guest-bench --root /tools --drop-caches --rounds {rounds} --size {} {} -- {workload}",
            self.percent,
            places.join(" ")
        );
        let rounds = rounds.saturating_add(1);
        self.guest.sh_within(&command, LIMIT * rounds)
    }

    /// Runs `workload` on the host's file system.
    pub(crate) fn on_host(&self, workload: &str, rounds: u32) -> Result<String> {
        let output = Command::new(&self.program)
            .arg("--root")
            .arg(&self.tree)
            .args(["--rounds", &rounds.to_string()])
            .args(["--size", &self.percent.to_string()])
            .arg(format!(
                "{HOST}={}",
                self.tree.join("work").join(HOST).display()
            ))
            .args(["--", workload])
            .output()
            .context("running guest-bench on the host")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "guest-bench on the host: {text}");
        Ok(text)
    }
}
