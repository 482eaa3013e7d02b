//! The NFS server: real guests mount a share by their own kernels' NFSv3, over the server's own
//! network stack. `GANGPLANK_LONG=1` runs the suites in QEMU, too.

mod guests;
mod locks;
mod networks;
mod suites;
mod two_guests;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine, Options, Switch};
use gangplank_tests::nfs::{self, CLIENT_MODULES, NfsServer};
use gangplank_tests::process::User;
use gangplank_tests::runner::Runner;
use gangplank_tests::tools;
use tempfile::TempDir;

use self::locks::LockFixture;
use self::two_guests::TwoGuests;

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
    /// `card` is where the guest's card is.
    fn new(machine: Machine, card: Card) -> Result<Self> {
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
        options.switch = Some(card(&server));
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

type Case<F> = fn(&mut F) -> Result<()>;

/// One of the sockets of a server's switch.
type Card = fn(&NfsServer) -> Switch;

const UML: &[(&str, Case<Fixture>)] = &[
    ("the_server_answers_pings", guests::the_server_answers_pings),
    (
        "stock_programs_find_and_mount_the_share",
        guests::stock_programs_find_and_mount_the_share,
    ),
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
    (
        "a_guest_has_its_root_by_nfs",
        guests::a_guest_has_its_root_by_nfs,
    ),
    ("fsx", suites::fsx),
    ("git", suites::git),
    ("pjdfstest", suites::pjdfstest),
];

const QEMU: &[(&str, Case<Fixture>)] = &[
    ("the_server_answers_pings", guests::the_server_answers_pings),
    (
        "stock_programs_find_and_mount_the_share",
        guests::stock_programs_find_and_mount_the_share,
    ),
    (
        "both_mounts_show_the_same",
        guests::both_mounts_show_the_same,
    ),
    ("large_file_arrives_whole", guests::large_file_arrives_whole),
];

/// What takes long under emulation.
const QEMU_LONG: &[(&str, Case<Fixture>)] = &[
    (
        "a_guest_has_its_root_by_nfs",
        guests::a_guest_has_its_root_by_nfs,
    ),
    (
        "open_files_survive_the_daemons_death",
        guests::open_files_survive_the_daemons_death,
    ),
    ("fsx", suites::fsx),
    ("git", suites::git),
    ("pjdfstest", suites::pjdfstest),
];

const QEMU_DATAGRAMS: &[(&str, Case<Fixture>)] = &[
    ("the_server_answers_pings", guests::the_server_answers_pings),
    (
        "stock_programs_find_and_mount_the_share",
        guests::stock_programs_find_and_mount_the_share,
    ),
];

/// QEMU 7.2 does not connect a stream again.
const QEMU_DATAGRAMS_LONG: &[(&str, Case<Fixture>)] = &[(
    "a_write_survives_the_servers_death",
    guests::a_write_survives_the_servers_death,
)];

const LOCKS: &[(&str, Case<LockFixture>)] = &[
    (
        "clients_of_both_kinds_exclude_each_other",
        locks::clients_of_both_kinds_exclude_each_other,
    ),
    (
        "a_lock_is_reclaimed_after_the_servers_death",
        locks::a_lock_is_reclaimed_after_the_servers_death,
    ),
    (
        "a_client_that_starts_again_loses_its_locks",
        locks::a_client_that_starts_again_loses_its_locks,
    ),
];

const TWO_GUESTS: &[(&str, Case<TwoGuests>)] = &[
    (
        "a_guest_without_a_daemon_sees_at_once_what_another_writes",
        two_guests::a_guest_without_a_daemon_sees_at_once_what_another_writes,
    ),
    (
        "guests_of_both_kinds_hand_a_lock_over",
        two_guests::guests_of_both_kinds_hand_a_lock_over,
    ),
];

/// A test that has its own guest.
type OwnCase = fn() -> Result<()>;

const NETWORKS: &[(&str, OwnCase)] = &[
    (
        "networks::a_guest_mounts_from_the_hosts_address_and_over_a_tap_device",
        networks::a_guest_mounts_from_the_hosts_address_and_over_a_tap_device,
    ),
    (
        "networks::a_guest_mounts_over_a_descriptor_of_another_program",
        networks::a_guest_mounts_over_a_descriptor_of_another_program,
    ),
];

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    let uml = || Fixture::new(Machine::Uml, NfsServer::packets);
    run(&mut runner, "uml", uml, UML);
    let uml = || LockFixture::new(Machine::Uml, NfsServer::packets);
    run(&mut runner, "uml_locks", uml, LOCKS);
    run(&mut runner, "uml_two_guests", TwoGuests::new, TWO_GUESTS);
    for (name, case) in NETWORKS {
        match User::is_root() {
            true => runner.run(name, case),
            false => runner.skip(name, "needs root, for a network"),
        }
    }
    let machine = Machine::QemuX86_64;
    let by_streams = || Fixture::new(machine, NfsServer::streams);
    let by_datagrams = || Fixture::new(machine, NfsServer::datagrams);
    run(&mut runner, "qemu_x86_64", by_streams, QEMU);
    let datagrams = "qemu_x86_64_datagrams";
    run(&mut runner, datagrams, by_datagrams, QEMU_DATAGRAMS);
    if std::env::var_os("GANGPLANK_LONG").is_some() {
        run(&mut runner, "qemu_x86_64_long", by_streams, QEMU_LONG);
        run(&mut runner, datagrams, by_datagrams, QEMU_DATAGRAMS_LONG);
        let locks = || LockFixture::new(machine, NfsServer::datagrams);
        run(&mut runner, "qemu_x86_64_locks", locks, LOCKS);
    }
    runner.finish()
}

