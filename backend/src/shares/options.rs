//! Which of the daemon's options a share may have of its own, and how they are written: by the
//! names and parsers of the command line.

use clap::{ArgAction, CommandFactory};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::args::{Args, EarlyExit, TypedOption};

/// Options that are the daemon's, that are given in another form for each share, or that make no
/// sense for one of several.
const NOT_OF_A_SHARE: &[(&str, &str)] = &[
    ("share", "a share has no shares"),
    ("shares-dir", "a share has no shares"),
    ("socket-dir", "it is for all shares; a share has a socket"),
    ("socket", "it is deprecated; use socket-path"),
    (
        "fd",
        "the service manager passes a socket by the share's tag",
    ),
    (
        "exit-on-disconnect",
        "several shares do not end with their guests",
    ),
    ("reload", "it is a command"),
    ("print-capabilities", "it is a command"),
    ("control", "one socket is for all shares"),
    ("metrics", "one address is for all shares"),
    ("metrics-allow-remote", "one address is for all shares"),
    ("log-level", "one log is of all shares"),
    ("syslog", "one log is of all shares"),
];

/// What the command line may say once for all shares, in the place of each.
const NOT_OF_ALL: &[&str] = &["shared-dir", "tag", "socket-path", "socket", "fd", "trace"];

/// An option of the command line, by its long name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Without the two dashes.
    pub name: String,
    /// `None` for an option without a value.
    pub value: Option<String>,
}

impl Given {
    /// An option with a value.
    pub fn new(name: &str, value: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            value: Some(value.into()),
        }
    }

    /// As one argument of a command line.
    #[must_use]
    pub fn argument(&self) -> String {
        match &self.value {
            None => format!("--{}", self.name),
            Some(value) => format!("--{}={value}", self.name),
        }
    }
}

/// Why an option cannot be used.
#[derive(Debug, Error)]
pub enum Error {
    /// No such option.
    #[error("there is no option {0:?}; gangplankd --help lists them")]
    Unknown(String),
    /// Not of one share.
    #[error("{name:?} cannot be an option of one share: {reason}")]
    NotOfAShare {
        /// The option.
        name: String,
        /// The reason.
        reason: &'static str,
    },
    /// Not of all shares.
    #[error("{0} cannot be used together with several shares: it is an option of one share")]
    NotOfAll(String),
    /// A command, or an end that several shares do not have.
    #[error("{0} cannot be used together with several shares")]
    NotOfSeveral(String),
    /// A value is missing.
    #[error("{name:?} needs a value, such as {name}={example}")]
    NoValue {
        /// The option.
        name: String,
        /// What the help calls the value.
        example: String,
    },
    /// A value too many.
    #[error("{name:?} has no value, but {value:?} is given")]
    Value {
        /// The option.
        name: String,
        /// As typed.
        value: String,
    },
    /// Bytes that are no text.
    #[error("{0} has a value that is not UTF-8")]
    NotUtf8(String),
}

/// What an option takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No value.
    Flag,
    /// A value, which may be left out.
    Optional,
    /// A value, by the name that the help gives it.
    Value(String),
}

/// What the option of one share takes.
///
/// # Errors
/// [`Error::Unknown`], [`Error::NotOfAShare`].
pub fn kind(name: &str) -> Result<Kind, Error> {
    if let Some((_, reason)) = NOT_OF_A_SHARE.iter().find(|(other, _)| *other == name) {
        let name = name.to_owned();
        return Err(Error::NotOfAShare { name, reason });
    }
    let command = Args::command();
    let found = command
        .get_arguments()
        .find(|argument| argument.get_long() == Some(name));
    let argument = found.ok_or_else(|| Error::Unknown(name.to_owned()))?;
    if matches!(argument.get_action(), ArgAction::SetTrue) {
        return Ok(Kind::Flag);
    }
    let least = argument
        .get_num_args()
        .map_or(1, |range| range.min_values());
    let example = argument.get_value_names().and_then(<[_]>::first);
    let example = example.map_or_else(String::new, ToString::to_string);
    Ok(match least {
        0 => Kind::Optional,
        _ => Kind::Value(example),
    })
}

/// Checks the name of a share's option, and whether it has a value.
///
/// # Errors
/// [`enum@Error`].
pub fn check(option: &Given) -> Result<(), Error> {
    let name = || option.name.clone();
    match (kind(&option.name)?, &option.value) {
        (Kind::Flag, Some(value)) => Err(Error::Value {
            name: name(),
            value: value.clone(),
        }),
        (Kind::Value(example), None) => Err(Error::NoValue {
            name: name(),
            example,
        }),
        _ => Ok(()),
    }
}

/// The options of the command line that hold for all shares.
///
/// # Errors
/// [`Error::NotOfAll`], [`Error::NotOfSeveral`], [`Error::NotUtf8`].
pub fn of_all(given: Vec<TypedOption>) -> Result<Vec<Given>, Error> {
    const OF_DAEMON: [&str; 6] = [
        "share",
        "shares-dir",
        "socket-dir",
        "control",
        "metrics",
        "metrics-allow-remote",
    ];
    let mut options = Vec::new();
    for (name, value) in given {
        let Some(name) = name else {
            return Err(Error::NotOfSeveral("-o, -d or -f".to_owned()));
        };
        if OF_DAEMON.contains(&name.as_str()) {
            continue;
        }
        let typed = format!("--{name}");
        if NOT_OF_ALL.contains(&name.as_str()) {
            return Err(Error::NotOfAll(typed));
        }
        if ["reload", "exit-on-disconnect", "print-capabilities"].contains(&name.as_str()) {
            return Err(Error::NotOfSeveral(typed));
        }
        let value = value.map(|value| value.into_string()).transpose();
        let value = value.map_err(|_| Error::NotUtf8(typed))?;
        options.push(Given { name, value });
    }
    Ok(options)
}

/// What the parser says of a whole command line of options: `None` if nothing.
#[must_use]
pub fn complaint(options: &[Given]) -> Option<EarlyExit> {
    let words = options.iter().map(Given::argument);
    Args::from_command_line(std::iter::once("gangplankd".to_owned()).chain(words)).err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_this_module_are_options() {
        let command = Args::command();
        let is_known = |name: &str| {
            let mut arguments = command.get_arguments();
            arguments.any(|argument| argument.get_long() == Some(name))
        };
        for (name, _) in NOT_OF_A_SHARE {
            assert!(is_known(name), "{name}");
        }
        for name in NOT_OF_ALL {
            assert!(is_known(name), "{name}");
        }
    }

    #[test]
    fn an_option_has_a_value_if_the_command_line_demands_one() {
        let option = |name: &str, value: Option<&str>| Given {
            name: name.to_owned(),
            value: value.map(str::to_owned),
        };
        for (name, value) in [
            ("readonly", None),
            ("cache", Some("never")),
            ("posix-acl", None),
            ("posix-acl", Some("auto")),
            ("xattrmap", Some(":map::user.virtiofs.:")),
            ("translate-uid", Some("map:0:1:1")),
            ("limit-iops", Some("5")),
        ] {
            check(&option(name, value)).expect(name);
        }
        for (name, value, hint) in [
            ("readonly", Some("yes"), "has no value"),
            ("cache", None, "cache=POLICY"),
            ("cahce", Some("never"), "no option \"cahce\""),
            ("control", Some("/c"), "for all shares"),
            ("no_readdirplus", None, "no option"),
        ] {
            let error = check(&option(name, value)).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
