//! One share of several: its tag, its directory, and options of its own.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::options::{self, Given};
use crate::args::Args;
use crate::config::Config;
use crate::socket::Source;

/// Where a share comes from, for errors and lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// `--share`.
    CommandLine,
    /// A file of `--shares-dir`.
    File(PathBuf),
    /// `gangplankd share add`.
    Command,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("--share"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Command => f.write_str("share add"),
        }
    }
}

/// A share, as its operator has written it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The name by which guests mount it.
    pub tag: String,
    /// Its options, `shared-dir` among them.
    pub options: Vec<Given>,
    /// Where it was written.
    pub origin: Origin,
}

/// Why a share cannot be served.
#[derive(Debug, Error)]
pub enum Error {
    /// `TAG=DIR` is expected.
    #[error("{0:?} is no share; expected TAG=DIR and options behind commas")]
    Form(String),
    /// No text before `=`, or a tag that is no name of a file.
    #[error(
        "{0:?} cannot be a share's tag; expected 1 to 36 bytes without a slash, and no period first"
    )]
    Tag(String),
    /// An option.
    #[error("share {tag:?}: {source}")]
    Option {
        /// The share.
        tag: String,
        /// What is wrong.
        source: options::Error,
    },
    /// A value, or a combination of options.
    #[error("share {tag:?}: {what}")]
    Options {
        /// The share.
        tag: String,
        /// What the command line's parser says.
        what: String,
    },
    /// No socket.
    #[error(
        "share {0:?} has no socket: add socket=PATH to it, or pass --socket-dir <DIR>, or have a \
         socket unit of systemd pass one with FileDescriptorName={0}"
    )]
    NoSocket(String),
    /// What is to be shared.
    #[error("share {tag:?}: cannot share {directory:?}: {reason}")]
    Directory {
        /// The share.
        tag: String,
        /// Its directory.
        directory: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The older spelling of `socket-path` is short, and in a share it is not deprecated.
#[must_use]
pub fn canonical(name: &str) -> &str {
    match name {
        "socket" => "socket-path",
        name => name,
    }
}

impl Share {
    /// Parses `TAG=DIR,option,option=value`, where two commas stand for one.
    ///
    /// # Errors
    /// [`Error::Form`], [`Error::Tag`], [`Error::Option`].
    pub fn parse(text: &str, origin: Origin) -> Result<Self, Error> {
        let form = || Error::Form(text.to_owned());
        let mut parts = split(text).into_iter();
        let first = parts.next().ok_or_else(form)?;
        let (tag, directory) = first.split_once('=').ok_or_else(form)?;
        if directory.is_empty() {
            return Err(form());
        }
        let mut share = Self::new(tag, origin)?;
        share.options.push(Given::new("shared-dir", directory));
        for part in parts {
            if ["tag=", "shared-dir="]
                .iter()
                .any(|begin| part.starts_with(begin))
            {
                return Err(form());
            }
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (part.as_str(), None),
            };
            share.add(Given {
                name: canonical(name).to_owned(),
                value,
            })?;
        }
        Ok(share)
    }

    /// A share without options.
    ///
    /// # Errors
    /// [`Error::Tag`].
    pub fn new(tag: &str, origin: Origin) -> Result<Self, Error> {
        let is_valid = (1..=crate::device::Options::MAX_TAG_LEN).contains(&tag.len())
            && !tag.starts_with('.')
            && !tag.contains(['/', '\0', '\n']);
        if !is_valid {
            return Err(Error::Tag(tag.to_owned()));
        }
        Ok(Self {
            tag: tag.to_owned(),
            options: Vec::new(),
            origin,
        })
    }

    /// Adds an option.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn add(&mut self, option: Given) -> Result<(), Error> {
        options::check(&option).map_err(|source| Error::Option {
            tag: self.tag.clone(),
            source,
        })?;
        self.options.push(option);
        Ok(())
    }

    /// The last value of an option.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        let given = self.options.iter().rev().find(|given| given.name == name);
        given.and_then(|given| given.value.as_deref())
    }

    /// The directory, as written.
    #[must_use]
    pub fn directory(&self) -> &Path {
        Path::new(self.value("shared-dir").unwrap_or_default())
    }

    /// The socket's path, as written.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        self.value("socket-path").map(Path::new)
    }

    /// Makes paths absolute, for a process with another working directory.
    ///
    /// # Errors
    /// The working directory is not known.
    pub fn make_absolute(&mut self) -> std::io::Result<()> {
        for option in &mut self.options {
            if let ("shared-dir" | "socket-path" | "trace", Some(value)) =
                (option.name.as_str(), &mut option.value)
                && let Some(absolute) = std::path::absolute(&value)?.to_str()
            {
                absolute.clone_into(value);
            }
        }
        Ok(())
    }

    /// The arguments of the process that serves it: `of_all`, and then its own, which win. With
    /// `is_passed`, its socket is standard input.
    #[must_use]
    pub fn arguments(&self, of_all: &[Given], is_passed: bool) -> Vec<Given> {
        let mut arguments = vec![Given::new("tag", self.tag.clone())];
        arguments.extend(of_all.iter().cloned());
        // Where a socket is passed, a group of all sockets means nothing to it.
        arguments.retain(|given| !is_passed || given.name != "socket-group");
        arguments.extend(self.options.iter().cloned());
        if is_passed {
            arguments.push(Given::new("fd", "0"));
        }
        arguments
    }

    /// Checks everything that can be known before a process is started.
    ///
    /// # Errors
    /// [`enum@Error`].
    pub fn check(&self, of_all: &[Given], is_passed: bool) -> Result<(), Error> {
        // A client of the control socket may have sent anything.
        Self::new(&self.tag, self.origin.clone())?;
        for option in &self.options {
            let checked = match option.name.as_str() {
                "tag" => Err(options::Error::Unknown(option.name.clone())),
                _ => options::check(option),
            };
            checked.map_err(|source| Error::Option {
                tag: self.tag.clone(),
                source,
            })?;
        }
        if self.socket().is_none() && !is_passed {
            return Err(Error::NoSocket(self.tag.clone()));
        }
        let wrong = |what: String| Error::Options {
            tag: self.tag.clone(),
            what,
        };
        let words = self.arguments(of_all, is_passed).into_iter();
        let words = words.map(|given| given.argument());
        let args = Args::from_command_line(std::iter::once("gangplankd".to_owned()).chain(words));
        let args = args.map_err(|exit| wrong(exit.summary()))?;
        let config = Config::from_args(args).map_err(|error| wrong(error.to_string()))?;
        debug_assert!(is_passed == matches!(config.socket, Source::Fd(_)));
        let directory = || config.shared_dir.clone();
        let failed = |reason: String| Error::Directory {
            tag: self.tag.clone(),
            directory: directory(),
            reason,
        };
        match std::fs::metadata(&config.shared_dir) {
            Err(error) => Err(failed(error.to_string())),
            Ok(metadata) if !metadata.is_dir() => Err(failed("it is not a directory".to_owned())),
            Ok(_) => Ok(()),
        }
    }
}

