//! Checks that hold for every run, and whether a guest's run is the expected one.

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::trace::{Version, describe, errno_name, folded, pattern};

use super::Mode;
use super::exceptions::{Expected, expected};
use super::plan::{APPENDED_TO, Plan};
use super::run::Outcome;

/// One line of a trace: a call, its result, and the number of repetitions.
struct Line<'a> {
    call: &'a str,
    result: &'a str,
    times: usize,
}

impl Line<'_> {
    /// Bytes that the calls have moved.
    fn moved(&self) -> usize {
        self.result.parse::<usize>().unwrap_or(0) * self.times
    }

    fn is_error(&self) -> bool {
        self.result.parse::<usize>().is_err()
    }

    /// Whether the call moves bytes of the file, which sums and mappings do not.
    fn is_transfer(&self) -> bool {
        matches!(
            self.call,
            "read" | "pread" | "write" | "copy_file_range" | "sendfile" | "splice"
        )
    }
}

fn lines(outcome: &Outcome) -> Vec<Line<'_>> {
    let parse = |line: &'_ str| -> Option<(usize, usize, usize)> {
        let equals = line.find(" = ")?;
        let call = line[..equals].find(' ').unwrap_or(equals);
        let times = line[equals..]
            .find(" x")
            .map_or(line.len(), |at| equals + at);
        Some((call, equals + 3, times))
    };
    let all = outcome.lines.iter();
    all.filter_map(|line| {
        let (call, start, end) = parse(line)?;
        Some(Line {
            call: &line[..call],
            result: &line[start..end],
            times: line
                .get(end + 2..)
                .map_or(Some(1), |text| text.parse().ok())?,
        })
    })
    .collect()
}

/// Bytes that all transfers have moved.
fn moved(outcome: &Outcome) -> usize {
    let lines = lines(outcome);
    let transfers = lines.iter().filter(|line| line.is_transfer());
    transfers.map(Line::moved).sum()
}

/// Checks what holds for every fault and mode: the bytes read are the file's, nothing ends early
/// without an error, and acknowledged writes are in the file.
pub(super) fn check_always(mode: Mode, plan: &Plan, outcome: &Outcome) -> Result<()> {
    let wrong = |line: &&String| line.starts_with("WRONG") || line.starts_with("failed");
    if let Some(line) = outcome.lines.iter().find(wrong) {
        bail!("{line}");
    }
    let lines = lines(outcome);
    let failed = lines.iter().any(Line::is_error);
    let size = plan.case.size;
    if plan.reads() {
        let ended = lines
            .iter()
            .any(|line| line.is_transfer() && line.result == "0");
        // pread starts at offset 1.
        let whole = match plan.case.script.as_str() {
            "pread" => size - 1,
            _ => size,
        };
        let moved = moved(outcome);
        ensure!(
            !ended || moved == whole || (failed && plan.case.script == "copy-range"),
            "the file ends after {moved} of {whole} bytes"
        );
        if plan.case.script == "read-mapped" {
            let all = lines.iter().filter(|line| line.call == "touch");
            let pages: usize = all
                .filter(|line| !line.is_error())
                .map(|line| line.times)
                .sum();
            ensure!(
                failed || pages == size.div_ceil(4096),
                "{pages} pages were read without an error"
            );
        }
    }
    check_written(mode, plan, outcome, failed)
}

/// Acknowledged writes are in the file: each count if a write reaches the host before it returns;
/// otherwise everything, if no call has failed.
fn check_written(mode: Mode, plan: &Plan, outcome: &Outcome, failed: bool) -> Result<()> {
    let script = plan.case.script.as_str();
    let is_write =
        script.starts_with("write") || matches!(script, "append" | "reopen-fsync" | "syncfs");
    let start = if script == "append" { APPENDED_TO } else { 0 };
    let at_once = plan.writes_at_once() || !mode.writes_back();
    let acknowledged = match script {
        "write-mapped" | "two-writers" if failed => return Ok(()),
        // Without shared mappings the script writes nothing.
        "write-mapped" | "two-writers" => plan.case.size,
        _ if !is_write || (failed && !at_once) => return Ok(()),
        _ => moved(outcome),
    };
    let written = outcome.content.get(start..start + acknowledged);
    let expected = pattern(Version::New, start as u64, acknowledged);
    ensure!(
        written == Some(&expected[..]),
        "{acknowledged} bytes were acknowledged, and the file holds {:?}",
        folded(&describe(&outcome.content))
    );
    Ok(())
}

