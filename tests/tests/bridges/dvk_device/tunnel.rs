//! A guest's virtqueues by way of the emulated DVK device: the 32-bit program passes the endpoints
//! of the server on.
//!
//! ```text
//!   guest ── tunnel ── switch ── proxies, in the test ── device ── forward ── TCP ── serve
//! ```

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use gangplank_dvk::abi::{DcId, Endpoint};
use gangplank_dvk::carrier::local::{Local, LocalConfig};
use gangplank_dvk::cli_types::EndpointRange;
use gangplank_dvk::endpoint::{BoundEndpoint, Carrier};
use gangplank_dvk::forward::Forward;
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::dvk::{CLIENT_NODE, SERVER_NODE, Switch};
use gangplank_tests::dvk_device::{Clients, EmulatedDevice, Program};
use gangplank_tests::dvk_tunnel::{Between, Tunnel};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::tools;
use gangplank_tests::wait;
use tempfile::TempDir;

use crate::LIMIT;

/// The server's endpoints, as `--endpoints` has them: the first, and those for requests.
const ENDPOINTS: &str = "4:5";

fn endpoints() -> Result<EndpointRange> {
    ENDPOINTS.parse().map_err(Error::msg)
}

/// The first port of the server; the 32-bit program has those behind its 32.
const PORT: u16 = crate::PORTS + 64 * 4;

/// The proxies of the emulated machine: they make the processes of another node its own.
struct Proxies {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxies {
    /// Brings what comes to the endpoints at the switch with this socket to those of `emulated`.
    fn start(switch: &Switch, emulated: &Arc<EmulatedDevice>) -> Result<Self> {
        let node = Local::start(LocalConfig::new(switch.socket().to_owned()))?;
        let endpoints = endpoints()?;
        let bound = endpoints.iter().map(|endpoint| bind(&node, endpoint));
        let bound = bound.collect::<Result<Vec<_>>>()?;
        let clients = Arc::new(Clients::of(emulated));
        let forward = Forward::new(DcId::FIRST, endpoints, bound, clients, LIMIT);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let _node = node;
            forward.run(&stopped).expect("its threads start");
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic has shown in the test.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Binds an endpoint at a switch, which takes a moment to be connected.
fn bind(node: &Local, endpoint: Endpoint) -> Result<Arc<dyn BoundEndpoint>> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match node.bind(DcId::FIRST, endpoint, "proxies") {
            Ok(bound) => return Ok(bound),
            Err(error) if Instant::now() >= deadline => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Starts the 32-bit program, and waits until it has bound the endpoints.
fn start_forward(emulated: &Arc<EmulatedDevice>, files: &TempDir) -> Result<Program> {
    let arguments = [
        "forward".to_owned(),
        "--device=/dev/null".to_owned(),
        format!("--endpoints={ENDPOINTS}"),
        format!("--peer=127.0.0.1:{SERVER_NODE}"),
        format!("--node={CLIENT_NODE}"),
        format!("--ports={}:{PORT}", PORT + 32),
    ];
    let log = files.path().join("forward");
    let forward = Program::start(emulated, &tools::dvk_i686()?, &arguments, &log)?;
    let endpoints = endpoints()?;
    let bound = wait::until("the endpoints are bound", LIMIT, || {
        Ok(endpoints.iter().all(|endpoint| emulated.has(endpoint)))
    });
    bound.with_context(|| forward.log())?;
    Ok(forward)
}

/// The guest writes, lists, and runs fsx. It goes on with an open file when the 32-bit program is
/// killed and started again, and the server frees it when it has ended.
pub(crate) fn a_guest_behind_a_tunnel_has_a_share_by_way_of_the_device() -> Result<()> {
    let share = tempfile::tempdir()?;
    let files = tempfile::tempdir()?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let emulated = EmulatedDevice::new(36);
    let guests = Switch::start(&files.path().join("guests"))?;
    let mut forward = start_forward(&emulated, &files)?;
    let _proxies = Proxies::start(&guests, &emulated)?;
    let between = Between::Apart(guests, PORT);
    let tunnel = Tunnel::start(between, daemon.socket(), "", &[])?;
    let options = Options::new(Machine::Uml)
        .share(&tunnel.socket(), TAG)
        .program("fsx", &tools::fsx()?);
    let context = |forward: &Program| format!("{}\n{}", forward.log(), tunnel.log());
    let mut guest = Guest::boot(&options).with_context(|| context(&forward))?;
    guest
        .mount(TAG, "/mnt")
        .with_context(|| context(&forward))?;
    // A program keeps a file open meanwhile.
    guest
        .sh_within(
            "( exec 3>/mnt/open; echo before >&3; while [ ! -e /go ]; do sleep 0.1; done; \
               echo after >&3; exec 3>&-; echo $? >/done ) & \
             dd if=/dev/urandom of=/mnt/long bs=256k count=8 && md5sum </mnt/long >/mnt/sum && \
             cd /mnt && fsx -N 300 -q fsx-file && ls /mnt && sync",
            4 * LIMIT,
        )
        .with_context(|| context(&forward))?;
    ensure!(fs::metadata(share.path().join("long"))?.len() == 2 << 20);
    for call in ["BIND", "RECEIVE", "REPLY", "VCOPY"] {
        ensure!(emulated.made(call) >= 5, "{call}");
    }
    drop(forward);
    forward = start_forward(&emulated, &files)?;
    guest
        .sh_within(
            "touch /go && while [ ! -e /done ]; do sleep 0.1; done && grep -qx 0 /done && \
             echo 3 >/proc/sys/vm/drop_caches && \
             test \"$(md5sum </mnt/long)\" = \"$(cat /mnt/sum)\"",
            4 * LIMIT,
        )
        .with_context(|| context(&forward))?;
    ensure!(fs::read_to_string(share.path().join("open"))? == "before\nafter\n");
    tunnel.wait_for_server("guest behind endpoint 100:", true)?;
    drop(guest);
    tunnel.wait_for_server("guest behind endpoint 100:", false)
}
