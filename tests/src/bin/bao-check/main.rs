//! Runs every scenario of the device model under an emulated Bao, on any machine. The program is
//! static, so that it runs in a guest too, and needs only the programs in its arguments, and no
//! privileges.
//!
//!     bao-check --frontend=PATH --gangplankd=PATH [--virtiofsd=PATH] [--dvk=PATH]
//!         [--servers=NAMESPACE] [SCENARIO...]
//!     bao-check --list
#![allow(clippy::print_stdout, reason = "a program for the console")]

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use gangplank_tests::bao::fixture::{Programs, Server};
use gangplank_tests::bao::{LAUNCH, MISUSE, become_program, misuse, scenarios};
use gangplank_tests::process;
use gangplank_tests::runner::Runner;

/// The argument of the process that runs one scenario.
const ALONE: &str = "--alone";

/// Limit of a scenario on a busy, perhaps emulated machine.
const LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.peek().is_some_and(|first| first == LAUNCH) {
        return become_program(arguments.skip(1)).map(|never| match never {});
    }
    if arguments.peek().is_some_and(|first| first == MISUSE) {
        return misuse(arguments.skip(1)).map(|()| ExitCode::SUCCESS);
    }
    let (mut programs, mut names, mut alone) = (Programs::default(), Vec::new(), false);
    for argument in arguments {
        let argument = argument
            .into_string()
            .map_err(|_| anyhow::anyhow!("an argument that is no text"))?;
        match argument.split_once('=') {
            Some(("--frontend", path)) => programs.frontend = path.into(),
            Some(("--gangplankd", path)) => programs.gangplankd = path.into(),
            Some(("--virtiofsd", path)) => programs.virtiofsd = Some(path.into()),
            Some(("--dvk", path)) => programs.dvk = Some(path.into()),
            Some(("--servers", path)) => programs.servers = Some(path.into()),
            _ if argument == ALONE => alone = true,
            _ if argument == "--list" => {
                scenarios::each().for_each(|(name, ..)| println!("{name}"));
                return Ok(ExitCode::SUCCESS);
            }
            _ if argument.starts_with('-') => bail!("no option is called {argument}"),
            _ => names.push(argument),
        }
    }
    if alone {
        let name = names.first().context("no scenario to run")?;
        return scenarios::run(name, &programs).map(|()| ExitCode::SUCCESS);
    }
    Ok(run_each(&programs, &names))
}

/// Runs each scenario in a process of its own, so that it leaves nothing behind for the next.
fn run_each(programs: &Programs, names: &[String]) -> ExitCode {
    let mut runner = Runner::from_arguments();
    for (name, _, setup) in scenarios::each() {
        let wanted = names.is_empty() || names.iter().any(|part| name.contains(part));
        if !wanted {
            continue;
        }
        let missing = match setup.server {
            Server::Theirs if programs.virtiofsd.is_none() => Some("no virtiofsd was given"),
            Server::Tunnelled if programs.dvk.is_none() => Some("no gangplank-dvk was given"),
            Server::Ours | Server::Theirs | Server::Tunnelled => None,
        };
        if let Some(missing) = missing {
            runner.skip(&name, missing);
            continue;
        }
        runner.run(&name, || alone(programs, &name));
    }
    runner.finish()
}

fn alone(programs: &Programs, name: &str) -> Result<()> {
    let mut command = Command::new(PathBuf::from("/proc/self/exe"));
    command
        .arg(ALONE)
        .arg(format!("--frontend={}", programs.frontend.display()))
        .arg(format!("--gangplankd={}", programs.gangplankd.display()))
        .arg(name);
    if let Some(path) = &programs.virtiofsd {
        command.arg(format!("--virtiofsd={}", path.display()));
    }
    if let Some(path) = &programs.dvk {
        command.arg(format!("--dvk={}", path.display()));
    }
    if let Some(path) = &programs.servers {
        command.arg(format!("--servers={}", path.display()));
    }
    let mut child = process::spawn(command)?;
    let status =
        process::wait_within(&mut child, LIMIT).inspect_err(|_| process::kill_group(&mut child))?;
    if !status.success() {
        bail!("{name}: {status}");
    }
    Ok(())
}
