//! A QEMU guest that is the host: not every kernel that runs tests has what these need. It has
//! disks, runs the daemons, and works with their shares by programs of its own.

use std::path::{Path, PathBuf};

use anyhow::Result;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::tools;

/// What file systems on disks need of the kernel.
const MODULES: [&str; 4] = ["virtio_blk", "crc32c_generic", "quota_v2", "ext4"];

/// The machine that runs the daemons.
pub(crate) struct Host(pub(crate) Guest);

impl Host {
    /// Boots it with `disks`, `modules` and `programs`.
    pub(crate) fn boot(
        disks: Vec<PathBuf>,
        modules: &[&'static str],
        programs: &[(&str, &Path)],
    ) -> Result<Self> {
        let machine = Machine::QemuX86_64;
        let mut options = Options {
            disks,
            modules: [&MODULES, modules].concat(),
            ..Options::new(machine)
        };
        options = options.program("gangplankd", &tools::gangplankd_for(machine.arch())?);
        for (name, program) in programs {
            options = options.program(name, program);
        }
        Ok(Self(Guest::boot(&options)?))
    }

    /// Runs the daemon of a share. Its sandbox is one that works in an initramfs.
    pub(crate) fn serve(&mut self, share: &str, directory: &str, options: &str) -> Result<()> {
        self.serve_by(
            "true",
            share,
            directory,
            &format!("--sandbox=chroot {options}"),
        )
    }

    /// Runs the daemon of a share, by a shell that runs `before` first.
    pub(crate) fn serve_by(
        &mut self,
        before: &str,
        share: &str,
        directory: &str,
        options: &str,
    ) -> Result<()> {
        self.0.sh(&format!(
            "{before} || exit 1; \
             gangplankd --socket-path=/run/{share} --shared-dir={directory} {options} \
             >/run/{share}.log 2>&1 & \
             for i in $(seq 600); do \
             grep -q ' 00010000 .*/{share}$' /proc/net/unix && exit 0; sleep 0.1; done; \
             cat /run/{share}.log; exit 1"
        ))?;
        Ok(())
    }

    /// Has the daemon of a share end.
    pub(crate) fn ends(&mut self, share: &str) -> Result<()> {
        self.0.sh(&format!(
            "kill $(cat /run/{share}.pid); for i in $(seq 600); do [ -e /run/{share} ] || exit 0; \
             sleep 0.1; done; exit 1"
        ))?;
        Ok(())
    }
}
