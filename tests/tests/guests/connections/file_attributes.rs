//! Attributes of files that only ioctl(2) reaches, on ext4 with projects, fs-verity and fscrypt. A
//! QEMU guest is the host, since not every kernel that runs tests has a file system with them.

use anyhow::{Context, Result};
use gangplank_tests::disk;
use gangplank_tests::guest::Machine;
use gangplank_tests::tools;

use super::qemu_host::Host;

/// The ciphers and the key derivation of fscrypt.
const MODULES: [&str; 4] = ["ecb", "xts", "cts", "sha512_generic"];

/// A guest sets flags and projects, and reads digests and encryption policies, and all of them are
/// the host's.
pub(crate) fn are_the_hosts() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("ext4");
    // fs-verity of Linux 6.1 needs blocks of a page.
    let options = ["-q", "-b", "4096", "-O", "quota,project,verity,encrypt"];
    disk::make(&image, 128 << 20, "mkfs.ext4", &options)?;
    let check = tools::guest_check(Machine::QemuX86_64.arch())?;
    let programs = [("guest-check", check.as_path())];
    let mut host = Host::boot(vec![image], &MODULES, &programs)?;
    host.0
        .sh("mkdir /ext4 && mount -t ext4 -o prjquota /dev/vda /ext4 && mkdir /ext4/share")?;
    host.serve("share", "/ext4/share", "--modcaps=+linux_immutable")?;
    let checked = host
        .0
        .sh("guest-check /ext4/share --file-attributes /run/share");
    let log = host.0.sh("cat /run/share.log")?;
    checked.map(drop).context(log)
}
