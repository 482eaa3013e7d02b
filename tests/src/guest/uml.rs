//! The command line of a User Mode Linux guest.

use std::path::Path;
use std::process::Command;

use super::Options;
use super::kernel::Kernel;
use crate::process;

/// virtio id of the file system device (virtio 1.2, 5.11.1).
const VIRTIO_ID_FS: u32 = 26;

/// A command that boots `kernel` with its console on standard input and output. `dir` is the
/// guest's own directory on the host.
pub(super) fn command(kernel: &Kernel, options: &Options, initrd: &Path, dir: &Path) -> Command {
    let mut command = process::tied(&kernel.image, options.user);
    command
        .arg(format!("mem={}M", options.memory_mib))
        .arg(format!("initrd={}", initrd.display()))
        .arg("root=/dev/ram0")
        .arg(format!("uml_dir={}/", dir.display()))
        .arg("umid=guest")
        .args(["con0=fd:0,fd:1", "con=null", "ssl=null", "quiet"])
        // The kernel's memory file goes where it can be mapped shared; the C library would take
        // the caller's TMPDIR, which may be a slow disk.
        .env("TMPDIR", "/dev/shm")
        .args(options.kernel_arguments());
    for share in &options.shares {
        command.arg(format!(
            "virtio_uml.device={}:{VIRTIO_ID_FS}",
            share.socket.display()
        ));
    }
    command
}
