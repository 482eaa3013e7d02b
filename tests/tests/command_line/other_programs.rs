//! What the programs beside the daemon may still do while they serve.

use std::path::Path;

use anyhow::{Result, ensure};
use gangplank_tests::confinement::{self, DAC_OVERRIDE};
use gangplank_tests::relay::Relay;

#[test]
fn relay_keeps_what_it_connects_with() -> Result<()> {
    let relay = Relay::start(Path::new("/nonexistent"), &[])?;
    relay.tell(&["status"])?;
    confinement::check(relay.pid(), DAC_OVERRIDE)?;
    relay.stop()?;
    Ok(())
}

#[test]
fn relay_has_no_list_where_the_operator_wants_none() -> Result<()> {
    for (action, mode) in [("none", "0"), ("log", "2"), ("kill", "2")] {
        let option = format!("--seccomp={action}");
        let relay = Relay::start(Path::new("/nonexistent"), &[&option])?;
        relay.tell(&["status"])?;
        ensure!(confinement::seccomp_mode(relay.pid())? == mode, "{action}");
        relay.stop()?;
    }
    Ok(())
}
