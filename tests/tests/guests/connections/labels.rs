//! A guest whose kernel runs SELinux. Without a policy, it gives everything that it makes the label
//! of an unlabelled file, and sends that label with the request.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine, Options};
use rustix::fs::{XattrFlags, getxattr, setxattr};

/// The label's name on the host, by the map of names below: only root may set one in `security.`.
const NAME: &str = "user.vm.security.selinux";

/// The label of a kernel without a policy (`security/selinux/include/initial_sid_to_string.h`).
const LABEL: &[u8] = b"unlabeled\0";

/// What the guest makes has its label on the host at once.
pub(crate) fn are_those_of_a_guest_with_selinux() -> Result<()> {
    let share = tempfile::tempdir()?;
    setxattr(share.path(), "user.a", b"", XattrFlags::empty())
        .context("the temporary directory has no extended attributes")?;
    let options = daemon::Options::new(share.path())
        .arguments(&["--security-label", "--xattrmap=:map:security.:user.vm.:"]);
    let daemon = Daemon::start(&options)?;
    let mut options = Options::new(Machine::QemuX86_64).share(daemon.socket(), TAG);
    options.kernel_words = vec!["lsm=selinux"];
    let mut guest = Guest::boot(&options).with_context(|| daemon.log())?;
    guest.mount(TAG, "/mnt").with_context(|| daemon.log())?;
    guest.sh(
        "grep -q selinux /sys/kernel/security/lsm || mount -t securityfs none \
         /sys/kernel/security; grep selinux /sys/kernel/security/lsm; \
         cd /mnt && touch file && mkdir directory && echo x >directory/file",
    )?;
    for name in ["file", "directory", "directory/file"] {
        let label = label(&share.path().join(name)).context(name)?;
        ensure!(
            label == LABEL,
            "{name}: {:?}",
            String::from_utf8_lossy(&label)
        );
    }
    // A FIFO cannot have an attribute of that name on the host, so there is none.
    guest.sh("! mkfifo /mnt/fifo && test ! -e /mnt/fifo")?;
    ensure!(!share.path().join("fifo").exists());
    guest.power_off()
}

fn label(path: &Path) -> Result<Vec<u8>> {
    let mut value = [0; 200];
    let length = getxattr(path, NAME, &mut value[..])?;
    Ok(value.get(..length).unwrap_or_default().to_vec())
}