/// Splits at single commas. Two commas are one in a part.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let is_end = character == ',' && characters.next_if_eq(&',').is_none();
        match parts.last_mut() {
            Some(last) if !is_end => last.push(character),
            _ => parts.push(String::new()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_a_tag_a_directory_and_options() {
        let text =
            "home=/srv/a,,b=c,readonly,cache=never,socket=/run/h.sock,translate-uid=map:0:1:1";
        let share = Share::parse(text, Origin::CommandLine).unwrap();
        assert_eq!(share.tag, "home");
        assert_eq!(share.directory(), Path::new("/srv/a,b=c"));
        assert_eq!(share.socket(), Some(Path::new("/run/h.sock")));
        let all = [Given::new("cache", "always"), Given::new("busy-poll", "0")];
        let words: Vec<String> = share
            .arguments(&all, false)
            .iter()
            .map(Given::argument)
            .collect();
        assert_eq!(
            words.join(" "),
            "--tag=home --cache=always --busy-poll=0 --shared-dir=/srv/a,b=c --readonly \
             --cache=never --socket-path=/run/h.sock --translate-uid=map:0:1:1"
        );
    }

    #[test]
    fn what_is_wrong_with_a_share_is_named() {
        let long = format!("{}=/srv", "x".repeat(37));
        for (text, hint) in [
            ("home", "expected TAG=DIR"),
            ("home=", "expected TAG=DIR"),
            ("", "expected TAG=DIR"),
            ("=/srv", "cannot be a share's tag"),
            ("a/b=/srv", "cannot be a share's tag"),
            ("..=/srv", "cannot be a share's tag"),
            (long.as_str(), "cannot be a share's tag"),
            (
                "home=/srv,cahce=never",
                "share \"home\": there is no option \"cahce\"",
            ),
            ("home=/srv,log-level=debug", "one log is of all shares"),
            ("home=/srv,cache", "cache=POLICY"),
            ("home=/srv,tag=other", "expected TAG=DIR"),
            ("home=/srv,", "there is no option \"\""),
        ] {
            let error = Share::parse(text, Origin::Command).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn values_and_combinations_are_checked_by_the_daemons_parser() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let directory = dir.path().display();
        for (options, of_all, hint) in [
            ("", None, "has no socket"),
            (
                ",socket=/s,cache=often",
                None,
                "never, metadata, auto or always",
            ),
            (",socket=/s,limit-bps-burst=1M", None, "--limit-bps <SIZE>"),
            (
                ",socket=/s,ownership=mapped,posix-acl",
                None,
                "--posix-acl cannot be used together with --ownership=mapped",
            ),
            (
                ",socket=/s,ownership=mapped",
                Some(Given::new("posix-acl", "auto")),
                "--posix-acl cannot be used together with --ownership=mapped",
            ),
        ] {
            let text = format!("t={directory}{options}");
            let share = Share::parse(&text, Origin::Command).unwrap();
            let of_all: Vec<Given> = of_all.into_iter().collect();
            let error = share.check(&of_all, false).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
        for name in ["tag", "control", "reload", "nothing", "readonly=1"] {
            let mut share = Share::parse("t=/", Origin::Command).unwrap();
            share.options.push(Given::new(name, "x"));
            let error = share.check(&[], true).unwrap_err();
            assert!(matches!(error, Error::Option { .. }), "{error}");
        }
        let share = Share::parse("t=/none here", Origin::Command).unwrap();
        let error = share.check(&[], true).unwrap_err().to_string();
        assert!(error.contains("\"/none here\": No such file"), "{error}");
        let share = Share::parse(&format!("t={}", file.display()), Origin::Command).unwrap();
        let error = share.check(&[], true).unwrap_err().to_string();
        assert!(error.contains("not a directory"), "{error}");
        let share = Share::parse(&format!("t={directory}"), Origin::Command).unwrap();
        share
            .check(&[Given::new("socket-group", "kvm")], true)
            .unwrap();
    }
}
