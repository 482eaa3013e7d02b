//! The programs that have manuals.

use clap::{Command, CommandFactory};
use gangplank_service::manual::{self, Manual};

/// A program with a manual.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// The section of its pages: 1 for commands, 8 for daemons of the system.
    pub section: &'static str,
    command: fn() -> Command,
    manuals: &'static [(&'static str, Manual)],
}

/// All programs that are installed.
pub const PROGRAMS: [Program; 5] = [
    Program {
        name: "gangplankd",
        section: "8",
        command: gangplank_backend::args::Args::documented,
        manuals: gangplank_backend::manual::MANUALS,
    },
    Program {
        name: "gangplank-frontend",
        section: "1",
        command: gangplank_frontend::args::Args::command,
        manuals: gangplank_frontend::manual::MANUALS,
    },
    Program {
        name: "gangplank-dvk",
        section: "1",
        command: gangplank_dvk::args::Args::command,
        manuals: gangplank_dvk::manual::MANUALS,
    },
    Program {
        name: "gangplank-nfs",
        section: "8",
        command: gangplank_nfs::args::Args::command,
        manuals: gangplank_nfs::manual::MANUALS,
    },
    Program {
        name: "gangplank-guest",
        section: "8",
        command: gangplank_guest::args::Args::command,
        manuals: gangplank_guest::manual::MANUALS,
    },
];

impl Program {
    /// The command line, complete with help and version.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = (self.command)().disable_help_subcommand(true);
        command.build();
        command
    }

    /// The program and all of its commands that users call, each with the names that lead to it.
    #[must_use]
    pub fn commands(&self) -> Vec<(Vec<String>, Command)> {
        let mut found = Vec::new();
        visit(self.command(), Vec::new(), &mut found);
        found
    }

    /// The manual of the command that these names lead to.
    #[must_use]
    pub fn manual(&self, path: &[String]) -> Manual {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        manual::of_command(self.manuals, &path)
    }
}

fn visit(command: Command, path: Vec<String>, found: &mut Vec<(Vec<String>, Command)>) {
    let below: Vec<Command> = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .cloned()
        .collect();
    found.push((path.clone(), command));
    for command in below {
        let mut path = path.clone();
        path.push(command.get_name().to_owned());
        visit(command, path, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_take_the_examples_of_their_manuals() {
        for program in PROGRAMS {
            for (path, _) in program.commands() {
                for (what, lines) in program.manual(&path).examples {
                    let words: Vec<&str> = lines.split_whitespace().collect();
                    if words.first() != Some(&program.name) {
                        continue;
                    }
                    let parsed = program.command().try_get_matches_from(words);
                    assert!(parsed.is_ok(), "{what} {parsed:?}");
                }
            }
        }
    }
}
