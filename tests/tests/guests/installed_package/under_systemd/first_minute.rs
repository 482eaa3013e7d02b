//! What a person sees who starts the daemon by its unit.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::system::System;

pub(super) const UNIT: &str = "gangplankd@home.service";
pub(super) const SOCKET: &str = "/run/gangplank/home.sock";

pub(super) fn unit_is_active_once_the_daemon_serves(system: &mut System) -> Result<()> {
    system.sh("systemctl enable --now gangplankd@home")?;
    // At once: whoever is ordered after the unit connects now.
    system.use_share(SOCKET, "guest")?;
    system.expect_running(UNIT)?;
    let status = system.sh("systemctl status --no-pager gangplankd@home")?;
    ensure!(status.contains("Status: \""), "{status}");
    let owner = system.sh(&format!("stat -c '%U %G %a' {SOCKET}"))?;
    ensure!(owner == "root kvm 660\n", "{owner}");
    system.sh("systemctl disable gangplankd@home")?;
    system.stop(UNIT)?;
    system.sh(&format!("! test -e {SOCKET}"))?;
    Ok(())
}

pub(super) fn journal_has_priorities_and_fields(system: &mut System) -> Result<()> {
    system.sh("systemctl start gangplankd@home")?;
    system.use_share(SOCKET, "guest")?;
    system.stop(UNIT)?;
    let lines = system.sh(&format!(
        "journalctl --sync; journalctl -o json --no-pager _SYSTEMD_UNIT={UNIT}"
    ))?;
    let mut levels = Vec::new();
    let mut guests = Vec::new();
    for line in lines.lines() {
        let entry: Value = serde_json::from_str(line).context("a line of the journal")?;
        let field = |name: &str| entry[name].as_str().map(str::to_owned);
        ensure!(field("MESSAGE").is_some_and(|message| !message.starts_with('<')));
        ensure!(
            field("CODE_FILE").is_some_and(|file| file.ends_with(".rs")),
            "{line}"
        );
        ensure!(
            field("CODE_MODULE").is_some() && field("CODE_LINE").is_some(),
            "{line}"
        );
        ensure!(field("_TRANSPORT").as_deref() == Some("journal"), "{line}");
        levels.extend(field("PRIORITY"));
        guests.extend(field("GANGPLANK_GUEST"));
    }
    ensure!(levels.iter().all(|level| level == "6"), "levels {levels:?}");
    ensure!(
        !levels.is_empty() && guests.iter().any(|guest| guest == "1"),
        "{lines}"
    );
    let of_guest = system.sh("journalctl -o cat --no-pager GANGPLANK_GUEST=1")?;
    ensure!(of_guest.contains("guest 1"), "{of_guest}");
    Ok(())
}

pub(super) fn missing_directory_is_named_and_served_once_it_is_there(
    system: &mut System,
) -> Result<()> {
    system.sh("rm -rf /srv/home")?;
    system.fails("systemctl start gangplankd@home")?;
    names(system, UNIT, "shared directory \"/srv/home\"")?;
    system.sh("mkdir /srv/home && echo written on the host >/srv/home/from-host")?;
    system.wait_until("systemctl is-active gangplankd@home")?;
    system.use_share(SOCKET, "guest")
}

pub(super) fn wrong_option_is_named_and_not_tried_again(system: &mut System) -> Result<()> {
    system.sh("echo OPTIONS=--no-such-option >/etc/default/gangplankd-home")?;
    failed_and_said(system, UNIT, "--no-such-option")
}

/// A unit that cannot start says why in its log, and is not started again and again.
pub(super) fn failed_and_said(system: &mut System, unit: &str, words: &str) -> Result<()> {
    system.fails(&format!("systemctl start {unit}"))?;
    system.expect(unit, &[("ActiveState", "failed"), ("NRestarts", "0")])?;
    names(system, unit, words)?;
    let status = system.sh(&format!("systemctl status --no-pager --full {unit}; true"))?;
    let mut lines = status.lines().filter(|line| !line.contains("ExecStart="));
    ensure!(
        lines.any(|line| line.contains(words)),
        "the status says nothing of {words}: {status}"
    );
    Ok(())
}

/// The program itself has named what is wrong in the journal.
fn names(system: &mut System, unit: &str, words: &str) -> Result<()> {
    let said = system.sh(&format!(
        "journalctl --sync; journalctl --no-pager -o cat _SYSTEMD_UNIT={unit}"
    ))?;
    ensure!(
        said.contains(words),
        "{unit} says nothing of {words}: {said}"
    );
    Ok(())
}

pub(super) fn limits_are_those_of_the_unit(system: &mut System) -> Result<()> {
    system.sh("systemctl start gangplankd@home")?;
    let session = system.session(SOCKET, "limited")?;
    let expected = [
        ("OOMPolicy", "continue"),
        ("OOMScoreAdjust", "-500"),
        ("TasksMax", "16384"),
        ("LimitNOFILE", "1000000"),
        ("FileDescriptorStoreMax", "8192"),
        ("WatchdogUSec", "1min 30s"),
    ];
    system.expect(UNIT, &expected)?;
    let memory: u64 = system.property(UNIT, "MemoryMax")?.parse()?;
    let all = system.sh("sed -n 's/MemTotal: *\\(.*\\) kB/\\1/p' /proc/meminfo")?;
    let half = all.trim().parse::<u64>()? * 1024 / 2;
    ensure!(memory.abs_diff(half) < half / 10, "{memory} of {all}");
    for (name, score) in [
        ("gangplankd", "-500"),
        ("acceptor", "-500"),
        ("keeper", "-500"),
        ("worker", "0"),
    ] {
        let process = system.process(UNIT, name)?;
        let adjusted = system.sh(&format!("cat /proc/{process}/oom_score_adj"))?;
        ensure!(adjusted.trim() == score, "{name} has {adjusted}");
    }
    let worker = system.process(UNIT, "worker")?;
    let limits = system.sh(&format!("grep 'open files' /proc/{worker}/limits"))?;
    ensure!(limits.contains("1000000"), "{limits}");
    session.end(system)
}
