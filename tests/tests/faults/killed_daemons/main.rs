//! All processes of the daemon are killed at once, and the next daemon serves its guests: they see
//! a pause.

mod relayed;

use std::ffi::{CStr, CString};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{GetattrIn, Handle, NodeId, Operation};
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::driver::fixture::wait_for_log;
use gangplank_tests::driver::{Driver, NodeAndFile, Setup};
use gangplank_tests::process::{User, with_descendants};
use gangplank_tests::service_manager::ServiceManager;
use gangplank_tests::wait;
use rustix::fs::{FlockOperation, OFlags, fcntl_lock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Times that everything is killed.
const KILLS: usize = 5;

/// The same for sandboxes other than the default one: all at once, and one by one.
const FEW_KILLS: usize = 2;

/// Inodes that a guest knows.
const FILES: usize = 300;

/// A guest's owner of locks.
const OWNER: u64 = 7;

/// `F_WRLCK` (asm-generic/fcntl.h).
const WRITE_LOCK: u32 = 1;

/// `F_UNLCK` (asm-generic/fcntl.h).
const UNLOCK: u32 = 2;

/// Descriptors that the service manager holds.
const CAPACITY: usize = 4096;

const GETATTR: Operation<'static> = Operation::Getattr(GetattrIn {
    getattr_flags: 0,
    dummy: 0,
    fh: 0,
});

/// A daemon of a service manager.
struct Service {
    manager: ServiceManager,
    options: Options,
    daemon: Daemon,
    share: TempDir,
}

impl Service {
    fn start(arguments: &[&str], user: Option<User>) -> Result<Self> {
        Self::with_capacity(CAPACITY, arguments, user)
    }

    fn with_capacity(capacity: usize, arguments: &[&str], user: Option<User>) -> Result<Self> {
        let share = tempfile::tempdir()?;
        fs::set_permissions(share.path(), Permissions::from_mode(0o755))?;
        let manager = ServiceManager::new(capacity)?;
        let mut options = manager.options(share.path()).arguments(arguments);
        if let Some(user) = user {
            chown(share.path(), Some(user.uid), Some(user.gid))?;
            options = options.user(user);
        }
        let daemon = Daemon::start(&options)?;
        wait_for_log(&daemon, "waiting for guests")?;
        Ok(Self {
            manager,
            options,
            daemon,
            share,
        })
    }

    /// Kills all processes and starts the daemon again.
    fn restart(&mut self) -> Result<()> {
        self.manager.restart(&mut self.daemon, &self.options)
    }

    /// Kills the processes one after the other, the first one first or last.
    fn kill_one_by_one(&self, is_first: bool) {
        let mut processes = with_descendants(self.daemon.pid());
        if !is_first {
            processes.reverse();
        }
        for process in processes {
            let process = i32::try_from(process).ok().and_then(Pid::from_raw);
            // It may have ended with another.
            let _ = process.map(|process| kill_process(process, Signal::KILL));
        }
    }

    /// Waits until nothing but `names` is held.
    fn wait_until_held(&self, names: &[&str]) -> Result<()> {
        let what = format!("nothing but {names:?} is held");
        let waited = wait::until(&what, Duration::from_secs(60), || {
            Ok(self.manager.names() == names)
        });
        waited.with_context(|| format!("{:?}", self.manager.names()))
    }
}

/// What a guest knows and has open.
struct Session {
    driver: Driver,
    name: &'static str,
    known: Vec<NodeId>,
    below: NodeId,
    listed: Handle,
    /// What was listed, and from where to go on.
    names: (Vec<Vec<u8>>, u64),
    unlinked: NodeAndFile,
    locked: NodeAndFile,
    moved: NodeAndFile,
    written: u64,
}

impl Session {
    fn begin(service: &Service, name: &'static str) -> Result<Self> {
        Self::of(
            Driver::mount(service.daemon.socket(), &Setup::default())?,
            name,
        )
    }

