//! Names that become symbolic links during look-ups. Nothing outside the share may be returned,
//! read or created.
//!
//! The links lead to a directory beside the share by its absolute path, and the daemon runs without
//! a sandbox, so that only the resolution of names confines it.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_fuse::{CreateIn, NodeId, Operation};
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::{Driver, NodeAndFile, Setup};
use gangplank_tests::process::User;
use rustix::fs::{OFlags, RenameFlags, renameat_with};

/// Minimum duration of each race.
const LENGTH: Duration = Duration::from_secs(3);

/// Limit for a race to show something on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// `RENAME_EXCHANGE` of renameat2(2).
const EXCHANGE: u32 = 2;

/// Content of files in the share, and of files outside.
const INSIDE: &[u8] = b"inside";
const OUTSIDE: &[u8] = b"OUTSIDE, where no guest may read";

/// A thread that swaps two names as fast as it can.
struct Swapper {
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Swapper {
    fn new(mut swap: impl FnMut() -> Result<()> + Send + 'static) -> Self {
        let (stop, swaps) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&swaps));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                swap()?;
                counted.fetch_add(1, Ordering::Relaxed);
                // An odd number of pauses, so that both states last long enough to be seen.
                thread::sleep(Duration::from_micros(
                    counted.load(Ordering::Relaxed) % 7 * 20,
                ));
            }
            Ok(())
        });
        Self {
            stop,
            swaps,
            thread: Some(thread),
        }
    }

    /// A program on the host swaps two names of a directory.
    fn on_the_host(dir: &Path, one: &'static str, other: &'static str) -> Result<Self> {
        let dir = File::open(dir)?;
        Ok(Self::new(move || {
            Ok(renameat_with(
                &dir,
                one,
                &dir,
                other,
                RenameFlags::EXCHANGE,
            )?)
        }))
    }

    /// A second guest swaps two names of the share's root.
    fn in_a_guest(fixture: &Fixture, one: &'static CStr, other: &'static CStr) -> Result<Self> {
        let mut guest = fixture.guest(&Setup::default())?;
        let root = NodeId::ROOT;
        Ok(Self::new(move || {
            Ok(guest.rename((root, one), (root, other), EXCHANGE)?)
        }))
    }

    fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result.context("the swapping thread failed")?,
            _ => bail!("the swapping thread panicked"),
        }
        Ok(self.swaps.load(Ordering::Relaxed))
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes `dir` and `file` in the share, the links `dir-link` and `file-link` to their counterparts
/// outside, and enough more files that the daemon closes descriptors that it held.
fn set_up(fixture: &Fixture, fillers: usize) -> Result<()> {
    for (base, content) in [(fixture.share(), INSIDE), (fixture.outside(), OUTSIDE)] {
        fs::create_dir(base.join("dir"))?;
        fs::write(base.join("dir/file"), content)?;
        fs::write(base.join("file"), content)?;
    }
    symlink(
        fixture.outside().join("dir"),
        fixture.share().join("dir-link"),
    )?;
    symlink(
        fixture.outside().join("file"),
        fixture.share().join("file-link"),
    )?;
    for index in 0..fillers {
        fs::write(fixture.share().join(format!("filler{index}")), "x")?;
    }
    Ok(())
}

/// Inode number, change time in seconds and nanoseconds, content.
type State = (u64, i64, i64, Vec<u8>);

/// The state of everything outside, by path.
fn state_outside(dir: &Path) -> Result<BTreeMap<PathBuf, State>> {
    let mut state = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        let content = if meta.is_file() {
            fs::read(&path)?
        } else {
            Vec::new()
        };
        if meta.is_dir() {
            state.extend(state_outside(&path)?);
        }
        // A directory's times show whether something was created in it.
        state.insert(path, (meta.ino(), meta.ctime(), meta.ctime_nsec(), content));
    }
    Ok(state)
}

/// What the guest has found.
#[derive(Debug, Default)]
struct Seen {
    directories: u64,
    links: u64,
    reads: u64,
    refusals: u64,
}

impl Seen {
    /// Whether it has found both kinds of names, and read files.
    const fn is_enough(&self) -> bool {
        self.directories >= 10 && self.links >= 10 && self.reads >= 10
    }
}

/// A guest that looks up, opens, reads, creates and removes names while they change. Whatever
/// succeeds must have been in the share.
struct Looker {
    guest: Driver,
    outside: Vec<u64>,
    seen: Seen,
    round: u64,
}

impl Looker {
    fn new(fixture: &Fixture) -> Result<Self> {
        let outside = state_outside(&fixture.outside())?;
        Ok(Self {
            guest: fixture.guest(&Setup::default())?,
            outside: outside.values().map(|(ino, ..)| *ino).collect(),
            seen: Seen::default(),
            round: 0,
        })
    }