/// Checks that the guest, with its cache dropped, reads the file as the host has it.
pub(super) fn check_reread(mode: Mode, plan: &Plan, outcome: &Outcome) -> Result<()> {
    // With writeback only the guest's kernel knows the size, including data that it could not
    // write.
    if mode.writes_back() && plan.case.script == "append" && plan.fault.is_some() {
        return Ok(());
    }
    let blocks = describe(&outcome.reread);
    let blocks: Vec<String> = blocks
        .iter()
        .map(|word| format!("block = {word}"))
        .collect();
    ensure!(
        outcome.blocks == folded(&blocks),
        "the file is read as {:?} with caches dropped, and is {:?}",
        outcome.blocks,
        folded(&blocks)
    );
    Ok(())
}

/// Checks that the guest's result is the expected one.
pub(super) fn check_expected(
    mode: Mode,
    plan: &Plan,
    host: &Outcome,
    without_fault: &Outcome,
    guest: &Outcome,
) -> Result<()> {
    let (wanted, exception) = expected(mode, plan);
    let lines = match &wanted {
        Expected::SameAsHost => &host.lines,
        Expected::AsWithoutFault => &without_fault.lines,
        Expected::Lines(lines) => lines,
        Expected::AllWithOneError(errno) => {
            let errno = errno_name(*errno);
            let found = self::lines(guest);
            let errors: usize = found
                .iter()
                .filter(|line| line.is_error())
                .map(|line| if line.result == errno { line.times } else { 2 })
                .sum();
            // A script that stops at an error writes no more.
            let stops = plan.case.script.starts_with("write") && errors == 1;
            let total = moved(without_fault);
            let skipped = plan.case.script == "pread" && errors == 1;
            ensure!(
                errors <= 1 && (stops || skipped || moved(guest) == total),
                "{} of {total} bytes are moved, with {errors} errors: {:?}",
                moved(guest),
                guest.lines
            );
            return Ok(());
        }
    };
    if guest.lines == *lines || (mode.writes_back() && tells_once_more(&guest.lines, lines)) {
        return Ok(());
    }
    let differs = format!("the guest's {:?} should be {lines:?}", guest.lines);
    match exception {
        Some(exception) => bail!(
            "{differs}, by exception \"{}\": {}",
            exception.name,
            exception.reason
        ),
        None => bail!("{differs}, as on the host"),
    }
}

/// Whether the guest's lines are the expected ones, except that one fsync repeats the error of the
/// fsync before it.
///
/// The guest's kernel writes pages back when it likes. If it does so at the moment of an fsync,
/// both the writeback and the fsync record the error, and the next fsync tells the second record.
fn tells_once_more(guest: &[String], expected: &[String]) -> bool {
    let (guest, expected) = (unfolded(guest), unfolded(expected));
    let mut repeated = 0;
    guest.len() == expected.len()
        && guest
            .iter()
            .zip(&expected)
            .enumerate()
            .all(|(at, (got, wanted))| {
                let before = at.checked_sub(1).and_then(|at| expected.get(at));
                let again =
                    *wanted == "fsync = 0" && got.starts_with("fsync = E") && before == Some(got);
                repeated += usize::from(again);
                got == wanted || again
            })
        && repeated <= 1
}

/// The lines, each as often as it says.
fn unfolded(lines: &[String]) -> Vec<&str> {
    let times = |line: &'_ str| -> (usize, usize) {
        let found = line.rfind(" x").and_then(|at| {
            let times = line.get(at + 2..)?.parse().ok()?;
            Some((at, times))
        });
        found.unwrap_or((line.len(), 1))
    };
    let repeat = |line: &'_ String| {
        let (end, count) = times(line);
        std::iter::repeat_n(end, count)
    };
    let all = lines
        .iter()
        .flat_map(|line| repeat(line).map(move |end| &line[..end]));
    all.collect()
}

/// The plan of the same script without a fault.
pub(super) fn without_fault<'a>(
    plan: &Plan,
    plans: &[Plan],
    outcomes: &'a [Outcome],
) -> Result<&'a Outcome> {
    let same = |other: &Plan| {
        other.fault.is_none()
            && other.case.script == plan.case.script
            && other.case.block == plan.case.block
            && other.case.size == plan.case.size
    };
    let at = plans.iter().position(same);
    at.and_then(|at| outcomes.get(at))
        .or_else(|| outcomes.first())
        .with_context(|| format!("{plan:?} has no run without a fault"))
}
