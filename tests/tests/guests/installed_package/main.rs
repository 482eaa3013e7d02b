//! The Debian package, installed into a Debian system, serves guests from there, and is removed
//! without a trace. So does the container image.
//!
//! Needs root on the host: the package's files belong to root.

mod container;
mod in_a_tree;
mod under_systemd;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};
use gangplank_tests::packages;
use gangplank_tests::process::User;
use gangplank_tests::runner::Runner;
use gangplank_tests::wait;
use gangplank_tests::{cache, tools};

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    let name = "uml::package_is_installed_used_and_removed";
    if User::is_root() {
        runner.run(name, in_a_tree::package_is_installed_used_and_removed);
    } else {
        runner.skip(name, "needs root");
    }
    under_systemd::run(&mut runner);
    container::run(&mut runner);
    runner.finish()
}

/// Waits until the daemon that `starting` becomes has its socket, which it knows by another path.
/// Whoever connects boots a guest first, so that the daemon listens by then.
fn wait_for_socket(socket: &Path, starting: &mut Child, limit: Duration) -> Result<()> {
    wait::until("the daemon has its socket", limit, || {
        wait::ready(starting, socket.exists())
    })
}

/// Builds the package for this machine by the script that users call.
fn build(into: &Path) -> Result<PathBuf> {
    let script = cache::workspace().join("packaging/build-deb");
    let said = packages::output(
        Command::new(script)
            .arg(into)
            .env("GANGPLANK_PROFILE", tools::profile())
            // How small the package is, is not looked at.
            .env("DPKG_DEB_COMPRESSOR_LEVEL", "0"),
    )?;
    let package = said.lines().last().context("the script names no package")?;
    Ok(package.into())
}