    fn of(mut driver: Driver, name: &'static str) -> Result<Self> {
        let name_of = |what: &str| CString::new(format!("{name}-{what}"));
        let (gone, locked) = (name_of("unlinked")?, name_of("locked")?);
        let unlinked = driver.create(NodeId::ROOT, &gone, 0o644)?;
        driver.write(unlinked, 0, b"still here")?;
        driver.unlink(NodeId::ROOT, &gone)?;
        let locked = driver.create(NodeId::ROOT, &locked, 0o644)?;
        driver.setlk(locked, OWNER, WRITE_LOCK)?;
        let (old, new) = (name_of("old")?, name_of("new")?);
        let directory = NodeId::new(driver.mkdir(NodeId::ROOT, &old)?.nodeid);
        let below = NodeId::new(driver.mkdir(directory, c"below")?.nodeid);
        let known = (0..FILES).map(|number| {
            let file = driver.create(below, &file_name(number)?, 0o644)?;
            driver.release(file)?;
            Ok(file.node)
        });
        let known = known.collect::<Result<Vec<_>>>()?;
        driver.rename((NodeId::ROOT, &old), (NodeId::ROOT, &new), 0)?;
        let moved = driver.create(below, c"file", 0o644)?;
        driver.rename((below, c"file"), (directory, c"moved"), 0)?;
        let listed = driver.opendir(below)?;
        let names = driver.readdir(below, listed, 0, 4096)?;
        Ok(Self {
            driver,
            name,
            known,
            below,
            listed,
            names,
            unlinked,
            locked,
            moved,
            written: 0,
        })
    }

    /// All that the guest has is what it was.
    fn check(&mut self, share: &Path) -> Result<()> {
        let content = self.driver.read(self.unlinked, 0, 64)?;
        ensure!(content == b"still here", "{content:?}");
        for node in &self.known {
            self.driver.getattr(*node, None).context("a known file")?;
        }
        let again = self.driver.lookup(self.below, &file_name(7)?)?;
        ensure!(NodeId::new(again.nodeid) == self.known[7], "another node");
        for (file, name) in [
            (self.locked, format!("{}-locked", self.name)),
            (self.moved, format!("{}-new/moved", self.name)),
        ] {
            self.driver.write(file, self.written, b"line\n")?;
            let path = share.join(name);
            ensure!(fs::metadata(&path)?.len() == self.written + 5, "{path:?}");
        }
        self.written += 5;
        let path = share.join(format!("{}-locked", self.name));
        let file = File::options().read(true).write(true).open(path)?;
        ensure!(is_locked(&file)?, "the lock is lost");
        self.go_on_listing()
    }

    /// Lists the rest of the directory, from where it stood.
    fn go_on_listing(&mut self) -> Result<()> {
        let (names, offset) = &mut self.names;
        loop {
            let (more, next) = self
                .driver
                .readdir(self.below, self.listed, *offset, 4096)?;
            if more.is_empty() {
                break;
            }
            names.extend(more);
            *offset = next;
        }
        let listed = names.iter().filter(|name| name.starts_with(b"file-"));
        let mut listed: Vec<_> = listed.collect();
        listed.sort();
        listed.dedup();
        ensure!(listed.len() == FILES, "{} files are listed", listed.len());
        Ok(())
    }
}

fn file_name(number: usize) -> Result<CString> {
    Ok(CString::new(format!("file-{number}"))?)
}

/// Whether another open file has a lock on the file.
fn is_locked(file: &File) -> Result<bool> {
    match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(true),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(false),
    }
}

fn as_users() -> Vec<Option<User>> {
    match User::is_root() {
        true => vec![None, Some(User::NOBODY)],
        false => vec![None],
    }
}

#[test]
fn guests_go_on_after_everything_was_killed() -> Result<()> {
    for user in as_users() {
        // Without root, and in a changed root, files are found again by name.
        for sandbox in ["namespace", "chroot", "none"] {
            if sandbox == "chroot" && (user.is_some() || !User::is_root()) {
                continue;
            }
            let kills = match sandbox {
                "namespace" => KILLS,
                _ => FEW_KILLS,
            };
            let sandbox = format!("--sandbox={sandbox}");
            let mut service = Service::start(&[&sandbox, "--locks=host"], user)?;
            let outcome = (|| -> Result<()> {
                let mut first = Session::begin(&service, "first")?;
                let mut second = Session::begin(&service, "second")?;
                for kill in 0..kills {
                    if kill > 0 {
                        service.kill_one_by_one(kill % 2 == 0);
                    }
                    service.restart()?;
                    first.check(service.share.path())?;
                    second.check(service.share.path())?;
                }
                // A guest that connects now is held as well.
                let mut third = Session::begin(&service, "third")?;
                drop(second);
                wait_for_log(&service.daemon, "guest 2 has gone")?;
                service.restart()?;
                first.check(service.share.path())?;
                third.check(service.share.path())?;
                drop((first, third));
                wait_for_log(&service.daemon, "guest 3 has gone")?;
                let is_ordinary = user.is_some() || !User::is_root();
                match is_ordinary && sandbox.ends_with("namespace") {
                    true => service.wait_until_held(&["guest-users"]),
                    false => service.wait_until_held(&[]),
                }
            })();
            outcome.with_context(|| format!("{sandbox} {user:?}\n{}", service.daemon.log()))?;
        }
    }
    Ok(())
}

