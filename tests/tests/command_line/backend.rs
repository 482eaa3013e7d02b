//! The daemon's command line: what it prints, what it refuses, and what it leaves behind.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::time::Duration;

use crate::fixture::{Fixture, root_or_skip};
use anyhow::{Context, Result};
use gangplank_tests::process::{User, children};
use gangplank_tests::wait;
use rustix::process::Signal;

#[test]
fn help_is_grouped_by_theme() -> Result<()> {
    let ended = Fixture::new()?.run(&["--help"])?;
    assert_eq!(ended.status.code(), Some(0));
    for heading in [
        "The share:",
        "Where guests connect:",
        "Caching:",
        "Confinement:",
    ] {
        assert!(
            ended.output.contains(heading),
            "{heading}\n{}",
            ended.output
        );
    }
    assert_eq!(ended.errors, "");
    Ok(())
}

#[test]
fn version_is_told() -> Result<()> {
    let ended = Fixture::new()?.run(&["--version"])?;
    assert_eq!(ended.status.code(), Some(0));
    assert!(ended.output.starts_with("gangplankd "), "{}", ended.output);
    Ok(())
}

#[test]
fn capabilities_are_printed_for_management_software() -> Result<()> {
    let ended = Fixture::new()?.run(&["--print-capabilities"])?;
    assert_eq!(ended.status.code(), Some(0));
    let told: serde_json::Value = serde_json::from_str(&ended.output)?;
    let expected = serde_json::json!({
        "type": "fs",
        "features": [
            "migrate-precopy",
            "posix-acl-negotiation-mode",
            "security-label-negotiation-mode",
            "separate-options",
        ],
    });
    assert_eq!(told, expected);
    Ok(())
}

#[test]
fn mistakes_end_with_status_2_and_what_would_be_right() -> Result<()> {
    let fixture = Fixture::new()?;
    let least = ["--socket-path=s", "--shared-dir=share"];
    let table: &[(&[&str], &str)] = &[
        (&["--cache=sometimes"], "never, metadata, auto or always"),
        (&["--sandbox=jail"], "namespace, chroot or none"),
        (
            &["--tag", "0123456789012345678901234567890123456"],
            "at most 36 bytes",
        ),
        (&["--queue-size=1000"], "power of two"),
        (&["--num-request-queues=64"], "1..=63"),
        (
            &["--fd=3"],
            "--fd cannot be used together with --socket-path",
        ),
        (&["--socket=other"], "different sockets"),
        (&["--modcaps=chown"], "+capability or -capability"),
        (
            &["--xattrmap=:prefix:all:trusted.:user.:"],
            "no rule ends the map for the client",
        ),
        (&["--posix-acl=sometimes"], "never, auto or always"),
        (
            &["--posix-acl", "--translate-uid=map:0:1:1"],
            "--translate-uid cannot be used together with --posix-acl",
        ),
        (
            &["--uid-map", ":0:1000:1"],
            "expected :namespace-id:host-id:count:",
        ),
        (
            &["--migration-mode=file-handles", "--migration-confirm-paths"],
            "--migration-confirm-paths cannot be used together with --migration-mode=file-handles",
        ),
        (&["-o", "frobnicate"], "unknown option '-o frobnicate'"),
        (&["--frobnicate"], "--frobnicate"),
    ];
    for (arguments, hint) in table {
        let ended = fixture.run(&[&least, *arguments].concat())?;
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.errors.contains(hint), "{arguments:?}: {ended:?}");
    }
    for (arguments, hint) in [
        (vec!["--socket-path=s"], "--shared-dir"),
        (vec!["--shared-dir=share"], "--socket-path"),
        (vec![], "Usage:"),
    ] {
        let ended = fixture.run(&arguments)?;
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.errors.contains(hint), "{arguments:?}: {ended:?}");
    }
    assert!(!fixture.file("s").exists());
    Ok(())
}

