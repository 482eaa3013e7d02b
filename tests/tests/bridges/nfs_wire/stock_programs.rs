//! Stock programs, showmount and rpcinfo, ask the server: at an address of the host, and at its own
//! address on a TAP device. Both are in a network namespace, which needs root.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::network::{GUEST, HOST, Network, TAP};
use gangplank_tests::nfs::{check_programs, serve};
use gangplank_tests::packages;
use gangplank_tests::process::{self, User};
use gangplank_tests::{debian_tree, tools};

/// Limit for a server to answer.
const LIMIT: Duration = Duration::from_secs(60);

/// What `command` prints, once it succeeds.
fn answer(command: impl Fn() -> Command, log: &Path) -> Result<String> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let output = command().stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        if Instant::now() > deadline {
            bail!("{:?}: {output:?}\n{}", command(), fs::read_to_string(log)?);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Asks the server at `address` in `network` by both programs.
fn ask(network: &Network, address: &str, log: &Path) -> Result<()> {
    let tree = debian_tree::nfs_client(tools::host_arch())?;
    let stock = |program: &str, option: &str| {
        let mut command = network.command("chroot");
        command.arg(&tree).args([program, option, address]);
        command
    };
    let programs = answer(|| stock("/usr/sbin/rpcinfo", "-p"), log)?;
    check_programs(&programs)?;
    let exports = answer(|| stock("/usr/sbin/showmount", "-e"), log)?;
    ensure!(exports.contains("/ "), "{exports}");
    ensure!(exports.contains("10.97.0.0/24"), "{exports}");
    Ok(())
}

#[test]
fn showmount_and_rpcinfo_know_the_server_at_the_hosts_address_and_on_a_tap_device() -> Result<()> {
    if !User::is_root() {
        eprintln!("skipped: needs root, for a network namespace");
        return Ok(());
    }
    let share = tempfile::tempdir()?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let network = Network::new()?;
    let log = share.path().join("log");
    let (nfs, port_mapper) = (format!("{HOST}:2049"), format!("{HOST}:111"));
    let arguments = ["--listen", &nfs, "--portmap", &port_mapper];
    let command = network.command(tools::nfs()?);
    let server = serve(command, &daemon, &arguments, Stdio::null(), &log)?;
    ask(&network, HOST, &log)?;
    drop(server);

    let (address, link) = (format!("{GUEST}/24"), format!("tap:{TAP}"));
    let arguments = ["--address", &address, "--net", &link];
    let command = network.command(tools::nfs()?);
    let _server = serve(command, &daemon, &arguments, Stdio::null(), &log)?;
    let busybox = packages::unpacked("busybox-static", tools::host_arch())?.join("bin/busybox");
    let ping = || {
        let mut command = network.command(&busybox);
        command.args(["ping", "-c", "2", "-w", "10", GUEST]);
        command
    };
    answer(ping, &log)?;
    ask(&network, GUEST, &log)
}

#[test]
fn a_descriptor_of_another_program_is_a_link() -> Result<()> {
    let share = tempfile::tempdir()?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let (mut machine, theirs) = UnixStream::pair()?;
    machine.set_read_timeout(Some(LIMIT))?;
    let log = share.path().join("log");
    let arguments = ["--address", "10.0.2.1/24", "--net", "fd:0"];
    let command = process::tied(tools::nfs()?, None);
    let _server = serve(command, &daemon, &arguments, OwnedFd::from(theirs), &log)?;
    // Who has 10.0.2.1? Tell 10.0.2.9 (RFC 826).
    let own = [2, 0, 0, 0, 0, 9];
    let mut question = [&[0xff; 6][..], &own, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    question.extend(own);
    question.extend([10, 0, 2, 9, 0, 0, 0, 0, 0, 0, 10, 0, 2, 1]);
    let length = u32::try_from(question.len())?.to_be_bytes();
    machine.write_all(&[&length[..], &question].concat())?;
    let mut length = [0; 4];
    machine.read_exact(&mut length)?;
    let mut reply = vec![0; usize::try_from(u32::from_be_bytes(length))?];
    machine.read_exact(&mut reply)?;
    // An answer, to this machine, of 10.0.2.1.
    ensure!(reply.get(..6) == Some(&own[..]), "{reply:?}");
    ensure!(reply.get(20..22) == Some(&[0, 2][..]), "{reply:?}");
    ensure!(reply.get(28..32) == Some(&[10, 0, 2, 1][..]), "{reply:?}");
    Ok(())
}