/// What a fixture's tests share.
trait Shared {
    fn is_usable(&mut self) -> bool;
    fn logs(&self) -> String;
}

impl Shared for Fixture {
    fn is_usable(&mut self) -> bool {
        usable(&self.guest, &mut self.daemon, &mut self.server)
    }

    fn logs(&self) -> String {
        format!("{}\n{}", self.server.log(), self.daemon.log())
    }
}

impl Shared for LockFixture {
    fn is_usable(&mut self) -> bool {
        let guest = self.guest.as_ref();
        guest.is_some_and(|guest| usable(guest, &mut self.daemon, &mut self.server))
    }

    fn logs(&self) -> String {
        format!("{}\n{}", self.server.log(), self.daemon.log())
    }
}

impl Shared for TwoGuests {
    fn is_usable(&mut self) -> bool {
        !self.by_virtiofs.is_stuck() && usable(&self.by_nfs, &mut self.daemon, &mut self.server)
    }

    fn logs(&self) -> String {
        format!("{}\n{}", self.server.log(), self.daemon.log())
    }
}

fn usable(guest: &Guest, daemon: &mut Daemon, server: &mut NfsServer) -> bool {
    !guest.is_stuck()
        && daemon.is_running().unwrap_or(false)
        && server.is_running().unwrap_or(false)
}

fn run<F: Shared>(
    runner: &mut Runner,
    prefix: &str,
    new: impl Fn() -> Result<F>,
    cases: &[(&str, Case<F>)],
) {
    let mut fixture = None;
    for (name, case) in cases {
        let name = format!("{prefix}::{name}");
        if !User::is_root() {
            runner.skip(&name, "needs root, to have files of several users");
            continue;
        }
        runner.run(&name, || {
            // After a test that ended its guest, the next test gets another.
            let usable = fixture.as_mut().is_some_and(Shared::is_usable);
            if !usable {
                fixture = None;
            }
            let fixture = match &mut fixture {
                Some(fixture) => fixture,
                empty => empty.insert(new()?),
            };
            case(fixture).map_err(|error| error.context(fixture.logs()))
        });
    }
}
