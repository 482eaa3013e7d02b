//! Programs that work in a guest while something happens to it, until they are told to end.
//!
//! Each is a pair of a name and text for the guest's shell. The text goes on until [`END`] exists
//! in the guest, and fails if anything is not as it must be. The share is mounted on `/mnt`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::guest::Guest;

/// A program: its name, and what the guest's shell runs.
pub type Program = (&'static str, &'static str);

/// The file that ends all programs, on the guest's own memory.
pub const END: &str = "/dev/shm/end";

/// Appends numbered lines to `/mnt/log`, open all the time. [`check_appended`] compares them with
/// the number in `/dev/shm/lines`.
pub const APPEND: Program = (
    "append",
    "exec 3>>/mnt/log; i=0; while ! test -e /dev/shm/end; do \
       echo line $i >&3 || exit 1; i=$((i+1)); done; echo $i >/dev/shm/lines",
);

/// Creates, renames, links and removes files and directories.
pub const NAMES: Program = (
    "names",
    "mkdir /mnt/names && cd /mnt/names && while ! test -e /dev/shm/end; do \
       echo a >a && mv a b && ln b c && rm b && mkdir d && mv c d/e && ln -s d f && \
       test \"$(cat f/e)\" = a && rm f d/e && rmdir d && test -z \"$(ls)\" || exit 1; done",
);

/// fsx, 2,000 operations a file. The share has [`crate::tools::FSX_CONFIGURATION`] as `fsx.toml`,
/// and the guest has the program.
pub const FSX: Program = (
    "fsx",
    "mkdir /mnt/fsx && cd /mnt/fsx && cp /mnt/fsx.toml . && s=0; \
     while ! test -e /dev/shm/end; do \
       fsx -f fsx.toml -N 2000 -S $s -P /tmp file || exit 1; rm file || exit 1; s=$((s+1)); done",
);

/// A shell script for a guest with fio: random writes of two jobs in the directory `$1`, through
/// the cache and around it in turn, each verified. It goes on until [`END`] exists.
pub const FIO_SCRIPT: &str = "direct=0\n\
    while ! test -e /dev/shm/end; do\n\
    fio --name=verify --directory=$1 --numjobs=2 --size=2M --rw=randrw --bsrange=4k-64k \
    --blockalign=4k --ioengine=psync --direct=$direct --verify=crc32c --verify_fatal=1 \
    --do_verify=1 --end_fsync=1 --thread --group_reporting >/dev/shm/fio.out 2>&1 || \
    { cat /dev/shm/fio.out; exit 1; }\n\
    rm $1/verify.* || exit 1\n\
    direct=$((1 - direct))\n\
    done\n";

/// Prints the number of programs that have ended, in whatever way.
const COUNT_ENDED: &str = "cat /tmp/*.log | grep -c '^\\(done\\|failed\\)$'; true";

/// Starts programs.
///
/// # Errors
/// The guest does not answer.
pub fn start(guest: &mut Guest, programs: &[Program]) -> Result<()> {
    guest.sh(&format!("rm -f {END}"))?;
    for (name, program) in programs {
        guest.sh(&format!(
            "{{ {{ ( {program} ) && echo done || echo failed; }} >/tmp/{name}.log 2>&1 & }}"
        ))?;
    }
    Ok(())
}

/// Checks that all programs that were started still run.
///
/// # Errors
/// One of them has ended, before it was told to: it has found something wrong.
pub fn check_running(guest: &mut Guest) -> Result<()> {
    ensure!(
        guest.sh(COUNT_ENDED)?.trim() == "0",
        "a program of the guest has ended; the programs said:\n{}",
        guest.sh("tail -n 20 /tmp/*.log")?
    );
    Ok(())
}

/// Tells programs that were started to end, and waits for that.
///
/// # Errors
/// One of them has found something wrong, or does not end within `limit`.
pub fn end(guest: &mut Guest, programs: usize, limit: Duration) -> Result<()> {
    guest.sh(&format!("touch {END}"))?;
    let deadline = Instant::now() + limit;
    while guest.sh(COUNT_ENDED)?.trim().parse() != Ok(programs) {
        ensure!(
            Instant::now() < deadline,
            "the guest's programs said:\n{}",
            guest.sh("tail -n 20 /tmp/*.log; ps -o pid,stat,args; true")?
        );
        thread::sleep(Duration::from_millis(50));
    }
    let said = guest.sh("tail -n 20 /tmp/*.log; mv /tmp/*.log /dev/shm")?;
    ensure!(
        said.matches("done\n").count() == programs,
        "the guest's programs said:\n{said}"
    );
    Ok(())
}

/// Checks that the guest's kernel has reported no error of a file system.
///
/// # Errors
/// It has.
pub fn check_kernel_log(guest: &mut Guest) -> Result<()> {
    let told = guest.sh("dmesg | grep -i 'i/o error\\|fuse.*error'; true")?;
    ensure!(told.trim().is_empty(), "the guest's kernel says {told}");
    Ok(())
}

/// Checks that the host's file `log` has all lines that were appended, each once, and no others.
/// `counted` is the guest's file with their number.
///
/// # Errors
/// It has not; the first differences are told.
pub fn check_appended(guest: &mut Guest, log: &Path, counted: &str) -> Result<()> {
    let lines: u64 = guest.sh(&format!("cat {counted}"))?.trim().parse()?;
    let expected = (0..lines).fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "line {line}");
        text
    });
    let written = fs::read_to_string(log)?;
    ensure!(
        written == expected,
        "{}: {}",
        log.display(),
        first_difference(&written, &expected)
    );
    Ok(())
}

fn first_difference(written: &str, expected: &str) -> String {
    let mut pairs = written.lines().zip(expected.lines());
    match pairs.position(|(written, expected)| written != expected) {
        Some(line) => {
            let from = line.saturating_sub(2);
            let shown: Vec<&str> = written.lines().skip(from).take(6).collect();
            format!("line {line} differs: {shown:?}")
        }
        None => format!(
            "{} lines were written, not {}",
            written.lines().count(),
            expected.lines().count()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        let expected = "line 0\nline 1\nline 2\n";
        let doubled = first_difference("line 0\nline 1\nline 1\n", expected);
        assert!(doubled.starts_with("line 2 differs"), "{doubled}");
        assert_eq!(
            first_difference("line 0\n", expected),
            "1 lines were written, not 3"
        );
    }
}
