//! Scripts that build programs.

use std::collections::HashSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gangplank_tests::cache;
use gangplank_tests::packages::{output, run};
use serde_json::Value;

/// Crates have the features that all selected packages want of them. With another selection cargo
/// compiles them again, which takes minutes. So every build for a machine of 64 bits selects the
/// whole workspace, as `gangplank_tests::tools` does.
#[test]
fn programs_are_built_with_one_selection_of_packages() -> Result<()> {
    let mut builds = 0;
    let scripts =
        ["demo", "bench", "test", "manuals", "release"].map(|name| format!("scripts/{name}"));
    let packaging = ["build-deb", "build-image"].map(|name| format!("packaging/{name}"));
    for name in scripts.into_iter().chain(packaging) {
        let script = fs::read_to_string(cache::workspace().join(&name))?;
        // Lines that continue are one.
        let script = script.replace("\\\n", " ");
        // The build of another revision has a target directory of its own.
        let lines = script
            .lines()
            .filter(|line| !line.contains("CARGO_TARGET_DIR=$"));
        for line in lines.filter(|line| line.contains("cargo build") && !line.contains("i686")) {
            let of = line.contains("--workspace") && !line.contains(" -p ");
            ensure!(of, "{name} selects other packages: {line}");
            builds += 1;
        }
        ensure!(!script.contains("cargo run"), "{name} builds again");
    }
    ensure!(builds == 7, "{builds}");
    Ok(())
}

/// What is in a release: each program with its bill of materials, the licences of all that the
/// bills name, manuals, and checksums of what is published. It is of the programs that the tests
/// run, which differ from released ones by the optimizer alone.
#[test]
fn a_release_has_programs_licences_bills_and_checksums() -> Result<()> {
    let is_there = Command::new("cargo")
        .args(["cyclonedx", "--version"])
        .output()?;
    if !is_there.status.success() && std::env::var_os("CI").is_none() {
        eprintln!("SKIPPED: takes cargo-cyclonedx, which scripts/install-needs --tests installs");
        return Ok(());
    }
    let out = tempfile::tempdir()?;
    let arch = std::env::consts::ARCH;
    run(Command::new(cache::workspace().join("scripts/release"))
        .arg(out.path())
        .arg(format!("{arch}-unknown-linux-musl"))
        .env("GANGPLANK_PROFILE", "tested"))?;
    let sums = fs::read_to_string(out.path().join("SHA256SUMS"))?;
    ensure!(sums.lines().count() == PROGRAMS.len() + 1, "{sums}");
    run(Command::new("sha256sum")
        .args(["--check", "--strict", "SHA256SUMS"])
        .current_dir(out.path()))?;

    let name = format!("gangplank-{}-{arch}", env!("CARGO_PKG_VERSION"));
    run(Command::new("tar")
        .args(["xzf", &format!("{name}.tar.gz")])
        .current_dir(out.path()))?;
    let root = out.path().join(&name);
    for path in [
        "man/gangplankd.8",
        "completions/bash/gangplank-frontend",
        "configs/systemd/gangplankd@.service",
        "docs/SUMMARY.md",
        "LICENSE-APACHE",
        "LICENSE-BSD-3-Clause",
        "licences/musl",
    ] {
        ensure!(root.join(path).exists(), "no {path}");
    }
    let licences = fs::read_to_string(root.join("licences/LIST"))?;
    let mut billed = HashSet::new();
    for program in PROGRAMS {
        let version = output(Command::new(root.join("bin").join(program)).arg("--version"))?;
        ensure!(version.starts_with(program), "{version}");
        let bill = out.path().join(format!(
            "{program}-{}-{arch}.cdx.json",
            env!("CARGO_PKG_VERSION")
        ));
        let bill = fs::read_to_string(&bill).with_context(|| format!("{}", bill.display()))?;
        let here = cache::workspace().display().to_string();
        ensure!(!bill.contains(&here), "the bill of {program} names {here}");
        let bill: Value = serde_json::from_str(&bill)?;
        ensure!(bill["bomFormat"] == "CycloneDX", "{program}");
        let components = bill["components"].as_array().context("no components")?;
        ensure!(components.len() > 20, "{program}: {}", components.len());
        for component in components {
            let (name, version) = (&component["name"], &component["version"]);
            let (name, version) = name.as_str().zip(version.as_str()).context("no name")?;
            billed.insert(format!("{name} {version}"));
        }
        ensure!(
            components
                .iter()
                .any(|component| component["name"] == "rustix")
        );
    }
    // A bill may name more: cargo-cyclonedx also lists what a feature that is off would take.
    for line in licences.lines() {
        let (crate_name, _) = line.split_once(": ").context("a line without a licence")?;
        ensure!(billed.contains(crate_name), "no bill has {crate_name}");
    }
    let left = output(Command::new("git").current_dir(cache::workspace()).args([
        "status",
        "--porcelain",
        "--",
        ":(glob)**/*.cdx.json",
    ]))?;
    ensure!(left.is_empty(), "the script leaves files: {left}");
    Ok(())
}

/// What is released.
const PROGRAMS: [&str; 5] = [
    "gangplankd",
    "gangplank-frontend",
    "gangplank-dvk",
    "gangplank-nfs",
    "gangplank-guest",
];

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

/// What is downloaded in the middle of a run is told at its begin.
#[test]
fn bench_tells_what_it_downloads() -> Result<()> {
    let script = fs::read_to_string(cache::workspace().join("scripts/bench"))?;
    let (_, rest) = script
        .split_once("Building the benchmark")
        .context("no build")?;
    let (told, _) = rest.split_once("\ncargo build").context("no build")?;
    // The version is that of the tests' virtiofsd.
    let tools = fs::read_to_string(cache::workspace().join("tests/src/tools.rs"))?;
    let (_, version) = tools
        .split_once("installed_for(\"virtiofsd\", \"")
        .context("no virtiofsd")?;
    let (version, _) = version.split_once('"').context("no version")?;
    for part in [
        format!("virtiofsd {version} is downloaded from crates.io"),
        format!("tools/virtiofsd-{version}\n"),
    ] {
        ensure!(told.contains(&part), "no {part:?} in {told}");
    }
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
    // 100 x 10 guests x (500 + 4 x 20 + 4 x 2 + 20) requests, 20,000 for each server.
    let served = run(&["hosts=100", "guests=10", "server=20000"])?.stdout;
    ensure!((number(&served, "servers of the storage, at least")? - 31.0).abs() < 0.5);
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
