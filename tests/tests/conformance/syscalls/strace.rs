//! strace on the daemon, and the calls in its output.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use gangplank_tests::process;
use gangplank_tests::wait;
use rustix::process::Signal;

use super::LIMIT;

/// strace, attached to the daemon until it is dropped.
pub(super) struct Strace {
    child: Child,
    output: PathBuf,
}

impl Strace {
    pub(super) fn attach(pid: u32, dir: &Path) -> Result<Self> {
        let (output, said) = (dir.join("trace"), dir.join("said"));
        let mut command = Command::new("strace");
        command
            .args(["-f", "-s", "64", "-p", &pid.to_string(), "-o"])
            .arg(&output)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&said)?);
        let child = process::spawn(command).context("starting strace")?;
        let mut strace = Self { child, output };
        let attached = wait::until("strace is attached", LIMIT, || {
            let is_attached = fs::read_to_string(&said)?.contains("attached");
            wait::ready(&mut strace.child, is_attached)
        });
        attached.with_context(|| fs::read_to_string(&said).unwrap_or_default())?;
        Ok(strace)
    }

    /// Detaches and returns the trace.
    pub(super) fn finish(mut self) -> Result<String> {
        process::signal(&self.child, Signal::INT)?;
        process::wait_within(&mut self.child, LIMIT)?;
        Ok(fs::read_to_string(&self.output)?)
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}

/// Number of calls by name within a section.
pub(super) type Counts = BTreeMap<String, usize>;

/// Splits the trace into sections. Look-ups of special names mark their begin and end.
pub(super) fn sections(trace: &str) -> BTreeMap<usize, Counts> {
    let mut sections: BTreeMap<usize, Counts> = BTreeMap::new();
    let mut within: Option<(usize, &str)> = None;
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        let marked = |mark: &str| -> Option<usize> {
            let (_, rest) = call.split_once(mark)?;
            rest.split('"').next()?.parse().ok()
        };
        if let Some(number) = marked("\"section-begin-") {
            within = Some((number, thread));
        } else if marked("\"section-end-").is_some() {
            within = None;
        } else if let Some((number, counted)) = within
            && counted == thread
            && let Some(name) = name_of(call)
        {
            *sections.entry(number).or_default().entry(name).or_default() += 1;
        }
    }
    sections
}

/// The call's name, or `None` for the second half of a line that strace had to split.
fn name_of(call: &str) -> Option<String> {
    let (name, arguments) = call.split_once('(')?;
    if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    {
        return None;
    }
    // An event is the number 1 in 8 bytes: a kick that is read, a call that is written.
    let event = arguments.contains(r#""\1\0\0\0\0\0\0\0", 8"#);
    // A descriptor without an offset that must not block: a kick, or a call that is a pipe.
    let without_blocking = arguments.contains("-1, RWF_NOWAIT");
    Some(match name {
        "epoll_wait" | "epoll_pwait" | "epoll_pwait2" | "ppoll" | "poll" | "sched_yield" => {
            "(wait)".to_owned()
        }
        "read" if event => "(kick)".to_owned(),
        "preadv2" if without_blocking => "(kick)".to_owned(),
        "write" if event => "(call)".to_owned(),
        "pwritev2" if without_blocking => "(call)".to_owned(),
        // Split: the other half has the bytes that were read.
        "read" if arguments.contains("<unfinished") => "(kick)".to_owned(),
        name => name.to_owned(),
    })
}

pub(super) fn is_transport(name: &str) -> bool {
    name.starts_with('(')
}

/// System calls of the allocator, which any operation may cause.
pub(super) fn is_memory(name: &str) -> bool {
    matches!(name, "mmap" | "munmap" | "mremap" | "brk" | "madvise")
}
