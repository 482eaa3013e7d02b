//! An emulated driver with its device model, daemons and shares, in a directory of its own.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use rustix::process::Pid;
use tempfile::TempDir;

use super::abi::Abi;
use super::device::Device;
use super::guest::{Cpu, WINDOW};
use super::kernel::{GUEST_BASE, Kernel};
use super::launch::Program;
use crate::dvk::{CLIENT_NODE, SERVER_NODE};
use crate::hosts;
use crate::process;
use crate::wait;

/// The name of every share.
pub const TAG: &str = "model";

/// Bytes of memory that each guest shares, as in the demonstration.
const MEMORY: u64 = 16 << 20;

/// Limit for a daemon to create its socket.
const LIMIT: Duration = Duration::from_secs(20);

/// The programs under test.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// `gangplank-frontend`.
    pub frontend: PathBuf,
    /// `gangplankd`.
    pub gangplankd: PathBuf,
    /// virtiofsd, for scenarios with it.
    pub virtiofsd: Option<PathBuf>,
    /// `gangplank-dvk`, for scenarios with a tunnel.
    pub dvk: Option<PathBuf>,
    /// The network namespace of the tunnels' servers, if it is another one. Its address there is
    /// [`hosts::SERVERS`], and [`hosts::FIRST`] here.
    pub servers: Option<PathBuf>,
}

/// The daemon that serves the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// gangplankd.
    Ours,
    /// virtiofsd.
    Theirs,
    /// gangplankd, behind a tunnel over DVK: the device model is connected to `gangplank-dvk
    /// tunnel`.
    Tunnelled,
}

/// The set-up of a fixture.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The driver's generation.
    pub abi: Abi,
    /// The daemon that serves the files.
    pub server: Server,
    /// Number of devices, each with a guest, a daemon and a share of its own.
    pub devices: u32,
    /// Request queues of each device.
    pub queues: u32,
    /// Whether the configuration has the tag, so that the device model need not wait for the
    /// daemon.
    pub tag: bool,
    /// Number of further devices in the configuration that the driver does not have.
    pub missing: u32,
    /// Whether the memory has a node of its own although the device's file maps it too.
    pub memory_node: bool,
}

impl Setup {
    /// One device with one request queue and a configured tag.
    #[must_use]
    pub const fn new(abi: Abi) -> Self {
        Self {
            abi,
            server: Server::Ours,
            devices: 1,
            missing: 0,
            queues: 1,
            tag: true,
            memory_node: false,
        }
    }
}

/// The fixture. Its processes end with it.
pub struct Fixture {
    programs: Programs,
    setup: Setup,
    /// The driver.
    pub kernel: Arc<Kernel>,
    /// The programs of tunnels. They end with the fixture.
    tunnels: Mutex<Vec<Program>>,
    dir: TempDir,
}

