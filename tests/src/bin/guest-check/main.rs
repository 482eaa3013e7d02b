//! Checks file operations that a shell cannot make. The program is static and needs only its
//! directory argument, so that it runs in any guest and, for comparison, on the host.
//!
//!     guest-check DIRECTORY CHECK...
//!     guest-check DIRECTORY idmapped-mount TARGET PID
//!     guest-check DIRECTORY --acls
//!     guest-check DIRECTORY --file-attributes SOCKET
//!     guest-check DIRECTORY --hold-locks END
//!     guest-check DIRECTORY --count flock|record TIMES
//!     guest-check FILE --run-locked COMMAND
//!     guest-check FILE --take-turns FIRST TURNS
//!     guest-check FILE --crowd COUNT STATE
#![allow(clippy::print_stdout, reason = "a program for the console")]

mod acls;
mod data;
mod direct;
mod file_attributes;
mod idmapped;
mod locks;
mod mapped;
mod names;
mod space;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

type Check = fn(&Path) -> Result<()>;

/// Every check by name. Each runs in an empty directory of its own.
const CHECKS: &[(&str, Check)] = &[
    ("mmap-write", mapped::writes_reach_the_file),
    ("mmap-read", mapped::reads_see_the_file),
    ("mmap-private", mapped::private_writes_stay_private),
    ("flock", locks::flock_excludes),
    ("posix-lock", locks::posix_lock_excludes_processes),
    ("rename-noreplace", names::rename_noreplace_keeps_the_target),
    ("rename-exchange", names::rename_exchange_swaps),
    ("rename-whiteout", names::rename_whiteout_leaves_a_device),
    ("tmpfile", names::tmpfile_appears_when_linked),
    ("unlinked", names::unlinked_file_stays_usable),
    ("birth-time", names::birth_time_is_told),
    ("allocate", space::allocate_reserves_and_extends),
    ("punch-hole", space::punched_hole_reads_as_zeros),
    ("seek-hole", space::seek_finds_data_and_holes),
    ("copy-range", data::copy_range_copies),
    ("append", data::appends_never_overwrite),
    ("vectored", data::vectored_transfers_keep_order),
    ("truncate", data::truncate_cuts_and_zero_fills),
    ("xattr", data::xattrs_come_back),
    ("direct", direct::unbuffered_transfers_agree_with_buffered),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("guest-check: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let directory: PathBuf = arguments.next().context("no directory given")?.into();
    let names: Vec<String> = arguments
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    if names.first().is_some_and(|name| name == locks::TRY_LOCK) {
        return locks::try_lock(&directory);
    }
    if names == [acls::ACLS] {
        return acls::report(&directory);
    }
    if let [word, target, pid] = names.as_slice()
        && word == idmapped::MOUNT
    {
        return idmapped::mount(&directory, target, pid);
    }
    if let [word, socket] = &names[..]
        && word == file_attributes::FILE_ATTRIBUTES
    {
        return file_attributes::agree(&directory, socket);
    }
    if let [word, command] = &names[..]
        && word == locks::RUN_LOCKED
    {
        return locks::run_locked(&directory, command);
    }
    if let [name, end] = &names[..]
        && name == locks::HOLD_LOCKS
    {
        return locks::hold_locks(&directory, Path::new(end));
    }
    if let [name, first, turns] = &names[..]
        && name == locks::TAKE_TURNS
    {
        return locks::take_turns(&directory, first.parse()?, turns.parse()?);
    }
    if let [word, count, state] = &names[..]
        && word == locks::CROWD
    {
        return locks::crowd(&directory, count.parse()?, Path::new(state));
    }
    if names == [locks::WAIT_FOR_LOCK] {
        return locks::wait_for_lock(&directory);
    }
    if let [word, kind, times] = &names[..]
        && word == locks::COUNT
    {
        return locks::count(&directory, kind, times.parse()?);
    }
    let mut failed = 0;
    for name in &names {
        let (_, check) = CHECKS
            .iter()
            .find(|(known, _)| known == name)
            .with_context(|| format!("no check is called {name}"))?;
        let place = directory.join(name);
        let result = std::fs::create_dir(&place)
            .with_context(|| format!("making {}", place.display()))
            .and_then(|()| check(&place));
        match result {
            Ok(()) => println!("{name}: ok"),
            Err(error) => {
                failed += 1;
                println!("{name}: FAILED: {error:#}");
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} checks failed", names.len());
    }
    Ok(())
}

/// Bytes that differ from place to place, so that a shifted or repeated block shows.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            // xorshift32: plain, and without a period that divides a page.
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[1]
        })
        .collect()
}

/// Fails with the first difference unless both are equal.
fn same(what: &str, found: &[u8], expected: &[u8]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let at = found
        .iter()
        .zip(expected)
        .position(|(one, other)| one != other)
        .unwrap_or(found.len().min(expected.len()));
    bail!(
        "{what}: {} bytes where {} were expected, the first difference at {at}",
        found.len(),
        expected.len()
    )
}
