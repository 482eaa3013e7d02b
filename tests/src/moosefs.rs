//! A cluster of MooseFS from Debian's packages, unpacked and not installed: a master and two chunk
//! servers on one host, and a mount on each of the others.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::mount::UnmountFlags;
use tempfile::TempDir;

use crate::hosts::{Hosts, SERVERS};
use crate::packages::{self, Arch};
use crate::process;
use crate::wait;

/// Limit for the cluster to store a file, or to go on after a server was started again.
const LIMIT: Duration = Duration::from_secs(60);

/// Chunk servers. Each file has a copy on both.
const CHUNK_SERVERS: usize = 2;

/// The programs, and the libraries that they need.
#[derive(Clone, Debug)]
pub struct Programs {
    master: PathBuf,
    empty_metadata: PathBuf,
    chunk_server: PathBuf,
    mount: PathBuf,
    libraries: String,
}

impl Programs {
    /// Fetches them.
    ///
    /// # Errors
    /// The packages cannot be had.
    pub fn fetch() -> Result<Self> {
        let unpacked = |package| packages::unpacked(package, Arch::Amd64);
        let (master, client) = (unpacked("moosefs-master")?, unpacked("moosefs-client")?);
        let libraries = ["libmfsio1", "libfuse3-3"]
            .map(|package| Ok(unpacked(package)?.join("usr/lib/x86_64-linux-gnu")));
        let mut path = Vec::new();
        for library in libraries {
            let library: Result<PathBuf> = library;
            let library = library?;
            // libfuse is in /lib.
            path.push(library.display().to_string());
            let text = path.last().cloned().unwrap_or_default();
            path.push(text.replace("/usr/lib/", "/lib/"));
        }
        Ok(Self {
            empty_metadata: master.join("var/lib/mfs/metadata.mfs.empty"),
            master: master.join("usr/sbin/mfsmaster"),
            chunk_server: unpacked("moosefs-chunkserver")?.join("usr/sbin/mfschunkserver"),
            mount: client.join("usr/bin/mfsmount"),
            libraries: path.join(":"),
        })
    }
}

/// A server that can be killed and started again.
struct Server {
    child: Child,
    log: PathBuf,
}

/// A mount on one of the hosts.
struct Mount {
    engine: Server,
    point: PathBuf,
}

/// A running cluster. Dropping it unmounts and ends everything.
pub struct Cluster {
    programs: Programs,
    /// Kept until all processes have ended.
    hosts: Hosts,
    master: Option<Server>,
    chunk_servers: Vec<Option<Server>>,
    mounts: Vec<Mount>,
    dir: TempDir,
}

