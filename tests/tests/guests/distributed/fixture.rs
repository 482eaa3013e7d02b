//! Two hosts with a mount of one cluster, a daemon for each cache policy, and a guest each.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::driver::fixture::wait_for_log;
use gangplank_tests::guest::initramfs::Extra;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::moosefs::{Cluster, Programs};
use gangplank_tests::packages;
use gangplank_tests::relay::Relay;
use gangplank_tests::tools;

/// The cache policies, which are also the tags and the directories where guests mount.
pub(crate) const POLICIES: [&str; 2] = ["never", "auto"];

/// Limit for what guests do at the same time.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);

/// One host.
pub(crate) struct Host {
    pub(crate) guest: Guest,
    /// By [`POLICIES`].
    pub(crate) daemons: Vec<Daemon>,
    /// The cluster's file system.
    pub(crate) path: PathBuf,
}

/// The hosts. Guests end before daemons, and those before the cluster.
pub(crate) struct Fixture {
    pub(crate) hosts: Vec<Host>,
    /// Between the first guest and its daemon of the policy `auto`.
    pub(crate) relay: Relay,
    pub(crate) cluster: Cluster,
    pub(crate) has_sqlite: bool,
}

impl Fixture {
    pub(crate) fn new(programs: &Programs) -> Result<Self> {
        let cluster = Cluster::start(programs, 2)?;
        let paths = [cluster.path(0), cluster.path(1)];
        fs::write(paths[0].join("fsx.toml"), tools::FSX_CONFIGURATION)?;
        let mut daemons = Vec::new();
        for path in &paths {
            let started = POLICIES.map(|policy| daemon_on(path, policy));
            daemons.push(started.into_iter().collect::<Result<Vec<_>>>()?);
        }
        let relay = Relay::start(daemons[0][1].socket(), &[])?;
        let sqlite = program_with_libraries("sqlite3");
        let boots: Vec<Options> = (0..2)
            .map(|host| {
                let second = match host {
                    0 => relay.socket(),
                    _ => daemons[1][1].socket().to_owned(),
                };
                let mut options = Options::new(Machine::Uml)
                    .share(daemons[host][0].socket(), POLICIES[0])
                    .share(&second, POLICIES[1])
                    .program("guest-check", &tools::guest_check(Machine::Uml.arch())?)
                    .program("fsx", &tools::fsx()?);
                options.memory_mib = 128;
                options.extras.extend(sqlite.clone().unwrap_or_default());
                Ok(options)
            })
            .collect::<Result<_>>()?;
        let guests = std::thread::scope(|scope| {
            let booting: Vec<_> = (boots.iter())
                .map(|options| scope.spawn(|| Guest::boot(options)))
                .collect();
            let booted = booting.into_iter().map(|one| {
                let booted = one.join().map_err(|_| anyhow!("booting panicked"));
                booted.and_then(|guest| guest)
            });
            booted.collect::<Result<Vec<_>>>()
        })?;
        let mut hosts = Vec::new();
        for ((daemons, guest), path) in daemons.into_iter().zip(guests).zip(paths) {
            hosts.push(Host {
                guest,
                daemons,
                path,
            });
        }
        let mut fixture = Self {
            hosts,
            relay,
            cluster,
            has_sqlite: sqlite.is_some(),
        };
        for host in &mut fixture.hosts {
            for policy in POLICIES {
                host.guest.mount(policy, &format!("/{policy}"))?;
            }
        }
        Ok(fixture)
    }

    /// Runs a command in each guest at the same time. Returns what they printed.
    pub(crate) fn both(&mut self, command: impl Fn(usize) -> String + Sync) -> Result<Vec<String>> {
        let command = &command;
        std::thread::scope(|scope| {
            let running: Vec<_> = (self.hosts.iter_mut().enumerate())
                .map(|(number, host)| {
                    scope.spawn(move || host.guest.sh_within(&command(number), LIMIT))
                })
                .collect();
            let ended = running.into_iter().map(|one| {
                let ended = one.join().map_err(|_| anyhow!("a command panicked"));
                ended.and_then(|said| said)
            });
            ended.collect()
        })
    }

    /// The same, while `work` runs on the second host, past its daemon, with the path of its mount.
    pub(crate) fn both_and_a_host(
        &mut self,
        command: impl Fn(usize) -> String + Sync,
        work: impl FnOnce(&Path) -> Result<()> + Send,
    ) -> Result<()> {
        let path = self.hosts[1].path.clone();
        std::thread::scope(|scope| {
            let working = scope.spawn(move || work(&path));
            let ended = self.both(command);
            let worked = working.join();
            worked.map_err(|_| anyhow!("the host's work panicked"))??;
            ended.map(drop)
        })
    }

    /// Has the machine forget the inodes that it has no descriptors of.
    pub(crate) fn drop_caches(&self) -> Result<()> {
        fs::write("/proc/sys/vm/drop_caches", "2").context("dropping caches")
    }

    /// What all daemons have logged last, and the cluster.
    pub(crate) fn logs(&self) -> String {
        let daemons = self.hosts.iter().flat_map(|host| &host.daemons);
        let logs = daemons.map(|daemon| {
            let log = daemon.log();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(6)..].join("\n")
        });
        let logs: Vec<String> = logs.collect();
        format!("{}\n{}", logs.join("\n--\n"), self.cluster.logs())
    }
}

/// A daemon of the cluster's mount at `path`.
pub(crate) fn daemon_on(path: &Path, policy: &str) -> Result<Daemon> {
    let options = daemon::Options::new(path).tag(policy);
    Daemon::start(&options.arguments(&[&format!("--cache={policy}"), "--xattr"]))
}

/// The host's program with its libraries, as files for a guest; `None` if the host has it not.
fn program_with_libraries(name: &str) -> Option<Vec<Extra>> {
    let path = PathBuf::from(format!("/usr/bin/{name}"));
    let listed = packages::output(Command::new("ldd").arg(&path)).ok()?;
    let words = listed.split_whitespace();
    let libraries = words
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from);
    let mut extras = vec![Extra {
        guest: format!("bin/{name}.bin"),
        host: path,
        mode: 0o755,
    }];
    for library in libraries {
        let file = library.file_name()?.to_str()?.to_owned();
        extras.push(Extra {
            guest: format!("bin/{file}"),
            host: library,
            mode: 0o755,
        });
    }
    Some(extras)
}

/// The shell text that runs [`program_with_libraries`].
pub(crate) const SQLITE: &str = "/bin/ld-linux-x86-64.so.2 --library-path /bin /bin/sqlite3.bin";

/// The daemon says what the storage is, keeps locks on the host by itself, and refuses handles that
/// do not last.
pub(crate) fn storage_is_told(fixture: &mut Fixture) -> Result<()> {
    let host = &fixture.hosts[0];
    let daemon = &host.daemons[0];
    for words in [
        "shared between hosts, locks included",
        "so: locks are kept on the host",
        "lacks lasting file handles",
    ] {
        wait_for_log(daemon, words)?;
    }
    let left = fs::read_dir(&host.path)?.count();
    ensure!(left == 1, "the probes have left something: {left} names");
    let refused = daemon::Options::new(&host.path).arguments(&["--inode-file-handles=mandatory"]);
    let error = Daemon::start(&refused)
        .err()
        .map(|error| format!("{error:#}"));
    let error = error.context("mandatory file handles were accepted")?;
    ensure!(
        error.contains("file handles end when the host drops"),
        "{error}"
    );
    Ok(())
}
