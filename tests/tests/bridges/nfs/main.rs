//! The NFS server: real guests mount a share by their own kernels' NFSv3, over the server's own
//! network stack.

mod guests;
mod suites;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::nfs::{self, CLIENT_MODULES, NfsServer};
use gangplank_tests::process::User;
use gangplank_tests::runner::Runner;
use gangplank_tests::tools;
use tempfile::TempDir;

/// Where the guest mounts the share by NFS.
const NFS: &str = "/nfs";

/// A guest with the share on `/nfs` by NFS, and on `/mnt` by virtio-fs.
struct Fixture {
    guest: Guest,
    server: NfsServer,
    daemon: Daemon,
    share: TempDir,
}

impl Fixture {
    fn new(machine: Machine) -> Result<Self> {
        let share = tempfile::Builder::new().prefix("gangplank-").tempdir()?;
        // The suites run as other users, who need to enter the directory.
        fs::set_permissions(share.path(), Permissions::from_mode(0o755))?;
        let daemon = Daemon::start(&daemon_options(&share))?;
        let server = NfsServer::start(daemon.socket(), &["--client", "*(rw,no_root_squash)"])?;
        let mut options = Options::new(machine)
            .share(daemon.socket(), TAG)
            .program("fsx", &tools::fsx()?);
        options.memory_mib = 1024;
        options.modules = CLIENT_MODULES.to_vec();
        options.switch = Some(match machine {
            Machine::Uml => server.packets(),
            _ => server.streams(),
        });
        let mut guest = Guest::boot(&options)?;
        nfs::configure(&mut guest, 15)?;
        nfs::mount(&mut guest, "/", NFS, ",nolock")?;
        guest.mount(TAG, "/mnt")?;
        Ok(Self {
            guest,
            server,
            daemon,
            share,
        })
    }

    /// `name` in the share, on the host.
    fn host_path(&self, name: &str) -> PathBuf {
        self.share.path().join(name)
    }
}

fn daemon_options(share: &TempDir) -> daemon::Options {
    daemon::Options::new(share.path()).arguments(&["--xattr"])
}

type Case = fn(&mut Fixture) -> Result<()>;

const UML: &[(&str, Case)] = &[
    ("the_server_answers_pings", guests::the_server_answers_pings),
    (
        "both_mounts_show_the_same",
        guests::both_mounts_show_the_same,
    ),
    ("large_file_arrives_whole", guests::large_file_arrives_whole),
    (
        "an_owner_writes_a_file_of_mode_0444",
        guests::an_owner_writes_a_file_of_mode_0444,
    ),
    (
        "a_large_directory_is_listed_whole",
        guests::a_large_directory_is_listed_whole,
    ),
    (
        "a_write_survives_the_servers_death",
        guests::a_write_survives_the_servers_death,
    ),
    (
        "open_files_survive_the_daemons_death",
        guests::open_files_survive_the_daemons_death,
    ),
    ("fsx", suites::fsx),
    ("git", suites::git),
    ("pjdfstest", suites::pjdfstest),
];

const QEMU: &[(&str, Case)] = &[
    ("the_server_answers_pings", guests::the_server_answers_pings),
    (
        "both_mounts_show_the_same",
        guests::both_mounts_show_the_same,
    ),
    ("large_file_arrives_whole", guests::large_file_arrives_whole),
];

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    run(&mut runner, "uml", Machine::Uml, UML);
    run(&mut runner, "qemu_x86_64", Machine::QemuX86_64, QEMU);
    runner.finish()
}

fn run(runner: &mut Runner, prefix: &str, machine: Machine, cases: &[(&str, Case)]) {
    let mut fixture = None;
    for (name, case) in cases {
        let name = format!("{prefix}::{name}");
        if !User::is_root() {
            runner.skip(&name, "needs root, to have files of several users");
            continue;
        }
        runner.run(&name, || {
            // After a test that ended its guest, the next test gets another.
            let usable = fixture.as_mut().is_some_and(|fixture: &mut Fixture| {
                !fixture.guest.is_stuck()
                    && fixture.daemon.is_running().unwrap_or(false)
                    && fixture.server.is_running().unwrap_or(false)
            });
            if !usable {
                fixture = None;
            }
            let fixture = match &mut fixture {
                Some(fixture) => fixture,
                empty => empty.insert(Fixture::new(machine)?),
            };
            case(fixture).map_err(|error| {
                let log = format!("{}\n{}", fixture.server.log(), fixture.daemon.log());
                error.context(log)
            })
        });
    }
}
