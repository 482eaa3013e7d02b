//! The command line of a User Mode Linux guest.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::kernel::Kernel;
use super::registers;
use super::{Options, Switch};
use crate::network::{self, CARD, TAP};
use crate::process;

/// virtio id of the file system device (virtio 1.2, 5.11.1).
const VIRTIO_ID_FS: u32 = 26;

/// A command that boots `kernel` with its console on standard input and output. `dir` is the
/// guest's own directory on the host.
///
/// # Errors
/// As [`registers::prepare`], and with a switch that is none of packets.
pub(super) fn command(
    kernel: &Kernel,
    options: &Options,
    initrd: &Path,
    dir: &Path,
) -> Result<Command> {
    let mut command = match &options.network {
        Some(namespace) => {
            let mut command = network::command(namespace, &kernel.image);
            // Not eth0=tuntap, which takes one packet at a time, so that TCP retransmits packets
            // that still wait in the tap device.
            command.arg(format!(
                "{CARD}:transport=hybrid,ifname={TAP},depth=64,gro=1"
            ));
            command
        }
        None => process::tied(&kernel.image, options.user),
    };
    registers::prepare(&mut command, dir)?;
    command
        .arg(format!("mem={}M", options.memory_mib))
        .arg(format!("initrd={}", initrd.display()))
        .arg("root=/dev/ram0")
        .arg(format!("uml_dir={}/", dir.display()))
        .arg("umid=guest")
        .args(["con0=fd:0,fd:1", "con=null", "ssl=null", "quiet"])
        .env("TMPDIR", memory_dir(options.memory_mib))
        .args(options.kernel_arguments());
    match &options.switch {
        None => {}
        Some(Switch::Packets(path)) => {
            command.arg(format!("{CARD}:transport=bess,dst={}", path.display()));
        }
        Some(other) => bail!("User Mode Linux has no card for {other:?}"),
    }
    for share in &options.shares {
        command.arg(format!(
            "virtio_uml.device={}:{VIRTIO_ID_FS}",
            share.socket.display()
        ));
    }
    Ok(command)
}

/// The directory of the guest's memory file: `/dev/shm`, or the default directory for temporary
/// files where `/dev/shm` is too small, as in containers.
fn memory_dir(memory_mib: u32) -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    let room = rustix::fs::statvfs(&shared)
        .map(|told| told.f_bavail.saturating_mul(told.f_frsize) >> 20)
        .unwrap_or(0);
    if room > u64::from(memory_mib) {
        shared
    } else {
        env::temp_dir()
    }
}
