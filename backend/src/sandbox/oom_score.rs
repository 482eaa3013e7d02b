//! Whom the kernel ends first when memory runs out (`/proc/self/oom_score_adj`, proc(5)): a worker
//! before the processes that serve all guests or keep a guest's descriptors.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, openat};

/// The adjustment of supervisor, acceptor and keepers. The kernel's scale ends at -1000, which is
/// never.
const PROTECTED: i32 = -500;

/// The adjustment of a process that nobody protects.
const NEUTRAL: i32 = 0;

const FILE: &str = "self/oom_score_adj";

/// Protects the calling process and those that it forks, unless they are protected better already.
/// It takes CAP_SYS_RESOURCE, so a failure is no error.
pub(super) fn protect(proc: impl AsFd) {
    let lowered = read(&proc).and_then(|score| match score > PROTECTED {
        true => write(&proc, PROTECTED),
        false => Ok(()),
    });
    if let Err(error) = lowered {
        log::debug!("cannot protect this process from the out-of-memory killer: {error}");
    }
}

/// Gives up the calling process's protection, which it inherited.
pub(super) fn unprotect(proc: impl AsFd) {
    let raised = read(&proc).and_then(|score| match score < NEUTRAL {
        true => write(&proc, NEUTRAL),
        false => Ok(()),
    });
    if let Err(error) = raised {
        log::debug!("cannot offer the worker to the out-of-memory killer first: {error}");
    }
}

fn read(proc: impl AsFd) -> io::Result<i32> {
    let file = openat(proc, FILE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = [0; 16];
    let len = rustix::io::read(&file, &mut text)?;
    let text = str::from_utf8(text.get(..len).unwrap_or_default()).unwrap_or_default();
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    text.trim().parse().map_err(invalid)
}

fn write(proc: impl AsFd, score: i32) -> io::Result<()> {
    let file = openat(proc, FILE, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, score.to_string().as_bytes())?;
    Ok(())
}
