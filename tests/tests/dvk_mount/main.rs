//! `gangplank-dvk mount` on this machine, over TCP from `gangplank-dvk serve` and a daemon: files, other people's test suites,
//! and a server that goes away. Needs root and FUSE.
//!
//! It runs in a mount namespace of its own, so that no mount is left behind whatever ends it.

mod faults;
mod files;
mod pjdfstest;
mod suites;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Result;
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::dvk::{Mount, Place, Server};
use gangplank_tests::process::User;
use gangplank_tests::trials::{Trials, note};
use tempfile::TempDir;

/// Set in the program that runs in its own namespace.
const INSIDE: &str = "GANGPLANK_OWN_MOUNTS";

/// First port of the server's node; the ports of a real DVS may be in use here.
const PORTS: u16 = 13_000;

/// A daemon, a server, a mount.
struct Bench {
    share: TempDir,
    daemon: Daemon,
    place: Place,
    /// None while it is gone.
    server: Option<Server>,
    mount: Mount,
}

impl Bench {
    /// All three, the mount with the further options `options`. Nothing is believed without asking, so that what is seen is
    /// what is there.
    fn new(ports: u16, options: &[&str]) -> Result<Self> {
        let share = tempfile::Builder::new().prefix("gangplank-").tempdir()?;
        // The suites become other users, who have to get this far.
        fs::set_permissions(share.path(), Permissions::from_mode(0o755))?;
        let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
        let place = Place::loopback(ports);
        let server = Server::start(&place, daemon.socket())?;
        let mount = Mount::start(&place, options).map_err(|error| error.context(server.log()))?;
        fs::set_permissions(parent(mount.point()), Permissions::from_mode(0o755))?;
        Ok(Self {
            share,
            daemon,
            place,
            server: Some(server),
            mount,
        })
    }

    /// `name` in the share, on the host.
    fn there(&self, name: &str) -> PathBuf {
        self.share.path().join(name)
    }

    /// `name` in the mount.
    fn here(&self, name: &str) -> PathBuf {
        self.mount.point().join(name)
    }

    /// What everybody has logged.
    fn logs(&self) -> String {
        let server = self.server.as_ref().map(Server::log).unwrap_or_default();
        format!(
            "daemon: {}\nserver: {server}\nmount: {}",
            self.daemon.log(),
            self.mount.log()
        )
    }
}

type Trial = fn(&mut Bench) -> Result<()>;

const TRIALS: &[(&str, Trial)] = &[
    ("files::cross_both_ways", files::cross_both_ways),
    ("files::are_of_every_kind", files::are_of_every_kind),
    (
        "files::belong_to_who_makes_them",
        files::belong_to_who_makes_them,
    ),
    (
        "files::are_as_large_as_the_protocol_tells",
        files::are_as_large_as_the_protocol_tells,
    ),
    ("files::list_completely", files::list_completely),
    ("files::do_what_programs_ask", files::do_what_programs_ask),
    ("suites::pjdfstest", pjdfstest::passes_what_the_host_passes),
    ("suites::fsx", suites::five_thousand_operations),
    ("suites::git", suites::clones_and_checks),
    ("suites::copy", suites::sixty_four_mebibytes),
    (
        "faults::a_restarted_server_is_found_again",
        faults::a_restarted_server_is_found_again,
    ),
    (
        "faults::a_server_that_hangs_costs_its_limit",
        faults::a_server_that_hangs_costs_its_limit,
    ),
    (
        "faults::a_restarted_daemon_is_found_again",
        faults::a_restarted_daemon_is_found_again,
    ),
    (
        "faults::a_mount_without_a_server_unmounts",
        faults::a_mount_without_a_server_unmounts,
    ),
    (
        "faults::a_mount_in_use_ends_when_told",
        faults::a_mount_in_use_ends_when_told,
    ),
];

fn main() -> ExitCode {
    let mut trials = Trials::from_arguments();
    let possible = User::is_root() && Path::new("/dev/fuse").exists();
    if possible && !trials.lists_only() && std::env::var_os(INSIDE).is_none() {
        return inside();
    }
    for (index, (name, trial)) in TRIALS.iter().enumerate() {
        if !possible {
            trials.skip(name, "needs root and /dev/fuse");
            continue;
        }
        trials.run(name, || {
            // Ports are not free again at once.
            let ports = PORTS + 64 * u16::try_from(index)?;
            let mut bench = Bench::new(ports, &["--timeout", "0", "--limit", "5"])?;
            trial(&mut bench).map_err(|error| error.context(bench.logs()))
        });
    }
    trials.finish()
}

/// Runs this program once more, in a mount namespace of its own.
fn inside() -> ExitCode {
    let program = std::env::current_exe().unwrap_or_default();
    let error = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "yes")
        .exec();
    note(&format!("cannot run unshare: {error}"));
    ExitCode::FAILURE
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
