//! The released device model under an emulated Bao: every scenario of `bao-check`, each in a
//! process of its own.
//!
//! A name as argument picks scenarios: `cargo test -p gangplank-tests --test bao -- b::gangplankd`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::bao::fixture::Server;
use gangplank_tests::bao::scenarios;
use gangplank_tests::hosts::Hosts;
use gangplank_tests::process::{self, User};
use gangplank_tests::runner::Runner;
use gangplank_tests::tools;

/// Limit for a scenario, without builds.
const LIMIT: Duration = Duration::from_secs(120);

/// The scenarios that also run between two hosts: the device model and its guest on one, the server
/// of the tunnel and its daemon on the other.
const BETWEEN_HOSTS: [&str; 2] = [
    "b::tunnel::guest_mounts_and_works_with_files",
    "b::tunnel::guest_resets_under_load_and_works_again",
];

/// The scenario that also runs as an ordinary user.
const AS_NOBODY: &str = "b::gangplankd::guest_mounts_and_works_with_files";

struct Programs {
    check: PathBuf,
    frontend: PathBuf,
    gangplankd: PathBuf,
    dvk: PathBuf,
    virtiofsd: Option<PathBuf>,
}

impl Programs {
    fn run(&self, scenario: &str, user: Option<User>) -> Result<()> {
        self.run_by(process::tied(&self.check, user), scenario)
    }

    fn run_between_hosts(&self, scenario: &str) -> Result<()> {
        let hosts = Hosts::new(1)?;
        let mut command = hosts.on(0, &self.check)?;
        command.arg(format!("--servers={}", hosts.servers_namespace().display()));
        self.run_by(command, scenario)
    }

    fn run_by(&self, mut command: Command, scenario: &str) -> Result<()> {
        command
            .arg(format!("--frontend={}", self.frontend.display()))
            .arg(format!("--gangplankd={}", self.gangplankd.display()))
            .arg(format!("--dvk={}", self.dvk.display()))
            .arg(scenario)
            .current_dir("/")
            .stdin(Stdio::null());
        if let Some(virtiofsd) = &self.virtiofsd {
            command.arg(format!("--virtiofsd={}", virtiofsd.display()));
        }
        let said = tempfile::NamedTempFile::new()?;
        command.stdout(said.reopen()?).stderr(said.reopen()?);
        let mut child = process::spawn(command)?;
        let status = process::wait_within(&mut child, LIMIT)
            .inspect_err(|_| process::kill_group(&mut child))?;
        ensure!(status.success(), "{}", fs::read_to_string(said.path())?);
        Ok(())
    }

    /// Copies the programs to where an ordinary user can reach them.
    fn in_public(&self, dir: &Path) -> Result<Self> {
        let copy = |program: &Path| -> Result<PathBuf> {
            let name = program.file_name().context("a program without a name")?;
            let copy = dir.join(name);
            fs::copy(program, &copy)?;
            Ok(copy)
        };
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        Ok(Self {
            check: copy(&self.check)?,
            frontend: copy(&self.frontend)?,
            gangplankd: copy(&self.gangplankd)?,
            dvk: copy(&self.dvk)?,
            virtiofsd: None,
        })
    }
}

fn programs() -> Result<Programs> {
    Ok(Programs {
        check: tools::bao_check(tools::host_arch())?,
        frontend: tools::frontend()?,
        gangplankd: tools::gangplankd()?,
        dvk: tools::dvk()?,
        virtiofsd: tools::virtiofsd()
            .inspect_err(|error| eprintln!("virtiofsd does not build: {error:#}"))
            .ok(),
    })
}

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    let programs = if runner.lists_only() {
        None
    } else {
        Some(programs())
    };
    let programs = match programs {
        Some(Err(error)) => {
            runner.run("programs_are_built", || Err(error));
            return runner.finish();
        }
        Some(Ok(programs)) => Some(programs),
        None => None,
    };
    let run = |name: &str, user| {
        programs
            .as_ref()
            .map_or(Ok(()), |programs| programs.run(name, user))
    };
    for (name, _, setup) in scenarios::each() {
        if setup.server == Server::Theirs
            && programs
                .as_ref()
                .is_some_and(|have| have.virtiofsd.is_none())
        {
            runner.skip(&name, "virtiofsd does not build");
        } else {
            runner.run(&name, || run(&name, None));
        }
    }
    for scenario in BETWEEN_HOSTS {
        let name = format!("between_hosts::{scenario}");
        if !User::is_root() {
            runner.skip(&name, "needs root");
            continue;
        }
        runner.run(&name, || {
            programs
                .as_ref()
                .map_or(Ok(()), |programs| programs.run_between_hosts(scenario))
        });
    }
    let name = format!("as_nobody::{AS_NOBODY}");
    if User::is_root() {
        runner.run(&name, || {
            let dir = tempfile::tempdir()?;
            let programs = programs
                .as_ref()
                .map(|programs| programs.in_public(dir.path()));
            programs.map_or(Ok(()), |programs| {
                programs?.run(AS_NOBODY, Some(User::NOBODY))
            })
        });
    } else {
        runner.skip(
            &name,
            "becoming nobody needs root; all other scenarios ran as an ordinary user",
        );
    }
    runner.finish()
}
