//! Sockets that a service manager passes, one for each share.

use std::fs::File;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::{Driver, Setup};
use gangplank_tests::{process, tools};
use rustix::process::Signal;

use super::fixture::{LIMIT, work};

/// `systemd-socket-activate` names the sockets as `FileDescriptorName=` does.
#[test]
fn passed_sockets_are_those_of_the_shares_whose_tags_name_them() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut command = process::tied("systemd-socket-activate", None);
    for tag in ["home", "tools"] {
        std::fs::create_dir(dir.path().join(tag))?;
        command
            .arg("--listen")
            .arg(dir.path().join(format!("{tag}.sock")));
    }
    command.arg("--fdname=home:tools").arg(tools::gangplankd()?);
    for tag in ["home", "tools"] {
        let directory = dir.path().join(tag);
        command.arg(format!("--share={tag}={},cache=never", directory.display()));
    }
    command
        .stdin(Stdio::null())
        .stderr(File::create(dir.path().join("log"))?);
    let mut child = process::spawn(command)?;
    let log = || std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
    // A share stays when its guest has gone.
    for _ in 0..2 {
        for tag in ["home", "tools"] {
            let socket = dir.path().join(format!("{tag}.sock"));
            process::wait_for_listener(&child, &socket, LIMIT)?;
            let mut driver = Driver::mount(&socket, &Setup::default())?;
            work(&mut driver, c"new")?;
            driver.create(NodeId::ROOT, c"file", 0o600)?;
            let made = dir.path().join(tag).join("file");
            std::fs::remove_file(made).with_context(log)?;
        }
    }
    process::signal(&child, Signal::TERM)?;
    let status = process::wait_within(&mut child, LIMIT)?;
    ensure!(status.success(), "{status}\n{}", log());
    // The sockets are the service manager's.
    ensure!(dir.path().join("home.sock").exists());
    Ok(())
}

#[test]
fn a_passed_socket_that_no_share_has_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("s");
    let mut command = process::tied("systemd-socket-activate", None);
    command
        .arg("--listen")
        .arg(&socket)
        .arg("--fdname=gangplankd.socket")
        .arg(tools::gangplankd()?)
        .arg(format!("--share=home={}", dir.path().display()))
        .stdin(Stdio::null())
        .stderr(File::create(dir.path().join("log"))?);
    let mut child = process::spawn(command)?;
    process::wait_for_listener(&child, &socket, LIMIT)?;
    let _guest = std::os::unix::net::UnixStream::connect(&socket)?;
    let status = process::wait_within(&mut child, LIMIT)?;
    let log = std::fs::read_to_string(dir.path().join("log"))?;
    ensure!(
        !status.success() && log.contains("\"gangplankd.socket\""),
        "{log}"
    );
    ensure!(log.contains("FileDescriptorName="), "{log}");
    Ok(())
}
