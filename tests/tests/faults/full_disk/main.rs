//! A full host disk: everything that a guest's system calls acknowledged is in the file, and
//! everything else was an error.
//!
//! One User Mode Linux guest for each file system has it from six daemons, one for each way of
//! caching. `disk-check` fills the file system to each boundary within a request and writes in each
//! way. Mounting needs root. `GANGPLANK_LONG=1` tests every 4 KiB of free space on all file
//! systems.

mod thin;

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::disk::{Disk, Kind};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::process::User;
use gangplank_tests::runner::{Runner, note};
use gangplank_tests::tools;

/// Limit for all methods at all amounts of free space.
const LIMIT: Duration = Duration::from_secs(900);

/// KiB between two amounts of free space: every page of a request.
const EACH_PAGE: u32 = 4;

/// KiB between two amounts of free space, for combinations that differ little from those that are
/// tested at each page: an odd number of pages, so that all places within larger units get a turn.
const SOME_PAGES: u32 = 76;

/// Ways of caching, by the daemon's options.
const CACHING: &[(&str, &[&str])] = &[
    ("auto", &[]),
    ("auto_writeback", &["--writeback"]),
    ("never", &["--cache=never"]),
    ("never_writeback", &["--cache=never", "--writeback"]),
    ("always", &["--cache=always"]),
    ("always_writeback", &["--cache=always", "--writeback"]),
];

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    for (prefix, kind) in [
        ("tmpfs", Kind::Tmpfs),
        ("ext4", Kind::Ext4),
        ("xfs", Kind::Xfs),
    ] {
        let names: Vec<String> = CACHING
            .iter()
            .map(|(name, _)| format!("{prefix}::{name}"))
            .collect();
        if !User::is_root() {
            for name in &names {
                runner.skip(name, "needs root");
            }
            continue;
        }
        let mut fixture = None;
        for (name, (caching, _)) in names.iter().zip(CACHING) {
            runner.run(name, || {
                let fixture = match &mut fixture {
                    Some(fixture) => fixture,
                    empty => empty.insert(Fixture::new(kind)?),
                };
                fixture.fill(kind, caching)
            });
        }
    }
    type Case = fn() -> Result<()>;
    let thin: [(&str, Case); 2] = [
        (
            "thin::each_open_file_hears_what_it_would_on_the_host",
            thin::each_open_file_hears_what_it_would_on_the_host,
        ),
        ("thin::each_guest_hears_once", thin::each_guest_hears_once),
    ];
    for (name, case) in thin {
        match User::is_root() {
            true => runner.run(name, case),
            false => runner.skip(name, "needs root"),
        }
    }
    runner.finish()
}

/// A guest that has one file system of the host from several daemons.
struct Fixture {
    // Fields drop in this order.
    guest: Guest,
    daemons: Vec<Daemon>,
    _disk: Disk,
}

impl Fixture {
    fn new(kind: Kind) -> Result<Self> {
        let disk = Disk::new(kind)?;
        let check = tools::disk_check(Machine::Uml.arch())?;
        let mut options = Options::new(Machine::Uml).program("disk-check", &check);
        let mut daemons = Vec::new();
        for (tag, arguments) in CACHING {
            let daemon = daemon::Options::new(disk.path())
                .tag(tag)
                .arguments(&["--allow-direct-io"])
                .arguments(arguments);
            let daemon = Daemon::start(&daemon)?;
            options = options.share(daemon.socket(), tag);
            daemons.push(daemon);
        }
        let mut guest = Guest::boot(&options)?;
        for (tag, _) in CACHING {
            guest.mount(tag, &format!("/{tag}"))?;
        }
        Ok(Self {
            guest,
            daemons,
            _disk: disk,
        })
    }

    /// Runs every method at each chosen amount of free space.
    fn fill(&mut self, kind: Kind, caching: &str) -> Result<()> {
        let is_long = env::var_os("GANGPLANK_LONG").is_some();
        // The fastest file system, with the cache mode in which the guest collects most data.
        let step = match is_long || kind == Kind::Tmpfs && caching == "auto_writeback" {
            true => EACH_PAGE,
            false => SOME_PAGES,
        };
        let text = self
            .guest
            .sh_within(&format!("disk-check /{caching} {step}"), LIMIT)?;
        note(text.trim_end());
        for daemon in &mut self.daemons {
            ensure!(daemon.is_running()?, "a daemon ended: {}", daemon.log());
        }
        let methods = text.lines().count();
        ensure!(methods == 10, "{methods} of 10 methods were tried");
        // Without a page cache there are no shared mappings, which three methods use.
        let expected = if caching.starts_with("never") { 3 } else { 0 };
        let unsupported = text.matches("not supported").count();
        ensure!(
            unsupported == expected,
            "{unsupported} methods are not supported: {text}"
        );
        Ok(())
    }
}
