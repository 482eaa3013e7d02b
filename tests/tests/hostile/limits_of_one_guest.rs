//! A guest that takes all that it may is refused more, and no other guest notices.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use gangplank_fuse::{MknodIn, NodeId, Operation};
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::disk::Disk;
use gangplank_tests::driver::fixture::SUBMOUNT;
use gangplank_tests::driver::neighbour::Neighbour;
use gangplank_tests::driver::{Driver, Setup, fixture};
use gangplank_tests::process::User;
use rustix::fs::OFlags;
use rustix::io::Errno;
use tempfile::TempDir;

/// A daemon with further `arguments`, a guest, and a neighbour that works all the time.
struct LimitedGuest {
    guest: Driver,
    neighbour: Neighbour,
    daemon: Daemon,
    /// A file system below the share.
    _submount: Option<Disk>,
    share: TempDir,
}

impl LimitedGuest {
    fn new(arguments: &[&str]) -> Result<Self> {
        Self::run_by(None, arguments)
    }

    /// The same with the daemon run by another user, to whom the share then belongs.
    fn run_by(user: Option<User>, arguments: &[&str]) -> Result<Self> {
        Self::start(user, |_| Ok(None), arguments)
    }

    /// The same with a file system in memory on the share's directory [`SUBMOUNT`]. Needs root.
    fn with_submount(arguments: &[&str]) -> Result<Self> {
        let mount = |share: &Path| {
            let mountpoint = share.join(SUBMOUNT);
            fs::create_dir(&mountpoint)?;
            Disk::tmpfs_at(&mountpoint, 8).map(Some)
        };
        Self::start(None, mount, arguments)
    }

    fn start(
        user: Option<User>,
        mount: impl FnOnce(&Path) -> Result<Option<Disk>>,
        arguments: &[&str],
    ) -> Result<Self> {
        let share = tempfile::tempdir()?;
        let submount = mount(share.path())?;
        let mut options = Options::new(share.path()).arguments(arguments);
        if let Some(user) = user {
            chown(share.path(), Some(user.uid), Some(user.gid))?;
            options = options.user(user);
        }
        let daemon = Daemon::start(&options)?;
        // The socket's file is there before the daemon listens.
        fixture::wait_for_log(&daemon, "waiting for guests")?;
        Ok(Self {
            neighbour: Neighbour::start(daemon.socket(), "neighbour")?,
            guest: Driver::mount(daemon.socket(), &Setup::default())?,
            daemon,
            _submount: submount,
            share,
        })
    }

    /// The guest is served, the neighbour too, and a third guest finds its way in.
    fn end(mut self) -> Result<()> {
        self.neighbour.wait_for_rounds(20)?;
        self.guest.getattr(NodeId::ROOT, None)?;
        let mut third = Driver::mount(self.daemon.socket(), &Setup::default())?;
        third.mkdir(NodeId::ROOT, c"third")?;
        self.neighbour.stop()?;
        Ok(())
    }

    fn log_has(&self, text: &str) -> Result<()> {
        fixture::wait_for_log(&self.daemon, text)
    }
}

#[test]
fn a_guest_that_removes_files_and_forgets_none_keeps_no_descriptors() -> Result<()> {
    let mut limited = LimitedGuest::new(&["--rlimit-nofile=512"])?;
    for n in 0..3000 {
        let name = CString::new(format!("file{n}"))?;
        let mknod = Operation::Mknod {
            args: MknodIn {
                mode: libc::S_IFREG | 0o644,
                ..MknodIn::default()
            },
            name: &name,
        };
        let made = limited.guest.call(NodeId::ROOT, mknod, &[], 4096);
        made.with_context(|| format!("file {n}"))?;
        limited.guest.unlink(NodeId::ROOT, &name)?;
    }
    limited.end()
}

#[test]
fn a_guest_that_opens_files_without_end_gets_enfile_and_can_look_up_others() -> Result<()> {
    let mut limited = LimitedGuest::new(&["--rlimit-nofile=512"])?;
    for n in 0..1000 {
        File::create(limited.share.path().join(format!("file{n}")))?;
    }
    let file = NodeId::new(limited.guest.lookup(NodeId::ROOT, c"file0")?.nodeid);
    let mut opened = 0;
    let refused = loop {
        match limited.guest.open(file, OFlags::RDONLY) {
            Ok(_) => opened += 1,
            Err(error) => break error.errno(),
        }
        ensure!(opened < 512, "more files are open than the limit permits");
    };
    ensure!(refused == Some(Errno::NFILE), "{refused:?}");
    ensure!(opened > 128, "only {opened} files could be opened");
    for n in 0..1000 {
        let name = CString::new(format!("file{n}"))?;
        limited.guest.lookup(NodeId::ROOT, &name)?;
    }
    limited.log_has("raise --rlimit-nofile")?;
    limited.end()
}