    /// LOOKUP. Returns `None` if it fails, which is permitted.
    fn look(&mut self, parent: NodeId, name: &CStr) -> Result<Option<(NodeId, u32)>> {
        match self.guest.lookup(parent, name) {
            Ok(entry) if entry.nodeid == 0 => Ok(None),
            Ok(entry) => {
                ensure!(
                    !self.outside.contains(&entry.attr.ino),
                    "LOOKUP of {name:?} found inode {} from outside the share",
                    entry.attr.ino
                );
                Ok(Some((
                    NodeId::new(entry.nodeid),
                    entry.attr.mode & 0o170_000,
                )))
            }
            Err(error) => self.refused(error).map(|()| None),
        }
    }

    /// Accepts any errno, since names change, but no other error.
    fn refused(&mut self, error: gangplank_tests::driver::Error) -> Result<()> {
        self.seen.refusals += 1;
        match error.errno() {
            Some(_) => Ok(()),
            None => Err(error.into()),
        }
    }

    fn read(&mut self, node: NodeId) -> Result<()> {
        let file = match self.guest.open(node, OFlags::RDONLY) {
            Ok(file) => file,
            Err(error) => return self.refused(error),
        };
        let open = NodeAndFile { node, file };
        let content = self.guest.read(open, 0, 4096)?;
        ensure!(
            content == INSIDE,
            "READ gave {:?}",
            String::from_utf8_lossy(&content)
        );
        self.seen.reads += 1;
        Ok(self.guest.release(open)?)
    }

    fn round(&mut self, fillers: usize) -> Result<()> {
        self.round += 1;
        if let Some((dir, kind)) = self.look(NodeId::ROOT, c"dir")? {
            match kind {
                0o040_000 => self.seen.directories += 1,
                0o120_000 => self.seen.links += 1,
                kind => bail!("LOOKUP found a {kind:#o}"),
            }
            // Makes the daemon close the directory's descriptor, so that it has to find the
            // directory again.
            for index in 0..fillers {
                let name = CString::new(format!("filler{index}"))?;
                if let Some((node, _)) = self.look(NodeId::ROOT, &name)? {
                    self.guest.forget(node, u64::from(index % 3 == 0))?;
                }
            }
            self.within(dir)?;
            self.guest.forget(dir, 1)?;
        }
        if let Some((file, _)) = self.look(NodeId::ROOT, c"file")? {
            self.read(file)?;
            self.guest.forget(file, 1)?;
        }
        // CREATE of an existing name opens the file, and must not follow a link.
        let args = CreateIn {
            flags: (OFlags::CREATE | OFlags::RDWR).bits(),
            mode: 0o100_644,
            ..CreateIn::default()
        };
        match self.guest.call(
            NodeId::ROOT,
            Operation::Create {
                args,
                name: c"file",
            },
            &[],
            512,
        ) {
            Ok(payload) => {
                let (entry, opened) = gangplank_fuse::reply::decode_create(&payload)?;
                ensure!(
                    !self.outside.contains(&entry.attr.ino),
                    "CREATE opened a file from outside the share"
                );
                let open = NodeAndFile {
                    node: NodeId::new(entry.nodeid),
                    file: gangplank_fuse::Handle::new(opened.fh),
                };
                let content = self.guest.read(open, 0, 4096)?;
                ensure!(
                    content == INSIDE,
                    "CREATE opened {:?}",
                    String::from_utf8_lossy(&content)
                );
                self.guest.write(open, 0, INSIDE)?;
                self.guest.release(open)?;
                self.guest.forget(open.node, 1)?;
            }
            Err(error) => self.refused(error)?,
        }
        Ok(())
    }

    /// Works in the directory, whatever its name has become.
    fn within(&mut self, dir: NodeId) -> Result<()> {
        if let Some((file, _)) = self.look(dir, c"file")? {
            self.read(file)?;
            self.guest.forget(file, 1)?;
        }
        let name = CString::new(format!("made{}", self.round))?;
        match self.guest.create(dir, &name, 0o644) {
            Ok(made) => {
                self.guest.write(made, 0, INSIDE)?;
                self.guest.release(made)?;
                self.guest.forget(made.node, 1)?;
                match self.guest.unlink(dir, &name) {
                    Ok(()) => {}
                    Err(error) => self.refused(error)?,
                }
            }
            Err(error) => self.refused(error)?,
        }
        let name = CString::new(format!("sub{}", self.round))?;
        match self.guest.mkdir(dir, &name) {
            Ok(entry) => {
                self.guest.forget(NodeId::new(entry.nodeid), 1)?;
                if let Err(error) = self.guest.rmdir(dir, &name) {
                    self.refused(error)?;
                }
            }
            Err(error) => self.refused(error)?,
        }
        Ok(())
    }
}

