//! What the benchmark programs share.
//!
//! | program | what it measures |
//! | --- | --- |
//! | `bench` | virtio-fs daemons side by side without a guest, and rhostfs beside virtio-fs |
//! | `bench-guests` | guests with the same host directory on several file systems |
//! | `guest-bench` | the workloads of `bench-guests`, inside the guest or on the host |
//!
//! `scripts/bench` builds and starts the first two.

pub mod bar_chart;
pub mod cpu_affinity;
pub mod document;
pub mod nfs_client;
pub mod progress;

use std::path::PathBuf;

use anyhow::Result;
use gangplank_tests::packages::Arch;
use gangplank_tests::tools;

/// Builds the static program that times workloads inside a guest or on the host.
///
/// # Errors
/// The program does not build.
pub fn guest_bench(arch: Arch) -> Result<PathBuf> {
    tools::workspace_program("gangplank-bench", "guest-bench", arch)
}