impl Fixture {
    /// A directory with shares and a configuration. No process runs yet.
    ///
    /// # Errors
    /// The host has no room for it.
    pub fn new(programs: &Programs, setup: Setup) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-bao-")
            .tempdir()?;
        let kernel = Kernel::new(setup.abi, &dir.path().join("node"), setup.devices, MEMORY)?;
        let fixture = Self {
            programs: programs.clone(),
            setup,
            kernel: Arc::new(kernel),
            tunnels: Mutex::default(),
            dir,
        };
        for id in 0..fixture.kernel.devices.len() {
            fs::create_dir(fixture.share(id))?;
        }
        fs::write(fixture.path("config.yaml"), fixture.config()?)?;
        Ok(fixture)
    }

    fn config(&self) -> Result<String> {
        let mut text = format!("nodes: [{}]\ndevices:\n", self.kernel.node().display());
        for id in 0..usize::try_from(self.setup.devices + self.setup.missing)? {
            writeln!(text, "  - id: {id}")?;
            writeln!(text, "    type: fs\n    data_plane: vhost_user")?;
            // The same address for each: they belong to different virtual machines.
            writeln!(text, "    mmio_addr: {WINDOW:#x}\n    frontend_vm: vm{id}")?;
            writeln!(text, "    socket: {}", self.socket(id).display())?;
            writeln!(text, "    num_request_queues: {}", self.setup.queues)?;
            if self.setup.tag {
                writeln!(text, "    tag: {TAG}")?;
            }
            if self.setup.abi.creates || self.setup.memory_node {
                writeln!(
                    text,
                    "    shmem_addr: {GUEST_BASE:#x}\n    shmem_size: {MEMORY:#x}"
                )?;
                writeln!(
                    text,
                    "    shmem_path: {}",
                    self.kernel.memory_path(id).display()
                )?;
            }
        }
        Ok(text)
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its set-up.
    #[must_use]
    pub const fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The share of device `id`.
    #[must_use]
    pub fn share(&self, id: usize) -> PathBuf {
        self.path(format!("share{id}"))
    }

    fn socket(&self, id: usize) -> PathBuf {
        self.path(format!("fs{id}.sock"))
    }

    fn status_socket(&self) -> PathBuf {
        self.path("status.sock")
    }

    /// The status that the device model reports.
    ///
    /// # Errors
    /// It does not say.
    pub fn status(&self) -> Result<String> {
        let socket = UnixStream::connect(self.status_socket());
        let mut socket = socket.context("asking the device model for its status")?;
        socket.set_read_timeout(Some(LIMIT))?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        Ok(text)
    }

    /// Reads the status until `is` accepts it.
    ///
    /// # Errors
    /// It does not become so; with what it is.
    pub fn until_status(&self, is: impl Fn(&str) -> bool) -> Result<String> {
        let mut last = String::new();
        let found = wait::until_found("the status is another", LIMIT, || {
            last = self.status()?;
            Ok(is(&last).then(|| last.clone()))
        });
        found.with_context(|| format!("the status stays {last}"))
    }

    /// The process that keeps the devices over a restart: a child of the device model that started
    /// it, or of this process after that has ended.
    ///
    /// # Errors
    /// There is none.
    pub fn holder(&self, model: &Program) -> Result<Pid> {
        let parents = [model.pid(), rustix::process::getpid()];
        let held = |child: &Pid| {
            let status = fs::read_to_string(format!("/proc/{}/status", child.as_raw_nonzero()));
            status.is_ok_and(|status| {
                status.starts_with("Name:\tgangplank-hold\n") && !status.contains("\nState:\tZ")
            })
        };
        let mut found = parents.into_iter().flat_map(children_of).filter(held);
        found.next().context("there is no holder")
    }

    /// Device `id`.
    ///
    /// # Errors
    /// There is none.
    pub fn device(&self, id: usize) -> Result<&Arc<Device>> {
        self.kernel
            .devices
            .get(id)
            .with_context(|| format!("no device {id}"))
    }

    /// A CPU of device `id`'s guest.
    ///
    /// # Errors
    /// There is none.
    pub fn cpu(&self, id: usize) -> Result<Cpu> {
        Ok(Cpu::new(Arc::clone(self.device(id)?)))
    }

    /// Starts the device model.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_frontend(&self) -> Result<Program> {
        self.start_frontend_with(&[])
    }

    /// Starts the device model with further `options`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_frontend_with(&self, options: &[&str]) -> Result<Program> {
        let mut arguments = vec![
            format!("--config={}", self.path("config.yaml").display()),
            format!("--status-socket={}", self.status_socket().display()),
            "--log-level=debug".to_owned(),
        ];
        arguments.extend(options.iter().map(|option| (*option).to_owned()));
        Program::start(
            &self.kernel,
            &self.programs.frontend,
            &arguments,
            &self.path("frontend.log"),
        )
    }

    /// Starts a second device model beside the first.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_second_frontend(&self) -> Result<Program> {
        let arguments = [format!("--config={}", self.path("config.yaml").display())];
        let log = self.path("second.log");
        Program::start(&self.kernel, &self.programs.frontend, &arguments, &log)
    }

    /// Starts the daemon of device `id` and waits until guests can connect.
    ///
    /// # Errors
    /// It cannot be started, or ends.
    pub fn start_daemon(&self, id: usize) -> Result<Program> {
        let program = match self.setup.server {
            Server::Ours | Server::Tunnelled => &self.programs.gangplankd,
            Server::Theirs => self
                .programs
                .virtiofsd
                .as_ref()
                .context("there is no virtiofsd")?,
        };
        let socket = match self.setup.server {
            Server::Tunnelled => self.path(format!("daemon{id}.sock")),
            Server::Ours | Server::Theirs => self.socket(id),
        };
        let mut arguments = vec![
            format!("--socket-path={}", socket.display()),
            format!("--shared-dir={}", self.share(id).display()),
            format!("--tag={TAG}"),
            "--sandbox=none".to_owned(),
        ];
        if self.setup.queues > 1 {
            arguments.push(format!("--num-request-queues={}", self.setup.queues));
        }
        let daemon = self.start_server(program, &arguments, &format!("daemon{id}"), &socket)?;
        if self.setup.server == Server::Tunnelled {
            self.start_tunnel(id, &socket)?;
        }
        Ok(daemon)
    }

    /// Starts the tunnel of device `id` to the daemon at `daemon`: a switch, the server and the
    /// tunnel. If the server is on another host, there is a network in place of the switch, and one
    /// device.
    fn start_tunnel(&self, id: usize, daemon: &Path) -> Result<()> {
        let dvk = self.programs.dvk.as_ref();
        let dvk = dvk.context("there is no gangplank-dvk")?;
        let switch = self.path(format!("switch{id}.sock"));
        let (carrier, transport) = match &self.programs.servers {
            None => (
                "local",
                format!("local SWITCH {{ local_socket \"{}\"; }};", switch.display()),
            ),
            Some(_) => (
                "node",
                format!(
                    "node HERE {{ node_id {SERVER_NODE}; node_address {}; }};\n\
                     peer GUEST {{ peer_id {CLIENT_NODE}; peer_host {}; }};",
                    hosts::SERVERS,
                    hosts::FIRST
                ),
            ),
        };
        let config = self.path(format!("rhostfs{id}.cfg"));
        fs::write(
            &config,
            format!(
                "virtqueue SHARE {{ vq_dcid 0; vq_ep 4; vq_socket \"{}\"; vq_carrier {carrier}; \
                 }};\n{transport}\n",
                daemon.display(),
            ),
        )?;
        let status = self.path(format!("serve{id}.sock"));
        let guest = self.socket(id);
        let text = |path: &Path| path.display().to_string();
        let server = match self.programs.servers {
            None => vec!["--switch".to_owned(), text(&switch)],
            Some(_) => vec![
                format!("--peer={}:{SERVER_NODE}", hosts::SERVERS),
                format!("--node={CLIENT_NODE}"),
                format!("--address={}", hosts::FIRST),
            ],
        };
        for (name, socket, arguments) in [
            (
                "switch",
                &switch,
                vec!["--socket".to_owned(), text(&switch)],
            ),
            (
                "serve",
                &status,
                vec![
                    "--config".to_owned(),
                    text(&config),
                    "--status".to_owned(),
                    text(&status),
                ],
            ),
            (
                "tunnel",
                &guest,
                [
                    vec![
                        "--endpoint=4".to_owned(),
                        "--listen".to_owned(),
                        text(&guest),
                    ],
                    server,
                ]
                .concat(),
            ),
        ] {
            let (mut program, mut line) = (dvk.as_path(), vec![name.to_owned()]);
            match &self.programs.servers {
                Some(_) if name == "switch" => continue,
                Some(servers) if name == "serve" => {
                    program = Path::new("nsenter");
                    let there = format!("--net={}", servers.display());
                    line = vec![there, "--".to_owned(), text(dvk), name.to_owned()];
                }
                _ => {}
            }
            line.extend(arguments);
            let program = self.start_server(program, &line, &format!("{name}{id}"), socket)?;
            self.tunnels.lock().push(program);
        }
        Ok(())
    }

    /// Starts a program that listens at `socket`, and waits until it does.
    fn start_server(
        &self,
        program: &Path,
        arguments: &[String],
        name: &str,
        socket: &Path,
    ) -> Result<Program> {
        // A killed program leaves its socket behind.
        let _ = fs::remove_file(socket);
        let log = self.path(format!("{name}.log"));
        let mut server = Program::start(&self.kernel, program, arguments, &log)?;
        let started = wait::until("the program listens", LIMIT, || {
            let is_ready = server.listens(socket);
            if !is_ready && let Some(status) = server.ended()? {
                bail!("{name} has ended: {status}");
            }
            Ok(is_ready)
        });
        started.with_context(|| server.log())?;
        Ok(server)
    }

    /// Starts the daemons of all devices.
    ///
    /// # Errors
    /// As [`Fixture::start_daemon`].
    pub fn start_daemons(&self) -> Result<Vec<Program>> {
        (0..self.kernel.devices.len())
            .map(|id| self.start_daemon(id))
            .collect()
    }

    /// Ends the device model, and fails if it ever broke a rule.
    ///
    /// # Errors
    /// With what it did.
    pub fn finish(&self, mut frontend: Program) -> Result<()> {
        ensure!(
            frontend.ended()?.is_none(),
            "the device model has ended by itself"
        );
        for device in &self.kernel.devices {
            let left = device.unanswered();
            ensure!(
                left == (0, 0),
                "device {}: {left:?} accesses are unanswered",
                device.id
            );
        }
        self.kernel.check()?;
        let status = frontend.stop()?;
        ensure!(status.success(), "the device model ended with {status}");
        self.kernel.check()
    }

    /// The logs of all processes, for error messages.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let names = [
            "frontend.log",
            "daemon0.log",
            "daemon1.log",
            "daemon2.log",
            "serve0.log",
            "tunnel0.log",
        ];
        for name in names {
            if let Ok(log) = fs::read_to_string(self.path(name)) {
                let lines: Vec<&str> = log.lines().collect();
                let last = lines.len().saturating_sub(60);
                let end = lines.get(last..).unwrap_or_default().join("\n");
                let _ = writeln!(text, "--- {name}, its end:\n{end}");
            }
        }
        text
    }
}

/// Ends every process that this one has started or adopted: see [`adopt`].
pub fn end_all() {
    // A killed process may leave children to this process.
    while let Some(child) = children_of(rustix::process::getpid()).next() {
        let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
        let _ = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
    }
}

fn children_of(parent: Pid) -> impl Iterator<Item = Pid> {
    let parent = parent.as_raw_nonzero().get().cast_unsigned();
    let children = process::children(parent).unwrap_or_default();
    let pid = |child| Pid::from_raw(i32::try_from(child).ok()?);
    children.into_iter().filter_map(pid)
}

/// Makes this process the parent of descendants that lose theirs.
///
/// # Errors
/// The kernel is too old.
pub fn adopt() -> Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(
        rustix::process::getpid(),
    ))?)
}
