//! Mounts a server's tree, and serves the mount until its end.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fuser::{Config, SessionACL};
use log::{debug, info};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::calls::Calls;
use super::dialect::Dialect;
use super::filesystem::Mounted;
use super::inode_ops::{InodeOps, Owner};
use super::rpc::{RpcClient, RpcEndpoints};
use crate::abi::{DcId, Endpoint};
use crate::endpoint::{Carrier, EndpointError};

/// Number of threads that take the kernel's requests: one asks the server, and the other copies
/// meanwhile.
const REQUEST_THREADS: usize = 2;

/// Time between two attempts to reach a server that is not available yet.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// What to mount, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory to mount on.
    pub mountpoint: PathBuf,
    /// The source that `/proc/mounts` shows.
    pub source: String,
    /// The container of both endpoints.
    pub dc: DcId,
    /// The client's endpoint.
    pub client: Endpoint,
    /// The server's endpoint.
    pub server: Endpoint,
    /// How long to wait for an answer, and for the server to appear.
    pub limit: Duration,
    /// The kind of server.
    pub dialect: Dialect,
    /// The owner of new files.
    pub owner: Owner,
    /// How long the kernel may cache names and attributes.
    pub cache_timeout: Duration,
    /// Whether this machine's kernel checks permissions by owners and modes. Otherwise the server's
    /// answer counts for all users.
    pub local_permissions: bool,
    /// Whether the mount is read-only.
    pub read_only: bool,
}

