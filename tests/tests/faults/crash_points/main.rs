//! Workers that die at each point of each operation: the guest cannot tell it from a run that
//! nothing disturbed.
//!
//! The daemon is a build of its own, whose workers die where a test says.

mod cases;
mod core_files;
mod crash;
mod draining;
mod files;
mod mix;
mod outcome;
mod poison;
mod replies;
mod requests;
mod table;
mod world;

use std::fs;

use anyhow::{Result, ensure};
use gangplank_backend::crash_hook::VARIABLE;
use gangplank_tests::tools;

#[test]
fn the_released_program_cannot_be_made_to_crash() -> Result<()> {
    let has_hook = |program| -> Result<bool> {
        let content = fs::read(program)?;
        let mut windows = content.windows(VARIABLE.len());
        Ok(windows.any(|window| window == VARIABLE.as_bytes()))
    };
    ensure!(has_hook(tools::gangplankd_that_crashes()?)?);
    ensure!(!has_hook(tools::gangplankd()?)?);
    Ok(())
}
