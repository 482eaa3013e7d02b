//! System calls that the daemon makes for each operation, counted by strace.
//!
//! Only the calls of the thread that serves the requests count, and only those between taking a
//! request and returning its reply. Waiting for a kick, reading it and signalling the reply are
//! counted apart, because all requests of a batch share them.

mod operations;
mod strace;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::Setup;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::relay::Relay;

use self::operations::{Counter, data, directories, nodes, tree};
use self::strace::{Counts, Strace, is_memory, is_transport, sections};

/// Times that each operation is repeated.
const TIMES: usize = 100;

/// Limit for strace to attach, and to write its output.
const LIMIT: Duration = Duration::from_secs(20);

/// Limits of system calls per operation.
const AIMS: [(&str, f64); 23] = [
    ("LOOKUP, known", 1.0),
    ("LOOKUP, missing", 1.0),
    ("GETATTR", 1.0),
    ("GETATTR, open", 1.0),
    // With a check whether the file has changed since the last time.
    ("OPEN", 2.0),
    // That check, and some calls of the first times.
    ("OPEN and RELEASE, again and again", 1.2),
    ("READ, 4 KiB", 1.0),
    ("READ, to the end", 1.0),
    ("READ, at the end", 1.0),
    ("WRITE, 4 KiB", 1.0),
    ("LOOKUP, new", 3.0),
    ("CREATE, same user", 3.0),
    ("LINK", 2.0),
    ("READLINK", 1.0),
    ("RENAME", 2.0),
    ("UNLINK", 1.0),
    ("RMDIR", 1.0),
    ("OPENDIR", 1.0),
    ("READDIR, per name", 0.02),
    // One per name, one for every hundred names, and one for the end of the directory.
    ("READDIRPLUS, known, per name", 1.02),
    ("FLUSH", 0.0),
    ("RELEASE", 1.0),
    ("STATFS", 1.0),
];

/// What operations may take more if something outside of the daemon holds what its guests have: the
/// handle of each file that the guest learns, and what has each name that it removes or renames,
/// which are two of a RENAME.
const MORE_WITH_HOLDER: [(&str, f64); 5] = [
    ("LOOKUP, new", 1.0),
    ("CREATE, same user", 1.0),
    ("RENAME", 2.0),
    ("UNLINK", 1.0),
    ("RMDIR", 1.0),
];

/// Limit of the allocator's system calls per operation.
const MEMORY_CALLS: f64 = 0.1;

/// Prints the calls of each operation as a table, and fails if one exceeds its limit, which is by
/// what `more` has higher than usual.
fn report(
    sections: &[(&'static str, usize)],
    counted: &BTreeMap<usize, Counts>,
    more: &[(&str, f64)],
) -> Result<()> {
    let mut table = String::from(
        "\nsystem calls per operation            calls  memory  wait  kick  call  which\n",
    );
    let mut missed = Vec::new();
    let nothing = Counts::new();
    for (number, (name, work)) in sections.iter().enumerate() {
        let counts = counted.get(&number).unwrap_or(&nothing);
        let per = |count: usize| count as f64 / *work as f64;
        let of = |name: &str| per(counts.get(name).copied().unwrap_or_default());
        let own = counts.iter().filter(|(name, _)| !is_transport(name));
        // Opening and closing the directory are separate operations: an openat and a close.
        let around = if name.starts_with("READDIR") { 2 } else { 0 };
        let sum = |memory: bool| {
            own.clone()
                .filter(|(name, _)| is_memory(name) == memory)
                .map(|(_, count)| count)
                .sum::<usize>()
        };
        let calls = per(sum(false).saturating_sub(around));
        let memory = per(sum(true));
        let which: Vec<String> = own
            .map(|(name, count)| format!("{name} {:.2}", per(*count)))
            .collect();
        table.push_str(&format!(
            "{name:<34} {calls:>8.2} {memory:>7.2} {:>5.2} {:>5.2} {:>5.2}  {}\n",
            of("(wait)"),
            of("(kick)"),
            of("(call)"),
            which.join(", ")
        ));
        let aim_of = |aims: &[(&str, f64)]| {
            let mut aims = aims.iter();
            aims.find(|(aimed, _)| aimed == name).map(|(_, aim)| *aim)
        };
        if let Some(aim) = aim_of(&AIMS).map(|aim| aim + aim_of(more).unwrap_or(0.0))
            && (calls > aim + 0.005 || memory > MEMORY_CALLS)
        {
            missed.push(format!(
                "{name}: {calls:.2} where {aim} is the aim, and {memory:.2} of the allocator"
            ));
        }
    }
    // Not through the test harness, which would capture it.
    std::io::stderr().write_all(table.as_bytes())?;
    ensure!(
        missed.is_empty(),
        "too many system calls:\n{}",
        missed.join("\n")
    );
    Ok(())
}

#[test]
fn operations_make_no_more_system_calls_than_aimed_at() -> Result<()> {
    count(Fixture::quiet(&[])?, &[])
}

#[test]
fn a_holder_costs_a_system_call_for_each_new_file_and_name_and_none_for_data() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let holder = directory.path().join("holder.sock");
    let holder = holder.to_str().context("a path that is no text")?;
    let relay = Relay::start(&directory.path().join("fs.sock"), &["--holder", holder])?;
    let fixture = Fixture::quiet(&["--holder", holder])?;
    count(fixture, &MORE_WITH_HOLDER).with_context(|| relay.log())
}

/// Counts the system calls of each operation: see [`report`].
fn count(fixture: Fixture, more: &[(&str, f64)]) -> Result<()> {
    if Command::new("strace")
        .arg("-V")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        writeln!(
            std::io::stderr(),
            "SKIPPED: strace is not installed, system calls are not counted"
        )?;
        return Ok(());
    }
    let mut counter = Counter {
        guest: fixture.guest(&Setup::default())?,
        share: fixture.share(),
        sections: Vec::new(),
    };
    // One-time work is not part of an operation.
    let warm = counter.guest.create(NodeId::ROOT, c"warm", 0o644)?;
    counter.guest.release(warm)?;
    let dir = tempfile::tempdir()?;
    let strace = match Strace::attach(fixture.last_worker()?, dir.path()) {
        Err(error) if error.to_string().contains("not permitted") => {
            writeln!(std::io::stderr(), "SKIPPED: {error}")?;
            return Ok(());
        }
        strace => strace?,
    };
    nodes(&mut counter)?;
    data(&mut counter)?;
    tree(&mut counter)?;
    directories(&mut counter)?;
    let trace = strace.finish()?;
    let counted = sections(&trace);
    ensure!(
        counted.len() == counter.sections.len(),
        "the trace has {} sections of {}",
        counted.len(),
        counter.sections.len()
    );
    report(&counter.sections, &counted, more)?;
    drop(counter);
    fixture.survive(&[])
}
