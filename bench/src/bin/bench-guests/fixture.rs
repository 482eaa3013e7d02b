//! Guests that mount a host directory in each of the compared ways.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::debian_tree;
use gangplank_tests::guest::kernel::Release;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::process::with_descendants;
use gangplank_tests::relay::Relay;
use gangplank_tests::{packages, tools};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::costs::Cost;
use crate::kernel_counts::Counting;
use crate::situation::Situation;
use crate::tap::Tap;

/// The names of gangplankd, of a second one, and of the host's own file system in the results.
pub(crate) const OURS: &str = "gangplankd";
pub(crate) const AGAIN: &str = "again";
pub(crate) const HOST: &str = "host";

/// The peer that is served by a daemon for each guest.
const VIRTIOFSD: &str = "virtiofsd";

/// Names that no further daemon may have.
pub(crate) const RESERVED: [&str; 7] = [OURS, AGAIN, HOST, VIRTIOFSD, "hostfs", "9p", TOOLS];

/// Longest message of 9P, in bytes.
const PLAN9_MSIZE: u32 = 512 << 10;

/// Limit of one workload on all file systems of a guest, for each round.
const LIMIT: Duration = Duration::from_secs(300);

/// Tag of the share that holds the programs.
const TOOLS: &str = "tools";

/// The guests, the daemons, and the directory whose parts they share.
pub(crate) struct Fixture {
    guests: Vec<Guest>,
    /// File systems in the guests, gangplankd first.
    systems: Vec<String>,
    peers: Vec<String>,
    percent: u32,
    /// A Debian tree; the compared directories are in its `work`.
    tree: PathBuf,
    program: PathBuf,
    // Fields drop in this order.
    counted: Vec<Counted>,
    _relays: Vec<Relay>,
    _daemons: Vec<Daemon>,
    _dir: TempDir,
}

/// A daemon whose messages and processes can be counted.
struct Counted {
    system: String,
    tap: Tap,
    /// The process that the fixture started.
    daemon: u32,
}

/// What guests are measured for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Rates, on every file system.
    Rates,
    /// Counts, on those that have a daemon. gangplankd is there once.
    Counts,
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

/// The directory in which a guest works, of one of the file systems.
fn place(tree: &str, system: &str, guest: usize) -> String {
    format!("{tree}/work/{system}/{guest}")
}

