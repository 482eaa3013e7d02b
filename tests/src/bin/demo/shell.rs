//! Connects the guest's console to the terminal.

use std::fs::{self, File};
use std::io::IsTerminal;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{Daemon, TAG};
use gangplank_tests::guest::initramfs::Extra;
use gangplank_tests::guest::{Machine, Options, Role};
use gangplank_tests::packages;

/// Boots `machine` with its console on this terminal. Returns when the user leaves it.
pub(crate) fn give(machine: Machine, share: &Path, daemon: &Daemon) -> Result<()> {
    fs::write(
        share.join("README.txt"),
        "This file is on the host. Change it from either side.\n",
    )?;
    let banner = tempfile::NamedTempFile::new()?;
    fs::write(
        banner.path(),
        format!(
            "\nThis is the guest. /mnt is the host's {}.\nLeave with 'exit' or Ctrl-D.\n\n",
            share.display()
        ),
    )?;
    let mut options = Options::new(machine).share(daemon.socket(), TAG);
    options.role = Role::Shell(TAG.to_owned());
    options.extras.push(Extra {
        guest: "banner".to_owned(),
        host: banner.path().to_owned(),
        mode: 0o644,
    });
    println!(
        "The host shares {} (look at it from another terminal).",
        share.display()
    );
    println!("Booting {machine:?} with this terminal as its console ...");
    let (mut command, dir) = options.command()?;
    // The terminal belongs to the guest. The hypervisor's output is shown only on failure.
    let complaints = dir.path().join("stderr");
    command.stderr(File::create(&complaints)?);
    let terminal = terminal_settings();
    let status = command.status().context("starting the guest");
    if let Some(settings) = terminal {
        // The guest put the terminal into raw mode; it may have been killed before restoring it.
        packages::run(Command::new("stty").arg(settings).stdin(Stdio::inherit()))?;
    }
    let status = status?;
    ensure!(
        status.success(),
        "the guest ended with {status}: {}",
        fs::read_to_string(&complaints).unwrap_or_default()
    );
    println!("\nThe guest is off. What it left in {}:", share.display());
    for entry in fs::read_dir(share)? {
        println!("    {}", entry?.file_name().display());
    }
    Ok(())
}

/// The terminal's settings in the form that `stty` reads, or `None` without a terminal.
fn terminal_settings() -> Option<String> {
    if !std::io::stdin().is_terminal() {
        return None;
    }
    let settings = packages::output(Command::new("stty").arg("-g").stdin(Stdio::inherit())).ok()?;
    Some(settings.trim().to_owned())
}
