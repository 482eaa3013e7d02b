//! A guest on one host, and its daemon on another.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::debian_tree;
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
    (
        "a_guest_of_the_daemon_excludes_the_one_behind_the_tunnel",
        a_guest_of_the_daemon_excludes_the_one_behind_the_tunnel,
    ),
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
    (
        "a_guest_behind_a_relay_outlives_its_tunnel",
        a_guest_behind_a_relay_outlives_its_tunnel,
    ),
];

type Test = fn(&mut Fixture) -> Result<()>;

/// Limit for a command that waits for the link.
const SLOW: Duration = Duration::from_secs(120);

/// Limit for git's work, which is many small files on a busy machine.
const GIT: Duration = Duration::from_secs(400);

/// Additions of each of two guests.
const ADDITIONS: u32 = 100;

/// Programs of the guest that work while the link is cut.
const WRITERS: usize = 4;

/// The rounds of each of them. They take longer than [`BEFORE_CUT`] and [`CUT`], and than three
/// starts of a tunnel, which the tests check.
const ROUNDS: usize = 250;

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
        let daemon = Daemon::start(
            &daemon::Options::new(share.path()).arguments(&["--xattr", "--locks=host"]),
        )?;
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

/// The guest clones, changes and commits a repository through the tunnel, by git(1) of a Debian
/// tree on the share. Both sides check every object.
fn git_clones(fixture: &mut Fixture) -> Result<()> {
    let tree = fixture.share.path().join("debian");
    debian_tree::copy_to(&tree, fixture.machine.arch())?;
    fs::create_dir(tree.join("work"))?;
    git::make_repository(&tree.join("work/source"), 100)?;
    fixture.guest.sh_within(
        &format!(
            "mount -t proc proc /mnt/debian/proc && mount -o bind /dev /mnt/debian/dev\n\
             {} && sync && umount /mnt/debian/proc /mnt/debian/dev",
            git::clone_in_guest(
                "/mnt/debian",
                &[
                    "echo changed >>dir-3/file-3",
                    "git commit --quiet -a -m changed",
                ]
            )
        ),
        GIT,
    )?;
    let clone = tree.join("work/clone");
    git::git(&clone, &["fsck", "--full", "--strict"])?;
    git::git(&clone, &["diff", "--quiet", "HEAD"])?;
    Ok(())
}

/// A guest of the daemon's own host and the guest behind the tunnel add to one number under a lock:
/// no addition is lost. Each sees at once what the other writes while it holds the lock.
fn a_guest_of_the_daemon_excludes_the_one_behind_the_tunnel(fixture: &mut Fixture) -> Result<()> {
    let options = Options::new(Machine::Uml)
        .share(fixture.daemon.socket(), TAG)
        .program("guest-check", &tools::guest_check(tools::host_arch())?);
    let mut near = Guest::boot(&options)?;
    near.mount(TAG, "/mnt")?;
    for kind in ["flock", "record"] {
        let own = fixture.share.path().join(kind);
        fs::create_dir(&own)?;
        let count = format!("guest-check /mnt/{kind} --count {kind} {ADDITIONS}");
        thread::scope(|scope| {
            let far = scope.spawn(|| fixture.guest.sh_within(&count, SLOW));
            let near = near.sh_within(&count, SLOW);
            let far = far.join();
            near.and(far.map_err(|_| anyhow::anyhow!("counting panicked"))?)
        })?;
        let number = fs::read_to_string(own.join(format!("{kind}.number")))?;
        let counted: u32 = number.trim_end_matches('\0').trim().parse()?;
        ensure!(counted == 2 * ADDITIONS, "{kind}: {counted}");
    }
    Ok(())
}

/// A command: programs append and rename in `directory`, which is made.
fn writers(directory: &str) -> String {
    format!(
        "mkdir {directory} && cd {directory} && for w in $(seq {WRITERS}); do \
           ( i=0; while [ $i -lt {ROUNDS} ]; do echo $i >>lines-$w || exit 1; \
             echo $i >new-$w && mv new-$w old-$w || exit 1; i=$((i+1)); done; \
             echo ended >>ended ) & done; wait; cd /; \
         test $(wc -l <{directory}/ended) -eq {WRITERS}"
    )
}

/// Each line that the writers have written is there once, in order.
fn check_written(directory: &Path) -> Result<()> {
    let expected: String = (0..ROUNDS).map(|line| format!("{line}\n")).collect();
    for writer in 1..=WRITERS {
        let lines = fs::read_to_string(directory.join(format!("lines-{writer}")))?;
        ensure!(lines == expected, "lines of {writer} are lost or doubled");
    }
    Ok(())
}

/// The link is cut for three seconds while four programs of the guest append and rename, so that
/// the connections between the nodes break. The guest goes on: requests are sent again, and each
/// line is there once, in order.
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
        let worked = guest.sh_within(&writers("/mnt/cut"), SLOW);
        let took = begun.elapsed();
        let cut = cut.join();
        worked.map(|_| (cut, took))
    })?;
    cut.map_err(|_| anyhow::anyhow!("cutting the link panicked"))??;
    ensure!(took > BEFORE_CUT + CUT, "the work has ended too early");
    check_written(&fixture.share.path().join("cut"))?;
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

/// The tunnel is killed twice and ended once under the load of a guest behind a relay, which waits
/// for the next tunnel. That goes on in the session of the one before: a file stays open, and each
/// request is carried out once.
fn a_guest_behind_a_relay_outlives_its_tunnel(fixture: &mut Fixture) -> Result<()> {
    let tunnel = &mut fixture.tunnel;
    tunnel.kill_tunnel();
    tunnel.start_tunnel()?;
    let relay = Relay::start(&tunnel.socket(), &["--return-time=30"])?;
    let options = Options::new(fixture.machine)
        .share(&relay.socket(), TAG)
        .program("guest-check", &tools::guest_check(tools::host_arch())?);
    let mut guest = Guest::boot(&options)?;
    guest.mount(TAG, "/mnt")?;
    // It reads what it has written, by a file that was removed meanwhile.
    guest.sh(
        "( exec 3<>/mnt/held; rm /mnt/held; echo kept >&3; while [ ! -e /go ]; do sleep 0.1; done; \
           cat /proc/self/fd/3 >/seen 2>&1; echo $? >/done ) & \
         while [ -e /mnt/held ] || [ ! -e /proc/$!/fd/3 ]; do sleep 0.1; done",
    )?;
    let worked = thread::scope(|scope| -> Result<()> {
        let worker = scope.spawn(|| guest.sh_within(&writers("/mnt/outlived"), SLOW));
        for is_killed in [true, false, true] {
            thread::sleep(BEFORE_CUT);
            match is_killed {
                true => tunnel.kill_tunnel(),
                false => tunnel.end_tunnel()?,
            }
            thread::sleep(BEFORE_CUT);
            tunnel.start_tunnel()?;
        }
        ensure!(!worker.is_finished(), "the work has ended too early");
        let worked = worker.join();
        worked
            .map_err(|_| anyhow::anyhow!("the work panicked"))?
            .map(drop)
    });
    worked.with_context(|| relay.log())?;
    check_written(&fixture.share.path().join("outlived"))?;
    let seen = guest.sh_within(
        "touch /go; while [ ! -e /done ]; do sleep 0.1; done; cat /seen /done",
        SLOW,
    )?;
    ensure!(
        seen == "kept\n0\n",
        "the removed file: {seen}\n{}",
        relay.log()
    );
    Ok(())
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
