//! `gangplank-frontend trace`: prints, filters and sums up a trace of gangplankd.
//!
//! ```text
//!   file ── gangplank-trace ──> record ── filter ──> text │ json │ summary ──> standard output
//!                                  └── arguments: names and numbers of each operation
//! ```

mod args;
mod arguments;
mod error;
mod filter;
mod follow;
mod json;
mod summary;
mod text;

use std::fs::File;
use std::io::Write;

use gangplank_sandbox::Kept;
use gangplank_sandbox::landlock::Files;
use gangplank_sandbox::seccomp::common;
use gangplank_service::output::Output;
use gangplank_trace::{Item, Record};
use rustix::fs::FileType;

pub use self::args::TraceArgs;
pub use self::error::Error;
use self::filter::Filter;
use self::follow::Source;
use self::summary::Summary;

/// What is written of each record.
enum Form {
    Lines,
    Json,
    Summary(Summary),
}

/// Prints the trace that `args` name to `out`. Confines the process first, which must have one
/// thread: a trace has what guests sent.
///
/// # Errors
/// The file cannot be read, or is no trace. [`Error::Damaged`], after all readable records were
/// printed, if some were not.
pub fn run(args: &TraceArgs, out: Output) -> Result<(), Error> {
    let source = open(args)?;
    let mut calls = common::server();
    calls.refused.extend(common::NO_FILES);
    let kept = Kept {
        capabilities: &[],
        files: Some(Files::default()),
        calls: &calls,
    };
    gangplank_sandbox::confine(args.seccomp, kept)?;
    print(args, source, out)
}

fn print(args: &TraceArgs, mut source: Source, mut out: Output) -> Result<(), Error> {
    let filter = Filter::new(args);
    let mut form = match (args.summary, args.json) {
        (true, _) => Form::Summary(Summary::default()),
        (false, true) => Form::Json,
        (false, false) => Form::Lines,
    };
    let mut damaged = 0;
    while let Some(item) = source.next()? {
        match item {
            Item::Record { mut record, lost } => {
                record.complete();
                form.lost(&mut out, &record, lost)?;
                if filter.admits(&record) {
                    form.record(&mut out, &record)?;
                }
            }
            Item::Damaged { offset, len } => {
                damaged += 1;
                let what = format!("{len} bytes from {offset} on are damaged");
                form.note(&mut out, "damaged", &what)?;
            }
            Item::Truncated { offset, len } => {
                damaged += 1;
                let what =
                    format!("the file ends within a record: its {len} bytes from {offset} on");
                form.note(&mut out, "truncated", &what)?;
            }
        }
    }
    if let Form::Summary(summary) = &form {
        match args.json {
            true => summary.write_json(&mut out)?,
            false => summary.write(&mut out)?,
        }
    }
    out.close()?;
    match damaged {
        0 => Ok(()),
        count => Err(Error::Damaged {
            path: args.file.clone(),
            count,
        }),
    }
}

fn open(args: &TraceArgs) -> Result<Source, Error> {
    let failed = |source| Error::Open {
        path: args.file.clone(),
        source,
    };
    let file = File::open(&args.file).map_err(failed)?;
    let stat = rustix::fs::fstat(&file).map_err(|errno| failed(errno.into()))?;
    let is_fifo = FileType::from_raw_mode(stat.st_mode) == FileType::Fifo;
    // A FIFO ends with the daemon, and a read waits until then.
    Ok(Source::new(file, &args.file, args.follow && !is_fifo))
}

impl Form {
    fn record(&mut self, out: &mut Output, record: &Record) -> Result<(), Error> {
        match self {
            Self::Lines => writeln!(out, "{}", text::line(record))?,
            Self::Json => writeln!(out, "{}", json::record(record))?,
            Self::Summary(summary) => summary.add(record),
        }
        Ok(())
    }

    fn lost(&mut self, out: &mut Output, record: &Record, lost: u64) -> Result<(), Error> {
        match self {
            _ if lost == 0 => {}
            Self::Lines => {
                let guest = record.guest;
                writeln!(
                    out,
                    "--- {lost} records of guest {guest} were lost here ---"
                )?;
            }
            Self::Json => writeln!(out, "{}", json::lost(record.guest, lost))?,
            Self::Summary(summary) => summary.lost += lost,
        }
        Ok(())
    }

    fn note(&mut self, out: &mut Output, kind: &str, what: &str) -> Result<(), Error> {
        match self {
            Self::Lines => writeln!(out, "--- {what} ---")?,
            Self::Json => writeln!(out, "{}", json::note(kind, what))?,
            Self::Summary(_) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
