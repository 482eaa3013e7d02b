//! What one frontend or guest has the daemon log neither fills the log nor hides a line about
//! another.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use gangplank_fuse::NodeId;
use gangplank_service::peer_cred::peer_pidfd;
use gangplank_service::rate_limit::BURST;
use gangplank_tests::driver::fixture::{Fixture, wait_for_log};
use gangplank_tests::driver::vhost_user::{Peer, message};
use gangplank_tests::driver::{Driver, Setup};

/// The daemon's socket, for a process that is to be another peer than the test's own.
const SOCKET: &str = "GANGPLANK_TESTS_SOCKET";

/// Nodes that no guest has.
const MISSING: u64 = 0x7777_0001;
const ALSO_MISSING: u64 = 0x7777_0002;

/// Connections of a storm: more than the acceptor logs of one peer.
const STORM: usize = 130;

/// Storms before the machine counts as too slow for one.
const ATTEMPTS: usize = 10;

/// Transfers of a guest's state, one after the other.
const TRANSFERS: usize = 100;

/// Mounts, and has the daemon warn of a node.
fn err(socket: &Path, node: u64) -> Result<()> {
    let mut guest = Driver::mount(socket, &Setup::default())?;
    guest.forget(NodeId::new(node), 1)?;
    guest.getattr(NodeId::ROOT, None)?;
    Ok(())
}

fn forgotten(node: u64) -> String {
    format!("a guest sent FORGET for node {node:#x}")
}

/// The test below runs it as another process, at its own daemon.
#[test]
fn a_guest_that_errs_is_in_the_log() -> Result<()> {
    if let Some(socket) = std::env::var_os(SOCKET) {
        return err(&PathBuf::from(socket), MISSING);
    }
    let fixture = Fixture::quiet(&[])?;
    err(fixture.socket(), MISSING)?;
    wait_for_log(&fixture.daemon, "guest 1 has gone")?;
    // By its number, as the lines of its beginning and end.
    let named = format!("guest 1: {}", forgotten(MISSING));
    fixture.survive(&["guest 1 has connected", &named])
}

#[test]
fn a_storm_of_connections_hides_no_line_about_another_process_s_guest() -> Result<()> {
    let (one, _other) = UnixStream::pair()?;
    if let Err(error) = peer_pidfd(&one) {
        eprintln!("SKIPPED: before Linux 6.5, users are told apart, not processes: {error}");
        return Ok(());
    }
    let fixture = Fixture::quiet(&[])?;
    let storm = |count: usize| -> Result<()> {
        for _ in 0..count {
            Peer::connect(fixture.socket())?.ask_u64(message::GET_FEATURES)?;
        }
        Ok(())
    };
    let mut connections = 0;
    for _ in 0..ATTEMPTS {
        storm(STORM)?;
        let other = Command::new(std::env::current_exe()?)
            .args(["--exact", "log_limits::a_guest_that_errs_is_in_the_log"])
            .env(SOCKET, fixture.socket())
            .output()
            .context("running the other guest")?;
        ensure!(other.status.success(), "{other:?}");
        // One more of the storm, which shows whether the other guest came within it.
        storm(1)?;
        let number = connections + STORM + 1;
        connections = number + 1;
        wait_for_log(&fixture.daemon, &forgotten(MISSING))?;
        // Of the peer that storms, the beginnings and ends are not told, and all else is.
        err(fixture.socket(), ALSO_MISSING)?;
        connections += 1;
        wait_for_log(&fixture.daemon, &forgotten(ALSO_MISSING))?;
        let log = fixture.daemon.log();
        if log.contains(&format!("guest {} has connected", number + 1)) {
            // It took longer than the time in which connections are counted.
            continue;
        }
        for told in ["has connected", "has gone"] {
            wait_for_log(&fixture.daemon, &format!("guest {number} {told}"))?;
        }
        return fixture.survive(&[]);
    }
    bail!("{STORM} connections take too long to be a storm")
}

#[test]
fn a_frontend_that_transfers_states_without_end_does_not_fill_the_log() -> Result<()> {
    let fixture = Fixture::quiet(&[])?;
    let mut guest = fixture.guest(&Setup::default())?;
    let dialect = guest.dialect();
    let before = fixture.daemon.log().lines().count();
    for _ in 0..TRANSFERS {
        guest.save_state()?;
        let refused = guest.load_state(b"no state", dialect);
        ensure!(refused.is_err(), "a state of eight letters is taken");
    }
    let log = fixture.daemon.log();
    let lines: Vec<&str> = log.lines().skip(before).collect();
    for told in ["state was saved", "cannot be taken over"] {
        let told = lines.iter().filter(|line| line.contains(told)).count();
        ensure!(told > 0, "nothing is logged:\n{log}");
    }
    // Two kinds of lines, in a few windows of time.
    let most = 2 * 3 * usize::try_from(BURST)?;
    ensure!(lines.len() <= most, "{} lines:\n{log}", lines.len());
    drop(guest);
    fixture.survive(&[])
}