/// Two guests work while `swapper` swaps. Afterwards nothing outside has changed.
fn race(fixture: Fixture, fillers: usize, swappers: Vec<Swapper>) -> Result<()> {
    let before = state_outside(&fixture.outside())?;
    let mut lookers = [Looker::new(&fixture)?, Looker::new(&fixture)?];
    let results: Vec<Result<()>> = thread::scope(|scope| {
        let started: Vec<_> = lookers
            .iter_mut()
            .map(|looker| {
                scope.spawn(move || {
                    let start = Instant::now();
                    // The guests must have found both kinds of names, or the race shows nothing.
                    while start.elapsed() < LENGTH
                        || !looker.seen.is_enough() && start.elapsed() < LIMIT
                    {
                        looker.round(fillers)?;
                    }
                    Ok(())
                })
            })
            .collect();
        started
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| bail!("a lookup thread panicked"))
            })
            .collect()
    });
    for swapper in swappers {
        ensure!(swapper.finish()? > 100, "the names were swapped too rarely");
    }
    for result in results {
        result.with_context(|| fixture.log())?;
    }
    for looker in &lookers {
        let seen = &looker.seen;
        ensure!(
            seen.is_enough(),
            "too few successful races: {seen:?}\n{}",
            fixture.log()
        );
    }
    ensure!(
        state_outside(&fixture.outside())? == before,
        "something outside the share has changed"
    );
    drop(lookers);
    fixture.survive(&[])
}

#[test]
fn links_swapped_in_on_the_host_lead_nowhere() -> Result<()> {
    let fixture = Fixture::quiet(&["--sandbox=none"])?;
    set_up(&fixture, 0)?;
    let swappers = vec![
        Swapper::on_the_host(&fixture.share(), "dir", "dir-link")?,
        Swapper::on_the_host(&fixture.share(), "file", "file-link")?,
    ];
    race(fixture, 0, swappers)
}

#[test]
fn links_swapped_in_by_another_guest_lead_nowhere() -> Result<()> {
    let fixture = Fixture::quiet(&["--sandbox=none"])?;
    set_up(&fixture, 0)?;
    let swappers = vec![
        Swapper::in_a_guest(&fixture, c"dir", c"dir-link")?,
        Swapper::in_a_guest(&fixture, c"file", c"file-link")?,
    ];
    race(fixture, 0, swappers)
}

/// The daemon finds inodes whose descriptors it closed by file handle or by path. It must not
/// follow links then either.
#[test]
fn links_swapped_in_lead_nowhere_when_inodes_are_found_again() -> Result<()> {
    // File handles need root; an ordinary user's daemon remembers paths.
    for user in [None, User::is_root().then_some(User::NOBODY)] {
        let arguments = [
            "--sandbox=none",
            "--rlimit-nofile=256",
            "--inode-file-handles=prefer",
        ];
        let mut fixture = Fixture::quiet_as(&arguments, user)?;
        set_up(&fixture, 200)?;
        // The daemon keeps a descriptor of the file system if file handles work on it.
        let mut guest = fixture.guest(&Setup::default())?;
        for index in 0..200 {
            guest.lookup(NodeId::ROOT, &CString::new(format!("filler{index}"))?)?;
        }
        drop(guest);
        fixture.settle()?;
        let swappers = vec![
            Swapper::on_the_host(&fixture.share(), "dir", "dir-link")?,
            Swapper::on_the_host(&fixture.share(), "file", "file-link")?,
        ];
        race(fixture, 200, swappers).with_context(|| format!("as {user:?}"))?;
    }
    Ok(())
}

/// A directory that moves within the share takes new files along, and is never left upwards.
#[test]
fn directories_that_move_are_never_left() -> Result<()> {
    let fixture = Fixture::quiet(&["--sandbox=none"])?;
    set_up(&fixture, 0)?;
    let share = fixture.share();
    fs::create_dir_all(share.join("a/b/c"))?;
    fs::create_dir(share.join("elsewhere"))?;
    let before = state_outside(&fixture.outside())?;
    let moved = share.clone();
    let swapper = Swapper::new(move || {
        fs::rename(moved.join("a/b"), moved.join("elsewhere/b"))?;
        fs::rename(moved.join("elsewhere/b"), moved.join("a/b"))?;
        Ok(())
    });
    let mut guest = fixture.guest(&Setup::default())?;
    let mut entered = 0;
    let start = Instant::now();
    while start.elapsed() < LENGTH || entered <= 10 && start.elapsed() < LIMIT {
        let mut node = NodeId::ROOT;
        let mut held = Vec::new();
        for name in [c"a", c"b", c"c"] {
            match guest.lookup(node, name) {
                Ok(entry) if entry.nodeid != 0 => node = NodeId::new(entry.nodeid),
                _ => break,
            }
            held.push(node);
        }
        if held.len() == 3 {
            entered += 1;
            let up = guest
                .lookup(node, c"..")
                .err()
                .and_then(|error| error.errno());
            ensure!(up == Some(rustix::io::Errno::INVAL), "LOOKUP of ..: {up:?}");
            if let Ok(made) = guest.create(node, c"made", 0o644) {
                guest.release(made)?;
                guest.forget(made.node, 1)?;
                guest.unlink(node, c"made")?;
            }
        }
        for node in held {
            guest.forget(node, 1)?;
        }
    }
    ensure!(swapper.finish()? > 100, "hardly anything was moved");
    ensure!(entered > 10, "the directory was entered {entered} times");
    ensure!(
        state_outside(&fixture.outside())? == before,
        "something outside the share has changed"
    );
    let left = fs::read_dir(share.join("a/b/c"))?.count();
    ensure!(left == 0, "{left} files are left in the directory");
    drop(guest);
    fixture.survive(&[])
}
