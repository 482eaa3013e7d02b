//! A share in a file: TOML, with the long names of the command line's options as keys.

use std::ops::Range;
use std::path::{Path, PathBuf};

use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::options::{self, Given, Kind};
use super::share::{Origin, Share, canonical};

/// Most bytes of a file. Nobody writes longer ones, and a device has no end.
const MAX_BYTES: u64 = 1 << 20;

/// Why a file has no share. The text begins with the file, and the line where that is known.
#[derive(Debug, Error)]
pub enum Error {
    /// The directory or the file cannot be read.
    #[error("cannot read {path:?}")]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is wrong.
    #[error("{}:{line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1 on.
        line: usize,
        /// What is wrong, with the key.
        what: String,
    },
    /// The whole is wrong.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// The paths of all files `*.toml` in `directory`, sorted. Names that begin with a period are no
/// shares: editors make them.
///
/// # Errors
/// [`Error::Read`].
pub fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read {
        path: directory.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy());
        let is_share = name.is_some_and(|name| name.ends_with(".toml") && !name.starts_with('.'));
        if is_share {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Reads the share of a file.
///
/// # Errors
/// [`enum@Error`].
pub fn read(path: &Path) -> Result<Share, Error> {
    use std::io::Read;

    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
        .map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
    parse(path, &text)
}

/// A key with the options that it stands for.
struct Entry {
    span: Range<usize>,
    options: Vec<Given>,
}

fn parse(path: &Path, text: &str) -> Result<Share, Error> {
    let at = |span: &Range<usize>, what: String| Error::Line {
        path: path.to_owned(),
        line: line_of(text, span.start),
        what,
    };
    let whole = |what: String| Error::File {
        path: path.to_owned(),
        what,
    };
    let table = DeTable::parse(text).map_err(|error| match error.span() {
        Some(span) => at(&span, error.message().to_owned()),
        None => whole(error.message().to_owned()),
    })?;
    let mut entries = Vec::new();
    for (key, value) in table.get_ref() {
        let options = options_of(key.get_ref(), value).map_err(|what| at(&key.span(), what))?;
        let span = key.span();
        entries.push(Entry { span, options });
    }
    // The parser's table is sorted by key. Repeated options, and errors, are by line.
    entries.sort_by_key(|entry| entry.span.start);

    let stem = path.file_stem().map(|stem| stem.to_string_lossy());
    let tag = entries.iter().find_map(|entry| {
        let mut options = entry.options.iter();
        let tag = options.find(|option| option.name == "tag")?;
        Some((entry.span.clone(), tag.value.clone().unwrap_or_default()))
    });
    let origin = Origin::File(path.to_owned());
    let mut share = match &tag {
        Some((span, tag)) => {
            Share::new(tag, origin).map_err(|error| at(span, error.to_string()))?
        }
        None => Share::new(&stem.unwrap_or_default(), origin)
            .map_err(|error| whole(error.to_string()))?,
    };
    for entry in &entries {
        let complaint = match &entry.options[..] {
            // Most values can be checked alone, which tells the line.
            [option] if option.name != "tag" => alone(option),
            _ => None,
        };
        if let Some(what) = complaint {
            return Err(at(&entry.span, what));
        }
        let options = entry.options.iter().filter(|option| option.name != "tag");
        share.options.extend(options.cloned());
    }
    if share.value("shared-dir").is_none() {
        return Err(whole("the key shared-dir is missing".to_owned()));
    }
    Ok(share)
}

/// What the parser says of the value of one option, if it needs no other option.
fn alone(option: &Given) -> Option<String> {
    let exit = options::complaint(std::slice::from_ref(option))?;
    exit.is_of_value().then(|| exit.summary())
}

/// The options that a key stands for: several if its value is an array.
fn options_of(key: &str, value: &Spanned<DeValue<'_>>) -> Result<Vec<Given>, String> {
    let name = canonical(key);
    let kind = match options::kind(name) {
        Err(options::Error::Unknown(_)) => {
            let hint = match key.contains('_') {
                true => format!("; {:?} may be meant", key.replace('_', "-")),
                false => String::new(),
            };
            return Err(format!("the key {key:?} is no option of gangplankd{hint}"));
        }
        kind => kind.map_err(|error| error.to_string())?,
    };
    let given = |value: Option<String>| {
        vec![Given {
            name: name.to_owned(),
            value,
        }]
    };
    match (value.get_ref(), &kind) {
        (DeValue::Boolean(true), Kind::Flag | Kind::Optional) => Ok(given(None)),
        (DeValue::Boolean(false), Kind::Flag) => Ok(Vec::new()),
        (_, Kind::Flag) => Err(format!("the key {key:?} is true or false")),
        (DeValue::Array(values), _) => {
            let texts = values.iter().map(|value| text_of(key, value.get_ref()));
            let options = texts.map(|text| Ok(Given::new(name, text?)));
            options.collect()
        }
        (value, _) => {
            let text = text_of(key, value)?;
            let is_path = ["shared-dir", "socket-path", "trace"].contains(&name);
            if is_path && !Path::new(&text).is_absolute() {
                return Err(format!(
                    "the key {key:?} is {text:?}; expected an absolute path"
                ));
            }
            Ok(given(Some(text)))
        }
    }
}

fn text_of(key: &str, value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.to_string()),
        DeValue::Float(number) => Ok(number.to_string()),
        _ => Err(format!(
            "the key {key:?} has a value of the wrong type; expected a text"
        )),
    }
}

