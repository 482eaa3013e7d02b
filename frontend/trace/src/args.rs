//! The command line of `gangplank-frontend trace`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use gangplank_fuse::Opcode;
use gangplank_sandbox::seccomp::Seccomp;
use globset::{Glob, GlobMatcher};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// The options of `trace`.
#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// File or FIFO of gangplankd's --trace
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Show requests of this guest only, by its number in the log; may be repeated
    #[arg(long, value_name = "N")]
    pub guest: Vec<u32>,

    /// Show this operation only, such as LOOKUP; may be repeated, also with commas
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = parse_opcode)]
    pub op: Vec<Opcode>,

    /// Show requests about the node with this id only, or whose reply named it; may be repeated
    #[arg(long, value_name = "ID")]
    pub node: Vec<u64>,

    /// Show requests with a name that matches this pattern only, with *, ? and [...]
    #[arg(long, value_name = "PATTERN", value_parser = parse_pattern)]
    pub name: Option<GlobMatcher>,

    /// Show requests that failed only
    #[arg(long)]
    pub errors: bool,

    /// Show requests that took longer only, such as 5ms or 0.1s
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub slower_than: Option<Duration>,

    /// Show requests from this time on only: such as 2026-01-31T12:00:00Z, 12:00 of that day in UTC
    /// without a zone, or 5m for the last five minutes
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    pub since: Option<Timestamp>,

    /// Wait for more at the end of the file
    #[arg(long, short, conflicts_with = "summary")]
    pub follow: bool,

    /// Write a JSON object for each request
    #[arg(long)]
    pub json: bool,

    /// What happens when the process makes a system call that it does not need: kill, log, trap or
    /// none
    #[arg(long, value_name = "ACTION", default_value = "kill")]
    pub seccomp: Seccomp,

    /// Write a table of the operations, their counts, errors and times, in place of the requests
    #[arg(long, short = 'c')]
    pub summary: bool,
}

fn parse_opcode(text: &str) -> Result<Opcode, String> {
    let found = Opcode::ALL
        .iter()
        .find(|opcode| opcode.name().eq_ignore_ascii_case(text));
    found
        .copied()
        .ok_or_else(|| "expected an operation of FUSE, such as LOOKUP or READDIRPLUS".to_owned())
}

fn parse_pattern(text: &str) -> Result<GlobMatcher, String> {
    let glob = Glob::new(text).map_err(|error| error.to_string())?;
    Ok(glob.compile_matcher())
}

fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let duration: SignedDuration = text.parse().map_err(|_| TIMES)?;
    duration.try_into().map_err(|_| TIMES)
}

const TIMES: &str = "expected a time with its unit, such as 500us, 5ms or 2s";

fn parse_since(text: &str) -> Result<Timestamp, &'static str> {
    const EXPECTED: &str = "expected a time such as 2026-01-31T12:00:00Z, or how long ago, such as \
                            90s or 5m";
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(time) = text.parse::<DateTime>() {
        let zoned = time.to_zoned(TimeZone::UTC);
        return zoned.map(|zoned| zoned.timestamp()).map_err(|_| EXPECTED);
    }
    let ago: SignedDuration = text.parse().map_err(|_| EXPECTED)?;
    let now = Timestamp::try_from(SystemTime::now()).map_err(|_| EXPECTED)?;
    now.checked_sub(ago.abs()).map_err(|_| EXPECTED)
}
