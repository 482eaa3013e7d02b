//! Scripts that build programs.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gangplank_tests::cache;

/// Crates have the features that all selected packages want of them. With another selection cargo
/// compiles them again, which takes minutes. So every build for a machine of 64 bits selects the
/// whole workspace, as `gangplank_tests::tools` does.
#[test]
fn programs_are_built_with_one_selection_of_packages() -> Result<()> {
    let mut builds = 0;
    for name in ["demo", "bench", "test"] {
        let script = fs::read_to_string(cache::workspace().join("scripts").join(name))?;
        // Lines that continue are one.
        let script = script.replace("\\\n", " ");
        // The build of another revision has a target directory of its own.
        let lines = script
            .lines()
            .filter(|line| !line.contains("CARGO_TARGET_DIR=$"));
        for line in lines.filter(|line| line.contains("cargo build") && !line.contains("i686")) {
            let of = line.contains("--workspace") && !line.contains(" -p ");
            ensure!(of, "scripts/{name} selects other packages: {line}");
            builds += 1;
        }
        ensure!(!script.contains("cargo run"), "scripts/{name} builds again");
    }
    ensure!(builds == 3, "{builds}");
    Ok(())
}

/// A first build takes minutes: the script says so before, and cargo shows each crate.
#[test]
fn demo_tells_what_takes_long() -> Result<()> {
    let script = fs::read_to_string(cache::workspace().join("scripts/demo"))?;
    let build = script.find("cargo build").context("no build")?;
    let told = script.get(..build).unwrap_or_default();
    ensure!(told.contains("minutes"), "{told}");
    ensure!(!script.contains("--quiet"), "{script}");
    Ok(())
}

/// A fuzz target that the script does not name would be built and never run.
#[test]
fn every_fuzz_target_is_run() -> Result<()> {
    let root = cache::workspace();
    let script = fs::read_to_string(root.join("scripts/fuzz"))?;
    let manifest = fs::read_to_string(root.join("fuzz/Cargo.toml"))?;
    let (_, programs) = manifest.split_once("[[bin]]").context("no target")?;
    let names = programs.lines().filter_map(|line| {
        let name = line.strip_prefix("name = \"")?;
        name.strip_suffix('"')
    });
    for name in names {
        ensure!(script.contains(&format!("{name}:")), "{name} is not run");
    }
    Ok(())
}

/// `scripts/size-share` computes what docs/scale.md says, from numbers that anybody can change, and
/// refuses what is no number or no name of one.
#[test]
fn size_share_computes_what_guests_need() -> Result<()> {
    let run = |arguments: &[&str]| {
        let script = cache::workspace().join("scripts/size-share");
        Command::new("sh").arg(script).args(arguments).output()
    };
    let number = |printed: &[u8], name: &str| -> Result<f64> {
        let text = String::from_utf8_lossy(printed);
        let rest = text.lines().find_map(|line| line.trim().strip_prefix(name));
        let rest = rest.with_context(|| format!("no {name} in {text}"))?;
        Ok(rest
            .split_whitespace()
            .next()
            .context("no number")?
            .parse()?)
    };
    let few = run(&["hosts=2", "guests=10", "files=20000", "open=200"])?.stdout;
    // 10 guests, each with descriptors of 20,000 known and 200 open files.
    ensure!((number(&few, "descriptors")? - 202_000.0).abs() < 0.5);
    // 10 x (1432 KiB + 20,000 x 160 bytes).
    ensure!((number(&few, "memory of the daemon")? - 44.5).abs() < 0.1);
    let many = run(&["hosts=4", "guests=10", "files=20000", "open=200"])?.stdout;
    ensure!((number(&many, "data")? - 2.0 * number(&few, "data")?).abs() < 0.5);
    let beyond = run(&["files=2000000", "handles=0"])?.stdout;
    ensure!(String::from_utf8_lossy(&beyond).contains("warning: a guest knows"));
    for wrong in ["guests=ten", "gusts=10", "guests=", "guests"] {
        let refused = run(&[wrong])?;
        ensure!(refused.status.code() == Some(2), "{wrong} is taken");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(
            said.contains(wrong.split('=').next().unwrap_or(wrong)),
            "{said}"
        );
    }
    Ok(())
}
