//! Resolves path names to nodes by one look-up for each name, and never leaves the root.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gangplank_driver::FuseSession;
use gangplank_fuse::{Attr, EntryOut, NodeId};
use parking_lot::Mutex;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::cache::{Cache, CacheLimits};
use super::credentials::{Access, Credentials};
use super::failure::Result;
use super::path::{Names, PATH_MAX, Path};

/// Limit of links in one path, after which it counts as a loop (`MAXSYMLINKS` of Linux).
const MAX_SYMLINKS: usize = 40;

/// Limit of names in one path, including those in links: as many as the longest path has, for each
/// link.
const MAX_NAMES: usize = MAX_SYMLINKS * PATH_MAX / 2;

/// A node of the share with one reference, which is dropped with it.
#[derive(Debug)]
pub(super) struct Node {
    session: FuseSession,
    id: NodeId,
}

impl Node {
    pub(super) const fn id(&self) -> NodeId {
        self.id
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A lost daemon is reported by the next request.
        let _ = self.session.forget(self.id, 1);
    }
}

/// A node and its attributes at the time of the look-up.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) node: Arc<Node>,
    pub(super) attr: Attr,
}

impl Found {
    pub(super) fn id(&self) -> NodeId {
        self.node.id
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.attr.mode)
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind() == FileType::Directory
    }
}

/// How symbolic links are served.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SymlinkPolicy {
    /// They are shown as links and cannot be read, because the client does not say where its buffer
    /// is.
    #[default]
    Refuse,
    /// The server follows them, so the client sees their targets. A dangling link is shown as a
    /// link.
    Follow,
    /// They are shown as links, and read to the buffer that a patched client names.
    Patched,
}

/// Whether the last name of a path is followed if it is a link, where links are followed at all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Last {
    Follow,
    Keep,
}

/// The purpose of a look-up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum LookupGoal {
    /// The node at the end, with current attributes.
    Target(Last),
    /// The directory at the end, possibly from the cache.
    Parent,
}

/// The rules of look-ups.
#[derive(Clone, Copy, Debug)]
pub(super) struct LookupRules {
    pub(super) credentials: Credentials,
    pub(super) symlinks: SymlinkPolicy,
    pub(super) cache: CacheLimits,
}

/// Resolves paths beneath a directory of the share, in one session.
#[derive(Debug)]
pub(super) struct Resolver {
    session: FuseSession,
    rules: LookupRules,
    root: Arc<Node>,
    /// The cached attributes of the root, and until when they are valid.
    top: Mutex<Option<(Attr, Instant)>>,
    cache: Cache<Found>,
}

impl Resolver {
    /// A resolver beneath `root` of the share.
    ///
    /// # Errors
    ///
    /// The directory does not exist, or its path leads through a link.
    pub(super) fn open(session: &FuseSession, root: &Path, rules: LookupRules) -> Result<Self> {
        let top = Self {
            session: session.clone(),
            rules: LookupRules {
                // The operator chooses the directory, independent of the user's permissions.
                credentials: Credentials { uid: 0, gid: 0 },
                symlinks: SymlinkPolicy::Refuse,
                ..rules
            },
            root: Arc::new(Node {
                session: session.clone(),
                id: NodeId::ROOT,
            }),
            top: Mutex::default(),
            cache: Cache::new(rules.cache),
        };
        let found = top.find_names(root.names(), LookupGoal::Target(Last::Keep))?;
        if !found.is_directory() {
            return Err(Errno::NOTDIR.into());
        }
        Ok(Self {
            rules,
            root: found.node,
            top: Mutex::default(),
            ..top
        })
    }

    /// The file at `path`.
    pub(super) fn find(&self, path: &Path, last: Last) -> Result<Found> {
        // A slash behind a link means its target.
        let last = if path.means_directory() {
            Last::Follow
        } else {
            last
        };
        let found = self.find_names(path.names(), LookupGoal::Target(last))?;
        if path.means_directory() && !found.is_directory() {
            return Err(Errno::NOTDIR.into());
        }
        Ok(found)
    }

