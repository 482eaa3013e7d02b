//! Six attackers, each with attacks that it repeats, beside guests that verify their data, all on
//! one daemon: two with Linux, which run fsx and fio, and two that a driver stands in for.
//!
//! A test program of its own: it uses all processors for its whole length, and other tests beside
//! it would miss their deadlines.

mod attacks;
mod honest;
mod linux;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::driver::fixture::Fixture;

use attacks::{ATTACKERS, Attack, FILE_SIZE, MAX_REGIONS, Target};
use honest::Honest;
use linux::LinuxGuests;

/// How long the attacks are repeated, and with `GANGPLANK_LONG`.
const LENGTH: Duration = Duration::from_secs(20);
const LONG_LENGTH: Duration = Duration::from_secs(60);

/// Limit of a guest's descriptors, so that guests reach it often in that time.
const DESCRIPTORS: &str = "--rlimit-nofile=512";

/// Descriptors in a ring: enough for 1,000 requests that wait for locks.
const QUEUE_SIZE: &str = "--queue-size=4096";

/// Least operations of each honest driver, a tenth of what a very busy machine permits. A guest
/// that is hardly served is disturbed, too.
const LEAST_OPERATIONS: u64 = 20;

#[test]
fn six_attackers_at_once_disturb_neither_fsx_nor_fio_nor_two_drivers() -> Result<()> {
    let regions = format!("--max-memory-regions={MAX_REGIONS}");
    let arguments = [DESCRIPTORS, QUEUE_SIZE, "--locks=host", &regions];
    let mut fixture = Fixture::quiet_with_submount(&arguments)?;
    fixture.permit_address_space(u64::MAX);
    fixture.permit_aborts();
    fixture.limit_file_size(FILE_SIZE)?;
    let target = Target::prepare(&fixture)?;
    let linux = LinuxGuests::start(&fixture).with_context(|| fixture.log())?;
    let stop = AtomicBool::new(false);
    let (attacked, served) = thread::scope(|scope| {
        let honest = honest::GUESTS.map(|(name, work)| {
            let (fixture, stop) = (&fixture, &stop);
            let guest = scope.spawn(move || work(fixture, stop));
            (name, guest)
        });
        let attackers = ATTACKERS.map(|attacks| {
            let target = &target;
            scope.spawn(move || repeat(attacks, target))
        });
        let attacked = attackers.map(|attacker| outcome("an attacker", attacker.join()));
        // The honest guests work until the last attacker has stopped.
        stop.store(true, Ordering::Relaxed);
        let served = honest.map(|(name, guest)| (name, outcome(name, guest.join())));
        (attacked, served)
    });
    for (name, served) in served {
        let Honest {
            operations,
            longest,
        } = served.with_context(|| fixture.log())?;
        eprintln!("{name}: {operations} operations, the longest took {longest:?}");
        ensure!(
            operations >= LEAST_OPERATIONS,
            "{name} was served {operations} times in {:?}",
            length()
        );
    }
    for rounds in attacked {
        for (name, count) in rounds.with_context(|| fixture.log())? {
            eprintln!("{name}: {count} rounds");
        }
    }
    linux.end().with_context(|| fixture.log())?;
    fixture.survive(&["was ended by signal 9", "was ended by signal 6"])
}

fn length() -> Duration {
    match std::env::var_os("GANGPLANK_LONG") {
        Some(_) => LONG_LENGTH,
        None => LENGTH,
    }
}

/// Repeats the attacks in turn. Returns how often each was made, at least once.
fn repeat(attacks: &[Attack], target: &Target) -> Result<Vec<(&'static str, u64)>> {
    let end = Instant::now() + length();
    let mut rounds = 0;
    let mut counts: Vec<_> = attacks.iter().map(|attack| (attack.name, 0)).collect();
    while rounds == 0 || Instant::now() < end {
        for (attack, (_, count)) in attacks.iter().zip(&mut counts) {
            (attack.run)(target, rounds)
                .with_context(|| format!("round {rounds} of {}", attack.name))?;
            *count += 1;
        }
        rounds += 1;
    }
    Ok(counts)
}

fn outcome<T>(who: &str, joined: thread::Result<Result<T>>) -> Result<T> {
    match joined {
        Ok(result) => result.with_context(|| who.to_owned()),
        Err(_) => bail!("{who} panicked"),
    }
}
