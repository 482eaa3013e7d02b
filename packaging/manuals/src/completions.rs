//! Completions for bash, zsh and fish.

use std::path::Path;

use anyhow::Result;
use clap::Command;
use clap::builder::PossibleValuesParser;
use clap_complete::Shell;

use crate::programs::PROGRAMS;
use crate::write;

const SECCOMP: &[&str] = &["kill", "log", "trap", "none"];
const LOG_LEVEL: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

/// Values that a shell offers for options whose parsers do not list theirs: program, option,
/// values. A test compares them with the programs.
pub const VALUES: &[(&str, &str, &[&str])] = &[
    (
        "gangplankd",
        "cache",
        &["never", "metadata", "auto", "always"],
    ),
    ("gangplankd", "sandbox", &["namespace", "chroot", "none"]),
    ("gangplankd", "locks", &["auto", "host", "guest"]),
    ("gangplankd", "ownership", &["host", "mapped"]),
    ("gangplankd", "posix-acl", &["never", "auto", "always"]),
    ("gangplankd", "security-label", &["never", "auto", "always"]),
    ("gangplankd", "guest-arch", &["auto", "x86_64", "aarch64"]),
    (
        "gangplankd",
        "inode-file-handles",
        &["never", "prefer", "mandatory"],
    ),
    ("gangplankd", "seccomp", SECCOMP),
    ("gangplankd", "log-level", LOG_LEVEL),
    ("gangplank-frontend", "seccomp", SECCOMP),
    ("gangplank-frontend", "log-level", LOG_LEVEL),
    ("gangplank-dvk", "seccomp", SECCOMP),
    ("gangplank-dvk", "log-level", LOG_LEVEL),
    ("gangplank-nfs", "seccomp", SECCOMP),
    ("gangplank-nfs", "log-level", LOG_LEVEL),
];

/// Writes the completions of all programs below `directory`: `bash/`, `zsh/`, `fish/`, with the
/// file names by which the shells find them.
///
/// # Errors
/// A file cannot be written.
pub fn write_all(directory: &Path) -> Result<()> {
    for program in PROGRAMS {
        let command = offered(&program.command(), program.name);
        for (shell, below, name) in [
            (Shell::Bash, "bash", program.name.to_owned()),
            (Shell::Zsh, "zsh", format!("_{}", program.name)),
            (Shell::Fish, "fish", format!("{}.fish", program.name)),
        ] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command.clone(), program.name, &mut text);
            let mut text = String::from_utf8(text)?;
            if shell == Shell::Bash {
                text = with_one_name(&text, program.name);
            }
            write(&directory.join(below), &name, text.as_bytes())?;
        }
    }
    Ok(())
}

/// The command as shells offer it: with the values of [`VALUES`], and without hidden options and
/// commands, which clap_complete would offer too.
fn offered(command: &Command, program: &str) -> Command {
    let args = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let args = args.cloned().map(|arg| {
        let known = VALUES
            .iter()
            .find(|(of, option, _)| *of == program && arg.get_long() == Some(option));
        match known {
            Some((_, _, values)) => arg.value_parser(PossibleValuesParser::new(*values)),
            None => arg,
        }
    });
    let below = command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
        .map(|below| offered(below, program));
    // Help and version are among the arguments already.
    Command::new(command.get_name().to_owned())
        .about(command.get_about().cloned().unwrap_or_default())
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .args(args)
        .subcommands(below)
}

/// clap_complete (4.6.11) writes the hyphen of a program's name in two ways in bash, and then
/// completes nothing after a command.
fn with_one_name(text: &str, program: &str) -> String {
    let wrong = program.replace('-', "__subcmd__");
    text.replace(&wrong, &program.replace('-', "__"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// `--option=VALUE` of a program with what else it needs.
    fn parses(program: &str, option: &str, value: &str) -> Result<(), String> {
        let command = PROGRAMS
            .into_iter()
            .find(|known| known.name == program)
            .expect("a program of the table")
            .command();
        let needed: &[&str] = match program {
            "gangplankd" => &[],
            "gangplank-frontend" => &["--config=c"],
            "gangplank-nfs" => &["serve", "--config=c"],
            _ => &["status", "socket"],
        };
        let option = format!("--{option}={value}");
        let words = [program]
            .into_iter()
            .chain(needed.iter().copied())
            .chain([option.as_str()]);
        match command.try_get_matches_from(words) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn programs_take_the_values_that_shells_offer_and_name_them_when_they_refuse_one() {
        for (program, option, values) in VALUES {
            for value in *values {
                assert_eq!(parses(program, option, value), Ok(()), "{option}={value}");
            }
            let refusal = parses(program, option, "rubbish").expect_err(option);
            assert!(refusal.contains(option), "{program}: {refusal}");
            // The values that the program names are all that it takes.
            let named = refusal.split("expected ").nth(1);
            let named = named.and_then(|rest| rest.lines().next());
            let Some(named) = named else {
                // Its parser is another's, and names none.
                assert_eq!(*option, "log-level", "{refusal}");
                continue;
            };
            let mut named: Vec<&str> = named
                .split(", ")
                .flat_map(|few| few.split(" or "))
                .collect();
            let mut offered = values.to_vec();
            named.sort_unstable();
            offered.sort_unstable();
            assert_eq!(named, offered, "--{option} of {program}: {refusal}");
        }
    }

    #[test]
    fn every_shell_completes_every_option_and_command() {
        let out = tempfile::tempdir().expect("a directory");
        write_all(out.path()).expect("completions");
        for program in PROGRAMS {
            for name in [
                format!("bash/{}", program.name),
                format!("zsh/_{}", program.name),
                format!("fish/{}.fish", program.name),
            ] {
                let text = fs::read_to_string(out.path().join(&name)).expect(&name);
                for (_, command) in program.commands() {
                    assert!(text.contains(command.get_name()), "{name}");
                    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                        let long = arg.get_long().unwrap_or_default();
                        assert!(text.contains(long), "{name} has no --{long}");
                    }
                }
            }
        }
    }
}
