//! The other units, what systemd says of all, and the end of the package.

use anyhow::{Result, ensure};

use super::first_minute::{SOCKET, failed_and_said};
use super::system::{BEFORE, LIST, System};

/// Where the package has examples.
const EXAMPLES: &str = "/usr/share/doc/gangplank/examples";

/// The units, as instances where they are templates.
const UNITS: [&str; 8] = [
    "gangplankd@home.service",
    "gangplankd-activated@home.service",
    "gangplankd-shares.service",
    "gangplank-relay@home.service",
    "gangplank-relay-activated@home.service",
    "gangplank-dvk.service",
    "gangplank-nfs.service",
    "gangplank-frontend.service",
];

pub(super) fn shares_of_files_are_served(system: &mut System) -> Result<()> {
    let unit = "gangplankd-shares.service";
    system.sh(&format!(
        "mkdir -p /etc/gangplank/shares /srv/tools && \
         cp {EXAMPLES}/shares/home.toml /etc/gangplank/shares && systemctl start {unit}"
    ))?;
    system.use_share(SOCKET, "guest")?;
    let session = system.session(SOCKET, "shared")?;
    system.sh(&format!(
        "cp {EXAMPLES}/shares/tools.toml /etc/gangplank/shares && systemctl reload {unit}"
    ))?;
    system.wait_until("test -S /run/gangplank/tools.sock")?;
    session.goes_on(system)?;
    let listed = system.sh("gangplankd share list --control=/run/gangplank/shares.control")?;
    ensure!(
        listed.contains("home") && listed.contains("tools"),
        "{listed}"
    );
    // A share whose file has gone ends by the command, and stays away.
    system.sh(&format!(
        "rm /etc/gangplank/shares/tools.toml && systemctl reload {unit} && \
         test -S /run/gangplank/tools.sock && \
         gangplankd share remove tools --control=/run/gangplank/shares.control && \
         systemctl reload {unit} && ! test -e /run/gangplank/tools.sock"
    ))?;
    session.goes_on(system)?;
    session.end(system)?;
    system.expect(unit, &[("ActiveState", "active"), ("NRestarts", "0")])?;
    system.stop(unit)
}

pub(super) fn bridges_serve_by_the_shipped_examples(system: &mut System) -> Result<()> {
    system.sh("systemctl start gangplankd@home")?;
    for (unit, example, socket) in [
        (
            "gangplank-nfs.service",
            "nfs.toml",
            Some("/run/gangplank-nfs/stream"),
        ),
        ("gangplank-dvk.service", "rhostfs.cfg", None),
    ] {
        system.sh(&format!(
            "mkdir -p /etc/gangplank && sed s,/run/gangplank/fs.sock,{SOCKET}, \
             {EXAMPLES}/{example} >/etc/gangplank/{example} && systemctl start {unit}"
        ))?;
        system.expect_running(unit)?;
        if let Some(socket) = socket {
            system.sh(&format!("test -S {socket}"))?;
        }
        // It has a session of the daemon, which it may connect to as a member of the group kvm.
        let main = system.property(unit, "MainPID")?;
        let user = system.sh(&format!("stat -c %U /proc/{main}"))?;
        ensure!(user == "gangplank\n", "{unit} runs as {user}");
        system.process("gangplankd@home.service", "worker")?;
        system.stop(unit)?;
        system.wait_until("! ps -e -o comm | grep -q ^worker")?;
    }
    Ok(())
}

pub(super) fn missing_configuration_is_named_and_not_tried_again(
    system: &mut System,
) -> Result<()> {
    for (unit, file) in [
        ("gangplank-nfs.service", "/etc/gangplank/nfs.toml"),
        ("gangplank-dvk.service", "/etc/gangplank/rhostfs.cfg"),
        ("gangplank-frontend.service", "/etc/gangplank.yaml"),
        ("gangplankd-shares.service", "/etc/gangplank/shares"),
    ] {
        failed_and_said(system, unit, file)?;
    }
    Ok(())
}

pub(super) fn systemd_itself_finds_the_units_right_and_tight(system: &mut System) -> Result<()> {
    let said = system.sh(&format!(
        "systemd-analyze verify --man=no {} gangplankd@home.socket \
         gangplank-relay@home.socket 2>&1",
        UNITS.join(" ")
    ))?;
    ensure!(said.is_empty(), "{said}");
    for unit in UNITS {
        system.sh(&format!(
            "systemd-analyze security --no-pager --threshold=29 {unit}"
        ))?;
    }
    Ok(())
}

pub(super) fn purge_stops_everything_and_leaves_nothing(system: &mut System) -> Result<()> {
    system.sh("systemctl start gangplankd@home gangplank-relay@home")?;
    system.sh("systemctl start gangplankd@other.socket gangplank-relay@other.socket")?;
    system.sh("dpkg --purge gangplank")?;
    let left = system.sh(
        "systemctl list-units --all --plain --no-legend 'gangplank*'; \
         ls -d /run/gangplank*/*.sock 2>/dev/null; ps -e -o args | grep '[g]angplankd'; true",
    )?;
    ensure!(
        ["active", "/gangplankd", ".sock"]
            .iter()
            .all(|part| !left.contains(part)),
        "{left}"
    );
    // The group and the user stay, as Debian has it, and with them the previous account files.
    let differ = system.sh(&format!(
        "{LIST} >/run/after; diff {BEFORE} /run/after | grep '^[<>]' | grep -v '/etc/[a-z]*-$'; \
         true"
    ))?;
    ensure!(differ.is_empty(), "{differ}");
    Ok(())
}
