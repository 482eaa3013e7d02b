//! The files in `configs/bao`: each is accepted by its reader, and together they describe one
//! machine.
//!
//! If a number differs between Bao's configuration, a device tree and the device model's YAML, the
//! VM hangs on Bao without a message.

mod agreement;
mod boot;
mod configuration;
mod device_tree;
mod run_bao;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gangplank_device_model::config::Config;
use gangplank_tests::cache;

use configuration::{Configuration, Names};
use device_tree::Tree;

/// An address and the number of bytes from there.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Range(u64, u64);

impl Range {
    fn end(self) -> u64 {
        self.0 + self.1
    }

    fn overlaps(self, other: Self) -> bool {
        self.0 < other.end() && other.0 < self.end()
    }
}

/// The parsed files of one demonstration.
struct Demonstration {
    name: &'static str,
    model: Config,
    /// The device model's YAML as it is written.
    yaml: String,
    bao: Configuration,
    backend: Tree,
    frontend: Tree,
}

impl Demonstration {
    fn load(
        name: &'static str,
        yaml: &str,
        names: Names,
        backend: &str,
        frontend: &str,
    ) -> Result<Self> {
        let file = |name: &str| cache::workspace().join("configs/bao").join(name);
        Ok(Self {
            name,
            model: Config::load(&file(yaml))?,
            yaml: std::fs::read_to_string(file(yaml))?,
            bao: Configuration::load(&file(name), names)?,
            backend: Tree::load(&file(backend))?,
            frontend: Tree::load(&file(frontend))?,
        })
    }

    /// All demonstrations of `docs/bao.md`.
    fn all() -> Result<[Self; 3]> {
        Ok([
            Self::load(
                "qemu-aarch64-virt.c",
                "config-fs-dm.yaml",
                Names::Current,
                "linux-backend.dts",
                "linux-frontend.dts",
            )?,
            Self::load(
                "qemu-aarch64-virt-a.c",
                "config-fs.yaml",
                Names::Older,
                "linux-backend-a.dts",
                "linux-frontend.dts",
            )?,
            Self::load(
                "qemu-aarch64-virt-full.c",
                "config-fs-full.yaml",
                Names::Current,
                "linux-backend-full.dts",
                "linux-frontend-full.dts",
            )?,
        ])
    }
}

/// Runs a program that has to succeed. Returns the output on both streams.
fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text)?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{text}",
        output.status
    );
    Ok(text)
}

/// Every file belongs to a demonstration, or is included by one that does, so that each is tested.
#[test]
fn every_file_is_tried() -> Result<()> {
    let sources = [
        include_str!("main.rs"),
        include_str!("../../../../configs/bao/linux-backend.dtsi"),
        include_str!("../../../../configs/bao/linux-backend.dts"),
        include_str!("../../../../configs/bao/linux-frontend.dts"),
    ];
    for entry in std::fs::read_dir(cache::workspace().join("configs/bao"))? {
        let path: PathBuf = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = format!("\"{}\"", name.context("a name in other letters")?);
        let known = sources.iter().any(|source| source.contains(&name));
        ensure!(known, "no demonstration has {name}");
    }
    Ok(())
}
