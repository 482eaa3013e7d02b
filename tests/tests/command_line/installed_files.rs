//! Installed files for libvirt and systemd: whether that software accepts them, and whether the
//! daemon accepts their options.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gangplank_tests::{cache, tools};
use rustix::process::Signal;
use serde_json::Value;

use crate::fixture::Fixture;

/// The path of the daemon in the files.
const DAEMON: &str = "/usr/local/bin/gangplankd";
const FRONTEND: &str = "/usr/local/bin/gangplank-frontend";
const DVK: &str = "/usr/local/bin/gangplank-dvk";
const NFS: &str = "/usr/local/bin/gangplank-nfs";

/// What the units run beside our programs.
const SHELL: &str = "/bin/sh";

/// The units, as instances where they are templates.
const UNITS: [&str; 10] = [
    "gangplankd@home.service",
    "gangplankd@home.socket",
    "gangplankd-activated@home.service",
    "gangplankd-shares.service",
    "gangplank-relay@home.service",
    "gangplank-relay@home.socket",
    "gangplank-relay-activated@home.service",
    "gangplank-dvk.service",
    "gangplank-nfs.service",
    "gangplank-frontend.service",
];

/// Units that every service depends on implicitly.
const STANDARD_UNITS: [&str; 6] = [
    "sysinit",
    "basic",
    "shutdown",
    "multi-user",
    "sockets",
    "network-online",
];

fn shipped(name: &str) -> PathBuf {
    cache::workspace().join("configs").join(name)
}

/// `docs/interop/vhost-user.json` of QEMU, `VHostUserBackend`: libvirt finds a backend by its type,
/// and reads its capabilities in the file or asks the program for them.
#[test]
fn management_software_is_told_of_a_backend_that_says_the_same_of_itself() -> Result<()> {
    let text = fs::read_to_string(shipped("qemu/50-gangplankd.json"))?;
    let backend: Value = serde_json::from_str(&text)?;
    let members = backend.as_object().context("no object")?;
    let known = ["description", "type", "binary", "tags", "features"];
    ensure!(members.keys().all(|name| known.contains(&name.as_str())));
    ensure!(members["description"].is_string());
    ensure!(members["binary"] == DAEMON);

    let ended = Fixture::new()?.run(&["--print-capabilities"])?;
    let own: Value = serde_json::from_str(&ended.output)?;
    ensure!(members["type"] == "fs" && own["type"] == members["type"]);
    ensure!(own["features"].is_array() && members["features"] == own["features"]);
    Ok(())
}

