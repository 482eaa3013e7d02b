//! Manual pages, completions and help texts, as their readers' programs take them. A program that
//! is not installed is skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use gangplank_manuals::programs::PROGRAMS;
use gangplank_manuals::{completions, page};
use gangplank_tests::tools;

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        files.push(entry?.path());
    }
    files.sort();
    ensure!(!files.is_empty(), "{} is empty", directory.display());
    Ok(files)
}

/// The output of `program`; `None`, with a word, where it is not installed.
fn run_if_installed(test: &str, program: &str, command: &mut Command) -> Result<Option<Output>> {
    match command.output() {
        Ok(output) => Ok(Some(output)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("{test}: SKIPPED, {program} is not installed");
            Ok(None)
        }
        Err(error) => Err(error).context(program.to_owned()),
    }
}

#[test]
fn manual_pages_render_without_a_warning() -> Result<()> {
    const TEST: &str = "manual_pages_render_without_a_warning";
    let out = tempfile::tempdir()?;
    page::write_all(out.path(), "2026-01-31")?;
    for path in files_below(out.path())? {
        let mut man = Command::new("man");
        man.args(["--warnings", "--local-file"])
            .arg(&path)
            .env("LC_ALL", "C.UTF-8")
            .env("MANPAGER", "cat");
        if let Some(shown) = run_if_installed(TEST, "man", &mut man)? {
            let errors = String::from_utf8_lossy(&shown.stderr);
            ensure!(shown.status.success() && errors.is_empty(), "{errors}");
            ensure!(String::from_utf8_lossy(&shown.stdout).contains("EXIT STATUS"));
        }
        let mut mandoc = Command::new("mandoc");
        mandoc.args(["-T", "lint", "-W", "warning"]).arg(&path);
        if let Some(linted) = run_if_installed(TEST, "mandoc", &mut mandoc)? {
            let said = String::from_utf8_lossy(&linted.stdout);
            ensure!(linted.status.success() && said.is_empty(), "{said}");
        }
    }
    Ok(())
}

#[test]
fn shells_take_the_completions() -> Result<()> {
    const TEST: &str = "shells_take_the_completions";
    let out = tempfile::tempdir()?;
    completions::write_all(out.path())?;
    for (shell, only_read) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        for path in files_below(&out.path().join(shell))? {
            let mut command = Command::new(shell);
            command.arg(only_read).arg(&path);
            if let Some(read) = run_if_installed(TEST, shell, &mut command)? {
                ensure!(read.status.success(), "{}: {read:?}", path.display());
            }
        }
    }
    Ok(())
}

/// What bash offers after `words`, the last of which is being typed.
fn offered(directory: &Path, program: &str, words: &[&str]) -> Result<Vec<String>> {
    let script = "source \"$1\"; program=$2; shift 2; COMP_WORDS=(\"$@\"); \
         COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE=\"$*\"; COMP_POINT=${#COMP_LINE}; \
         function=$(complete -p \"$program\" | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
         \"$function\" \"$program\" \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"; \
         printf '%s\\n' \"${COMPREPLY[@]}\"";
    let shown = Command::new("bash")
        .args(["--norc", "-c", script, "bash"])
        .arg(directory.join("bash").join(program))
        .args([program, program])
        .args(words)
        .output()?;
    ensure!(shown.status.success(), "{shown:?}");
    Ok(String::from_utf8(shown.stdout)?
        .lines()
        .map(str::to_owned)
        .collect())
}

#[test]
fn bash_completes_options_values_and_commands() -> Result<()> {
    let out = tempfile::tempdir()?;
    completions::write_all(out.path())?;
    for (program, words, expected) in [
        ("gangplankd", vec!["--cac"], vec!["--cache"]),
        ("gangplankd", vec!["--cache", "a"], vec!["auto", "always"]),
        ("gangplank-frontend", vec!["rel"], vec!["relay"]),
        ("gangplank-frontend", vec!["relay", "sw"], vec!["switch"]),
        ("gangplank-dvk", vec!["ser"], vec!["serve"]),
    ] {
        let found = offered(out.path(), program, &words)?;
        ensure!(found == expected, "{program} {words:?}: {found:?}");
    }
    let commands = offered(out.path(), "gangplank-frontend", &[""])?;
    ensure!(
        !commands.contains(&"hold".to_owned()),
        "an internal command is offered: {commands:?}"
    );
    Ok(())
}

#[test]
fn every_command_has_a_version_and_a_help_that_is_longer_than_its_summary() -> Result<()> {
    for program in PROGRAMS {
        let path = match program.name {
            "gangplankd" => tools::gangplankd()?,
            "gangplank-frontend" => tools::frontend()?,
            "gangplank-nfs" => tools::nfs()?,
            "gangplank-guest" => tools::guest(tools::host_arch())?,
            _ => tools::dvk()?,
        };
        let run = |words: &[String], option: &str| -> Result<String> {
            let shown = Command::new(&path).args(words).arg(option).output()?;
            ensure!(
                shown.status.success() && shown.stderr.is_empty(),
                "{shown:?}"
            );
            Ok(String::from_utf8(shown.stdout)?)
        };
        for (words, command) in program.commands() {
            let version = run(&words, "--version")?;
            ensure!(
                version.trim_end().ends_with(env!("CARGO_PKG_VERSION")),
                "{words:?}: {version}"
            );
            let long = run(&words, "--help")?;
            // Sizes for people, as ls, du and df have it.
            let mut options = command.get_arguments();
            if options.any(|option| option.get_long() == Some("human-readable")) {
                continue;
            }
            let short = run(&words, "-h")?;
            ensure!(short.contains("Usage:") && long.contains("Usage:"));
            ensure!(long.len() >= short.len(), "{words:?}: {long}");
        }
        let (short, long) = (run(&[], "-h")?, run(&[], "--help")?);
        for heading in ["Exit status:", "Files:", "Signals:", "Examples:"] {
            ensure!(long.contains(heading), "{heading}\n{long}");
            ensure!(!short.contains("Examples:"), "{short}");
        }
    }
    Ok(())
}