/// Why the mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The server does not answer.
    #[error("cannot reach an rhostfs server at endpoint {server} of container {dc}")]
    Server {
        /// Its endpoint.
        server: Endpoint,
        /// Its container.
        dc: DcId,
        /// The error of the last attempt.
        #[source]
        source: io::Error,
    },
    /// The mount's endpoint is in use, or the carrier refuses it.
    #[error("cannot be a client of an rhostfs server")]
    Endpoint(#[source] EndpointError),
    /// The directory cannot be mounted on.
    #[error("cannot mount on {}", mountpoint.display())]
    Mountpoint {
        /// The directory.
        mountpoint: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The kernel has no FUSE, or this process may not use it.
    #[error("cannot open /dev/fuse (is the module 'fuse' loaded?)")]
    Device(#[source] io::Error),
    /// The requests of the kernel cannot be served.
    #[error("cannot serve the kernel's file requests")]
    Kernel(#[source] io::Error),
}

/// What a mount takes of this machine, opened before the process is confined.
#[derive(Debug)]
pub(super) struct OpenMountpoint {
    /// The directory, without links.
    mountpoint: PathBuf,
    /// Its type and permission bits.
    mode: u32,
    /// The kernel's FUSE.
    device: File,
}

impl OpenMountpoint {
    /// Looks at the directory, and opens the kernel's FUSE.
    pub(super) fn new(path: &Path) -> Result<Self, MountError> {
        let wrong = |source| wrong(path, source);
        let mountpoint = fs::canonicalize(path).map_err(wrong)?;
        let metadata = fs::metadata(&mountpoint).map_err(wrong)?;
        if !metadata.is_dir() {
            // The kernel would mount the tree's root on a file, and no program could enter it.
            return Err(wrong(io::ErrorKind::NotADirectory.into()));
        }
        let device = File::options().read(true).write(true).open("/dev/fuse");
        Ok(Self {
            mountpoint,
            mode: metadata.mode(),
            device: device.map_err(MountError::Device)?,
        })
    }
}

fn wrong(mountpoint: &Path, source: io::Error) -> MountError {
    MountError::Mountpoint {
        mountpoint: mountpoint.to_owned(),
        source,
    }
}

/// An active mount.
pub struct MountSession {
    fuse: fuser::Session<Mounted>,
    mountpoint: PathBuf,
}

impl MountSession {
    /// Reaches the server through `carrier` and mounts its tree.
    ///
    /// # Errors
    ///
    /// [`MountError`] if the server does not answer in time, or the mount fails.
    pub fn start(options: &Options, carrier: Arc<dyn Carrier>) -> Result<Self, MountError> {
        Self::start_at(options, OpenMountpoint::new(&options.mountpoint)?, carrier)
    }

    /// As [`Self::start`], with what was opened before.
    pub(super) fn start_at(
        options: &Options,
        opened: OpenMountpoint,
        carrier: Arc<dyn Carrier>,
    ) -> Result<Self, MountError> {
        let endpoints = RpcEndpoints {
            dc: options.dc,
            client: options.client,
            server: options.server,
            limit: options.limit,
        };
        let end = Instant::now() + options.limit;
        let mut rpc = RpcClient::new(carrier, endpoints);
        bind(&mut rpc, end)?;
        let mut ops = InodeOps::new(Calls::new(rpc, options.dialect), options.owner);
        register_until(&mut ops, end).map_err(|error| MountError::Server {
            server: options.server,
            dc: options.dc,
            source: error.into(),
        })?;

        let OpenMountpoint {
            mountpoint,
            mode,
            device,
        } = opened;
        mount(options, &mountpoint, mode, &device)
            .map_err(|source| wrong(&options.mountpoint, source))?;

        let mut config = Config::default();
        config.n_threads = Some(REQUEST_THREADS);
        let mounted = Mounted::new(ops, options.cache_timeout);
        let served =
            fuser::Session::from_fd(mounted, OwnedFd::from(device), SessionACL::All, config);
        match served {
            Ok(fuse) => {
                info!("{} is mounted on {}", options.source, mountpoint.display());
                Ok(Self { fuse, mountpoint })
            }
            Err(error) => {
                detach(&mountpoint);
                Err(MountError::Kernel(error))
            }
        }
    }

    /// A handle that ends the mount from any thread.
    #[must_use]
    pub fn unmounter(&self) -> Unmounter {
        Unmounter {
            mountpoint: self.mountpoint.clone(),
        }
    }

    /// Serves the mount until `umount` or [`Self::unmounter`] ends it.
    ///
    /// # Errors
    ///
    /// [`MountError`] if the kernel's requests can no longer be read. The mount is removed then.
    pub fn run(self) -> Result<(), MountError> {
        let served = self.fuse.run();
        if served.is_err() {
            detach(&self.mountpoint);
        }
        info!("{} is unmounted", self.mountpoint.display());
        served.map_err(MountError::Kernel)
    }
}

/// Ends a mount.
#[derive(Clone, Debug)]
pub struct Unmounter {
    mountpoint: PathBuf,
}

impl Unmounter {
    /// Removes the mount even if it is in use. Programs with open files get errors from then on.
    pub fn unmount(&self) {
        match rustix::mount::unmount(&self.mountpoint, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::BUSY) => {
                info!(
                    "{} is in use; unmounting it anyway",
                    self.mountpoint.display()
                );
                detach(&self.mountpoint);
            }
            Err(error) => debug!("cannot unmount {}: {error}", self.mountpoint.display()),
        }
    }
}

/// Binds the client's endpoint, and retries until `end` while its carrier is not available. A
/// refused endpoint is not retried.
fn bind(rpc: &mut RpcClient, end: Instant) -> Result<(), MountError> {
    loop {
        match rpc.bind() {
            Err(EndpointError::NotConnected { .. } | EndpointError::TimedOut { .. })
                if Instant::now() + RETRY_INTERVAL < end =>
            {
                thread::sleep(RETRY_INTERVAL);
            }
            done => return done.map_err(MountError::Endpoint),
        }
    }
}

/// Registers at the server, and retries until `end` while the server is not available.
fn register_until(ops: &mut InodeOps, end: Instant) -> Result<(), Errno> {
    loop {
        match ops.register() {
            Err(Errno::NOTCONN | Errno::IO) if Instant::now() + RETRY_INTERVAL < end => {
                thread::sleep(RETRY_INTERVAL)
            }
            done => return done,
        }
    }
}

/// Mounts the kernel's side of `device`. It needs root, because no other user could serve all
/// users.
fn mount(options: &Options, mountpoint: &Path, mode: u32, device: &File) -> io::Result<()> {
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={},allow_other",
        device.as_raw_fd(),
        mode & 0o170_000,
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.local_permissions {
        data.push_str(",default_permissions");
    }
    // As on any network file system, the server's devices and set-user-id bits have no effect here.
    let mut flags = MountFlags::NODEV | MountFlags::NOSUID;
    if options.read_only {
        flags |= MountFlags::RDONLY;
    }
    let data = CString::new(data)?;
    rustix::mount::mount(
        options.source.as_str(),
        mountpoint,
        "fuse.rhostfs",
        flags,
        data.as_c_str(),
    )?;
    Ok(())
}

/// Ends the requests that wait on the mount, and removes it from its directory.
fn detach(mountpoint: &Path) {
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    if let Err(error) = rustix::mount::unmount(mountpoint, flags) {
        debug!(
            "cannot remove the mount at {}: {error}",
            mountpoint.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::mpsc;

    use super::super::fake_server::FakeServer;
    use super::*;

    /// A directory, and a mount of it through the fake server.
    struct Fixture {
        served: tempfile::TempDir,
        mounted: tempfile::TempDir,
        server: FakeServer,
        unmounter: Unmounter,
        ended: mpsc::Receiver<Result<(), MountError>>,
    }

    fn options(mountpoint: &Path, dialect: Dialect, limit: Duration) -> Options {
        Options {
            mountpoint: mountpoint.to_owned(),
            source: "fake".to_owned(),
            dc: DcId::new(0).unwrap(),
            client: Endpoint::from_raw(10),
            server: Endpoint::from_raw(1),
            limit,
            dialect,
            owner: Owner::Caller,
            cache_timeout: Duration::ZERO,
            local_permissions: true,
            read_only: false,
        }
    }

    /// A fixture, or `None` with a message if the user may not mount.
    fn fixture(dialect: Dialect) -> Option<Fixture> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("SKIPPED: takes root and /dev/fuse");
            return None;
        }
        let (served, mounted) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let server = FakeServer::new(served.path().to_owned(), dialect);
        let options = options(mounted.path(), dialect, Duration::from_secs(5));
        let session = MountSession::start(&options, Arc::new(server.clone())).unwrap();
        let unmounter = session.unmounter();
        let (sender, ended) = mpsc::channel();
        thread::spawn(move || sender.send(session.run()));
        Some(Fixture {
            served,
            mounted,
            server,
            unmounter,
            ended,
        })
    }

    impl Fixture {
        fn ends(&self) {
            let ended = self.ended.recv_timeout(Duration::from_secs(10));
            ended
                .expect("the session ends in time")
                .expect("the session ended without an error");
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            self.unmounter.unmount();
        }
    }

    #[test]
    fn a_mounted_directory_is_the_served_one() {
        let Some(fixture) = fixture(Dialect::Ours) else {
            return;
        };
        let (here, there) = (fixture.mounted.path(), fixture.served.path());
        fs::create_dir(here.join("dir")).unwrap();
        fs::write(here.join("dir/file"), "ahoy").unwrap();
        fs::rename(here.join("dir/file"), here.join("moved")).unwrap();
        fs::hard_link(here.join("moved"), here.join("linked")).unwrap();
        std::os::unix::fs::symlink("moved", here.join("symbolic")).unwrap();
        assert_eq!(fs::read_to_string(there.join("moved")).unwrap(), "ahoy");
        assert_eq!(fs::read_to_string(here.join("symbolic")).unwrap(), "ahoy");
        fs::write(there.join("theirs"), "also").unwrap();
        assert_eq!(fs::read_to_string(here.join("theirs")).unwrap(), "also");
        let mut names: Vec<_> = fs::read_dir(here)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["dir", "linked", "moved", "symbolic", "theirs"]);
        assert_eq!(
            fs::metadata(here.join("linked")).unwrap().ino(),
            fs::metadata(there.join("moved")).unwrap().ino()
        );
        fs::remove_dir(here.join("dir")).unwrap();
        fs::remove_file(here.join("linked")).unwrap();

        let kind = rustix::fs::statfs(here).unwrap();
        assert_eq!((kind.f_blocks, kind.f_namelen), (1000, 255));
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mount_line = format!("fake {} fuse.rhostfs rw,nosuid,nodev", here.display());
        assert!(mounts.contains(&mount_line), "{mount_line} in {mounts}");
        fixture.unmounter.unmount();
        fixture.ends();
        assert_eq!(fixture.server.state.lock().handles(), 0);
    }

    /// Keeps the promise that programs see all of a file, or an error, through the page cache.
    #[test]
    fn programs_read_and_write_all_or_see_an_error() {
        let Some(fixture) = fixture(Dialect::Ours) else {
            return;
        };
        let file = fixture.mounted.path().join("file");
        let data: Vec<u8> = (0..500_001_u32).map(|at| at.to_le_bytes()[1]).collect();
        fixture.server.state.lock().most = Some(5000);
        fs::write(&file, &data).unwrap();
        assert!(fs::read(fixture.served.path().join("file")).unwrap() == data);
        assert!(fs::read(&file).unwrap() == data);
        let fail = |call, after| {
            let mut state = fixture.server.state.lock();
            state.failing.insert(call, (after, 5));
        };
        // The kernel has no cached pages of this name.
        fs::copy(
            fixture.served.path().join("file"),
            fixture.served.path().join("other"),
        )
        .unwrap();
        fail(super::super::syscall_nr::PREAD64, 30);
        let read = fs::read(fixture.mounted.path().join("other"));
        assert_eq!(read.unwrap_err().raw_os_error(), Some(5));
        fail(super::super::syscall_nr::DUP2, 0);
        let written = File::options().write(true).open(&file).unwrap();
        written.write_all_at(b"x", 0).unwrap();
        let closed = nix::unistd::close(written);
        assert_eq!(closed, Err(nix::errno::Errno::EIO));
    }

    #[test]
    fn a_directory_in_use_is_unmounted_when_the_program_is_told_to_end() {
        let Some(fixture) = fixture(Dialect::Ours) else {
            return;
        };
        let held = File::create(fixture.mounted.path().join("held")).unwrap();
        fixture.unmounter.unmount();
        fixture.ends();
        assert!(held.write_at(b"x", 0).is_err());
        assert_eq!(fs::read_dir(fixture.mounted.path()).unwrap().count(), 0);
    }

    #[test]
    fn calls_to_a_silent_server_fail_and_unmounting_works() {
        let Some(fixture) = fixture(Dialect::Ours) else {
            return;
        };
        fixture.server.state.lock().silent = u32::MAX;
        assert!(fs::read_dir(fixture.mounted.path()).is_err());
        assert!(fs::metadata(fixture.mounted.path().join("x")).is_err());
        rustix::mount::unmount(fixture.mounted.path(), UnmountFlags::NOFOLLOW).unwrap();
        fixture.ends();
    }

    #[test]
    fn a_missing_server_fails_the_mount() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let server = FakeServer::new(dir.path().join("missing"), Dialect::Ours);
        let options = options(dir.path(), Dialect::Ours, Duration::from_millis(50));
        let refused = MountSession::start(&options, Arc::new(server)).map(drop);
        assert!(
            matches!(refused, Err(MountError::Server { .. })),
            "{refused:?}"
        );
    }
}