/// Makes a root directory in which systemd finds the units, the standard ones, and placeholders for
/// the programs.
fn install(root: &Path) -> Result<()> {
    let units = root.join("usr/lib/systemd/system");
    fs::create_dir_all(&units)?;
    for name in STANDARD_UNITS {
        let text = format!("[Unit]\nDescription={name}\n");
        fs::write(units.join(format!("{name}.target")), text)?;
    }
    let own = root.join("etc/systemd/system");
    fs::create_dir_all(&own)?;
    for entry in fs::read_dir(shipped("systemd"))? {
        let entry = entry?;
        fs::copy(entry.path(), own.join(entry.file_name()))?;
    }
    for program in [DAEMON, FRONTEND, DVK, NFS, SHELL] {
        let program = root.join(program.trim_start_matches('/'));
        fs::create_dir_all(program.parent().context("a program in no directory")?)?;
        fs::write(&program, "#!/bin/sh\n")?;
        fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[test]
fn systemd_takes_the_units_and_has_nothing_to_say() -> Result<()> {
    let root = tempfile::tempdir()?;
    install(root.path())?;
    let verified = Command::new("systemd-analyze")
        .arg("verify")
        .arg(format!("--root={}", root.path().display()))
        .args(UNITS)
        .output()
        .context("starting systemd-analyze")?;
    let said = [verified.stdout, verified.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(verified.status.success() && said.is_empty(), "{said}");
    Ok(())
}

/// Whoever removes the package removes the programs, so no unit may go on with them.
#[test]
fn removal_of_the_package_stops_every_unit() -> Result<()> {
    let script = fs::read_to_string(cache::workspace().join("packaging/debian/prerm"))?;
    let words: Vec<&str> = script
        .split_whitespace()
        .map(|word| word.trim_matches('\''))
        .collect();
    for entry in fs::read_dir(shipped("systemd"))? {
        let name = entry?.file_name();
        let name = name.to_str().context("a unit's name")?;
        let pattern = name.replace("@.", "@*.");
        ensure!(words.contains(&pattern.as_str()), "{pattern} goes on");
    }
    Ok(())
}

/// systemd's own measure of what a service may do to the host: 0 is nothing, 10 everything.
#[test]
fn systemd_rates_every_service_below_three() -> Result<()> {
    for entry in fs::read_dir(shipped("systemd"))? {
        let path = entry?.path();
        if path
            .extension()
            .is_none_or(|extension| extension != "service")
        {
            continue;
        }
        let rated = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--threshold=29", "--no-pager"])
            .arg(&path)
            .output()
            .context("starting systemd-analyze")?;
        let said = String::from_utf8_lossy(&rated.stdout).into_owned();
        ensure!(said.contains("Overall exposure level"), "{rated:?}");
        ensure!(rated.status.success(), "{}\n{said}", path.display());
    }
    Ok(())
}

/// The command line of a unit.
fn command_line(unit: &str) -> Result<String> {
    let text = fs::read_to_string(shipped("systemd").join(unit))?;
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix("ExecStart="));
    Ok(line.context("no ExecStart")?.to_owned())
}

/// The unit's own command line, with its directories moved to where a test may write.
#[test]
fn unit_serves_the_share_of_its_name() -> Result<()> {
    let line = command_line("gangplankd@.service")?
        .replace("%i", "share")
        // The last of several counts. Containers have no group kvm.
        .replace("$OPTIONS", "--readonly --cache=always --socket-group=root");
    ensure!(line.contains(" --socket-group=kvm "), "{line}");
    let line = line.replace(" --socket-group=kvm", "");
    let mut words = line.split(' ');
    ensure!(words.next() == Some(DAEMON));

    let fixture = Fixture::new()?;
    let here = fixture.path().display().to_string();
    let arguments: Vec<String> = words
        .map(|word| word.replace("/run/gangplank", &here).replace("/srv", &here))
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let daemon = fixture.start(&arguments)?;
    ensure!(fixture.file("share.sock").exists());
    let ended = daemon.signal(Signal::TERM)?;
    ensure!(ended.status.success(), "{ended:?}");
    ensure!(!fixture.file("share.sock").exists());
    Ok(())
}

/// The socket's service gets the socket from systemd, and shares what the other one shares.
#[test]
fn service_of_the_socket_differs_only_in_where_guests_connect() -> Result<()> {
    let usual = command_line("gangplankd@.service")?;
    let activated = command_line("gangplankd-activated@.service")?;
    let expected = usual.replace(
        "--socket-path=/run/gangplank/%i.sock --socket-group=kvm ",
        "",
    );
    ensure!(activated == expected, "{activated}");
    let socket = fs::read_to_string(shipped("systemd/gangplankd@.socket"))?;
    ensure!(socket.contains("\nListenStream=/run/gangplank/%i.sock\n"));
    ensure!(socket.contains("\nService=gangplankd-activated@%i.service\n"));

    let usual = command_line("gangplank-relay@.service")?;
    let activated = command_line("gangplank-relay-activated@.service")?;
    let expected = usual.replace(
        "--listen /run/gangplank-relay/%i.sock --socket-group kvm ",
        "",
    );
    ensure!(activated == expected, "{activated}");
    let socket = fs::read_to_string(shipped("systemd/gangplank-relay@.socket"))?;
    ensure!(socket.contains("\nListenStream=/run/gangplank-relay/%i.sock\n"));
    ensure!(socket.contains("\nService=gangplank-relay-activated@%i.service\n"));
    Ok(())
}

/// Without Bao the program serves nothing, but it accepts its options first.
#[test]
fn device_models_unit_has_options_that_it_takes() -> Result<()> {
    let line = command_line("gangplank-frontend.service")?;
    let words: Vec<&str> = line.split(' ').collect();
    let [FRONTEND, "--config", "/etc/gangplank.yaml", options @ ..] = &words[..] else {
        anyhow::bail!("{line}");
    };
    let checked = Command::new(tools::frontend()?)
        .arg("--config")
        .arg(shipped("bao/config-fs-full.yaml"))
        .args(options)
        .arg("--check")
        .output()?;
    ensure!(checked.status.success(), "{checked:?}");
    Ok(())
}