/// The line of a byte, from 1 on.
fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/etc/shares/home.toml";

    fn share(text: &str) -> Result<Share, String> {
        share_of(PATH, text)
    }

    fn share_of(path: &str, text: &str) -> Result<Share, String> {
        parse(Path::new(path), text).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_options() {
        let share = share(
            "# home\nshared-dir = \"/srv/home\"\nreadonly = true\nwriteback = false\n\
             cache = 'never'\nposix-acl = true\nlimit-iops = 500\ntimeout = 0.5\n\
             limit-iops-burst = 9\nsocket = \"/run/home.sock\"\n\
             translate-uid = [\"map:0:1000:1\", \"map:5:2000:1\"]\n",
        );
        let share = share.unwrap();
        assert_eq!(share.tag, "home");
        let words: Vec<String> = share.options.iter().map(Given::argument).collect();
        assert_eq!(
            words.join(" "),
            "--shared-dir=/srv/home --readonly --cache=never --posix-acl --limit-iops=500 \
             --timeout=0.5 --limit-iops-burst=9 --socket-path=/run/home.sock \
             --translate-uid=map:0:1000:1 --translate-uid=map:5:2000:1"
        );
        assert_eq!(share.origin, Origin::File(PATH.into()));
    }

    #[test]
    fn the_file_names_the_tag_unless_a_key_does() {
        let named = share("shared-dir = \"/srv\"\ntag = \"other\"").unwrap();
        assert_eq!(named.tag, "other");
        assert_eq!(named.value("tag"), None);
    }

    #[test]
    fn errors_name_file_line_and_key() {
        for (text, line, hints) in [
            (
                "shared-dir = \"/srv\"\ncahce = \"never\"\n",
                2,
                ["\"cahce\"", "no option"],
            ),
            (
                "\n\nshared_dir = \"/srv\"",
                3,
                ["shared_dir", "\"shared-dir\" may be meant"],
            ),
            (
                "shared-dir = \"/srv\"\ncache = \"often\"",
                2,
                ["--cache", "never, metadata"],
            ),
            (
                "shared-dir = \"/srv\"\nreadonly = \"yes\"",
                2,
                ["\"readonly\"", "true or false"],
            ),
            (
                "shared-dir = \"/srv\"\ncache = true",
                2,
                ["\"cache\"", "wrong type"],
            ),
            ("shared-dir = \"srv\"", 1, ["\"shared-dir\"", "absolute"]),
            (
                "shared-dir = \"/srv\"\nlog-level = 'debug'",
                2,
                ["log-level", "all shares"],
            ),
            (
                "shared-dir = \"/srv\"\ntag = \"a/b\"",
                2,
                ["\"a/b\"", "tag"],
            ),
            ("shared-dir = \"/srv\"\nreadonly = = true", 2, ["", ""]),
            (
                "shared-dir = \"/srv\"\n[section]\ncache = 'never'",
                2,
                ["section", "no option"],
            ),
            ("readonly = true\nreadonly = true", 2, ["duplicate", ""]),
        ] {
            let error = share(text).expect_err(text);
            let begin = format!("{PATH}:{line}: ");
            assert!(error.starts_with(&begin), "{text}: {error}");
            for hint in hints {
                assert!(error.contains(hint), "{text}: {error}");
            }
        }
        let error = share("readonly = true").unwrap_err();
        assert_eq!(error, format!("{PATH}: the key shared-dir is missing"));
    }

    #[test]
    fn the_examples_are_shares() {
        for (name, text) in [
            ("home", include_str!("../../../configs/shares/home.toml")),
            ("tools", include_str!("../../../configs/shares/tools.toml")),
        ] {
            let share = share_of(&format!("/etc/{name}.toml"), text).unwrap();
            assert_eq!(share.tag, name);
            let words = share.arguments(&[Given::new("socket-path", "/s")], false);
            let exit = options::complaint(&words);
            assert!(exit.is_none(), "{exit:?}");
        }
    }

    #[test]
    fn options_that_need_another_are_not_refused_alone() {
        share("shared-dir = \"/srv\"\nlimit-iops-burst = 5\nlimit-iops = 9").unwrap();
    }
}