#[test]
fn a_guest_that_looks_up_files_without_end_gets_enomem() -> Result<()> {
    let mut limited = LimitedGuest::new(&["--max-inode-memory=256K"])?;
    for n in 0..4000 {
        File::create(limited.share.path().join(format!("file{n}")))?;
    }
    let mut found = Vec::new();
    let refused = loop {
        let name = CString::new(format!("file{}", found.len()))?;
        match limited.guest.lookup(NodeId::ROOT, &name) {
            Ok(entry) => found.push(NodeId::new(entry.nodeid)),
            Err(error) => break error.errno(),
        }
    };
    ensure!(refused == Some(Errno::NOMEM), "{refused:?}");
    ensure!(found.len() > 1000, "only {} files were found", found.len());
    if limited.guest.mkdir(NodeId::ROOT, c"new").is_ok() {
        bail!("a directory was made that the guest may not know");
    }
    ensure!(fs::symlink_metadata(limited.share.path().join("new")).is_err());
    limited.log_has("raise --max-inode-memory")?;
    for node in found.iter().take(100) {
        limited.guest.forget(*node, 1)?;
    }
    limited.guest.mkdir(NodeId::ROOT, c"new")?;
    limited.end()
}

/// The file system below the share is met when the guest has no descriptors left: its files are
/// remembered by handle all the same. A name would not lead to them any more.
#[test]
fn a_guest_without_descriptors_finds_files_by_handle_that_have_moved() -> Result<()> {
    const FILES: usize = 1000;

    if !User::is_root() {
        eprintln!("SKIPPED: only root can open files by handle");
        return Ok(());
    }
    let mut limited = LimitedGuest::with_submount(&["--rlimit-nofile=512"])?;
    File::create(limited.share.path().join("open"))?;
    let dir = limited.share.path().join(SUBMOUNT).join("before");
    fs::create_dir(&dir)?;
    for size in 0..FILES {
        File::create(dir.join(format!("file{size}")))?.set_len(size.try_into()?)?;
    }
    let open = NodeId::new(limited.guest.lookup(NodeId::ROOT, c"open")?.nodeid);
    let errno = loop {
        if let Err(error) = limited.guest.open(open, OFlags::RDONLY) {
            break error.errno();
        }
    };
    ensure!(errno == Some(Errno::NFILE), "{errno:?}");
    let mut parent = NodeId::ROOT;
    for name in [SUBMOUNT, "before"] {
        parent = NodeId::new(limited.guest.lookup(parent, &CString::new(name)?)?.nodeid);
    }
    let mut found = Vec::new();
    for size in 0..FILES {
        let name = CString::new(format!("file{size}"))?;
        let entry = limited.guest.lookup(parent, &name)?;
        found.push(NodeId::new(entry.nodeid));
    }
    let moved = limited.share.path().join(SUBMOUNT).join("after");
    fs::rename(&dir, &moved)?;
    for size in 0..FILES {
        let name = format!("file{size}");
        fs::rename(moved.join(&name), moved.join(format!("moved-{name}")))?;
    }
    for (size, node) in found.into_iter().enumerate() {
        let told = limited.guest.getattr(node, None);
        let told = told.with_context(|| format!("the file of {size} bytes"))?;
        ensure!(usize::try_from(told.attr.size)? == size, "{told:?}");
    }
    limited.end()
}

/// An ordinary user may not open files by handle, so the daemon finds them by name.
#[test]
fn an_ordinary_users_daemon_finds_more_files_than_it_has_descriptors() -> Result<()> {
    if !User::is_root() {
        eprintln!("SKIPPED: only root can run the daemon as another user");
        return Ok(());
    }
    let mut limited = LimitedGuest::run_by(Some(User::NOBODY), &["--rlimit-nofile=512"])?;
    let dir = limited.share.path().join("a/b/c");
    fs::create_dir_all(&dir)?;
    let mut parent = NodeId::ROOT;
    for name in [c"a", c"b", c"c"] {
        parent = NodeId::new(limited.guest.lookup(parent, name)?.nodeid);
    }
    let mut found = Vec::new();
    for n in 0..3000 {
        fs::write(dir.join(format!("file{n}")), vec![0; n])?;
        let name = CString::new(format!("file{n}"))?;
        let entry = limited.guest.lookup(parent, &name)?;
        found.push(NodeId::new(entry.nodeid));
    }
    fs::rename(
        limited.share.path().join("a"),
        limited.share.path().join("renamed"),
    )?;
    limited.guest.lookup(NodeId::ROOT, c"renamed")?;
    limited.guest.getattr(parent, None)?;
    for (n, node) in found.iter().enumerate() {
        let size = limited.guest.getattr(*node, None)?.attr.size;
        ensure!(usize::try_from(size)? == n, "file{n} has {size} bytes");
    }
    limited.end()
}