impl Fixture {
    /// Starts the guests of a situation on `machine`. Workloads do `percent` of their usual amount.
    /// `beside` are further builds of gangplankd by name.
    pub(crate) fn new(
        machine: Machine,
        percent: u32,
        situation: Situation,
        beside: &[(String, PathBuf)],
        purpose: Purpose,
    ) -> Result<Self> {
        let is_counted = purpose == Purpose::Counts;
        let guests = situation.guests();
        let dir = tempfile::Builder::new()
            .prefix("gangplank-bench-")
            .tempdir()?;
        let tree = dir.path().join("tree");
        debian_tree::copy_to(&tree, machine.arch())?;
        make_devices(&tree)?;
        let own = match machine {
            Machine::Uml => "hostfs",
            _ => "9p",
        };
        let own = (!is_counted).then_some(own);
        let again = (!is_counted).then_some(AGAIN);
        let ours = [Some(OURS), again].into_iter().flatten();
        let ours = ours.map(|name| (name.to_owned(), None));
        let others = beside
            .iter()
            .map(|(name, program)| (name.clone(), Some(program)));
        let ours: Vec<(String, Option<&PathBuf>)> = ours.chain(others).collect();
        let mut systems: Vec<String> = ours.iter().map(|(name, _)| name.clone()).collect();
        systems.extend(
            [Some(VIRTIOFSD), own]
                .into_iter()
                .flatten()
                .map(str::to_owned),
        );
        let mut counted = Vec::new();
        let mut tapped = |system: &str, daemon: &Daemon, socket: &Path| -> Result<PathBuf> {
            if !is_counted {
                return Ok(socket.to_owned());
            }
            let tap = Tap::start(socket)?;
            let tapped = tap.socket().to_owned();
            counted.push(Counted {
                system: system.to_owned(),
                tap,
                daemon: daemon.pid(),
            });
            Ok(tapped)
        };
        for name in systems.iter().map(String::as_str).chain([HOST]) {
            for guest in 0..guests {
                fs::create_dir_all(place(&tree.to_string_lossy(), name, guest))?;
            }
        }
        let work = |name: &str| tree.join("work").join(name);

        let cached = daemon::Options::new(&tree)
            .tag(TOOLS)
            .arguments(&["--cache=always"]);
        let mut daemons = vec![Daemon::start(&cached)?];
        let mut sockets = vec![(TOOLS.to_owned(), daemons[0].socket().to_owned())];
        for (name, program) in &ours {
            let mut options = daemon::Options::new(&work(name)).tag(name);
            if let Some(program) = program {
                options = options.program(program);
            }
            let daemon = Daemon::start(&options)?;
            sockets.push((name.clone(), tapped(name, &daemon, daemon.socket())?));
            daemons.push(daemon);
        }
        let program = gangplank_bench::guest_bench(machine.arch())?;
        let mut relays = Vec::new();
        let mut booted = Vec::new();
        for number in 0..guests {
            // virtiofsd serves one guest.
            let options = daemon::Options::new(&work(VIRTIOFSD))
                .tag(VIRTIOFSD)
                .program(&tools::virtiofsd()?);
            let theirs = Daemon::start(&options)?;
            let mut socket = theirs.socket().to_owned();
            if machine == Machine::Uml {
                // User Mode Linux reaches virtiofsd only through the relay.
                let relay = Relay::start(&socket, &[])?;
                socket = relay.socket();
                relays.push(relay);
            }
            let socket = tapped(VIRTIOFSD, &theirs, &socket)?;
            daemons.push(theirs);
            let mut options = Options::new(machine).program("guest-bench", &program);
            options.memory_mib = if guests == 1 { 1024 } else { 512 };
            for (tag, socket) in &sockets {
                options = options.share(socket, tag);
            }
            options = options.share(&socket, VIRTIOFSD);
            if own == Some("9p") {
                options.release = Release::General;
                options.plan9.push((work("9p"), "9p".to_owned()));
            }
            let guest = boot(&options, &systems, own, &work(own.unwrap_or_default()));
            let guest = guest.with_context(|| format!("guest {number}"))?;
            situation.place_guest(guest.pid())?;
            booted.push(guest);
        }
        let peers = systems.iter().skip(1).cloned();
        Ok(Self {
            guests: booted,
            peers: peers.chain([HOST.to_owned()]).collect(),
            systems,
            percent,
            tree,
            program,
            counted,
            _relays: relays,
            _daemons: daemons,
            _dir: dir,
        })
    }

    /// What gangplankd is compared with, the host's own file system last.
    pub(crate) fn peers(&self) -> &[String] {
        &self.peers
    }

