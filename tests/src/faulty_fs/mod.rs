//! A FUSE file system in this process's memory that fails as a test says.
//!
//! It is mounted on a temporary directory of the host, so that a program and a daemon meet the same
//! faults by ordinary system calls. [`rules::Rule`]s describe the faults; a test sets and clears
//! them while it is mounted. Needs root and `/dev/fuse`.

pub mod rules;
mod serve;
#[cfg(test)]
mod tests;
mod transfers;
mod tree;

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use fuser::{Config, SessionACL};
use parking_lot::{Mutex, MutexGuard};
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use self::rules::{Call, Rule, Rules};
use self::serve::Served;
use self::tree::{ROOT, Tree};

/// Threads that serve the kernel's requests.
const THREADS: usize = 4;

/// What the host's kernel caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCache {
    /// Nothing: each read and write arrives here as it was made (`FOPEN_DIRECT_IO`).
    None,
    /// Data, in the page cache.
    Pages,
}

/// When the host's kernel writes its page cache back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostWrites {
    /// At once.
    Through,
    /// Later, so that fsync or close reports what fails (`FUSE_WRITEBACK_CACHE`).
    Back,
}

/// The function that a look-up of a trigger name calls, with that name.
type Hook = Box<dyn Fn(&str) + Send + Sync>;

/// A name prefix that is never a file, and what happens when such a name is looked up.
struct Trigger {
    prefix: String,
    hook: Hook,
}

/// The state that the serving threads and the test share.
struct Shared {
    tree: Mutex<Tree>,
    rules: Rules,
    direct: AtomicBool,
    trigger: Mutex<Option<Arc<Trigger>>>,
}

/// A handle on the file system, for a test's hooks and threads.
#[derive(Clone)]
pub struct Control(Arc<Shared>);

/// The mounted file system; unmounted when dropped.
pub struct FaultyFs {
    control: Control,
    mountpoint: PathBuf,
    session: Option<JoinHandle<()>>,
    /// Where the mount point is, if it was made for the file system.
    dir: Option<TempDir>,
}

impl FaultyFs {
    /// Mounts an empty file system.
    ///
    /// # Errors
    /// Without root or `/dev/fuse`.
    pub fn mount(cache: HostCache, writes: HostWrites) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("faulty-fs-").tempdir()?;
        let mountpoint = dir.path().join("mount");
        std::fs::create_dir(&mountpoint)?;
        let mut mounted = Self::mount_at(&mountpoint, cache, writes)?;
        mounted.dir = Some(dir);
        Ok(mounted)
    }

    /// Mounts an empty file system on the directory `mountpoint`, which must outlive it.
    ///
    /// # Errors
    /// As [`FaultyFs::mount`].
    pub fn mount_at(mountpoint: &Path, cache: HostCache, writes: HostWrites) -> Result<Self> {
        let shared = Arc::new(Shared {
            tree: Mutex::new(Tree::new()),
            rules: Rules::default(),
            direct: AtomicBool::new(cache == HostCache::None),
            trigger: Mutex::new(None),
        });
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .context("opening /dev/fuse")?;
        let data = CString::new(format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        ))?;
        rustix::mount::mount(
            "faulty-fs",
            mountpoint,
            "fuse.faulty",
            MountFlags::NODEV | MountFlags::NOSUID,
            data.as_c_str(),
        )
        .with_context(|| format!("mounting on {}", mountpoint.display()))?;
        let control = Control(shared);
        let mut mounted = Self {
            control: control.clone(),
            mountpoint: mountpoint.to_owned(),
            session: None,
            dir: None,
        };
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        let served = Served::new(control, writes);
        let device = OwnedFd::from(device);
        // Answers the kernel's INIT. On failure, dropping `mounted` unmounts.
        let session = fuser::Session::from_fd(served, device, SessionACL::All, config)
            .context("serving the kernel's file requests")?;
        mounted.session = Some(thread::spawn(move || {
            // The thread ends with the mount, with an error if a request was in flight.
            let _ = session.run();
        }));
        Ok(mounted)
    }

    /// The mount point.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// The handle for setting faults.
    #[must_use]
    pub const fn control(&self) -> &Control {
        &self.control
    }
}

