//! A kernel's guest with two shares of one daemon.

use std::fs;

use anyhow::{Context, Result, ensure};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::process;
use rustix::process::Signal;

use super::fixture::{Fixture, work};

/// Works with two shares until it is told to end: numbers go to a file of the one, and what the
/// other one has is read. An error ends it early, without its last word.
const LOAD: &str = "(set -e; i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); \
    echo $i >>/tools/numbers; [ $(cat /home/of_home) = home ]; done; echo $i >/tmp/done) \
    >/tmp/said 2>&1 &";

/// Numbers that the work must get to in between.
const ROUNDS: u64 = 20;

/// Boots a guest with the shares `home` and `tools` in directories of their names.
fn boot(fixture: &Fixture) -> Result<Guest> {
    let options = Options::new(Machine::Uml)
        .share(&fixture.socket("home"), "home")
        .share(&fixture.socket("tools"), "tools");
    let mut guest = Guest::boot(&options).with_context(|| fixture.log())?;
    guest.sh("mkdir -p /home /tools")?;
    guest.mount("home", "/home")?;
    guest.mount("tools", "/tools")?;
    Ok(guest)
}

#[test]
fn a_guest_mounts_two_shares_of_one_daemon() -> Result<()> {
    let fixture = Fixture::start(
        &["home", "tools", "late"],
        &["--share=home={}/home", "--share=tools={}/tools,readonly"],
    )?;
    let mut guest = boot(&fixture)?;
    guest.sh("cp /tools/of_tools /home/copy && ! touch /tools/new 2>/dev/null")?;
    ensure!(fs::read(fixture.path("home/copy"))? == b"tools");
    ensure!(!fixture.path("tools/new").exists());
    // Another share comes, and one of the guest's own goes.
    fixture.share_done(&["add", "late={}/late"])?;
    fixture.share_refused(&["remove", "tools"], "has 1 guests")?;
    guest.sh("umount /tools")?;
    fixture.share_done(&["remove", "tools", "--force"])?;
    guest.sh("echo more >>/home/copy && sync")?;
    ensure!(fs::read(fixture.path("home/copy"))? == b"toolsmore\n");
    guest.power_off()?;
    fixture.end()
}

/// What the work has got to, once it has gone on for some rounds.
fn goes_on(fixture: &Fixture) -> Result<()> {
    let count = || -> Result<u64> {
        let numbers = fs::read_to_string(fixture.path("tools/numbers")).unwrap_or_default();
        Ok(numbers.lines().count().try_into()?)
    };
    let wanted = count()? + ROUNDS;
    fixture.wait_until("the work goes on", || Ok(count()? >= wanted))
}

/// SIGHUP while a guest works with two shares: a file comes, the file of an idle share goes, and so
/// does that of a share in use. Files that come are served, and those that go take no share away:
/// the command does, unless a guest is there.
#[test]
fn a_guest_works_on_while_reloads_find_files_that_have_come_and_gone() -> Result<()> {
    let mut fixture = Fixture::start(
        &["home", "tools", "idle", "late"],
        &["--share=home={}/home", "--shares-dir={}/files"],
    )?;
    let file = |fixture: &Fixture, tag: &str| fixture.path(&format!("files/{tag}.toml"));
    let serves = |fixture: &mut Fixture, tag: &str, reloads: u32| {
        let shared = fixture.path(tag);
        fs::write(
            file(fixture, tag),
            format!("shared-dir = \"{}\"\n", shared.display()),
        )?;
        process::signal(&fixture.child, Signal::HUP)?;
        fixture.wait_for_log(&format!("home: reload {reloads} is done"))?;
        fixture.wait_until(&format!("{tag} is served"), || {
            let listed = fixture.listed(tag)?;
            Ok(listed.is_some_and(|one| one["state"] == "serving"))
        })
    };
    serves(&mut fixture, "tools", 1)?;
    serves(&mut fixture, "idle", 2)?;
    let mut guest = boot(&fixture)?;
    guest.sh(LOAD)?;
    goes_on(&fixture)?;

    let before = [fixture.acceptor("home")?, fixture.acceptor("tools")?];
    fs::remove_file(file(&fixture, "tools"))?;
    fs::remove_file(file(&fixture, "idle"))?;
    serves(&mut fixture, "late", 3)?;
    for words in [
        "tools: reload 2 is done",
        "share \"tools\" goes on: to end it, gangplankd share remove tools",
        "share \"idle\" goes on: to end it",
    ] {
        fixture.wait_for_log(words)?;
    }
    let after = [fixture.acceptor("home")?, fixture.acceptor("tools")?];
    ensure!(
        before.iter().all(|process| !after.contains(process)),
        "{before:?} still serve"
    );
    goes_on(&fixture)?;
    work(&mut fixture.driver("late")?, c"new")?;
    work(&mut fixture.driver("idle")?, c"new")?;
    fixture.share_refused(&["remove", "tools"], "has 1 guests")?;
    fixture.wait_until("idle has no guest", || {
        Ok(fixture
            .listed("idle")?
            .is_some_and(|one| one["guests"] == 0))
    })?;
    fixture.share_done(&["remove", "idle"])?;

    // What was removed stays away, and all others stay.
    process::signal(&fixture.child, Signal::HUP)?;
    fixture.wait_for_log("tools: reload 3 is done")?;
    fixture.wait_for_log("late: reload 1 is done")?;
    ensure!(fixture.listed("idle")?.is_none() && !fixture.socket("idle").exists());
    goes_on(&fixture)?;

    guest.sh(
        "touch /tmp/stop; for i in $(seq 600); do [ -s /tmp/done ] && break; sleep 0.1; done",
    )?;
    let last = guest.sh("cat /tmp/done || { cat /tmp/said; exit 1; }")?;
    let last: u64 = last.trim().parse()?;
    let expected: String = (1..=last).map(|number| format!("{number}\n")).collect();
    ensure!(fs::read_to_string(fixture.path("tools/numbers"))? == expected);
    guest.sh("umount /tools")?;
    fixture.share_done(&["remove", "tools", "--force"])?;
    guest.sh("[ $(cat /home/of_home) = home ]")?;
    guest.power_off()?;
    fixture.end()
}
