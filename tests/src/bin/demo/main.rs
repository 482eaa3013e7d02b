//! The demonstration: a stock Debian kernel mounts a directory of this machine, and both sides
//! show each other files. `scripts/demo` builds what it needs and runs it.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the console"
)]

mod crash;
mod dvk;
mod nfs;
mod progress;
mod shell;
mod story;
mod tunnel;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::guest::Machine;

use self::progress::during;

/// The arguments.
struct Arguments {
    play: Play,
    shell: bool,
}

/// What to show.
#[derive(Clone, Copy)]
enum Play {
    /// One guest.
    Guest(Machine),
    /// Three guests, one of them by DVK.
    Dvk,
    /// One guest, whose daemon is on another host.
    Tunnel,
    /// One guest, by NFS.
    Nfs,
    /// One guest, whose worker is killed.
    Crash,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!(
                "demo: {error}\nusage: demo [uml|qemu-x86_64|qemu-aarch64] [--shell]\n       demo \
                 dvk|tunnel|nfs|crash"
            );
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse(words: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut arguments = Arguments {
        play: Play::Guest(Machine::Uml),
        shell: false,
    };
    for word in words {
        match word.as_str() {
            "uml" => arguments.play = Play::Guest(Machine::Uml),
            "qemu-x86_64" => arguments.play = Play::Guest(Machine::QemuX86_64),
            "qemu-aarch64" => arguments.play = Play::Guest(Machine::QemuAarch64),
            "dvk" => arguments.play = Play::Dvk,
            "tunnel" => arguments.play = Play::Tunnel,
            "nfs" => arguments.play = Play::Nfs,
            "crash" => arguments.play = Play::Crash,
            "--shell" => arguments.shell = true,
            other => bail!("'{other}' is neither a guest nor an option"),
        }
    }
    if let (Play::Dvk | Play::Tunnel | Play::Nfs | Play::Crash, true) =
        (arguments.play, arguments.shell)
    {
        bail!("there is a shell only in one guest that nothing disturbs");
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> Result<()> {
    progress::start();
    let share = tempfile::Builder::new()
        .prefix("gangplank-demo-")
        .tempdir()
        .context("creating a directory to share")?;
    let options = daemon::Options::new(share.path());
    let options = match arguments.play {
        Play::Crash => options.arguments(&["--max-crashes=100"]),
        _ => options,
    };
    let daemon = during("gangplankd starts", || Daemon::start(&options))?;
    match (arguments.play, arguments.shell) {
        (Play::Guest(machine), true) => shell::give(machine, share.path(), &daemon)?,
        (Play::Guest(machine), false) => story::tell(machine, share.path(), &daemon)?,
        (Play::Crash, _) => crash::tell(share.path(), &daemon)?,
        (Play::Tunnel, _) => tunnel::tell(share.path(), &daemon)?,
        (Play::Nfs, _) => nfs::tell(share.path(), &daemon)?,
        (Play::Dvk, _) => dvk::tell(share.path(), &daemon)?,
    }
    let (status, log) = daemon.stop()?;
    if !status.success() {
        bail!("gangplankd ended with {status}:\n{log}");
    }
    share
        .close()
        .context("removing the directory that was shared")?;
    println!("gangplankd ended cleanly; the directory and what ran on it are gone.");
    Ok(())
}
