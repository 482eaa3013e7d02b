//! Other people's test suites in real guests: pjdfstest, fsx, fio, git.
//!
//! pjdfstest runs on the host's file system in the same run; whatever passes there has to pass
//! through virtio-fs. Needs root, as pjdfstest does.

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
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::process::User;
use gangplank_tests::tools;
use gangplank_tests::trials::Trials;
use tempfile::TempDir;

/// A guest with the suites' programs, the share on `/mnt` and a Debian tree in `/mnt/debian`.
struct Bench {
    guest: Guest,
    daemon: Daemon,
    share: TempDir,
}

impl Bench {
    fn new(machine: Machine) -> Result<Self> {
        let share = tempfile::Builder::new().prefix("gangplank-").tempdir()?;
        // The suites become other users, who have to get this far.
        fs::set_permissions(share.path(), Permissions::from_mode(0o755))?;
        let daemon = Daemon::start(&daemon::Options::new(share.path()).arguments(&["--xattr"]))?;
        let mut options = Options::new(machine)
            .share(daemon.socket(), TAG)
            .program("fsx", &tools::fsx()?);
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

    /// The Debian tree on the share, ready to change root into.
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
    let mut trials = Trials::from_arguments();
    suites(
        &mut trials,
        "qemu_x86_64",
        Machine::QemuX86_64,
        &[
            ("pjdfstest", pjdfstest::passes_what_the_host_passes),
            ("fsx", fsx::twenty_thousand_operations),
            ("fio_verify", fio::verifies_what_it_wrote),
            ("git", git::clones_and_checks),
        ],
    );
    suites(
        &mut trials,
        "uml",
        Machine::Uml,
        &[
            ("pjdfstest", pjdfstest::passes_what_the_host_passes),
            ("fsx", fsx::twenty_thousand_operations),
        ],
    );
    trials.finish()
}

type Suite = fn(&mut Bench) -> Result<()>;

fn suites(trials: &mut Trials, prefix: &str, machine: Machine, suites: &[(&str, Suite)]) {
    let names: Vec<String> = suites
        .iter()
        .map(|(name, _)| format!("{prefix}::{name}"))
        .collect();
    if !User::is_root() {
        for name in &names {
            trials.skip(name, "needs root");
        }
        return;
    }
    let mut bench = None;
    for (name, (_, suite)) in names.iter().zip(suites) {
        trials.run(name, || {
            // A trial that ended its guest or its daemon leaves the next one a new pair.
            let usable = bench.as_mut().is_some_and(|bench: &mut Bench| {
                !bench.guest.is_stuck() && bench.daemon.is_running().unwrap_or(false)
            });
            if !usable {
                bench = None;
            }
            let bench = match &mut bench {
                Some(bench) => bench,
                empty => empty.insert(Bench::new(machine)?),
            };
            suite(bench).map_err(|error| error.context(bench.daemon.log()))
        });
    }
}
