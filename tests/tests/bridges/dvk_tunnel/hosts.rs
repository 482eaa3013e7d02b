//! A guest on one host, and its daemon on another.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::dvk_tunnel::{Between, Tunnel};
use gangplank_tests::git;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::guest_suite::programs;
use gangplank_tests::hosts::Hosts;
use gangplank_tests::process::User;
use gangplank_tests::relay::Relay;
use gangplank_tests::runner::Runner;
use gangplank_tests::tools;
use tempfile::TempDir;

const TESTS: &[(&str, Test)] = &[
    ("programs_pass", programs_pass),
    ("fsx_passes", fsx_passes),
    ("git_clones", git_clones),
    ("a_cut_link_loses_nothing", a_cut_link_loses_nothing),
    (
        "a_lost_server_is_an_error_until_the_guest_mounts_anew",
        a_lost_server_is_an_error_until_the_guest_mounts_anew,
    ),
    (
        "requests_fail_after_the_limit",
        requests_fail_after_the_limit,
    ),
    (
        "a_session_is_freed_when_its_node_is_gone",
        a_session_is_freed_when_its_node_is_gone,
    ),
    (
        "a_lost_tunnel_behind_a_relay_is_an_error_until_the_guest_mounts_anew",
        a_lost_tunnel_behind_a_relay_is_an_error_until_the_guest_mounts_anew,
    ),
];

type Test = fn(&mut Fixture) -> Result<()>;

/// Limit for a command that waits for the link.
const SLOW: Duration = Duration::from_secs(120);

/// The rounds of a guest that works while the link is cut. They take longer than [`BEFORE_CUT`] and
/// [`CUT`], which the test checks.
const ROUNDS: usize = 1000;

/// How long the guest works before the link is cut, and how long the link is cut.
const BEFORE_CUT: Duration = Duration::from_millis(500);
const CUT: Duration = Duration::from_secs(3);

/// The guest, its tunnel, and the share on the other host.
struct Fixture {
    machine: Machine,
    guest: Guest,
    tunnel: Tunnel,
    daemon: Daemon,
    share: TempDir,
}

impl Fixture {
    fn new(machine: Machine) -> Result<Self> {
        let share = tempfile::Builder::new()
            .prefix("gangplank-share-")
            .tempdir()?;
        let daemon = Daemon::start(&daemon::Options::new(share.path()).arguments(&["--xattr"]))?;
        let hosts = Hosts::new(1)?;
        hosts.break_connections_soon()?;
        let between = Between::Hosts(hosts);
        let tunnel = Tunnel::start(between, daemon.socket(), "vq_idle_s 15;", &["--limit=6"])?;
        let options = Options::new(machine)
            .share(&tunnel.socket(), TAG)
            .program("guest-check", &tools::guest_check(tools::host_arch())?)
            .program("fsx", &tools::fsx()?);
        let mut guest = Guest::boot(&options)?;
        guest.mount(TAG, "/mnt")?;
        Ok(Self {
            machine,
            guest,
            tunnel,
            daemon,
            share,
        })
    }
}

pub(crate) fn run(runner: &mut Runner, prefix: &str, machine: Machine) {
    let mut fixture = None;
    for (name, test) in TESTS {
        let name = &format!("{prefix}::{name}");
        if !User::is_root() {
            runner.skip(name, "needs root");
            continue;
        }
        runner.run(name, || {
            let fixture = match &mut fixture {
                Some(fixture) => fixture,
                empty => empty.insert(Fixture::new(machine)?),
            };
            test(fixture).map_err(|error| {
                error.context(format!(
                    "{}\n{}",
                    fixture.daemon.log(),
                    fixture.tunnel.log()
                ))
            })
        });
    }
}

/// Locks, mappings, renames, holes and the other operations of `guest-check`.
fn programs_pass(fixture: &mut Fixture) -> Result<()> {
    programs::run_checks(&mut fixture.guest, "/mnt/checks")
}

/// 2,000 random operations of fsx on a file, checked against its own copy.
fn fsx_passes(fixture: &mut Fixture) -> Result<()> {
    let command = "cd /mnt && fsx -N 2000 -q fsx-file; status=$?; cd /; exit $status";
    fixture.guest.sh_within(command, SLOW).map(drop)
}

/// The guest reads a repository that git(1) of the host has made, and a clone that the host makes
/// of the guest's copy is whole.
fn git_clones(fixture: &mut Fixture) -> Result<()> {
    let repository = fixture.share.path().join("repository");
    fs::create_dir(&repository)?;
    git::make_repository(&repository, 100)?;
    let command = "cp -a /mnt/repository /mnt/copy && sync";
    fixture.guest.sh_within(command, SLOW)?;
    git::git(fixture.share.path(), &["clone", "--quiet", "copy", "clone"])?;
    git::git(&fixture.share.path().join("clone"), &["fsck", "--full"])?;
    Ok(())
}

