//! The command lines with which managers of virtual machines run virtiofsd, each with the user, the
//! namespaces and the socket as the manager has them. A User Mode Linux guest mounts the share and
//! tries what the options promise. `GANGPLANK_LONG=1` tries more lines.
//!
//! An argument selects lines by a part of their name: `cargo test -p gangplank-tests --test
//! command_lines -- libvirt`.

mod by_option;
mod c_daemon_lines;
mod environment;
mod further_lines;
mod idmapped;
mod launch;
mod lines;
mod mapped_apt;
mod mapped_root;
mod rare_lines;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use gangplank_tests::daemon::TAG;
use gangplank_tests::guest::{self, Guest, Machine};
use gangplank_tests::process::User;
use gangplank_tests::promises::{Programs, Promise, Tried};
use gangplank_tests::runner::Runner;
use gangplank_tests::tools;

use self::by_option::Given;
use self::launch::{As, Launched, Start};

/// Limit for unpacking a system.
const LONG: Duration = Duration::from_secs(400);

/// A command line. `P` stands for the share and `S` for the socket.
struct Line {
    name: &'static str,
    who: As,
    words: &'static [&'static str],
    /// Variables of the daemon's environment.
    environment: &'static [(&'static str, &'static str)],
    share: &'static str,
    /// What it promises beside what each option of it does ([`by_option`]).
    promises: &'static [Promise],
}

/// What most lines have.
const USUAL: Line = Line {
    name: "",
    who: As::Root,
    words: &[],
    environment: &[],
    share: "share",
    promises: &[],
};

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    let rare = match std::env::var_os("GANGPLANK_LONG") {
        Some(_) => rare_lines::LINES,
        None => &[],
    };
    let usual = [lines::LINES, further_lines::LINES, c_daemon_lines::LINES];
    for line in usual.into_iter().chain([rare]).flatten() {
        if !User::is_root() && !runner.lists_only() {
            runner.skip(line.name, "only root can run daemons as several users");
            continue;
        }
        runner.run(line.name, || works(line));
    }
    for (name, arguments) in [
        ("idmapped_mount", &["--xattr"][..]),
        (
            "idmapped_mount_with_acls",
            &["--posix-acl", "--killpriv-v2"][..],
        ),
    ] {
        match User::is_root() {
            true => runner.run(name, || idmapped::works(arguments)),
            false => runner.skip(name, "needs root"),
        }
    }
    match User::is_root() {
        true => {
            runner.run("ownership_mapped", mapped_root::boots);
            runner.run("ownership_mapped_apt", mapped_apt::installs);
        }
        false => {
            runner.skip("ownership_mapped", "needs root");
            runner.skip("ownership_mapped_apt", "needs root");
        }
    }
    runner.finish()
}

fn works(line: &Line) -> Result<()> {
    let mut launched = Launched::start(&Start {
        words: line.words,
        who: line.who,
        share: line.share,
        environment: line.environment,
    })?;
    let programs = Programs::share(None)?;
    let tag = by_option::value(line.words, "--tag").unwrap_or(TAG);
    let options = guest::Options::new(Machine::Uml)
        .share(&launched.socket(), tag)
        .program("guest-check", &tools::guest_check(Machine::Uml.arch())?);
    let mut guest = Guest::boot(&programs.add_to(options)).with_context(|| launched.log())?;
    guest.mount(tag, "/mnt").with_context(|| launched.log())?;
    Programs::mount(&mut guest)?;
    let mut tried = Tried {
        guest: &mut guest,
        share: launched.share(),
        owner: line.who.owner(),
    };
    for promise in line.promises {
        promise(&mut tried).with_context(|| launched.log())?;
    }
    let mut given = Given {
        tried,
        launched: &launched,
        words: line.words,
    };
    for promise in by_option::promises(line) {
        promise(&mut given).with_context(|| launched.log())?;
    }
    guest.power_off()?;
    if by_option::value(line.words, "--fd").is_some() {
        launched.ends_with_its_guest()?;
    }
    launched.has_memory()
}
