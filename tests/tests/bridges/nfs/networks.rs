//! The ways to a server: stock programs in a guest find and mount its share by each.

use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine, Options, Switch};
use gangplank_tests::network::{HOST, Network, TAP};
use gangplank_tests::nfs::{self, CLIENT_MODULES, SERVER};
use gangplank_tests::{debian_tree, packages, process, tools};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use tempfile::TempDir;

/// Limit for a server to be reached.
const PATIENT: Duration = Duration::from_secs(120);

/// The server's own address on a TAP device, where [`HOST`] is the host's.
const OWN: &str = "10.97.0.3";

/// A share with the packages of an NFS client, and its daemon.
struct Shared {
    daemon: Daemon,
    share: TempDir,
}

impl Shared {
    fn new() -> Result<Self> {
        let share = tempfile::Builder::new().prefix("gangplank-").tempdir()?;
        fs::set_permissions(share.path(), Permissions::from_mode(0o755))?;
        debian_tree::copy_nfs_client(&share.path().join("client"), Machine::Uml.arch())?;
        let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
        Ok(Self { daemon, share })
    }

    /// A guest with the share on `/mnt` by virtio-fs, which is changed by `change` before.
    fn guest(&self, change: impl FnOnce(&mut Options)) -> Result<Guest> {
        let mut options = Options::new(Machine::Uml).share(self.daemon.socket(), TAG);
        options.modules = CLIENT_MODULES.to_vec();
        change(&mut options);
        let mut guest = Guest::boot(&options)?;
        guest.mount(TAG, "/mnt")?;
        Ok(guest)
    }

    /// Waits until the server with this log is there, and asks it.
    fn ask(&self, guest: &mut Guest, address: &str, log: &str) -> Result<()> {
        let wait = format!(
            "until chroot /mnt/client /usr/sbin/rpcinfo -p {address} >/dev/null 2>&1; do \
             sleep 0.1; done"
        );
        let asked = guest
            .sh_within(&wait, PATIENT)
            .and_then(|_| nfs::ask_by_stock_programs(guest, "/mnt/client", address));
        let exports = asked.with_context(|| {
            let log = self.share.path().join(log);
            fs::read_to_string(log).unwrap_or_default()
        })?;
        ensure!(exports.contains("10.97.0.0/24"), "{exports}");
        Ok(())
    }
}

/// The guest's TAP device is bridged to that of the server, after the host's address was served.
pub(crate) fn a_guest_mounts_from_the_hosts_address_and_over_a_tap_device() -> Result<()> {
    let shared = Shared::new()?;
    let network = Network::new()?;
    let mut guest = shared.guest(|options| options.network = Some(network.namespace()))?;
    nfs::configure_in(&mut guest, "10.97.0", 2)?;
    let (listen, port_mapper) = (format!("{HOST}:2049"), format!("{HOST}:111"));
    let server = nfs::serve(
        network.command(tools::nfs()?),
        &shared.daemon,
        &["--listen", &listen, "--portmap", &port_mapper],
        Stdio::null(),
        &shared.share.path().join("host"),
    )?;
    shared.ask(&mut guest, HOST, "host")?;
    drop(server);

    for arguments in [
        "link add br0 type bridge".to_owned(),
        "tuntap add dev tap1 mode tap".to_owned(),
        format!("link set {TAP} master br0"),
        "link set tap1 master br0".to_owned(),
        "link set tap1 up".to_owned(),
        "link set br0 up".to_owned(),
    ] {
        packages::run(network.command("ip").args(arguments.split(' ')))?;
    }
    let _server = nfs::serve(
        network.command(tools::nfs()?),
        &shared.daemon,
        &["--address", &format!("{OWN}/24"), "--net", "tap:tap1"],
        Stdio::null(),
        &shared.share.path().join("tap"),
    )?;
    shared.ask(&mut guest, OWN, "tap")
}

/// The test has the switch's end of the guest's card, and starts the server with it.
pub(crate) fn a_guest_mounts_over_a_descriptor_of_another_program() -> Result<()> {
    let shared = Shared::new()?;
    let socket = shared.share.path().join("packets");
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(&socket)?)?;
    rustix::net::listen(&listener, 1)?;
    let mut guest = shared.guest(|options| options.switch = Some(Switch::Packets(socket)))?;
    // The card connects when it is brought up.
    let (machine, configured) = thread::scope(|scope| {
        let accepting = scope.spawn(|| accept(&listener));
        let configured = nfs::configure(&mut guest, 15);
        (accepting.join(), configured)
    });
    configured?;
    let machine = machine.map_err(|_| anyhow!("the thread panicked"))??;
    let _server = nfs::serve(
        process::tied(tools::nfs()?, None),
        &shared.daemon,
        &["--address", &format!("{SERVER}/24"), "--net", "fd:0"],
        machine,
        &shared.share.path().join("fd"),
    )?;
    shared.ask(&mut guest, SERVER, "fd")
}

fn accept(listener: &OwnedFd) -> Result<OwnedFd> {
    let deadline = Instant::now() + PATIENT;
    let second = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    while poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&second))? == 0 {
        ensure!(Instant::now() < deadline, "the card does not connect");
    }
    Ok(rustix::net::accept(listener)?)
}