/// The link is cut for three seconds while the guest appends and renames, so that the connections
/// between the nodes break. The guest goes on: requests are sent again, and each line is there
/// once, in order.
fn a_cut_link_loses_nothing(fixture: &mut Fixture) -> Result<()> {
    let Fixture { guest, tunnel, .. } = fixture;
    let before = tunnel.sent_again()?;
    let begun = Instant::now();
    let (cut, took) = thread::scope(|scope| {
        let cut = scope.spawn(|| -> Result<()> {
            thread::sleep(BEFORE_CUT);
            tunnel.cut(true)?;
            thread::sleep(CUT);
            tunnel.cut(false)
        });
        let work = format!(
            "cd /mnt && i=0; while [ $i -lt {ROUNDS} ]; do echo $i >>lines || exit 1; \
             echo $i >new && mv new old || exit 1; i=$((i+1)); done; cd /"
        );
        let worked = guest.sh_within(&work, SLOW);
        let took = begun.elapsed();
        let cut = cut.join();
        worked.map(|_| (cut, took))
    })?;
    cut.map_err(|_| anyhow::anyhow!("cutting the link panicked"))??;
    ensure!(took > BEFORE_CUT + CUT, "the work has ended too early");
    let lines = fs::read_to_string(fixture.share.path().join("lines"))?;
    let expected: String = (0..ROUNDS).map(|line| format!("{line}\n")).collect();
    ensure!(lines == expected, "lines are lost or doubled");
    let after = tunnel.sent_again()?;
    ensure!(after > before, "no request was sent again: {after}");
    Ok(())
}

/// The server is killed and started again: files of the old mount are errors and not lost, and a
/// new mount works.
fn a_lost_server_is_an_error_until_the_guest_mounts_anew(fixture: &mut Fixture) -> Result<()> {
    let Fixture { guest, tunnel, .. } = fixture;
    guest.sh("echo kept >/mnt/kept && sync")?;
    tunnel.kill_server();
    tunnel.start_server()?;
    let seen = guest.run("cat /mnt/none; ls /mnt", SLOW)?;
    ensure!(
        seen.status != 0 && seen.text.contains("not connected"),
        "{}",
        seen.text
    );
    guest.sh_within("umount /mnt", SLOW)?;
    guest.mount(TAG, "/mnt")?;
    ensure!(guest.sh("cat /mnt/kept")? == "kept\n", "the file is lost");
    Ok(())
}

/// A server that stands still: a request fails with ENOTCONN after the limit of 6 seconds, and
/// succeeds once the server goes on.
fn requests_fail_after_the_limit(fixture: &mut Fixture) -> Result<()> {
    let Fixture { guest, tunnel, .. } = fixture;
    tunnel.signal_server(rustix::process::Signal::STOP)?;
    let begun = Instant::now();
    let seen = guest.run("ls /mnt/nothing", SLOW);
    let took = begun.elapsed();
    tunnel.signal_server(rustix::process::Signal::CONT)?;
    let seen = seen?;
    ensure!(
        seen.text.contains("not connected") && took >= Duration::from_secs(5),
        "{took:?}: {}",
        seen.text
    );
    guest.sh_within("ls /mnt", SLOW).map(drop)
}

/// A tunnel that is killed leaves a session, which the server frees after `vq_idle_s`.
fn a_session_is_freed_when_its_node_is_gone(fixture: &mut Fixture) -> Result<()> {
    let Fixture { tunnel, .. } = fixture;
    tunnel.wait_for_server("guest behind endpoint 120:", true)?;
    tunnel.kill_tunnel();
    tunnel.wait_for_server("guest behind endpoint 120:", false)
}

/// A tunnel that is killed before a guest behind a relay: the guest keeps its device, its requests
/// fail, and a new mount works through the next tunnel.
fn a_lost_tunnel_behind_a_relay_is_an_error_until_the_guest_mounts_anew(
    fixture: &mut Fixture,
) -> Result<()> {
    let tunnel = &mut fixture.tunnel;
    tunnel.kill_tunnel();
    tunnel.start_tunnel()?;
    let relay = Relay::start(&tunnel.socket(), &[])?;
    let mut guest = Guest::boot(&Options::new(fixture.machine).share(&relay.socket(), TAG))?;
    guest.mount(TAG, "/mnt")?;
    guest.sh("echo behind >/mnt/behind && sync")?;
    tunnel.kill_tunnel();
    let seen = guest.run("ls /mnt/nothing", SLOW)?;
    ensure!(seen.text.contains("not connected"), "{}", seen.text);
    tunnel.start_tunnel()?;
    guest.sh_within("umount /mnt", SLOW)?;
    guest.mount(TAG, "/mnt")?;
    let read = guest.sh("cat /mnt/behind")?;
    ensure!(read == "behind\n", "it read {read}");
    Ok(())
}
