//! Values of single options: how they are typed, and what is wrong with others.

use std::time::Duration;

use log::LevelFilter;

use crate::device;
use crate::passthrough::options::{GuestArch, InodeFileHandles, Locks};

const MAX_TAG_LEN: usize = device::Options::MAX_TAG_LEN;
const MAX_QUEUE_SIZE: u16 = device::Options::MAX_QUEUE_SIZE;

/// `--guest-arch` as typed; `auto` is `None`.
///
/// A newtype, because clap's derive takes an `Option` for an optional argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestArchArg(pub Option<GuestArch>);

/// `--locks` as typed; `auto` is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocksArg(pub Option<Locks>);

/// `--inode-file-handles` as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InodeFileHandlesArg {
    /// The meaning.
    pub mode: InodeFileHandles,
    /// Whether it was typed in the older spelling.
    pub deprecated: bool,
}

pub(super) fn parse_tag(text: &str) -> Result<String, String> {
    match text.len() {
        1..=MAX_TAG_LEN => Ok(text.to_owned()),
        0 => Err("a tag has at least one byte".to_owned()),
        len => Err(format!(
            "a tag has at most {MAX_TAG_LEN} bytes, this one has {len}"
        )),
    }
}

pub(super) fn parse_queue_size(text: &str) -> Result<u16, String> {
    text.parse::<u16>()
        .ok()
        .filter(|size| size.is_power_of_two() && (2..=MAX_QUEUE_SIZE).contains(size))
        .ok_or_else(|| format!("expected a power of two from 2 to {MAX_QUEUE_SIZE}"))
}

/// Seconds with fractions.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, &'static str> {
    text.parse::<f64>()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or("expected seconds, such as 0, 1 or 0.5")
}

pub(super) fn parse_guest_arch(text: &str) -> Result<GuestArchArg, &'static str> {
    match text {
        "auto" => Ok(GuestArchArg(None)),
        "x86_64" => Ok(GuestArchArg(Some(GuestArch::X86_64))),
        "aarch64" => Ok(GuestArchArg(Some(GuestArch::Aarch64))),
        _ => Err("expected auto, x86_64 or aarch64"),
    }
}

pub(super) fn parse_locks(text: &str) -> Result<LocksArg, &'static str> {
    match text {
        "auto" => Ok(LocksArg(None)),
        _ => text.parse().map(|locks| LocksArg(Some(locks))),
    }
}

pub(super) fn parse_inode_file_handles(text: &str) -> Result<InodeFileHandlesArg, &'static str> {
    Ok(InodeFileHandlesArg {
        mode: text.parse()?,
        deprecated: text == "fallback",
    })
}

pub(super) fn parse_log_level(text: &str) -> Result<LevelFilter, &'static str> {
    text.parse()
        .map_err(|_| "expected off, error, warn, info, debug or trace")
}
