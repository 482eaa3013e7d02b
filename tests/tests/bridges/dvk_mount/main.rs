//! `gangplank-dvk mount` on this machine, from `gangplank-dvk serve` and a daemon, over TCP or by a
//! switch: files, test suites of other projects, and restarts. Needs root and FUSE.
//!
//! The program runs in a mount namespace of its own, so that no mount remains after it.

mod faults;
mod files;
mod local;
mod pjdfstest;
mod suites;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use gangplank_tests::confinement::{self, DAC_OVERRIDE, SYS_ADMIN};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::dvk::{Mount, Server, Switch, Topology};
use gangplank_tests::harmless_signals::{StatusAt, survive};
use gangplank_tests::process::User;
use gangplank_tests::runner::{Runner, note};
use tempfile::TempDir;

/// This variable is set in the program in its own namespace.
const INSIDE: &str = "GANGPLANK_OWN_MOUNTS";

/// First port of the server's node; the ports of a real DVS may be in use here.
const PORTS: u16 = 13_000;

/// A daemon, a server, a mount.
struct Fixture {
    share: TempDir,
    daemon: Daemon,
    topology: Topology,
    /// `None` between nodes, and while it is stopped.
    switch: Option<Switch>,
    /// `None` while it is stopped.
    server: Option<Server>,
    mount: Mount,
}

impl Fixture {
    /// Daemon, server and mount over TCP, with further mount options. The mount caches nothing, so
    /// that a test sees the present state.
    fn over_tcp(ports: u16, options: &[&str]) -> Result<Self> {
        let topology = Topology::loopback(ports);
        Self::new(shared()?, topology, None, options)
    }

    /// Daemon, server and mount at a switch, whose socket is [`Self::switch_socket`].
    fn by_switch(options: &[&str]) -> Result<Self> {
        let share = shared()?;
        let socket = switch_socket(share.path());
        let switch = Switch::start(&socket)?;
        Self::new(share, Topology::switch(socket), Some(switch), options)
    }

    fn new(
        share: TempDir,
        topology: Topology,
        switch: Option<Switch>,
        options: &[&str],
    ) -> Result<Self> {
        let daemon = Daemon::start(&daemon::Options::new(&share.path().join(SHARED)))?;
        let server = Server::start(&topology, daemon.socket())?;
        let mount =
            Mount::start(&topology, options).map_err(|error| error.context(server.log()))?;
        fs::set_permissions(parent(mount.point()), Permissions::from_mode(0o755))?;
        Ok(Self {
            share,
            daemon,
            topology,
            switch,
            server: Some(server),
            mount,
        })
    }

    fn switch_socket(&self) -> PathBuf {
        switch_socket(self.share.path())
    }

    /// `name` in the share, on the host.
    fn there(&self, name: &str) -> PathBuf {
        self.share.path().join(SHARED).join(name)
    }

    /// `name` in the mount.
    fn here(&self, name: &str) -> PathBuf {
        self.mount.point().join(name)
    }

    /// The logs of all processes.
    fn logs(&self) -> String {
        let server = self.server.as_ref().map(Server::log).unwrap_or_default();
        let switch = self.switch.as_ref().map(Switch::log).unwrap_or_default();
        format!(
            "daemon: {}\nserver: {server}\nswitch: {switch}\nmount: {}",
            self.daemon.log(),
            self.mount.log()
        )
    }
}

/// The shared directory in the fixture's own.
const SHARED: &str = "share";

/// The fixture's directory, with the shared one in it.
fn shared() -> Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("gangplank-").tempdir()?;
    // The suites run as other users, who need to enter the directory.
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    fs::create_dir(dir.path().join(SHARED))?;
    fs::set_permissions(dir.path().join(SHARED), Permissions::from_mode(0o755))?;
    Ok(dir)
}

fn switch_socket(dir: &Path) -> PathBuf {
    dir.join("dvk.sock")
}

type Test = fn(&mut Fixture) -> Result<()>;

