//! Socket units, and the relay.

use anyhow::{Result, ensure};

use super::first_minute::SOCKET;
use super::system::System;

const RELAYED: &str = "/run/gangplank-relay/home.sock";

fn expect_state(system: &mut System, unit: &str, state: &str) -> Result<()> {
    system.expect(unit, &[("ActiveState", state)])
}

pub(super) fn daemon_starts_with_its_first_guest_and_ends_with_its_last(
    system: &mut System,
) -> Result<()> {
    let service = "gangplankd-activated@home.service";
    system.sh("systemctl start gangplankd@home.socket")?;
    let owner = system.sh(&format!("stat -c '%U %G %a' {SOCKET}"))?;
    ensure!(owner == "root kvm 660\n", "{owner}");
    expect_state(system, service, "inactive")?;
    for round in 0..2 {
        let session = system.session(SOCKET, "activated")?;
        expect_state(system, service, "active")?;
        system.use_share(SOCKET, "guest")?;
        if round == 0 {
            system.kill_and_wait(service, "worker")?;
            session.goes_on(system)?;
        }
        session.end(system)?;
        system.wait_until(&format!(
            "[ $(systemctl show -P ActiveState {service}) = inactive ]"
        ))?;
        system.expect(service, &[("Result", "success"), ("NRestarts", "0")])?;
        expect_state(system, "gangplankd@home.socket", "active")?;
    }
    system.stop("gangplankd@home.socket")?;
    system.sh(&format!("! test -e {SOCKET}"))?;
    Ok(())
}

pub(super) fn relay_serves_guests_of_its_daemon(system: &mut System) -> Result<()> {
    let relay = "gangplank-relay@home.service";
    system.sh("systemctl start gangplank-relay@home gangplankd@home")?;
    let owner = system.sh(&format!("stat -c '%U %G %a' {RELAYED}"))?;
    ensure!(owner == "root kvm 660\n", "{owner}");
    let session = system.session(RELAYED, "relayed")?;
    system.use_share(RELAYED, "guest")?;
    let control = "--control /run/gangplank-relay/home.control";
    let status = system.sh(&format!("gangplank-frontend relay status {control}"))?;
    ensure!(status.contains("/run/gangplank/home.sock"), "{status}");
    // The daemon is another one, and the guest's device stays.
    system.sh("systemctl restart gangplankd@home")?;
    session.goes_on(system)?;
    session.end(system)?;
    system.expect(relay, &[("ActiveState", "active"), ("NRestarts", "0")])?;
    system.stop(relay)
}

pub(super) fn relay_starts_with_its_first_guest(system: &mut System) -> Result<()> {
    let service = "gangplank-relay-activated@home.service";
    system.sh("systemctl start gangplank-relay@home.socket gangplankd@home")?;
    expect_state(system, service, "inactive")?;
    system.use_share(RELAYED, "guest")?;
    expect_state(system, service, "active")?;
    // Guests can connect while the relay is restarted.
    system.sh(&format!("systemctl restart {service}"))?;
    system.use_share(RELAYED, "guest")?;
    system.sh("systemctl stop gangplank-relay@home.socket")?;
    expect_state(system, service, "inactive")?;
    system.sh(&format!("! test -e {RELAYED}"))?;
    Ok(())
}
