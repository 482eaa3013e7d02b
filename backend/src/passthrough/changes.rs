//! Changes that others make to the directories that the guest knows.
//!
//! The kernel tells them of each directory that is watched, also to a daemon without privileges.
//! They have the number of the process only if it is the calling one: so what the guest does itself
//! is left out, and what other guests' workers do is like what any program does.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use gangplank_fuse::{EntryOut, NodeId};
use gangplank_service::rate_limited;

use super::file_type::FileType;
use super::fs::PassthroughFs;
use crate::session::events::{Change, Kind, node::DIRECTORY_NAME};
use crate::session::file_system::{Attributes, Changes};
use crate::sys::{fanotify, file};

/// Bytes of events that are read at a time.
const BUFFER_LEN: usize = 64 * 1024;

impl Changes for PassthroughFs {
    fn watch(&self) -> io::Result<()> {
        let watched = &self.state.watched;
        if !self.share.options.events {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        if watched.is_active() {
            return Ok(());
        }
        let root = self.share.root.as_fd();
        let begun = watched
            .begin()
            .and_then(|()| watched.watch(self.share.proc_self_fd(), NodeId::ROOT, root));
        if let Err(error) = begun {
            rate_limited!(
                error,
                "the guest cannot hear of changes: {}",
                reason(&error)
            );
            watched.end();
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        self.watch_known();
        Ok(())
    }

    fn unwatch(&self) {
        self.state.watched.end();
    }

    fn changes_fd(&self) -> Option<BorrowedFd<'_>> {
        self.state.watched.watcher().map(AsFd::as_fd)
    }

    fn take_changes(&self, tell: &mut dyn FnMut(Change<'_>)) {
        let Some(watcher) = self.state.watched.watcher() else {
            return;
        };
        if self.state.watched.take_lost() {
            tell(Change::Lost);
        }
        let mut buffer = vec![0; BUFFER_LEN];
        // Directories are seldom renamed, and names come in groups.
        let mut paths = HashMap::new();
        let own = std::process::id().cast_signed();
        loop {
            match watcher.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    fanotify::events(bytes)
                        .filter(|event| event.pid != own)
                        .for_each(|event| self.tell_event(&event, &mut paths, tell));
                }
                Err(error) => {
                    rate_limited!(error, "cannot read changes of the share: {error}");
                    tell(Change::Lost);
                    return;
                }
            }
        }
    }

    fn known_entry(&self, id: NodeId) -> io::Result<EntryOut> {
        let attr = self.getattr(id, None)?.attr;
        self.state.inodes.add_lookup(id)?;
        Ok(EntryOut {
            nodeid: id.get(),
            attr,
            ..EntryOut::default()
        })
    }
}

impl PassthroughFs {
    /// Watches a directory that the guest has not known.
    pub(super) fn watch_new(&self, id: NodeId, directory: BorrowedFd<'_>) {
        let watched = &self.state.watched;
        if !watched.is_active() {
            return;
        }
        if watched.has_many_forgotten(self.state.inodes.len()) {
            self.watch_anew();
            return;
        }
        let tried = watched.watch(self.share.proc_self_fd(), id, directory);
        if let Err(error) = tried {
            self.not_watched(&error);
        }
    }

    /// Watches the directories that the guest knows, and no others.
    fn watch_anew(&self) {
        let watched = &self.state.watched;
        watched.clear();
        watched.lose();
        let root = self.share.root.as_fd();
        let tried = watched.watch(self.share.proc_self_fd(), NodeId::ROOT, root);
        if let Err(error) = tried {
            self.not_watched(&error);
        }
        self.watch_known();
    }

    fn watch_known(&self) {
        let known = self.state.inodes.known().into_iter();
        for inode in known.filter(|inode| inode.identity.file_type == FileType::Directory) {
            let Ok(node) = self.node(inode.id) else {
                continue;
            };
            let proc = self.share.proc_self_fd();
            let tried = self.state.watched.watch(proc, inode.id, node.as_fd());
            if let Err(error) = tried {
                self.not_watched(&error);
                if error.raw_os_error() == Some(libc::ENOSPC) {
                    return;
                }
            }
        }
    }

    fn not_watched(&self, error: &io::Error) {
        self.state.watched.lose();
        rate_limited!(
            warn,
            "a guest does not hear of the changes of a directory: {}",
            reason(error)
        );
    }

    /// Tells what an event says.
    fn tell_event(
        &self,
        event: &fanotify::Event<'_>,
        paths: &mut HashMap<NodeId, Option<Box<[u8]>>>,
        tell: &mut dyn FnMut(Change<'_>),
    ) {
        let Some((key, name)) = &event.place else {
            tell(Change::Lost);
            return;
        };
        let Some(id) = self.state.watched.node(key) else {
            return;
        };
        if id == NodeId::ROOT && *name == DIRECTORY_NAME {
            return;
        }
        let directory = paths.entry(id).or_insert_with(|| self.path_of(id));
        let Some(directory) = directory else {
            return;
        };
        let mut path = directory.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        if *name != b"." {
            path.extend(*name);
            if event.mask & libc::FAN_ONDIR != 0 {
                path.push(b'/');
            }
        } else if path.is_empty() {
            path.extend(b"./");
        }
        let has = |bits: u64| event.mask & bits != 0;
        let is_gone = has(libc::FAN_DELETE | libc::FAN_MOVED_FROM);
        let is_new = has(libc::FAN_CREATE | libc::FAN_MOVED_TO);
        // The kernel joins what happened to a name, and forgets the order.
        let exists = match is_gone && is_new || may_be_unnamed(name) {
            true => self.exists(id, name),
            false => !is_gone,
        };
        let happened = [
            (is_gone, Kind::Deleted),
            (is_new && exists, Kind::Created),
            (exists && has(libc::FAN_MODIFY), Kind::Modified),
            (exists && has(libc::FAN_ATTRIB), Kind::Attributes),
        ];
        for (has_happened, kind) in happened {
            if has_happened {
                tell(Change::Of(kind, &path));
            }
        }
    }

    /// Where a directory is; `None` if the guest has forgotten it or it has no name.
    fn path_of(&self, id: NodeId) -> Option<Box<[u8]>> {
        if id == NodeId::ROOT {
            return Some(Box::default());
        }
        let node = self.node(id).ok()?;
        self.share.path_in_share(node.as_fd()).ok()?
    }

    fn exists(&self, directory: NodeId, name: &[u8]) -> bool {
        let node = self.node(directory);
        node.is_ok_and(|node| {
            CString::new(name).is_ok_and(|name| file::stat_at(node.as_fd(), &name).is_ok())
        })
    }
}

/// Whether the kernel would call a file without a name so (`O_TMPFILE`; `d_mark_tmpfile`,
/// fs/dcache.c).
fn may_be_unnamed(name: &[u8]) -> bool {
    name.strip_prefix(b"#")
        .is_some_and(|number| number.iter().all(u8::is_ascii_digit))
}

/// Why changes are not heard of, for the operator.
fn reason(error: &io::Error) -> String {
    let advice = match error.raw_os_error() {
        Some(libc::ENOSPC) => "raise fs.fanotify.max_user_marks",
        Some(libc::EMFILE) => "raise fs.fanotify.max_user_groups",
        Some(libc::EACCES) => "the daemon's user may not list it",
        Some(libc::EOPNOTSUPP | libc::ENODEV | libc::EXDEV) => {
            "its file system has no file handles (overlayfs, for example)"
        }
        Some(libc::EINVAL | libc::ENOSYS) => "Linux 5.13 or later is needed",
        _ => return error.to_string(),
    };
    format!("{error}; {advice}")
}
