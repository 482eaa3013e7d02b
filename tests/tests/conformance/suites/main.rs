//! Test suites of other projects in real guests: pjdfstest, fsx, fio, git; and cases of access
//! control lists after those of xfstests.
//!
//! pjdfstest runs on the host's file system too. Whatever passes there has to pass through
//! virtio-fs. Needs root, as pjdfstest does.

mod acls;
mod fio;
mod fsx;
mod git;
mod pjdfstest;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::debian_tree;
use gangplank_tests::guest::kernel::Release;
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::process::User;
use gangplank_tests::runner::Runner;
use gangplank_tests::tools;
use tempfile::TempDir;

/// A guest with the suites' programs, the share on `/mnt` and a Debian tree in `/mnt/debian`.
struct Fixture {
    guest: Guest,
    daemon: Daemon,
    share: TempDir,
}

/// What a fixture is made for.
#[derive(Clone, Copy)]
struct Setting {
    machine: Machine,
    release: Release,
    /// Further options of the daemon.
    options: &'static [&'static str],
}

impl Setting {
    /// The machine's usual kernel, and no further options.
    const fn of(machine: Machine) -> Self {
        Self {
            machine,
            release: Release::Stable,
            options: &[],
        }
    }
}

impl Fixture {
    fn new(setting: Setting) -> Result<Self> {
        let share = tempfile::Builder::new().prefix("gangplank-").tempdir()?;
        // The suites run as other users, who need to enter the directory.
        fs::set_permissions(share.path(), Permissions::from_mode(0o755))?;
        let options = daemon::Options::new(share.path()).arguments(&["--xattr"]);
        let daemon = Daemon::start(&options.arguments(setting.options))?;
        let arch = setting.machine.arch();
        let mut options = Options::new(setting.machine)
            .share(daemon.socket(), TAG)
            .program("fsx", &tools::fsx()?)
            .program("guest-check", &tools::guest_check(arch)?);
        options.release = setting.release;
        options.memory_mib = 1024;
        let mut guest = Guest::boot(&options)?;
        guest.mount(TAG, "/mnt")?;
        Ok(Self {
            guest,
            daemon,
            share,
        })
    }

    /// `name` in the share, on the host.
    fn host_path(&self, name: &str) -> PathBuf {
        self.share.path().join(name)
    }

    /// Prepares the Debian tree on the share for chroot.
    fn debian(&mut self) -> Result<()> {
        let tree = self.host_path("debian");
        if tree.exists() {
            return Ok(());
        }
        debian_tree::copy_to(&tree, self.guest.machine().arch())?;
        self.guest
            .sh(
                "mount -t proc proc /mnt/debian/proc && mount -o bind /dev /mnt/debian/dev && \
                 mount -o bind /dev/shm /mnt/debian/dev/shm && \
                 mkdir -p /mnt/debian/work",
            )
            .map(drop)
    }
}

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    suites(
        &mut runner,
        "qemu_x86_64",
        Setting::of(Machine::QemuX86_64),
        &[
            ("pjdfstest", pjdfstest::passes_what_the_host_passes),
            ("fsx", fsx::twenty_thousand_operations),
            ("fio_verify", fio::verifies_what_it_wrote),
            ("git", git::clones_and_checks),
        ],
    );
    suites(
        &mut runner,
        "uml",
        Setting::of(Machine::Uml),
        &[
            ("pjdfstest", pjdfstest::passes_what_the_host_passes),
            ("fsx", fsx::twenty_thousand_operations),
        ],
    );
    let with_acls = |machine| Setting {
        options: &["--posix-acl"],
        ..Setting::of(machine)
    };
    suites(
        &mut runner,
        "uml_posix_acl",
        with_acls(Machine::Uml),
        &[
            ("acls", acls::agree_with_the_host),
            ("pjdfstest", pjdfstest::passes_what_the_host_passes),
        ],
    );
    let newer = Setting {
        release: Release::Linux6_12,
        ..with_acls(Machine::QemuX86_64)
    };
    suites(
        &mut runner,
        "qemu_x86_64_6_12_posix_acl",
        newer,
        &[("acls", acls::agree_with_the_host)],
    );
    runner.finish()
}

type Suite = fn(&mut Fixture) -> Result<()>;

fn suites(runner: &mut Runner, prefix: &str, setting: Setting, suites: &[(&str, Suite)]) {
    let names: Vec<String> = suites
        .iter()
        .map(|(name, _)| format!("{prefix}::{name}"))
        .collect();
    if !User::is_root() {
        for name in &names {
            runner.skip(name, "needs root");
        }
        return;
    }
    let mut fixture = None;
    for (name, (_, suite)) in names.iter().zip(suites) {
        runner.run(name, || {
            // After a test that ended its guest or its daemon, the next test gets a new pair.
            let usable = fixture.as_mut().is_some_and(|fixture: &mut Fixture| {
                !fixture.guest.is_stuck() && fixture.daemon.is_running().unwrap_or(false)
            });
            if !usable {
                fixture = None;
            }
            let fixture = match &mut fixture {
                Some(fixture) => fixture,
                empty => empty.insert(Fixture::new(setting)?),
            };
            suite(fixture).map_err(|error| error.context(fixture.daemon.log()))
        });
    }
}