#[test]
fn requests_in_flight_are_answered_once() -> Result<()> {
    let mut service = Service::start(&["--locks=host"], None)?;
    let mount = || Driver::mount(service.daemon.socket(), &Setup::default());
    let guests = [mount()?, mount()?];
    let restarted = answer_once_across_restarts(guests, || service.restart());
    restarted.with_context(|| service.daemon.log())
}

/// Restarts the daemon while one of its two guests has requests in flight, and waits for a lock of
/// the other.
fn answer_once_across_restarts(
    [mut guest, mut other]: [Driver; 2],
    mut restart: impl FnMut() -> Result<()>,
) -> Result<()> {
    let file = guest.create(NodeId::ROOT, c"file", 0o644)?;
    let node = NodeId::new(other.lookup(NodeId::ROOT, c"file")?.nodeid);
    let others = NodeAndFile {
        node,
        file: other.open(node, OFlags::RDWR | OFlags::LARGEFILE)?,
    };
    for _ in 0..KILLS {
        other.setlk(others, OWNER, WRITE_LOCK)?;
        let waiting = guest.submit_setlkw(1, file, OWNER, WRITE_LOCK)?;
        let asked = (0..32)
            .map(|_| guest.submit(1, NodeId::ROOT, GETATTR, &[], 256))
            .collect::<Result<Vec<_>, _>>()?;
        restart()?;
        // The driver fails if one comes back twice.
        for ticket in asked {
            guest.finish(ticket)?;
        }
        ensure!(!guest.is_finished(&waiting)?, "the lock is another's");
        other.setlk(others, OWNER, UNLOCK)?;
        guest.finish(waiting)?;
        guest.setlk(file, OWNER, UNLOCK)?;
    }
    Ok(())
}

#[test]
fn a_restart_keeps_guests_and_a_stop_ends_them() -> Result<()> {
    let mut service = Service::start(&["--locks=host"], None)?;
    let mut guest = Session::begin(&service, "guest")?;
    for _ in 0..2 {
        service.daemon.terminate()?;
        service.restart()?;
        guest
            .check(service.share.path())
            .with_context(|| service.daemon.log())?;
    }
    service.daemon.terminate()?;
    ensure!(!service.manager.names().is_empty(), "nothing is held");
    service.manager.stop();
    guest.driver.peer.wait_for_hang_up()?;
    Ok(())
}

#[test]
fn a_reload_keeps_guests_held() -> Result<()> {
    let mut service = Service::start(&["--locks=host"], None)?;
    let mut guest = Session::begin(&service, "guest")?;
    for _ in 0..2 {
        service.daemon.reload()?;
        guest.check(service.share.path())?;
        let name: &CStr = c"after the reload";
        let gone = guest.driver.create(NodeId::ROOT, name, 0o644)?;
        guest.driver.write(gone, 0, b"also")?;
        guest.driver.unlink(NodeId::ROOT, name)?;
        service.restart()?;
        let outcome = guest.check(service.share.path());
        outcome.with_context(|| service.daemon.log())?;
        ensure!(guest.driver.read(gone, 0, 64)? == b"also");
    }
    drop(guest);
    service.wait_until_held(&[])
}

#[test]
fn without_room_in_the_store_a_guest_ends_with_the_daemon_and_the_next_one_serves() -> Result<()> {
    let mut service = Service::with_capacity(6, &[], None)?;
    let guest = Driver::mount(service.daemon.socket(), &Setup::default())?;
    wait_for_log(&service.daemon, "raise FileDescriptorStoreMax=")?;
    service.restart()?;
    wait_for_log(&service.daemon, "were not held")?;
    drop(guest);
    let mut next = Driver::mount(service.daemon.socket(), &Setup::default())?;
    next.getattr(NodeId::ROOT, None)?;
    Ok(())
}
