//! The guests with Linux: one works with fsx, one with fio, which compare all that they read with
//! what they have written.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::debian_tree;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::guest_work::{self, FIO_SCRIPT, FSX, Program};
use gangplank_tests::tools;

/// Memory of a guest in MiB: enough for fio with its libraries. The worker maps it, so what is
/// touched of it counts as the worker's, which the fixture limits to 256 MiB.
const MEMORY_MIB: u32 = 240;

/// Where the guest of fio has the Debian tree, which cannot be written, and in it the share.
const PROGRAMS_TAG: &str = "programs";
const FIO: Program = ("fio", "chroot /debian /bin/sh /tmp/fio.sh /tmp/fio");

/// Limit for a program to end. The last round of fsx or fio began before the attackers had ended.
const ENDING: Duration = Duration::from_secs(240);

/// Both guests, with their programs at work.
pub(crate) struct LinuxGuests {
    guests: [(&'static str, Guest); 2],
    /// Shares the Debian tree.
    _programs: Daemon,
}

impl LinuxGuests {
    /// Boots the guests on the fixture's share, and starts their programs.
    pub(crate) fn start(fixture: &Fixture) -> Result<Self> {
        fs::write(fixture.share().join("fsx.toml"), tools::FSX_CONFIGURATION)?;
        fs::write(fixture.share().join("fio.sh"), FIO_SCRIPT)?;
        fs::create_dir(fixture.share().join("fio"))?;
        let machine = Machine::Uml;
        let tree = debian_tree::read_only(machine.arch())?;
        let programs = daemon::Options::new(&tree).tag(PROGRAMS_TAG);
        let programs = Daemon::start(&programs.arguments(&["--readonly", "--cache=always"]))?;
        let mut options = Options::new(machine).share(fixture.socket(), TAG);
        options.memory_mib = MEMORY_MIB;
        let fsx = options.clone().program("fsx", &tools::fsx()?);
        let fio = options.share(programs.socket(), PROGRAMS_TAG);
        // Both at once, because a booting guest waits half of the time.
        let named = [("fsx", fsx), ("fio", fio)];
        let [fsx, fio] = thread::scope(|scope| {
            named
                .each_ref()
                .map(|(name, options)| (*name, scope.spawn(|| Guest::boot(options))))
                .map(|(name, booting)| {
                    let booted = booting.join().map_err(|_| anyhow!("it panicked")).flatten();
                    let guest = booted.with_context(|| format!("booting the guest of {name}"))?;
                    anyhow::Ok((name, guest))
                })
        });
        let mut guests = [fsx?, fio?];
        let [(_, fsx), (_, fio)] = &mut guests;
        fsx.mount(TAG, "/mnt")?;
        fio.mount(TAG, "/mnt")?;
        fio.mount(PROGRAMS_TAG, "/debian")?;
        fio.sh(
            "mount -t proc proc /debian/proc && mount -o bind /dev /debian/dev && \
             mount -o bind /dev/shm /debian/dev/shm && mount -o bind /mnt /debian/tmp",
        )?;
        guest_work::start(fsx, &[FSX])?;
        guest_work::start(fio, &[FIO])?;
        Ok(Self {
            guests,
            _programs: programs,
        })
    }

    /// Ends the programs. Each has compared its files at least once. It is an error if a program
    /// has found a difference, or a guest's kernel an error.
    pub(crate) fn end(self) -> Result<()> {
        for (name, mut guest) in self.guests {
            guest_work::end(&mut guest, 1, ENDING)
                .and_then(|()| guest_work::check_kernel_log(&mut guest))
                .with_context(|| format!("the guest of {name}"))?;
            guest.power_off()?;
        }
        Ok(())
    }
}
