//! A configuration file as written: keys, types and lines, without their meaning.

use serde::Deserialize;
use serde_saphyr::{Error, Spanned};

use super::fault::Fault;

/// A value and its line.
pub(super) type At<T> = Spanned<T>;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    pub(super) log_level: Option<At<String>>,
    pub(super) nodes: Option<At<Vec<At<String>>>>,
    pub(super) devices: At<Vec<At<Device>>>,
}

/// One device. The keys of other types of device are known, so that they are not taken for typing
/// errors.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Device {
    pub(super) id: At<u32>,
    #[serde(rename = "type")]
    pub(super) device_type: At<String>,
    pub(super) data_plane: At<String>,
    pub(super) mmio_addr: At<u64>,
    pub(super) shmem_addr: Option<At<u64>>,
    pub(super) shmem_size: Option<At<u64>>,
    pub(super) shmem_path: Option<At<String>>,
    pub(super) irq: Option<At<u32>>,
    pub(super) socket_path: Option<At<String>>,

    pub(super) socket: Option<At<String>>,
    pub(super) tag: Option<At<String>>,
    pub(super) num_request_queues: Option<At<u32>>,
    pub(super) queue_size: Option<At<u32>>,
    pub(super) window_size: Option<At<u64>>,
    pub(super) frontend_vm: Option<At<String>>,

    pub(super) file_path: Option<At<String>>,
    pub(super) read_only: Option<At<bool>>,
    pub(super) root_device: Option<At<bool>>,
    pub(super) advertise_flush: Option<At<bool>>,
    pub(super) tap_name: Option<At<String>>,
    pub(super) mac_addr: Option<At<String>>,
    pub(super) guest_cid: Option<At<u64>>,
    pub(super) pty_alias: Option<At<String>>,
}

impl Document {
    /// Parses `text`, or returns its first fault.
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        serde_saphyr::from_str(text).map_err(|error| to_fault(text, error.without_snippet()))
    }
}

fn to_fault(text: &str, error: &Error) -> Fault {
    let line = error.location().map_or(0, |location| location.line());
    match error {
        Error::SerdeUnknownField {
            field, expected, ..
        } => Fault::new(
            line,
            field,
            format!("there is no such key here; the keys are {}", list(expected)),
        ),
        Error::SerdeMissingField { field, .. } => {
            Fault::new(line, field, "it is missing above, and has no default")
        }
        Error::DuplicateMappingKey { key, .. } => Fault {
            line,
            key: key.clone(),
            what: "it is given twice; remove one".to_owned(),
        },
        Error::InvalidScalar { ty, .. } => Fault {
            line,
            key: key_at(text, line),
            what: format!("expected {}", describe(ty)),
        },
        Error::Unexpected { expected, .. } => Fault {
            line,
            key: key_at(text, line),
            what: format!("expected {}", describe(expected)),
        },
        other => Fault {
            line,
            key: key_at(text, line),
            what: without_place(&other.to_string()),
        },
    }
}

fn list(keys: &[&str]) -> String {
    keys.join(", ")
}

/// A type, or the parser's name for a shape, in words for people who do not program.
fn describe(ty: &str) -> String {
    match ty {
        "u32" => "a whole number below 2^32, such as 47 or 0x2f".to_owned(),
        "u64" => "a whole number below 2^64, such as 512 or 0x200".to_owned(),
        "bool" | "boolean" => "true or false".to_owned(),
        "sequence start" => "a list".to_owned(),
        "mapping start" => "keys with a value each".to_owned(),
        "string scalar" => "a single value".to_owned(),
        other => format!("a value of type {other}"),
    }
}

/// The parser's text without the line and column at its end, which a fault has anyway.
fn without_place(text: &str) -> String {
    let (what, _) = text.rsplit_once(" at line ").unwrap_or((text, ""));
    what.to_owned()
}

/// The key in `line`, if the line begins with a plain one.
fn key_at(text: &str, line: u64) -> Option<String> {
    let index = usize::try_from(line.checked_sub(1)?).ok()?;
    let written = text.lines().nth(index)?;
    let (key, _) = written.split_once(':')?;
    let key = key.trim_start_matches([' ', '-']).trim_end();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (!key.is_empty() && key.bytes().all(plain)).then(|| key.to_owned())
}