    /// The directory of `path`'s last name, and that name. Fails with `errno` if the path does not
    /// end in a name.
    pub(super) fn parent<'a>(&self, path: &'a Path, errno: Errno) -> Result<(Found, &'a CStr)> {
        let (before, name) = path.split_last().ok_or(errno)?;
        let parent = self.find_names(before, LookupGoal::Parent)?;
        self.check_search(&parent)?;
        Ok((parent, name))
    }

    /// The file `name` in a directory. `None` if it does not exist. Links are not followed.
    pub(super) fn child(&self, parent: &Found, name: &CStr) -> Result<Option<Found>> {
        match self.session.lookup(parent.id(), name) {
            // A daemon answers like this to say how long the name will not exist.
            Ok(entry) if entry.nodeid == 0 => Ok(None),
            Ok(entry) => {
                let found = self.found(&entry);
                if found.is_directory() {
                    let valid = validity(entry.entry_valid, entry.entry_valid_nsec);
                    self.cache.put(parent.id(), name.to_bytes(), &found, valid);
                }
                Ok(Some(found))
            }
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes over the reference that comes with `entry`.
    pub(super) fn found(&self, entry: &EntryOut) -> Found {
        Found {
            node: Arc::new(Node {
                session: self.session.clone(),
                id: NodeId::new(entry.nodeid),
            }),
            attr: entry.attr,
        }
    }

    /// Drops a changed name from the cache.
    pub(super) fn changed(&self, parent: &Found, name: &CStr) {
        self.cache.forget(parent.id(), name.to_bytes());
    }

    /// Whether the last name of a path is followed if it is a link.
    pub(super) const fn follows(&self) -> bool {
        matches!(self.rules.symlinks, SymlinkPolicy::Follow)
    }

    fn find_names(&self, names: Names<'_>, goal: LookupGoal) -> Result<Found> {
        let mut ahead: VecDeque<Cow<'_, CStr>> = names.iter().map(Cow::Borrowed).collect();
        let mut trail: Vec<Found> = Vec::new();
        let (mut symlinks, mut steps) = (0, 0);
        while let Some(name) = ahead.pop_front() {
            steps += 1;
            if steps > MAX_NAMES {
                return Err(Errno::LOOP.into());
            }
            if name.to_bytes() == b".." {
                // The parent of the root is the root.
                trail.pop();
                continue;
            }
            let here = match trail.last() {
                Some(here) => here.clone(),
                None => self.top(LookupGoal::Parent)?,
            };
            self.check_search(&here)?;
            let is_target = ahead.is_empty() && goal != LookupGoal::Parent;
            let known = if is_target {
                None
            } else {
                self.cache.get(here.id(), name.to_bytes())
            };
            let child = match known {
                Some(child) => child,
                None => self.child(&here, &name)?.ok_or(Errno::NOENT)?,
            };
            let kept = is_target && (goal == LookupGoal::Target(Last::Keep) || !self.follows());
            if kept || child.kind() != FileType::Symlink {
                trail.push(child);
                continue;
            }
            symlinks += 1;
            if symlinks > MAX_SYMLINKS || !self.follows() {
                return Err(Errno::LOOP.into());
            }
            let target = self.session.readlink(child.id())?;
            if target.starts_with(b"/") {
                trail.clear();
            }
            let names = target.split(|byte| *byte == b'/');
            let names = names.filter(|name| !matches!(*name, b"" | b"."));
            for name in names.rev() {
                let name = CString::new(name).map_err(|_| Errno::IO)?;
                ahead.push_front(Cow::Owned(name));
            }
        }
        match trail.pop() {
            Some(found) => Ok(found),
            None => self.top(goal),
        }
    }

    fn check_search(&self, directory: &Found) -> Result<()> {
        if !directory.is_directory() {
            return Err(Errno::NOTDIR.into());
        }
        self.check(directory, Access::SEARCH)
    }

    /// Checks that the user may access a node. Asks for its current attributes if the cached ones
    /// forbid it.
    pub(super) fn check(&self, found: &Found, access: Access) -> Result<()> {
        let credentials = self.rules.credentials;
        if credentials.check(&found.attr, access).is_ok() {
            return Ok(());
        }
        let attr = self.session.getattr(found.id(), None)?.attr;
        Ok(credentials.check(&attr, access)?)
    }

    /// The root, with current or cached attributes.
    fn top(&self, goal: LookupGoal) -> Result<Found> {
        let known = *self.top.lock();
        let attr = match known {
            Some((attr, until)) if goal == LookupGoal::Parent && Instant::now() < until => attr,
            _ => {
                let now = self.session.getattr(self.root.id, None)?;
                let valid = validity(now.attr_valid, now.attr_valid_nsec);
                let until = Instant::now() + valid.min(self.rules.cache.max_age);
                *self.top.lock() = Some((now.attr, until));
                now.attr
            }
        };
        Ok(Found {
            node: Arc::clone(&self.root),
            attr,
        })
    }
}

/// The validity that the daemon allows.
fn validity(seconds: u64, nanoseconds: u32) -> Duration {
    let nanoseconds = Duration::from_nanos(nanoseconds.into());
    Duration::from_secs(seconds).saturating_add(nanoseconds)
}