#[test]
fn what_cannot_be_had_ends_with_status_1_and_its_name() -> Result<()> {
    let fixture = Fixture::new()?;
    fs::write(fixture.file("regular"), "")?;
    for (socket, share, hint) in [
        ("s", "none", "shared directory \"none\""),
        ("s", "regular", "shared directory \"regular\""),
        ("none/s", "share", "directory \"none\""),
        ("regular", "share", "a regular file, not a socket"),
    ] {
        let ended = fixture.run(&[
            "--sandbox=none",
            "--socket-path",
            socket,
            "--shared-dir",
            share,
        ])?;
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.errors.contains(hint), "{hint}: {ended:?}");
        assert!(!fixture.file("s").exists(), "{hint}: the socket is left");
        assert!(
            !fixture.file("s.pid").exists(),
            "{hint}: the pid file is left"
        );
    }
    Ok(())
}

#[test]
fn command_line_of_the_bao_demo_runs() -> Result<()> {
    if !root_or_skip("command_line_of_the_bao_demo_runs") {
        return Ok(());
    }
    let fixture = Fixture::new()?;
    let socket = format!("--socket-path={}", fixture.file("Fs.sock").display());
    let share = fixture.file("share").display().to_string();
    let daemon = fixture.start(&[
        &socket,
        "--shared-dir",
        &share,
        "--tag=myfs",
        "--announce-submounts",
        "--sandbox",
        "chroot",
    ])?;
    assert!(fixture.file("Fs.sock").exists());
    assert!(daemon.signal(Signal::TERM)?.status.success());
    Ok(())
}

#[test]
fn command_line_of_the_c_daemon_runs_and_is_noticed() -> Result<()> {
    let fixture = Fixture::new()?;
    fs::create_dir(fixture.file("share,s"))?;
    let daemon = fixture.start(&[
        "-f",
        "-d",
        "--socket-path=fs.sock",
        "-o",
        "source=share,,s,cache=none,flock,no_posix_lock",
        "--sandbox=none",
    ])?;
    let ended = daemon.signal(Signal::TERM)?;
    assert!(ended.status.success());
    assert!(
        ended.errors.contains("sharing \"share,s\""),
        "{}",
        ended.errors
    );
    for notice in ["-f is deprecated", "-d is deprecated", "-o is deprecated"] {
        assert!(ended.errors.contains(notice), "{notice}: {}", ended.errors);
    }
    Ok(())
}

