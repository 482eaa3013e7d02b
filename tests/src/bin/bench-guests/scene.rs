//! One guest with a directory of the host mounted in each way that is compared.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::debian_tree;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::relay::Relay;
use gangplank_tests::{packages, tools};
use tempfile::TempDir;

/// What ours is called in the results; the host's own file system is `host`.
pub(crate) const OURS: &str = "gangplankd";

/// How long one workload may take on all file systems of a guest, for each round.
const LIMIT: Duration = Duration::from_secs(300);

/// Tag of the share that holds the programs.
const TOOLS: &str = "tools";

/// The guest, the daemons, and the directory they all share parts of.
pub(crate) struct Scene {
    guest: Guest,
    peers: Vec<&'static str>,
    percent: u32,
    /// A Debian tree; the compared directories are in its `work`.
    tree: PathBuf,
    program: PathBuf,
    // In the order in which they have to go.
    _relay: Option<Relay>,
    _daemons: Vec<Daemon>,
    _dir: TempDir,
}

impl Scene {
    /// Starts everything on `machine`; workloads do `percent` of what they usually do.
    pub(crate) fn new(machine: Machine, percent: u32) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-bench-")
            .tempdir()?;
        let tree = dir.path().join("tree");
        debian_tree::copy_to(&tree, machine.arch())?;
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
            // User Mode Linux can use that daemon by it only.
            let started = Relay::start(last, &[])?;
            *last = started.socket();
            relay = Some(started);
        }
        let program = tools::guest_bench(machine.arch())?;
        let mut options = Options::new(machine).program("guest-bench", &program);
        options.memory_mib = 1024;
        for (socket, tag) in sockets.iter().zip([TOOLS, OURS, "virtiofsd"]) {
            options = options.share(socket, tag);
        }
        let mut guest = Guest::boot(&options)?;
        guest.mount(TOOLS, "/tools")?;
        guest.sh("mount -t tmpfs tmpfs /tools/tmp && mount -o bind /dev /tools/dev && mount -t proc proc /tools/proc")?;
        for name in [OURS, "virtiofsd"] {
            guest.sh(&format!("mount -t virtiofs {name} /tools/work/{name}"))?;
        }
        let mut peers = vec!["virtiofsd"];
        if machine == Machine::Uml {
            let directory = work("hostfs")?;
            guest.sh(&format!(
                "mount -t hostfs none /tools/work/hostfs -o {}",
                directory.display()
            ))?;
            peers.push("hostfs");
        }
        work("host")?;
        peers.push("host");
        Ok(Self {
            guest,
            peers,
            percent,
            tree,
            program,
            _relay: relay,
            _daemons: daemons,
            _dir: dir,
        })
    }

    /// What ours is compared with, the host's own file system last.
    pub(crate) fn peers(&self) -> &[&'static str] {
        &self.peers
    }

    /// All workloads there are, by name.
    pub(crate) fn workloads(&self) -> Result<Vec<String>> {
        let listed = packages::output(Command::new(&self.program).arg("--list"))?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// Runs `workload` on every file system of the guest in turn, `rounds` times; what guest-bench prints.
    pub(crate) fn in_guest(&mut self, workload: &str, rounds: u32) -> Result<String> {
        let places: Vec<String> = std::iter::once(OURS)
            .chain(self.peers.iter().copied().filter(|peer| *peer != "host"))
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

    /// The same on the host's file system.
    pub(crate) fn on_host(&self, workload: &str, rounds: u32) -> Result<String> {
        let output = Command::new(&self.program)
            .arg("--root")
            .arg(&self.tree)
            .args(["--rounds", &rounds.to_string()])
            .args(["--size", &self.percent.to_string()])
            .arg(format!("host={}", self.tree.join("work/host").display()))
            .args(["--", workload])
            .output()
            .context("running guest-bench on the host")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "guest-bench on the host: {text}");
        Ok(text)
    }
}
