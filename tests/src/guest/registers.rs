//! Processors whose registers User Mode Linux has no room for (`tests/uml-registers`).

use std::path::Path;
use std::process::Command;

use anyhow::Result;

/// Has `command`, which starts User Mode Linux, get along with the host's registers. `dir` is the
/// guest's own directory, which its user can read.
///
/// # Errors
/// The library that is needed for it does not build, or cannot be copied.
#[cfg(target_arch = "x86_64")]
pub(super) fn prepare(command: &mut Command, dir: &Path) -> Result<()> {
    use std::arch::x86_64::__cpuid_count;

    use anyhow::Context as _;

    use crate::tools;

    /// Bytes that kernels before 6.13 have room for.
    const ROOM: u32 = 2696;

    // CPUID leaf 0xd: bytes of the registers that the host's kernel has enabled.
    if __cpuid_count(0xd, 0).ebx > ROOM {
        let library = dir.join("registers.so");
        std::fs::copy(tools::uml_registers()?, &library)
            .context("copying a library for User Mode Linux")?;
        command.env("LD_PRELOAD", library);
    }
    Ok(())
}

/// Nothing: only x86 processors have such registers.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn prepare(_: &mut Command, _: &Path) -> Result<()> {
    Ok(())
}
