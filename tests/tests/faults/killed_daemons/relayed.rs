//! Without a service manager: the relay holds what guests have, who are connected through it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::driver::fixture::wait_for_log;
use gangplank_tests::driver::{Driver, Setup};
use gangplank_tests::process::User;
use gangplank_tests::relay::Relay;
use gangplank_tests::tools;
use rustix::fs::{FlockOperation, fcntl_lock};
use tempfile::TempDir;

use super::{KILLS, Session, answer_once_across_restarts};

/// A daemon behind a relay that holds descriptors.
struct Relayed {
    relay: Relay,
    options: Options,
    daemon: Daemon,
    share: TempDir,
    directory: TempDir,
}

impl Relayed {
    fn start(of_relay: &[&str], of_daemon: &[&str]) -> Result<Self> {
        Self::start_as(None, of_relay, of_daemon)
    }

    /// Both as this user, who owns the share.
    fn start_as(user: Option<User>, of_relay: &[&str], of_daemon: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let share = tempfile::tempdir()?;
        for path in user.iter().flat_map(|_| [directory.path(), share.path()]) {
            chown(path, user.map(|user| user.uid), user.map(|user| user.gid))?;
        }
        let holder = directory.path().join("holder.sock");
        let backend = directory.path().join("fs.sock");
        let arguments = [&["--holder", text(&holder)?], of_relay].concat();
        let relay = Relay::start_as(user, &backend, &arguments)?;
        let mut options = daemon_of(share.path(), &holder, of_daemon)?;
        if let Some(user) = user {
            options = options.user(user);
        }
        let daemon = Daemon::start(&options)?;
        std::os::unix::fs::symlink(daemon.socket(), &backend)?;
        Ok(Self {
            relay,
            options,
            daemon,
            share,
            directory,
        })
    }

    fn connect(&self) -> Result<Driver> {
        let guest = Driver::mount(&self.relay.socket(), &Setup::default());
        guest.with_context(|| self.logs())
    }

    /// Kills all processes of the daemon and starts it again.
    fn restart(&mut self) -> Result<()> {
        self.daemon.replace(&self.options)?;
        wait_for_log(&self.daemon, "waiting for guests")
    }

    fn holder(&self) -> PathBuf {
        self.directory.path().join("holder.sock")
    }

    fn logs(&self) -> String {
        format!("{}\nrelay:\n{}", self.daemon.log(), self.relay.log())
    }
}

