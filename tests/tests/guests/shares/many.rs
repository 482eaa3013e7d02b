//! Sixty-four shares with a guest each, and what they cost.

use std::fs;

use anyhow::{Context, Result, ensure};
use gangplank_tests::driver::{Driver, Setup};
use gangplank_tests::process::with_descendants;

use super::fixture::{Fixture, work};

/// Shares.
const SHARES: usize = 64;

/// Most memory of all processes together, in KiB. What several processes have counts once.
const MAX_KB: u64 = 200 * 1024;

/// A field of `smaps_rollup`, in KiB (proc(5)).
fn field(rollup: &str, name: &str) -> u64 {
    let mut lines = rollup.lines().filter_map(|line| line.strip_prefix(name));
    let number = lines
        .next()
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

#[test]
fn sixty_four_shares_with_a_guest_each_fit_in_200_megabytes() -> Result<()> {
    let tags: Vec<String> = (0..SHARES).map(|number| format!("share{number}")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    let arguments: Vec<String> = tags
        .iter()
        .map(|tag| format!("--share={tag}={{}}/{tag}"))
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let fixture = Fixture::start(&tags, &arguments)?;
    let setup = Setup {
        memory: 1 << 20,
        ring_size: 16,
        ..Setup::default()
    };
    let mount = |tag: &&str| -> Result<Driver> {
        let mut driver = Driver::mount(&fixture.socket(tag), &setup)
            .with_context(|| format!("{tag}\n{}", fixture.log()))?;
        work(&mut driver, c"new")?;
        Ok(driver)
    };
    let mut drivers = tags.iter().map(mount).collect::<Result<Vec<_>>>()?;

    let (mut processes, mut proportional) = (0, 0);
    for process in with_descendants(fixture.child.id()) {
        let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
        processes += 1;
        proportional += field(&rollup, "Pss:");
    }
    eprintln!("{processes} processes: {proportional} KiB");
    ensure!(processes > 4 * SHARES, "{processes} processes");
    ensure!(proportional <= MAX_KB, "they have {proportional} KiB");

    let listed = fixture.status(&["--json"])?;
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    let shares = listed["shares"].as_array().context("shares")?;
    let with_guest = shares.iter().filter(|share| share["connections"] == 1);
    ensure!(with_guest.count() == SHARES, "{listed}");
    for driver in &mut drivers {
        work(driver, c"new")?;
    }
    drop(drivers);
    fixture.end()
}
