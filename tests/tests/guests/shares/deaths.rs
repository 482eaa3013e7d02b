//! Processes of a share that die or hang, and the end of the process of all shares.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::fixture::{Fixture, LIMIT, signal, work};

const SHARES: [&str; 2] = ["--share=home={}/home", "--share=tools={}/tools"];

#[test]
fn dead_processes_of_a_share_are_replaced_and_the_other_share_does_not_notice() -> Result<()> {
    let mut fixture = Fixture::start(&["home", "tools"], &SHARES)?;
    let mut home = fixture.driver("home")?;
    let mut tools = fixture.driver("tools")?;
    let (acceptor, first) = (fixture.acceptor("home")?, fixture.supervisor("home")?);

    signal(fixture.acceptor("tools")?, Signal::KILL)?;
    work(&mut home, c"new")?;
    work(&mut tools, c"new")?;
    fixture.wait_for_log("tools: another acceptor goes on with 1 guests")?;

    let supervisor = fixture.supervisor("tools")?;
    signal(supervisor, Signal::KILL)?;
    work(&mut home, c"new")?;
    fixture.wait_for_log("the process of share \"tools\" has died: it was ended by signal 9")?;
    fixture.wait_until("it serves again", || {
        let listed = fixture.listed("tools")?.context("it is gone")?;
        Ok(listed["state"] == "serving" && listed["process"] != supervisor)
    })?;
    drop(tools);
    work(&mut fixture.driver("tools")?, c"new")?;
    work(&mut home, c"new")?;
    ensure!((fixture.acceptor("home")?, fixture.supervisor("home")?) == (acceptor, first));
    drop(home);
    fixture.end()
}

#[test]
fn a_share_that_dies_too_often_is_given_up_alone() -> Result<()> {
    let arguments = [
        SHARES[0],
        "--share=tools={}/tools,max-crashes=9",
        "--max-crashes=2",
    ];
    let mut fixture = Fixture::start(&["home", "tools"], &arguments)?;
    let mut home = fixture.driver("home")?;
    let supervisor = fixture.supervisor("tools")?;
    signal(supervisor, Signal::KILL)?;
    fixture.wait_until("it serves again", || {
        let listed = fixture.listed("tools")?.context("it is gone")?;
        Ok(listed["state"] == "serving" && listed["process"] != supervisor)
    })?;
    signal(fixture.supervisor("tools")?, Signal::KILL)?;
    fixture.wait_for_log("share \"tools\" is given up")?;
    let listed = fixture.listed("tools")?.context("it is listed")?;
    ensure!(listed["state"] == "failed", "{listed}");
    ensure!(listed["reason"] == "it was ended by signal 9", "{listed}");
    work(&mut home, c"new")?;
    // It can be served anew.
    fixture.share_done(&["remove", "tools"])?;
    fixture.share_done(&["add", "tools={}/tools"])?;
    work(&mut fixture.driver("tools")?, c"new")?;
    work(&mut home, c"new")
}

#[test]
fn a_killed_daemon_leaves_no_share_behind() -> Result<()> {
    let mut fixture = Fixture::start(&["home", "tools"], &SHARES)?;
    let mut home = fixture.driver("home")?;
    let supervisors = [fixture.supervisor("home")?, fixture.supervisor("tools")?];
    signal(fixture.child.id(), Signal::KILL)?;
    fixture.wait()?;
    fixture.wait_until("it has ended", || {
        let mut paths = supervisors.iter().map(|one| format!("/proc/{one}/stat"));
        // One that nobody waits for has ended too.
        Ok(paths
            .all(|path| std::fs::read_to_string(path).map_or(true, |stat| stat.contains(") Z "))))
    })?;
    ensure!(work(&mut home, c"new").is_err());
    ensure!(!fixture.socket("home").exists() && !fixture.socket("tools").exists());
    Ok(())
}

/// The service manager learns once that all shares serve, and goes on to hear that the daemon is
/// alive while one share hangs. That one is started anew.
#[test]
fn the_watchdog_finds_the_share_that_hangs() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(LIMIT))?;
    let receive = || -> Result<String> {
        let mut bytes = [0; 4096];
        let len = manager.recv(&mut bytes).context("nothing is told")?;
        Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
    };
    let limit = Duration::from_secs(10);
    let mut fixture = Fixture::spawn(
        &["home", "tools"],
        &SHARES,
        &[
            ("NOTIFY_SOCKET", path.display().to_string()),
            ("WATCHDOG_USEC", limit.as_micros().to_string()),
        ],
    )?;
    let first = receive()?;
    ensure!(
        first.contains("READY=1") && first.contains("serves 2 shares"),
        "{first}"
    );
    let mut home = fixture.driver("home")?;
    let hung = fixture.acceptor("tools")?;
    signal(hung, Signal::STOP)?;
    fixture.wait_for_log("the acceptor of share \"tools\" does not answer, so it is killed")?;
    fixture.wait_until("there is another acceptor", || {
        Ok(fixture
            .acceptor("tools")
            .is_ok_and(|acceptor| acceptor != hung))
    })?;
    ensure!(receive()?.contains("WATCHDOG=1"));
    work(&mut home, c"new")?;
    work(&mut fixture.driver("tools")?, c"new")
}
