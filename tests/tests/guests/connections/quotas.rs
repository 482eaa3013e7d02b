//! Shares with quotas, on disks with ext4 and XFS. A QEMU guest is the host, since not every kernel
//! that runs tests has quotas of projects, and the file client is the guest.

use anyhow::{Context, Result, ensure};
use gangplank_tests::disk;
use gangplank_tests::guest::Machine;
use gangplank_tests::tools;

use super::qemu_host::Host;

/// By what part a share may be smaller than its quota when the guest is refused more.
const TOLERANCE: f64 = 0.05;

/// Two shares on ext4 and one on XFS, each with a quota of its own. A guest is refused what is
/// more, sees the quota as the size of the share, and does not disturb the others.
pub(crate) fn shares_keep_their_quotas() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let [ext4, xfs] = ["ext4", "xfs"].map(|name| dir.path().join(name));
    let options = ["-q", "-m", "0", "-O", "quota,project"];
    disk::make(&ext4, 128 << 20, "mkfs.ext4", &options)?;
    disk::make(&xfs, 300 << 20, "mkfs.xfs", &["-q"])?;
    let frontend = tools::frontend_for(Machine::QemuX86_64.arch())?;
    let programs = [("gangplank-frontend", frontend.as_path())];
    let mut host = Host::boot(vec![ext4, xfs], &["xfs", "crc32c_intel"], &programs)?;
    let mounted = |options: &str| {
        format!(
            "mkdir -p /ext4 /xfs && mount -t ext4 {options} /dev/vda /ext4 && mount -t xfs \
             {options} /dev/vdb /xfs && mkdir -p /ext4/one/old /ext4/two /xfs/three"
        )
    };
    host.0.sh(&mounted(""))?;
    host.refuses("/tmp", "no quotas of projects")?;
    host.refuses("/xfs/three", "no quotas of projects")?;
    host.refuses("/ext4/one", "does not enforce")?;
    host.0.sh("umount /ext4 /xfs")?;
    host.0.sh(&mounted("-o prjquota"))?;

    // What is there already counts.
    host.0.sh(
        "dd if=/dev/zero of=/ext4/one/old/file bs=1M count=2 2>/dev/null && \
         ln -s /etc /ext4/one/link",
    )?;
    host.serve("one", "/ext4/one", "--quota-bytes=8M --quota-inodes=100")?;
    host.serve("two", "/ext4/two", "--quota-bytes=16M")?;
    host.serve(
        "three",
        "/xfs/three",
        "--quota-bytes=24M --quota-inodes=1000",
    )?;
    for (share, path, mebibytes, error) in [
        ("one", "/ext4/one", 8, "quota"),
        ("two", "/ext4/two", 16, "quota"),
        ("three", "/xfs/three", 24, "space"),
    ] {
        host.is_of_size(share, mebibytes)?;
        let refused = host.0.sh(&format!(
            "! dd if=/dev/zero bs=1M count=40 2>/dev/null | gangplank-frontend fs -s /run/{share} \
             write --append big 2>&1"
        ))?;
        ensure!(refused.to_lowercase().contains(error), "{share}: {refused}");
        let used = host.0.sh(&format!("sync && du -sk {path} | cut -f 1"))?;
        is_close(used.trim().parse()?, mebibytes * 1024).with_context(|| share.to_owned())?;
    }

    // An inode for each file and directory, and none left for more.
    host.client("one", "rm big")?;
    let refused = host
        .0
        .sh("! gangplank-frontend fs -s /run/one touch $(seq 1 200) 2>&1")?;
    ensure!(refused.contains("Quota"), "{refused}");
    let inodes = host.0.sh("find /ext4/one ! -type l | wc -l")?;
    is_close(inodes.trim().parse()?, 100)?;
    host.client("two", "touch small")?;

    // The next daemon sets other limits of the same project. A share inside has that one, too.
    host.ends("one")?;
    host.serve("one", "/ext4/one", "--quota-bytes=12M")?;
    host.is_of_size("one", 12)?;
    host.refuses("/ext4/one/old", "of the directory above it")?;
    Ok(())
}

/// Whether a limit was reached.
fn is_close(used: u64, limit: u64) -> Result<()> {
    let (used, limit) = (used as f64, limit as f64);
    ensure!(
        (limit * (1.0 - TOLERANCE)..=limit).contains(&used),
        "{used} of {limit}"
    );
    Ok(())
}

impl Host {
    /// Checks that the daemon does not start with a quota on `directory`, and says why.
    fn refuses(&mut self, directory: &str, why: &str) -> Result<()> {
        let said = self.0.sh(&format!(
            "! gangplankd --socket-path=/run/refused --shared-dir={directory} --sandbox=chroot \
             --quota-bytes=1M 2>&1"
        ))?;
        ensure!(said.contains(why), "{directory}: {said}");
        Ok(())
    }

    /// A command of the file client.
    fn client(&mut self, share: &str, command: &str) -> Result<String> {
        self.0
            .sh(&format!("gangplank-frontend fs -s /run/{share} {command}"))
    }

    /// Checks what the guest is told of a share's size.
    fn is_of_size(&mut self, share: &str, mebibytes: u64) -> Result<()> {
        let told = self.client(share, "df")?;
        ensure!(
            told.contains(&format!("{}", mebibytes * 1024)),
            "{share} of {mebibytes} MiB: {told}"
        );
        Ok(())
    }
}