#[test]
fn termination_signals_end_it_cleanly() -> Result<()> {
    for sandbox in sandboxes() {
        for signal in [Signal::TERM, Signal::INT] {
            let fixture = Fixture::new()?;
            let daemon = fixture.serve(&[sandbox])?;
            let mode = fixture.file("fs.sock").metadata()?.permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let pid = fs::read_to_string(fixture.file("fs.sock.pid"))?;
            assert_eq!(pid.trim(), daemon.pid().to_string());

            let ended = daemon.signal(signal)?;
            assert!(ended.status.success(), "{sandbox} {signal:?}: {ended:?}");
            assert!(!fixture.file("fs.sock").exists(), "{sandbox} {signal:?}");
            assert!(
                !fixture.file("fs.sock.pid").exists(),
                "{sandbox} {signal:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn hang_up_has_it_reload_however_it_was_started() -> Result<()> {
    let fixture = Fixture::new()?;
    for disposition in ["default", "ignore"] {
        let daemon = fixture.command(&["--socket-path=fs.sock", "--shared-dir=share"]);
        let mut command = std::process::Command::new("env");
        command
            .arg(format!("--{disposition}-signal=HUP"))
            .arg(daemon.get_program())
            .args(daemon.get_args())
            .current_dir(fixture.path());
        let daemon = fixture.start_command(command)?;
        let old = daemon.acceptor_pid()?;
        // As a terminal does: to all processes.
        for process in [old, daemon.pid()] {
            rustix::process::kill_process(pid(process), Signal::HUP)?;
        }
        wait::until("it has reloaded", Duration::from_secs(60), || {
            Ok(!children(daemon.pid())?.contains(&old))
        })?;
        let waited = wait::until("it says so", Duration::from_secs(60), || {
            Ok(daemon.log().contains("reload 1 is done"))
        });
        waited.with_context(|| daemon.log())?;
        let ended = daemon.signal(Signal::TERM)?;
        assert!(ended.status.success(), "{ended:?}");
        assert!(!fixture.file("fs.sock").exists());
    }
    Ok(())
}

#[test]
fn group_named_may_connect() -> Result<()> {
    if !root_or_skip("group_named_may_connect") {
        return Ok(());
    }
    let fixture = Fixture::new()?;
    let daemon = fixture.serve(&["--socket-group=nogroup"])?;
    let metadata = fixture.file("fs.sock").metadata()?;
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    assert_eq!(metadata.gid(), 65534);
    assert!(daemon.signal(Signal::TERM)?.status.success());
    assert!(!fixture.file("fs.sock").exists());
    Ok(())
}

#[test]
fn live_socket_of_another_daemon_is_refused_with_its_pid() -> Result<()> {
    for sandbox in sandboxes() {
        let fixture = Fixture::new()?;
        let first = fixture.serve(&[sandbox])?;
        let second = fixture.run(&["--socket-path=fs.sock", "--shared-dir=share", sandbox])?;
        assert_eq!(second.status.code(), Some(1));
        let pid = format!("process {}", first.pid());
        assert!(second.errors.contains(&pid), "{sandbox}: {second:?}");
        assert!(fixture.file("fs.sock").exists());
        assert!(first.signal(Signal::TERM)?.status.success());
    }
    Ok(())
}

#[test]
fn live_socket_of_another_program_is_refused_without_a_connection() -> Result<()> {
    let fixture = Fixture::new()?;
    let listener = UnixListener::bind(fixture.file("fs.sock"))?;
    listener.set_nonblocking(true)?;
    let ended = fixture.run(&["--socket-path=fs.sock", "--shared-dir=share"])?;
    assert_eq!(ended.status.code(), Some(1));
    let pid = format!("process {}", std::process::id());
    assert!(ended.errors.contains(&pid), "{ended:?}");
    let nobody = listener.accept().expect_err("nobody has connected");
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
    Ok(())
}

#[test]
fn stale_socket_is_replaced() -> Result<()> {
    let fixture = Fixture::new()?;
    let mut killed = fixture.serve(&["--sandbox=none"])?;
    rustix::process::kill_process(pid(killed.pid()), Signal::KILL)?;
    killed.end()?;
    assert!(fixture.file("fs.sock").exists());

    let daemon = fixture.serve(&["--sandbox=none"])?;
    UnixStream::connect(fixture.file("fs.sock"))?;
    assert!(daemon.signal(Signal::TERM)?.status.success());
    assert!(!fixture.file("fs.sock").exists());
    Ok(())
}

#[test]
fn inherited_socket_is_served_and_its_file_left_alone() -> Result<()> {
    for sandbox in sandboxes() {
        let fixture = Fixture::new()?;
        let listener = UnixListener::bind(fixture.file("given.sock"))?;
        let mut command = fixture.command(&["--fd=0", "--shared-dir=share", sandbox]);
        command.stdin(Stdio::from(OwnedFd::from(listener)));
        let daemon = fixture.start_command(command)?;
        assert!(daemon.signal(Signal::TERM)?.status.success());
        assert!(fixture.file("given.sock").exists());
    }
    Ok(())
}

#[test]
fn inherited_descriptor_that_does_not_listen_is_refused_by_what_it_is() -> Result<()> {
    let fixture = Fixture::new()?;
    let (one, _other) = UnixStream::pair()?;
    let mut command = fixture.command(&["--fd=0", "--shared-dir=share"]);
    command.stdin(Stdio::from(OwnedFd::from(one)));
    let ended = fixture.finish(command)?;
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.errors.contains("does not listen"), "{ended:?}");

    let ended = fixture.run(&["--fd=0", "--shared-dir=share"])?;
    assert!(ended.errors.contains("no socket"), "{ended:?}");
    let ended = fixture.run(&["--fd=777", "--shared-dir=share"])?;
    assert!(
        ended.errors.contains("descriptor 777 cannot be used"),
        "{ended:?}"
    );
    Ok(())
}

#[test]
fn limit_of_descriptors_is_the_one_asked_for() -> Result<()> {
    let fixture = Fixture::new()?;
    for (argument, soft) in [("--rlimit-nofile=777", "777"), ("--rlimit-nofile=0", "999")] {
        let mut command = std::process::Command::new("prlimit");
        let daemon = fixture.command(&[
            "--socket-path=fs.sock",
            "--shared-dir=share",
            "--sandbox=none",
            argument,
        ]);
        command
            .arg("--nofile=999:1000")
            .arg(daemon.get_program())
            .args(daemon.get_args())
            .current_dir(fixture.path());
        let daemon = fixture.start_command(command)?;
        let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid()))?;
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let shown = line.and_then(|line| line.split_whitespace().nth(3));
        assert_eq!(shown, Some(soft), "{limits}");
        assert!(daemon.signal(Signal::TERM)?.status.success());
    }
    for (argument, hint) in [
        ("--rlimit-nofile=99", "at least"),
        ("--rlimit-nofile=9999999999", "nr_open"),
    ] {
        let ended = fixture.run(&["--socket-path=s", "--shared-dir=share", argument])?;
        assert_eq!(ended.status.code(), Some(1));
        assert!(ended.errors.contains(hint), "{ended:?}");
    }
    Ok(())
}