impl Drop for FaultyFs {
    fn drop(&mut self) {
        // Otherwise a thread that waits would not end.
        self.control.clear();
        // Forced, so that a daemon that holds the mount in its own namespace does not block these
        // threads.
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        let _ = rustix::mount::unmount(&self.mountpoint, flags);
        if let Some(session) = self.session.take() {
            let _ = session.join();
        }
    }
}

impl Control {
    /// Chooses whether files opened from now on go through the host's page cache.
    pub fn set_cache(&self, cache: HostCache) {
        let direct = cache == HostCache::None;
        self.0.direct.store(direct, Ordering::SeqCst);
    }

    /// Adds a rule.
    pub fn set(&self, rule: Rule) {
        self.0.rules.add(rule);
    }

    /// Makes this the only rule.
    pub fn replace(&self, rule: Rule) {
        self.0.rules.replace(rule);
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.0.rules.clear();
    }

    /// How many requests of this kind have come since the mount or [`Control::reset_calls`].
    #[must_use]
    pub fn calls(&self, call: Call) -> u64 {
        self.0.rules.calls(call)
    }

    /// Resets the counts.
    pub fn reset_calls(&self) {
        self.0.rules.reset_calls();
    }

    /// Makes the file `name` in the root directory, or replaces its content.
    ///
    /// # Errors
    /// It is a directory.
    pub fn put(&self, name: &str, content: &[u8]) -> Result<()> {
        let mut tree = self.tree();
        tree.put(ROOT, name, content)
            .map_err(|errno| anyhow!("putting {name}: {errno}"))
    }

    /// Makes the directory `name` in the root directory with `entries` empty files, `entry-0000`
    /// and so on.
    ///
    /// # Errors
    /// The name is taken.
    pub fn put_directory(&self, name: &str, entries: usize) -> Result<()> {
        let mut tree = self.tree();
        tree.put_directory(name, entries)
            .map_err(|errno| anyhow!("putting {name}: {errno}"))
    }

    /// Sets an extended attribute of the file `name` in the root directory.
    ///
    /// # Errors
    /// There is no such file.
    pub fn put_xattr(&self, name: &str, attribute: &str, value: &[u8]) -> Result<()> {
        let mut tree = self.tree();
        tree.put_xattr(name, attribute, value)
            .map_err(|errno| anyhow!("setting {attribute} of {name}: {errno}"))
    }

    /// The content of the file `name` in the root directory, as a program on the host reads it
    /// without caches.
    ///
    /// # Errors
    /// There is no such file.
    pub fn content(&self, name: &str) -> Result<Vec<u8>> {
        let tree = self.tree();
        tree.content_of(name)
            .map(<[u8]>::to_vec)
            .map_err(|errno| anyhow!("reading {name}: {errno}"))
    }

    /// Removes the file `name` from the root directory, if it is there.
    pub fn remove(&self, name: &str) {
        let _ = self.tree().unlink(ROOT, name.as_ref());
    }

    /// Calls `hook` whenever a name with this prefix is looked up in the root directory. The name
    /// never exists. So a program in a guest can make the test prepare its next step.
    pub fn on_lookup(&self, prefix: &str, hook: impl Fn(&str) + Send + Sync + 'static) {
        let trigger = Trigger {
            prefix: prefix.to_owned(),
            hook: Box::new(hook),
        };
        *self.0.trigger.lock() = Some(Arc::new(trigger));
    }

    /// Runs the hook for `name`. Returns whether there is one.
    fn pull(&self, name: &str) -> bool {
        // Cloned, so that the hook may run long and set rules.
        let trigger = self.0.trigger.lock().clone();
        match trigger {
            Some(trigger) if name.starts_with(&trigger.prefix) => {
                (trigger.hook)(name);
                true
            }
            _ => false,
        }
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.0.tree.lock()
    }

    fn rules(&self) -> &Rules {
        &self.0.rules
    }

    fn is_direct(&self) -> bool {
        self.0.direct.load(Ordering::SeqCst)
    }
}
