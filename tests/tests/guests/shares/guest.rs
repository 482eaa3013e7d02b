//! A kernel's guest with two shares of one daemon.

use anyhow::{Context, Result, ensure};
use gangplank_tests::guest::{Guest, Machine, Options};

use super::fixture::Fixture;

#[test]
fn a_guest_mounts_two_shares_of_one_daemon() -> Result<()> {
    let fixture = Fixture::start(
        &["home", "tools", "late"],
        &["--share=home={}/home", "--share=tools={}/tools,readonly"],
    )?;
    let options = Options::new(Machine::Uml)
        .share(&fixture.socket("home"), "home")
        .share(&fixture.socket("tools"), "tools");
    let mut guest = Guest::boot(&options).with_context(|| fixture.log())?;
    guest.sh("mkdir -p /home /tools")?;
    guest.mount("home", "/home")?;
    guest.mount("tools", "/tools")?;
    guest.sh("cp /tools/of_tools /home/copy && ! touch /tools/new 2>/dev/null")?;
    ensure!(std::fs::read(fixture.path("home/copy"))? == b"tools");
    ensure!(!fixture.path("tools/new").exists());
    // Another share comes, and one of the guest's own goes.
    fixture.share_done(&["add", "late={}/late"])?;
    fixture.share_refused(&["remove", "tools"], "has 1 guests")?;
    guest.sh("umount /tools")?;
    fixture.share_done(&["remove", "tools", "--force"])?;
    guest.sh("echo more >>/home/copy && sync")?;
    ensure!(std::fs::read(fixture.path("home/copy"))? == b"toolsmore\n");
    guest.power_off()?;
    fixture.end()
}