impl Cluster {
    /// Starts a cluster with `mounts` hosts beside the servers' and waits until it stores files.
    ///
    /// # Errors
    /// It does not, with the logs of its programs.
    pub fn start(programs: &Programs, mounts: usize) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("moosefs-").tempdir()?;
        let mut cluster = Self {
            programs: programs.clone(),
            hosts: Hosts::new(mounts)?,
            master: None,
            chunk_servers: Vec::new(),
            mounts: Vec::new(),
            dir,
        };
        cluster.configure()?;
        cluster.start_master()?;
        for number in 0..CHUNK_SERVERS {
            cluster.chunk_servers.push(None);
            cluster.start_chunk_server(number)?;
        }
        for number in 0..mounts {
            cluster.mount(number, &format!("mount{number}"), "")?;
        }
        let first = cluster.path(0);
        cluster.wait_until("the cluster stores a file", || {
            let file = first.join("first");
            fs::write(&file, "first")
                .and_then(|()| fs::remove_file(&file))
                .is_ok()
        })?;
        Ok(cluster)
    }

    /// The mount on a host.
    #[must_use]
    pub fn path(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("mount{host}"))
    }

    /// Mounts the file system once more on a host, with an `mfsmount` of its own that has further
    /// options. Returns where.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn mount_again(&mut self, host: usize, options: &str) -> Result<PathBuf> {
        let name = format!("again{}", self.mounts.len());
        self.mount(host, &name, &format!(",{options}"))
    }

    /// Cuts the network between a host and the servers, or mends it. Other hosts keep theirs.
    ///
    /// # Errors
    /// There is no such host.
    pub fn cut(&self, host: usize, is_cut: bool) -> Result<()> {
        self.hosts.cut(host, is_cut)
    }

    /// Kills the master, as a crash does.
    pub fn kill_master(&mut self) {
        kill(&mut self.master);
    }

    /// Starts the master, which reads what the one before has logged, and waits until it serves.
    ///
    /// # Errors
    /// It does not.
    pub fn start_master(&mut self) -> Result<()> {
        let mut command = self.hosts.on_servers(&self.programs.master);
        command
            .args(["-f", "-a", "-c"])
            .arg(self.dir.path().join("master.cfg"));
        command.arg("start");
        let master = self.server("master", command)?;
        let log = master.log.clone();
        self.master = Some(master);
        self.wait_until("the master serves", || {
            let told = fs::read_to_string(&log).unwrap_or_default();
            told.contains("initialized properly")
        })
    }

    /// Kills a chunk server, as a crash does.
    pub fn kill_chunk_server(&mut self, number: usize) {
        if let Some(server) = self.chunk_servers.get_mut(number) {
            kill(server);
        }
    }

    /// Starts a chunk server.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_chunk_server(&mut self, number: usize) -> Result<()> {
        let mut command = self.hosts.on_servers(&self.programs.chunk_server);
        command
            .args(["-f", "-c"])
            .arg(self.dir.path().join(format!("chunks{number}.cfg")));
        command.arg("start");
        let server = self.server(&format!("chunks{number}"), command)?;
        *self
            .chunk_servers
            .get_mut(number)
            .context("no such server")? = Some(server);
        Ok(())
    }

    /// The ends of all logs.
    #[must_use]
    pub fn logs(&self) -> String {
        let servers = (self.master.iter())
            .chain(self.chunk_servers.iter().flatten())
            .chain(self.mounts.iter().map(|mount| &mount.engine));
        let ends = servers.map(|server| {
            let text = fs::read_to_string(&server.log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(8);
            format!("{}:\n{}", server.log.display(), lines[from..].join("\n"))
        });
        ends.collect::<Vec<_>>().join("\n")
    }

    fn configure(&self) -> Result<()> {
        let dir = self.dir.path();
        let common = "WORKING_USER = root\nWORKING_GROUP = root\nNICE_LEVEL = 0\n\
                      DISABLE_OOM_KILLER = 0\n";
        fs::create_dir(dir.join("master"))?;
        fs::copy(
            &self.programs.empty_metadata,
            dir.join("master/metadata.mfs"),
        )?;
        fs::write(
            dir.join("exports.cfg"),
            "* / rw,alldirs,admin,maproot=0:0\n",
        )?;
        fs::write(dir.join("topology.cfg"), "")?;
        fs::write(
            dir.join("master.cfg"),
            format!(
                "{common}DATA_PATH = {0}/master\nEXPORTS_FILENAME = {0}/exports.cfg\n\
                 TOPOLOGY_FILENAME = {0}/topology.cfg\nCHANGELOG_SAVE_MODE = 1\n",
                dir.display()
            ),
        )?;
        for number in 0..CHUNK_SERVERS {
            for name in [format!("chunks{number}"), format!("disk{number}")] {
                fs::create_dir(dir.join(name))?;
            }
            let disk = dir.join(format!("disk{number}"));
            fs::write(
                dir.join(format!("disk{number}.cfg")),
                format!("{}\n", disk.display()),
            )?;
            fs::write(
                dir.join(format!("chunks{number}.cfg")),
                format!(
                    "{common}DATA_PATH = {0}/chunks{number}\n\
                     HDD_CONF_FILENAME = {0}/disk{number}.cfg\n\
                     HDD_LEAVE_SPACE_DEFAULT = 1MiB\nMASTER_HOST = {SERVERS}\n\
                     CSSERV_LISTEN_PORT = {1}\nMASTER_RECONNECTION_DELAY = 1\n",
                    dir.display(),
                    9422 + number
                ),
            )?;
        }
        Ok(())
    }

    /// Mounts the file system on a host, without caches in the engine. `options` are further ones,
    /// each behind a comma.
    fn mount(&mut self, host: usize, name: &str, options: &str) -> Result<PathBuf> {
        let point = self.dir.path().join(name);
        fs::create_dir(&point)?;
        let mut command = self.hosts.on(host, &self.programs.mount)?;
        command
            .env("LD_LIBRARY_PATH", &self.programs.libraries)
            .args(["-f", "-H", SERVERS, "-o"])
            .arg(format!(
                "mfsattrcacheto=0,mfsentrycacheto=0,mfsdirentrycacheto=0,mfsnice=0,\
                 mfswritecachesize=32,mfsreadaheadsize=32{options}"
            ))
            .arg(&point);
        let engine = self.server(&format!("mfsmount-{name}"), command)?;
        self.mounts.push(Mount {
            engine,
            point: point.clone(),
        });
        self.wait_until("the file system is mounted", || is_mounted(&point))?;
        Ok(point)
    }

    fn server(&self, name: &str, mut command: Command) -> Result<Server> {
        let log = self.dir.path().join(format!("{name}.log"));
        let file = File::create(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = process::spawn(command).with_context(|| format!("starting {name}"))?;
        Ok(Server { child, log })
    }

    fn wait_until(&mut self, what: &str, is_so: impl Fn() -> bool) -> Result<()> {
        let waited = wait::until(what, LIMIT, || {
            let is_so = is_so();
            for mount in &mut self.mounts {
                wait::ready(&mut mount.engine.child, is_so).context("mfsmount")?;
            }
            Ok(is_so)
        });
        waited.with_context(|| self.logs())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for mount in &mut self.mounts {
            let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            let _ = rustix::mount::unmount(&mount.point, flags);
            process::kill_group(&mut mount.engine.child);
        }
        self.chunk_servers.iter_mut().for_each(kill);
        kill(&mut self.master);
    }
}

fn kill(server: &mut Option<Server>) {
    if let Some(mut server) = server.take() {
        process::kill_group(&mut server.child);
    }
}

fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let wanted = point.display().to_string();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(&wanted))
}
