//! A guest whose pages have 16 KiB: QEMU's aarch64 machine with Debian's kernel for such pages.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::dvk_tunnel::Tunnel;
use gangplank_tests::guest::kernel::Release;
use gangplank_tests::guest::{Guest, Machine, Options};

/// Limit for what an emulated guest reads.
const LIMIT: Duration = Duration::from_secs(240);

/// It reads as many pages at once as INIT allows, which are 4 MiB, with O_DIRECT and ahead of a
/// program, and writes.
pub(crate) fn a_guest_with_pages_of_16_kib_reads_and_writes_whole_files() -> Result<()> {
    let share = tempfile::tempdir()?;
    let content: Vec<u8> = (0..12_u32 << 18).flat_map(u32::to_le_bytes).collect();
    fs::write(share.path().join("long"), &content)?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let tunnel = Tunnel::at_switch(daemon.socket())?;
    let options = Options {
        release: Release::Pages16K,
        ..Options::new(Machine::QemuAarch64).share(&tunnel.socket(), TAG)
    };
    let mut guest = Guest::boot(&options).with_context(|| tunnel.log())?;
    guest.mount(TAG, "/mnt").with_context(|| tunnel.log())?;
    let pages = guest.sh("grep -m 1 KernelPageSize /proc/self/smaps")?;
    ensure!(pages.contains(" 16 kB"), "the guest's pages: {pages}");
    let mut copy = |name: &str, from: &str, to: &str| -> Result<()> {
        let command = format!("dd if=/mnt/long of=/mnt/{name} bs=4M {from} {to} && sync");
        let done = guest.sh_within(&command, LIMIT);
        done.with_context(|| tunnel.log())?;
        let copied = fs::read(share.path().join(name))?;
        ensure!(copied == content, "{name} is not what was read");
        Ok(())
    };
    copy("direct", "iflag=direct", "oflag=direct")?;
    copy("cached", "", "")
}
