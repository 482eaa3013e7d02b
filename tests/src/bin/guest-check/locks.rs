//! Advisory locks within one guest.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::guest_suite::programs::LOCK_IS_HELD;
use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;

/// The argument that makes this program run [`try_lock`].
pub(crate) const TRY_LOCK: &str = "--try-posix-lock";

/// The argument that makes this program run [`hold_locks`].
pub(crate) const HOLD_LOCKS: &str = "--hold-locks";

/// The argument that makes this program run [`count`].
pub(crate) const COUNT: &str = "--count";

/// The argument that makes this program run [`run_locked`].
pub(crate) const RUN_LOCKED: &str = "--run-locked";

/// The argument that makes this program run [`take_turns`].
pub(crate) const TAKE_TURNS: &str = "--take-turns";

/// The argument that makes this program run [`crowd`].
pub(crate) const CROWD: &str = "--crowd";

/// The argument that makes this program run [`wait_for_lock`].
pub(crate) const WAIT_FOR_LOCK: &str = "--wait-for-lock";

fn open(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// An exclusive `flock` on one open file excludes another open file until it is released.
pub(crate) fn flock_excludes(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let (one, other) = (open(&path)?, open(&path)?);
    flock(&one, FlockOperation::LockExclusive).context("first lock")?;
    let refused = flock(&other, FlockOperation::NonBlockingLockExclusive);
    ensure!(
        refused == Err(Errno::WOULDBLOCK),
        "second lock: {refused:?}"
    );
    flock(&one, FlockOperation::Unlock).context("unlock")?;
    flock(&other, FlockOperation::NonBlockingLockExclusive).context("lock after unlock")
}

/// A POSIX record lock excludes other processes and ends with the process that holds it.
pub(crate) fn posix_lock_excludes_processes(dir: &Path) -> Result<()> {
    let path = dir.join("file");
    let file = open(&path)?;
    ensure!(
        another_process_gets(&path)?,
        "no process holds the lock yet"
    );
    fcntl_lock(&file, FlockOperation::LockExclusive).context("first lock")?;
    ensure!(
        !another_process_gets(&path)?,
        "the lock excluded no process"
    );
    fcntl_lock(&file, FlockOperation::Unlock).context("unlock")?;
    ensure!(another_process_gets(&path)?, "the lock stayed after unlock");
    Ok(())
}

/// Holds a record lock on the file `record` in `dir` and a `flock` on the file `whole`, until the
/// file `end` exists. Says "locked" once it has both.
pub(crate) fn hold_locks(dir: &Path, end: &Path) -> Result<()> {
    let (record, whole) = (open(&dir.join("record"))?, open(&dir.join("whole"))?);
    fcntl_lock(&record, FlockOperation::NonBlockingLockExclusive).context("the record lock")?;
    flock(&whole, FlockOperation::NonBlockingLockExclusive).context("the flock")?;
    println!("locked");
    while !end.exists() {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Increments the number in `path` under a record lock, `turns` times, whenever the number is even
/// (`first` is 0) or odd (1). Another process does the other half, so the lock goes to and fro.
pub(crate) fn take_turns(path: &Path, first: u64, turns: u64) -> Result<()> {
    let file = open(path)?;
    let mut taken = 0;
    while taken < turns {
        fcntl_lock(&file, FlockOperation::LockExclusive).context("waiting for the lock")?;
        let mut digits = [0; 20];
        let len = file.read_at(&mut digits, 0)?;
        let number = std::str::from_utf8(digits.get(..len).unwrap_or_default())?;
        let number: u64 = number.trim().parse().unwrap_or(0);
        if number % 2 == first {
            file.write_all_at(format!("{}\n", number + 1).as_bytes(), 0)?;
            taken += 1;
        }
        fcntl_lock(&file, FlockOperation::Unlock).context("unlocking")?;
        // Lets the other one have the lock on a machine with one processor.
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Adds 1 to the number in the file `KIND.number` in `dir`, again and again, each time under a lock
/// on the file `KIND.lock`. Others do the same, on whatever machine: no addition may be lost.
///
/// The number is read and written by a file that is opened under the lock, since caches of network
/// file systems are consistent from close to open.
pub(crate) fn count(dir: &Path, kind: &str, times: u32) -> Result<()> {
    let lock = open(&dir.join(format!("{kind}.lock")))?;
    let number = dir.join(format!("{kind}.number"));
    let change = |operation| match kind {
        "flock" => flock(&lock, operation),
        _ => fcntl_lock(&lock, operation),
    };
    for turn in 0..times {
        change(FlockOperation::LockExclusive).with_context(|| format!("lock {turn}"))?;
        let file = open(&number)?;
        let mut text = [b'0'; 20];
        let length = file.read_at(&mut text, 0).context("reading the number")?;
        ensure!(
            length == 0 || length == text.len(),
            "a number of {length} bytes"
        );
        let before: u64 = std::str::from_utf8(&text)?.parse()?;
        let next = format!("{:020}", before + 1);
        file.write_all_at(next.as_bytes(), 0)
            .context("writing the number")?;
        drop(file);
        change(FlockOperation::Unlock).with_context(|| format!("unlock {turn}"))?;
    }
    Ok(())
}

/// Runs shell text under an exclusive `flock` on the file `path`, as flock(1) does.
pub(crate) fn run_locked(path: &Path, command: &str) -> Result<()> {
    let file = open(path)?;
    flock(&file, FlockOperation::LockExclusive).context("the lock")?;
    let status = Command::new("sh").args(["-c", command]).status()?;
    ensure!(status.success(), "{command}: {status}");
    Ok(())
}

/// Starts `count` processes, each of which waits for a shared record lock on `path`. Ends when each
/// has had its lock. In `state`, a directory, the length of the file `waiting` is the number of
/// those that have begun to wait, and the length of `locked` that of those that have had the lock.
///
/// Shared, because a process that has an exclusive lock could not give it back: on a ring that is
/// full of requests that wait, there is no room for that one. For the same reason, the processes
/// inherit the open file, as their standard input, and nobody closes it meanwhile.
pub(crate) fn crowd(path: &Path, count: usize, state: &Path) -> Result<()> {
    rustix::stdio::dup2_stdin(open(path)?)?;
    let begun = (0..count).map(|number| {
        Command::new("/proc/self/exe")
            .arg(state)
            .arg(WAIT_FOR_LOCK)
            .spawn()
            .with_context(|| format!("starting process {number}"))
    });
    let processes = begun.collect::<Result<Vec<_>>>()?;
    for (number, mut process) in processes.into_iter().enumerate() {
        let status = process.wait()?;
        ensure!(status.success(), "process {number} ended with {status}");
    }
    Ok(())
}

/// One process of [`crowd`]. Its standard input is the file.
pub(crate) fn wait_for_lock(state: &Path) -> Result<()> {
    let count = |name| {
        let path = state.join(name);
        let mut counted = File::options().append(true).create(true).open(path)?;
        counted.write_all(b"x").context("counting a process")
    };
    count("waiting")?;
    fcntl_lock(std::io::stdin(), FlockOperation::LockShared).context("waiting for the lock")?;
    count("locked")
}

fn another_process_gets(path: &Path) -> Result<bool> {
    let status = Command::new("/proc/self/exe")
        .arg(path)
        .arg(TRY_LOCK)
        .status()
        .context("starting the second process")?;
    match status.code() {
        Some(0) => Ok(true),
        Some(LOCK_IS_HELD) => Ok(false),
        _ => bail!("the second process ended with {status}"),
    }
}

/// The second process: takes the lock and ends. If another process has the lock, its status is
/// [`LOCK_IS_HELD`].
pub(crate) fn try_lock(path: &Path) -> Result<()> {
    match fcntl_lock(open(path)?, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::AGAIN | Errno::ACCESS) => std::process::exit(LOCK_IS_HELD),
        Err(error) => Err(error).context("locking in the second process"),
    }
}