#[test]
fn log_level_follows_the_option_and_rust_log() -> Result<()> {
    let fixture = Fixture::new()?;
    let arguments = [
        "--socket-path=fs.sock",
        "--shared-dir=share",
        "--sandbox=none",
    ];
    let daemon = fixture.start(&[&arguments[..], &["--log-level=debug"]].concat())?;
    assert!(daemon.log().contains("DEBUG"), "{}", daemon.log());
    daemon.signal(Signal::TERM)?;

    let mut command = fixture.command(&arguments);
    command.env("RUST_LOG", "debug");
    let daemon = fixture.start_command(command)?;
    assert!(daemon.log().contains("DEBUG"), "{}", daemon.log());
    daemon.signal(Signal::TERM)?;

    // The command line wins.
    let mut command = fixture.command(&[&arguments[..], &["--log-level=info"]].concat());
    command.env("RUST_LOG", "off");
    let daemon = fixture.start_command(command)?;
    let log = daemon.log();
    assert!(log.contains("on \"fs.sock\""), "{log}");
    assert!(
        log.contains("as \"myfs\"") && log.contains("sandbox none"),
        "{log}"
    );
    assert_eq!(log.matches("sharing").count(), 1, "{log}");
    assert!(!log.contains("raising it"), "{log}");
    daemon.signal(Signal::TERM)?;
    Ok(())
}

#[test]
fn a_share_that_the_user_may_not_open_is_said_with_what_to_do() -> Result<()> {
    if !root_or_skip("a_share_that_the_user_may_not_open_is_said_with_what_to_do") {
        return Ok(());
    }
    let fixture = Fixture::of(Some(User::NOBODY))?;
    let share = fixture.file("share");
    chown(&share, Some(0), Some(0))?;
    let user = User::NOBODY.uid;
    let expected = format!(
        "shared directory \"share\" through /proc/self/fd as user {user} (let that user read and \
         search it"
    );
    // Its user may not use it, or not list it.
    for mode in [0o700, 0o711] {
        fs::set_permissions(&share, fs::Permissions::from_mode(mode))?;
        // A user namespace may have another number for its user.
        let mapped = format!("--uid-map=:0:{user}:1:");
        for sandbox in ["--sandbox=none", "--sandbox=namespace", &mapped] {
            let ended = fixture.run(&["--socket-path=fs.sock", "--shared-dir=share", sandbox])?;
            assert_eq!(ended.status.code(), Some(1), "{mode:o} {sandbox}");
            let said = &ended.errors;
            assert!(said.contains(&expected), "{mode:o} {sandbox}: {said}");
            assert!(said.contains("Permission denied"), "{said}");
            assert!(!said.contains("pass --sandbox=none"), "{said}");
        }
    }
    Ok(())
}

/// The sandboxes that the user of the tests may use.
fn sandboxes() -> Vec<&'static str> {
    let mut sandboxes = vec!["--sandbox=none", "--sandbox=namespace"];
    if root_or_skip("--sandbox=chroot") {
        sandboxes.push("--sandbox=chroot");
    }
    sandboxes
}

fn pid(number: u32) -> rustix::process::Pid {
    i32::try_from(number)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .expect("a process's number")
}