fn daemon_of(share: &Path, holder: &Path, arguments: &[&str]) -> Result<Options> {
    let arguments = [&["--holder", text(holder)?], arguments].concat();
    Ok(Options::new(share).arguments(&arguments))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// Why a daemon does not start.
fn refusal(options: &Options) -> Result<String> {
    match Daemon::start(options) {
        // Its socket was there for a moment.
        Ok(mut daemon) => {
            ensure!(!daemon.wait()?.success());
            Ok(daemon.log())
        }
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// Waits until the relay says that it holds what a daemon had that has ended.
fn is_told_as_held(relay: &Relay) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let words = relay.tell(&["status"])?;
        let json = relay.tell(&["status", "--json"])?;
        // Of 300 seconds.
        if words.contains("which has ended, for 2") && json.contains("\"time_left_s\":2") {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{words}{json}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn guests_behind_a_relay_go_on_after_everything_was_killed() -> Result<()> {
    let mut relayed = Relayed::start(&[], &["--locks=host"])?;
    let outcome = (|| -> Result<()> {
        let mut first = Session::of(relayed.connect()?, "first")?;
        let mut second = Session::of(relayed.connect()?, "second")?;
        for round in 0..KILLS {
            // By SIGTERM, what guests have is held as well.
            if round == 1 {
                relayed.daemon.terminate()?;
                is_told_as_held(&relayed.relay)?;
            }
            relayed.restart()?;
            first.check(relayed.share.path())?;
            second.check(relayed.share.path())?;
        }
        // A reload keeps the connection to the relay.
        relayed.daemon.reload()?;
        let mut third = Session::of(relayed.connect()?, "third")?;
        drop(second);
        wait_for_log(&relayed.daemon, "guest 2 has gone")?;
        relayed.restart()?;
        first.check(relayed.share.path())?;
        third.check(relayed.share.path())
    })();
    outcome.with_context(|| relayed.logs())
}

#[test]
fn guests_of_an_ordinary_user_go_on_behind_a_relay_as_well() -> Result<()> {
    if !User::is_root() {
        eprintln!("skipped: the other tests run as an ordinary user already");
        return Ok(());
    }
    let user = Some(User::NOBODY);
    let mut relayed = Relayed::start_as(user, &[], &["--locks=host"])?;
    let outcome = (|| -> Result<()> {
        let mut guest = Session::of(relayed.connect()?, "guest")?;
        for _ in 0..2 {
            relayed.restart()?;
            guest.check(relayed.share.path())?;
        }
        // Root has nothing held by another user's relay.
        let options = daemon_of(relayed.share.path(), &relayed.holder(), &[])?;
        let refusal = refusal(&options)?;
        ensure!(refusal.contains("not this user or root"), "{refusal}");
        Ok(())
    })();
    outcome.with_context(|| relayed.logs())
}

/// The metrics of the daemon with this socket.
fn metrics(socket: &Path) -> Result<String> {
    let mut client = UnixStream::connect(socket)?;
    client.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut reply = String::new();
    client.read_to_string(&mut reply)?;
    Ok(reply)
}

#[test]
fn operators_and_new_guests_reach_the_daemon_that_goes_on() -> Result<()> {
    let sockets = tempfile::tempdir()?;
    let [control, scraped] = ["control", "metrics"].map(|name| sockets.path().join(name));
    let of_control = format!("--control={}", text(&control)?);
    let of_metrics = format!("--metrics={}", text(&scraped)?);
    let mut relayed = Relayed::start(&[], &[&of_control, &of_metrics])?;
    let outcome = (|| -> Result<()> {
        let mut guests = vec![relayed.connect()?];
        for _ in 0..3 {
            let count = guests.len();
            relayed.restart()?;
            for guest in &mut guests {
                guest.getattr(NodeId::ROOT, None)?;
            }
            let mut command = Command::new(tools::gangplankd()?);
            let output = command.args(["status", &of_control]).output()?;
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(told.contains(&format!("{count} of at most")), "{output:?}");
            let told = metrics(&scraped)?;
            let line = format!("\ngangplank_guests {count}.0\n");
            ensure!(told.contains(&line), "{told}");
            // Through the relay, and directly.
            guests.push(relayed.connect()?);
            guests.push(Driver::mount(relayed.daemon.socket(), &Setup::default())?);
        }
        Ok(())
    })();
    outcome.with_context(|| relayed.logs())
}

#[test]
fn requests_in_flight_of_relayed_guests_are_answered_once() -> Result<()> {
    let mut relayed = Relayed::start(&[], &["--locks=host"])?;
    let guests = [relayed.connect()?, relayed.connect()?];
    let restarted = answer_once_across_restarts(guests, || relayed.restart());
    restarted.with_context(|| relayed.logs())
}

#[test]
fn a_daemon_of_another_directory_gets_nothing_of_it() -> Result<()> {
    let mut relayed = Relayed::start(&[], &["--locks=host"])?;
    let mut guest = Session::of(relayed.connect()?, "guest")?;
    relayed.daemon.kill();
    let elsewhere = tempfile::tempdir()?;
    let holder = relayed.holder();
    let stranger = Daemon::start(&daemon_of(elsewhere.path(), &holder, &[])?)?;
    wait_for_log(&stranger, "waiting for guests")?;
    ensure!(!stranger.log().contains("guest 1"), "{}", stranger.log());
    // Which it had locked is locked still.
    let path = relayed.share.path().join("guest-locked");
    let locked = File::options().write(true).open(path)?;
    ensure!(fcntl_lock(&locked, FlockOperation::NonBlockingLockExclusive).is_err());
    relayed.restart()?;
    let outcome = guest.check(relayed.share.path());
    outcome.with_context(|| relayed.logs())
}

#[test]
fn a_guest_whose_daemon_stays_away_gets_errors_after_the_time_of_the_holder() -> Result<()> {
    let mut relayed = Relayed::start(&["--holder-time=0.2"], &[])?;
    let mut guest = relayed.connect()?;
    relayed.daemon.kill();
    let error = guest.getattr(NodeId::ROOT, None);
    ensure!(error.is_err(), "who has answered?");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !relayed.relay.log().contains("no daemon of") {
        ensure!(Instant::now() < deadline, "{}", relayed.relay.log());
        thread::sleep(Duration::from_millis(10));
    }
    relayed.restart()?;
    relayed.connect()?.getattr(NodeId::ROOT, None)?;
    Ok(())
}

#[test]
fn a_daemon_whose_relay_does_not_run_says_so_and_does_not_start() -> Result<()> {
    let share = tempfile::tempdir()?;
    let holder = share.path().join("holder.sock");
    let error = refusal(&daemon_of(share.path(), &holder, &[])?)?;
    ensure!(error.contains("--holder: cannot have"), "{error}");
    Ok(())
}