const TESTS: &[(&str, Test)] = &[
    ("files::cross_both_ways", files::cross_both_ways),
    ("files::are_of_every_kind", files::are_of_every_kind),
    (
        "files::belong_to_who_makes_them",
        files::belong_to_who_makes_them,
    ),
    (
        "files::are_as_large_as_on_the_host",
        files::are_as_large_as_on_the_host,
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
        "faults::a_restarted_server_takes_no_file_for_another",
        faults::a_restarted_server_takes_no_file_for_another,
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
    ("programs_keep_what_they_need", programs_keep_what_they_need),
    ("signals_that_mean_nothing_end_no_mount", survives_signals),
];

/// The tests that differ at a switch.
const BY_SWITCH: &[(&str, Test)] = &[
    ("local::files_cross_both_ways", files::cross_both_ways),
    (
        "local::files_do_what_programs_ask",
        files::do_what_programs_ask,
    ),
    ("local::copy", suites::sixty_four_mebibytes),
    (
        "local::a_restarted_server_is_found_again",
        faults::a_restarted_server_is_found_again,
    ),
    (
        "local::a_restarted_server_takes_no_file_for_another",
        faults::a_restarted_server_takes_no_file_for_another,
    ),
    (
        "local::a_restarted_switch_is_found_again",
        local::a_restarted_switch_is_found_again,
    ),
    (
        "local::a_second_mount_needs_an_endpoint_of_its_own",
        local::a_second_mount_needs_an_endpoint_of_its_own,
    ),
    (
        "local::a_background_mount_lets_go_of_everything",
        local::a_background_mount_lets_go_of_everything,
    ),
    (
        "local::a_file_is_not_mounted_on",
        local::a_file_is_not_mounted_on,
    ),
    (
        "local::a_mount_without_a_switch_unmounts",
        local::a_mount_without_a_switch_unmounts,
    ),
    (
        "local::programs_keep_what_they_need",
        programs_keep_what_they_need,
    ),
];

/// No signal that means nothing unmounts. The status is in the log where somebody asks for it.
fn survives_signals(fixture: &mut Fixture) -> Result<()> {
    let mount = &fixture.mount;
    survive(mount.pid(), StatusAt::Usr1AndHup, || mount.log())?;
    let shown = format!(" on {}", mount.point().display());
    ensure!(
        mount.log().contains("status: mount of ")
            && mount.log().contains(&shown)
            && mount.is_mounted()?,
        "{}",
        mount.log()
    );
    Ok(())
}

/// The mount caches nothing, so that a test sees the present state.
const OPTIONS: [&str; 4] = ["--timeout", "0", "--limit", "5"];

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    let possible = User::is_root() && Path::new("/dev/fuse").exists();
    if possible && !runner.lists_only() && std::env::var_os(INSIDE).is_none() {
        return inside();
    }
    let over_tcp = TESTS.iter().enumerate().map(|(index, (name, test))| {
        // The kernel keeps used ports for a while.
        let ports = u16::try_from(64 * index).ok().map(|more| PORTS + more);
        (name, test, ports)
    });
    let by_switch = BY_SWITCH.iter().map(|(name, test)| (name, test, None));
    for (name, test, ports) in over_tcp.chain(by_switch) {
        if !possible {
            runner.skip(name, "needs root and /dev/fuse");
            continue;
        }
        runner.run(name, || {
            let mut fixture = match ports {
                Some(ports) => Fixture::over_tcp(ports, &OPTIONS)?,
                None => Fixture::by_switch(&OPTIONS)?,
            };
            test(&mut fixture).map_err(|error| error.context(fixture.logs()))
        });
    }
    runner.finish()
}

/// Each thread of server, mount and switch has a list of system calls and few capabilities.
fn programs_keep_what_they_need(fixture: &mut Fixture) -> Result<()> {
    if let Some(server) = &fixture.server {
        confinement::check(server.pid(), DAC_OVERRIDE)?;
    }
    if let Some(switch) = &fixture.switch {
        confinement::check(switch.pid(), DAC_OVERRIDE)?;
    }
    confinement::check(fixture.mount.pid(), DAC_OVERRIDE | SYS_ADMIN)
}

/// Executes this program again in a mount namespace of its own.
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
