//! Completion of commands, options, and names of the share and the host.

use clap::{Command, CommandFactory};
use rustix::fs::FileType;
use rustyline::completion::{Completer, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};

use super::super::path::{LastLink, Share, split, text};
use super::words::unfinished;
use super::{Line, host_names};

/// Completes words by what exists.
pub(super) struct Names<'s> {
    share: &'s Share,
    commands: Command,
}

impl<'s> Names<'s> {
    pub(super) fn new(share: &'s Share) -> Self {
        Self {
            share,
            commands: Line::command(),
        }
    }

    /// The command at the beginning of a line, or the one below it.
    fn command(&self, before: &[String]) -> &Command {
        let mut command = &self.commands;
        for word in before {
            match command.find_subcommand(word) {
                Some(below) => command = below,
                None => break,
            }
        }
        command
    }

    /// Names of the share in `directory` that begin with `prefix`.
    fn share_names(&self, directory: &[u8], prefix: &[u8]) -> Vec<(Vec<u8>, bool)> {
        let Ok(node) = self.share.find(directory, LastLink::Follow) else {
            return Vec::new();
        };
        if node.kind() != FileType::Directory {
            return Vec::new();
        }
        let entries = self.share.entries(&node, &text(directory));
        let names = entries.unwrap_or_default().into_iter();
        names
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(name, node)| (name, node.kind() == FileType::Directory))
            .collect()
    }

    fn paths(&self, word: &str, is_on_host: bool) -> Vec<Pair> {
        let (colon, path) = match word.strip_prefix(':') {
            Some(path) => (":", path),
            None => ("", word),
        };
        let (directory, prefix) = if path.ends_with('/') {
            (path.as_bytes(), &b""[..])
        } else {
            split(path.as_bytes())
        };
        let mut names = match is_on_host && colon.is_empty() {
            true => host_names(directory, prefix),
            false => self.share_names(directory, prefix),
        };
        names.retain(|(name, _)| !name.starts_with(b".") || prefix.starts_with(b"."));
        names.sort();
        let is_only = names.len() == 1;
        let pairs = names.into_iter().filter_map(|(name, is_directory)| {
            // Names that cannot be typed as they are: patterns match them.
            let name = String::from_utf8(name).ok()?;
            if name.chars().any(char::is_control) {
                return None;
            }
            let end = if is_directory { "/" } else { "" };
            let display = format!("{name}{end}");
            let whole = format!("{}{display}", str::from_utf8(directory).ok()?);
            let space = if is_only && !is_directory { " " } else { "" };
            let replacement = format!("{colon}{}{space}", shell_words::quote(&whole));
            Some(Pair {
                display,
                replacement,
            })
        });
        pairs.collect()
    }
}

fn words<'w>(words: impl Iterator<Item = String> + 'w, prefix: &str) -> Vec<Pair> {
    let mut matching: Vec<String> = words.filter(|word| word.starts_with(prefix)).collect();
    matching.sort();
    let pairs = matching.into_iter().map(|word| Pair {
        replacement: format!("{word} "),
        display: word,
    });
    pairs.collect()
}

impl Completer for Names<'_> {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = unfinished(&line[..position]);
        let command = self.command(&typed.before);
        let found = if command.has_subcommands() {
            let names = command
                .get_subcommands()
                .map(|command| command.get_name().to_owned());
            let help = std::iter::once("help".to_owned());
            words(names.chain(help), &typed.word)
        } else if typed.word.starts_with("--") {
            let options = command
                .get_arguments()
                .filter_map(|argument| argument.get_long());
            words(options.map(|option| format!("--{option}")), &typed.word)
        } else {
            let is_on_host = matches!(command.get_name(), "cp" | "sync" | "lcd");
            self.paths(&typed.word, is_on_host)
        };
        Ok((typed.start, found))
    }
}

impl Hinter for Names<'_> {
    type Hint = String;
}

impl Highlighter for Names<'_> {}

impl Validator for Names<'_> {}

impl Helper for Names<'_> {}
