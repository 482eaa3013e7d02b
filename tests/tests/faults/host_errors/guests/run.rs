//! Runs all plans in one directory and collects the output of io-trace and the contents of the
//! files.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use gangplank_tests::faulty_fs::Control;
use gangplank_tests::guest::Guest;
use gangplank_tests::packages;
use gangplank_tests::tools;
use gangplank_tests::trace::{Case, Version, pattern};
use parking_lot::Mutex;

use super::plan::{APPENDED_TO, FILES, Plan};

/// Number of cases in one run of io-trace. Their names have to fit into one command of the guest's
/// console, which accepts about 3,000 bytes.
const BATCH: usize = 50;

/// Limit for one run in a guest.
const LIMIT: Duration = Duration::from_secs(60);

/// The outcome of a plan.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The calls of the script.
    pub(super) lines: Vec<String>,
    /// The content of the file when the script had ended.
    pub(super) content: Vec<u8>,
    /// The blocks of the file as they were read after that, without caches.
    pub(super) blocks: Vec<String>,
    /// The content of the file when they had been read.
    ///
    /// Only this is comparable with them: the guest's kernel returns the first error of a close
    /// while it still has writes of the file in flight (`fuse_flush` in fs/fuse/file.c), which the
    /// host may carry out after the script, and which a read waits for.
    pub(super) reread: Vec<u8>,
}

/// Where io-trace runs.
pub(super) enum TraceSite<'a> {
    /// The host, in this directory.
    Host(&'a Path),
    /// A guest, in this directory of its own.
    Guest(&'a mut Guest, &'a str),
}

impl TraceSite<'_> {
    fn run(&mut self, cases: &[Case]) -> Result<String> {
        match self {
            Self::Host(directory) => {
                let mut command = Command::new(tools::io_trace(tools::host_arch())?);
                command.arg(directory);
                command.args(cases.iter().map(Case::to_string));
                packages::output(&mut command)
            }
            Self::Guest(guest, directory) => {
                let cases: Vec<String> = cases.iter().map(Case::to_string).collect();
                let command = format!("io-trace {directory} {}", cases.join(" "));
                guest.sh_within(&command, LIMIT)
            }
        }
    }
}

/// Runs all plans. The number `run` makes the names of its files unique.
pub(super) fn run(
    control: &Control,
    plans: &[Plan],
    run: u32,
    mut site: TraceSite<'_>,
) -> Result<Vec<Outcome>> {
    let base = run * 10_000;
    let contents = Arc::new(Mutex::new(Contents::default()));
    prepare_each(control, plans, base, &contents);
    let mut outcomes: Vec<Outcome> = plans.iter().map(|_| Outcome::default()).collect();
    for batch in plans.chunks(BATCH) {
        let cases: Vec<Case> = batch.iter().map(|plan| numbered(plan, base)).collect();
        for line in site.run(&cases)?.lines() {
            let (id, rest) = line.split_once(' ').unwrap_or((line, ""));
            let id: u32 = id.parse().with_context(|| format!("io-trace: {line}"))?;
            let outcome = outcomes.get_mut(usize::try_from(id - base)?);
            let outcome = outcome.with_context(|| format!("io-trace: {line}"))?;
            if rest.starts_with("block") {
                outcome.blocks.push(rest.to_owned());
            } else {
                outcome.lines.push(rest.to_owned());
            }
        }
    }
    let mut contents = contents.lock();
    for (outcome, plan) in outcomes.iter_mut().zip(plans) {
        let id = base + plan.case.id;
        let content = contents.ended.remove(&id);
        outcome.content = content.with_context(|| format!("{plan:?} has not ended"))?;
        let content = contents.reread.remove(&id);
        outcome.reread = content.with_context(|| format!("{plan:?} was not read again"))?;
    }
    Ok(outcomes)
}

/// The plan's case with the number that it has in a run.
fn numbered(plan: &Plan, base: u32) -> Case {
    Case {
        id: base + plan.case.id,
        ..plan.case.clone()
    }
}

/// The contents of the files, by the numbers of their cases.
#[derive(Default)]
struct Contents {
    /// When the script had ended.
    ended: HashMap<u32, Vec<u8>>,
    /// When the file had been read again.
    reread: HashMap<u32, Vec<u8>>,
}

/// Makes files and sets rules when a case begins, removes the rules when its script ends, and keeps
/// the contents of the files.
fn prepare_each(control: &Control, plans: &[Plan], base: u32, contents: &Arc<Mutex<Contents>>) {
    let (inner, contents) = (control.clone(), Arc::clone(contents));
    let plans: Vec<Plan> = plans.to_vec();
    let begun = Mutex::new(None);
    control.on_lookup(".trace-", move |name| {
        let mut begun = begun.lock();
        let Some((step, id)) = step_of(name) else {
            return;
        };
        let plan = id
            .checked_sub(base)
            .and_then(|index| plans.get(usize::try_from(index).ok()?));
        let Some(plan) = plan else {
            return;
        };
        let case = numbered(plan, base);
        // A name may be looked up more than once.
        match step {
            "begin" if *begun != Some(id) => {
                *begun = Some(id);
                begin(&inner, plan, &case);
            }
            "end" if *begun == Some(id) => {
                inner.clear();
                let content = inner.content(&case.file()).unwrap_or_default();
                contents.lock().ended.entry(id).or_insert(content);
            }
            "reread" if *begun == Some(id) => {
                let content = inner.content(&case.file()).unwrap_or_default();
                contents.lock().reread.entry(id).or_insert(content);
            }
            _ => {}
        }
    });
}

/// The step and the number in a name such as `.trace-begin-7`.
fn step_of(name: &str) -> Option<(&str, u32)> {
    let (step, id) = name.strip_prefix(".trace-")?.split_once('-')?;
    Some((step, id.parse().ok()?))
}

/// A file that cannot be made is missing, and the script reports that.
fn begin(control: &Control, plan: &Plan, case: &Case) {
    control.clear();
    let size = match case.script.as_str() {
        "append" => APPENDED_TO,
        _ => case.size,
    };
    let _ = control.put(&case.file(), &pattern(Version::Old, 0, size));
    match case.script.as_str() {
        "readdir" => {
            let _ = control.put_directory(&case.directory(), FILES);
        }
        "xattr" => {
            let _ = control.put_xattr(&case.file(), "user.traced", b"value");
        }
        _ => {}
    }
    if let Some(rule) = plan.rule(case) {
        control.set(rule);
    }
}