    /// The names of all workloads.
    pub(crate) fn workloads(&self) -> Result<Vec<String>> {
        let listed = packages::output(Command::new(&self.program).arg("--list"))?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// Runs `workload` on every file system in turn, `rounds` times, in all guests at once. Returns
    /// the outputs of guest-bench.
    pub(crate) fn in_guests(&mut self, workload: &str, rounds: u32) -> Result<Vec<String>> {
        if let [guest] = self.guests.as_mut_slice() {
            let places: Vec<String> = self
                .systems
                .iter()
                .map(|name| format!("{name}={}", place("/tools", name, 0)))
                .collect();
            let command = command(rounds, self.percent, &places.join(" "), workload);
            let limit = LIMIT * rounds.saturating_add(1);
            return Ok(vec![guest.sh_within(&command, limit)?]);
        }
        let mut printed = Vec::new();
        for _ in 0..rounds {
            for name in &self.systems {
                // Together, so that all are on the same file system at the same time.
                printed.extend(together(&mut self.guests, |number, guest| {
                    let place = format!("{name}={}", place("/tools", name, number));
                    guest.sh_within(&command(1, self.percent, &place, workload), LIMIT)
                })?);
            }
        }
        Ok(printed)
    }

    /// Runs `workload` once on every file system, and counts what it takes. There must be one
    /// guest.
    pub(crate) fn costs(&mut self, workload: &str) -> Result<Vec<Cost>> {
        let guest = self.guests.first_mut().context("there is no guest")?;
        let mut costs = Vec::new();
        for counted in &self.counted {
            let system = &counted.system;
            let place = format!("{system}={}", place("/tools", system, 0));
            let mut phase = |phase: &str| {
                let places = format!("--phase {phase} {place}");
                guest.sh_within(&command(1, self.percent, &places, workload), LIMIT)
            };
            phase("prepare")?;
            let before = counted.tap.returned()?;
            let counting = Counting::start(&with_descendants(counted.daemon))?;
            let printed = phase("run")?;
            let messages = counted.tap.returned()? - before;
            costs.push(Cost::new(&printed, messages, counting.end()?)?);
            phase("clear")?;
        }
        Ok(costs)
    }

    /// Runs `workload` on the host's file system, as often at once as there are guests.
    pub(crate) fn on_host(&mut self, workload: &str, rounds: u32) -> Result<Vec<String>> {
        let (tree, program, percent) = (&self.tree, &self.program, self.percent);
        together(&mut self.guests, |number, _| {
            let place = place(&tree.to_string_lossy(), HOST, number);
            let output = Command::new(program)
                .arg("--root")
                .arg(tree)
                .args(["--rounds", &rounds.to_string()])
                .args(["--size", &percent.to_string()])
                .arg(format!("{HOST}={place}"))
                .args(["--", workload])
                .output()
                .context("running guest-bench on the host")?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(output.status.success(), "guest-bench on the host: {text}");
            Ok(text)
        })
    }
}

/// Boots a guest that has every file system below `/tools/work`.
fn boot(
    options: &Options,
    systems: &[String],
    own: Option<&str>,
    directory: &Path,
) -> Result<Guest> {
    let mut guest = Guest::boot(options)?;
    guest.mount(TOOLS, "/tools")?;
    guest.sh(
        "mount -t tmpfs tmpfs /tools/tmp && mount -o bind /dev /tools/dev && mount -t \
        proc proc /tools/proc",
    )?;
    for name in systems.iter().filter(|name| Some(name.as_str()) != own) {
        guest.sh(&format!("mount -t virtiofs {name} /tools/work/{name}"))?;
    }
    let Some(own) = own else {
        return Ok(guest);
    };
    let how = match own {
        // The size that QEMU's documentation advises.
        "9p" => format!("-t 9p -o trans=virtio,version=9p2000.L,msize={PLAN9_MSIZE} 9p"),
        _ => format!("-t hostfs -o {} none", directory.display()),
    };
    guest.sh(&format!("mount {how} /tools/work/{own}"))?;
    Ok(guest)
}

/// The command line in a guest.
fn command(rounds: u32, percent: u32, places: &str, workload: &str) -> String {
    format!(
        "guest-bench --root /tools --drop-caches --rounds {rounds} --size {percent} {places} -- \
         {workload}"
    )
}

/// Calls `work` for each guest with its number, on a thread each.
fn together<T: Send>(
    guests: &mut [Guest],
    work: impl Fn(usize, &mut Guest) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = guests
            .iter_mut()
            .enumerate()
            .map(|(number, guest)| scope.spawn(move || work(number, guest)))
            .collect();
        let joined = threads.into_iter().map(|thread| {
            let result = thread.join();
            result.unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
        });
        joined.collect()
    })
}
