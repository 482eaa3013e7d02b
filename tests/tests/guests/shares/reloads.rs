//! SIGHUP: each share reloads, and new files are served.

use std::fs;

use anyhow::{Context, Result, ensure};
use gangplank_tests::process;
use rustix::process::Signal;

use super::fixture::{Fixture, work};

#[test]
fn guests_of_all_shares_outlive_a_reload_and_new_files_are_served() -> Result<()> {
    let mut fixture = Fixture::start(
        &["home", "tools", "more"],
        &[
            "--share=home={}/home",
            "--share=tools={}/tools",
            "--shares-dir={}/files",
        ],
    )?;
    let mut drivers = [fixture.driver("home")?, fixture.driver("tools")?];
    let before = [fixture.acceptor("home")?, fixture.acceptor("tools")?];
    let text = format!("shared-dir = \"{}\"\n", fixture.path("more").display());
    fs::write(fixture.path("files/more.toml"), &text)?;
    fs::write(fixture.path("files/bad.toml"), "readonly = 1\n")?;
    process::signal(&fixture.child, Signal::HUP)?;
    for words in [
        "home: reload 1 is done",
        "tools: reload 1 is done",
        "bad.toml:1: the key",
    ] {
        fixture.wait_for_log(words)?;
    }
    fixture.wait_until("the new file is served", || {
        Ok(fixture
            .listed("more")?
            .is_some_and(|one| one["state"] == "serving"))
    })?;
    for driver in &mut drivers {
        work(driver, c"new")?;
    }
    work(&mut fixture.driver("more")?, c"new")?;
    ensure!([fixture.acceptor("home")?, fixture.acceptor("tools")?] != before);

    // A share is known by its tag: changed options need its removal.
    let changed = format!("readonly = true\n{text}");
    fs::write(fixture.path("files/more.toml"), changed)?;
    fs::remove_file(fixture.path("files/bad.toml"))?;
    process::signal(&fixture.child, Signal::HUP)?;
    fixture.wait_for_log("share \"more\" is served with the options that it had before")?;
    fixture.wait_for_log("more: reload 1 is done")?;
    fixture.share_done(&["remove", "more"])?;
    process::signal(&fixture.child, Signal::HUP)?;
    fixture.wait_until("the changed file is served", || {
        Ok(fixture
            .listed("more")?
            .is_some_and(|one| one["state"] == "serving"))
    })?;
    let refused = work(&mut fixture.driver("more")?, c"new");
    refused.err().context("it is not read-only")?;
    for driver in &mut drivers {
        work(driver, c"new")?;
    }
    drop(drivers);
    fixture.end()
}
