//! The share as a tree of files.

use std::ffi::CString;
use std::ops::Range;
use std::rc::Rc;

use gangplank_fuse::{Attr, EntryOut, MkdirIn, MknodIn, SetattrIn, SetattrValid};
use rustix::fs::OFlags;

use super::super::error::{Error, Result};
use super::super::open_file::{OpenFile, refused};
use super::super::path::{Node, Share, join, text};
use super::super::replace::{Destination, NewFile};
use super::super::transfer::{Holes, WriteStart, Writer};
use super::{Entries, Identity, Item, Sink, Tree};
use crate as driver;

/// First part of the identity of the share's files, which no device number is.
const SHARE: u64 = u64::MAX;

/// A file of the share.
#[derive(Debug, Clone)]
pub(super) struct ShareFile {
    pub(super) node: Rc<Node>,
    pub(super) path: Vec<u8>,
}

impl ShareFile {
    fn shown(&self) -> String {
        text(&self.path)
    }

    /// Where a new file called `name` in this directory arrives.
    fn destination(&self, name: &[u8], old: Option<&Item<Self>>) -> Result<Destination> {
        let path = text(&join(&self.path, name));
        let there = old.map(|old| Rc::clone(&old.file.node));
        Ok(Destination::new(
            Rc::clone(&self.node),
            to_name(name)?,
            there,
            path,
        ))
    }
}

pub(super) fn item(node: Rc<Node>, path: Vec<u8>) -> Item<ShareFile> {
    Item {
        attr: node.attr,
        identity: identity(&node),
        file: ShareFile { node, path },
    }
}

/// A daemon gives a file the same node id as long as it is referenced.
const fn identity(node: &Node) -> Identity {
    (SHARE, node.id.get())
}

fn to_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Error::Path {
        path: text(name),
        why: "a name cannot hold a NUL",
    })
}

/// The share, for copies.
#[derive(Debug, Clone, Copy)]
pub(super) struct ShareTree<'s>(pub(super) &'s Share);

impl ShareTree<'_> {
    fn setattr(&self, file: &ShareFile, what: &'static str, args: SetattrIn) -> Result<()> {
        let set = self.0.session.setattr(file.node.id, args);
        set.map_err(|source| refused(what, &file.shown(), source))?;
        Ok(())
    }

    fn made(
        &self,
        entry: driver::Result<EntryOut>,
        directory: &ShareFile,
        name: &[u8],
    ) -> Result<Item<ShareFile>> {
        let path = join(&directory.path, name);
        let entry = entry.map_err(|source| refused("make", &text(&path), source))?;
        Ok(item(Rc::new(Node::of(&self.0.session, &entry)), path))
    }
}

impl Tree for ShareTree<'_> {
    type File = ShareFile;
    type New<'a>
        = NewFile<'a>
    where
        Self: 'a;

    fn path(&self, file: &ShareFile) -> String {
        file.shown()
    }

    fn child(&self, directory: &ShareFile, name: &[u8]) -> Result<Option<Item<ShareFile>>> {
        let path = join(&directory.path, name);
        let child = self.0.child(&directory.node, name, &text(&path))?;
        Ok(child.map(|node| item(Rc::new(node), path)))
    }

    fn refresh(&self, item: &Item<ShareFile>) -> Result<Item<ShareFile>> {
        let answer = self.0.session.getattr(item.file.node.id, None);
        let path = item.file.shown();
        let answer = answer.map_err(|source| refused("look at", &path, source))?;
        Ok(Item {
            attr: answer.attr,
            ..item.clone()
        })
    }

    fn entries(&self, directory: &ShareFile) -> Result<Entries<ShareFile>> {
        let entries = self.0.entries(&directory.node, &directory.shown())?;
        let named = entries.into_iter().map(|(name, node)| {
            let path = join(&directory.path, &name);
            (name, item(Rc::new(node), path))
        });
        Ok(named.collect())
    }

    fn target(&self, link: &ShareFile) -> Result<Vec<u8>> {
        self.0.target(&link.node, &link.shown())
    }

    fn read(
        &self,
        file: &ShareFile,
        range: Range<u64>,
        holes: Holes,
        sink: &mut Sink<'_>,
    ) -> Result<u64> {
        let path = file.shown();
        let opened = self.0.open_node(&file.node, OFlags::RDONLY, &path)?;
        let open = OpenFile::new(self.0, Rc::clone(&file.node), &opened, &path);
        let end = open.io().read_range(range, holes, sink)?;
        open.close()?;
        Ok(end)
    }

    fn make_directory(
        &self,
        directory: &ShareFile,
        name: &[u8],
        mode: u32,
    ) -> Result<Item<ShareFile>> {
        let args = MkdirIn { mode, umask: 0 };
        let made = self
            .0
            .session
            .mkdir(directory.node.id, &to_name(name)?, args);
        self.made(made, directory, name)
    }

    fn make_link(
        &self,
        directory: &ShareFile,
        name: &[u8],
        target: &[u8],
    ) -> Result<Item<ShareFile>> {
        let target = to_name(target)?;
        let made = self
            .0
            .session
            .symlink(directory.node.id, &to_name(name)?, &target);
        self.made(made, directory, name)
    }

    fn make_special(
        &self,
        directory: &ShareFile,
        name: &[u8],
        like: &Attr,
    ) -> Result<Item<ShareFile>> {
        let args = MknodIn {
            mode: like.mode,
            rdev: like.rdev,
            ..MknodIn::default()
        };
        let made = self
            .0
            .session
            .mknod(directory.node.id, &to_name(name)?, args);
        self.made(made, directory, name)
    }

    fn make_hard_link(&self, file: &ShareFile, directory: &ShareFile, name: &[u8]) -> Result<()> {
        let session = &self.0.session;
        let made = session.link(file.node.id, directory.node.id, &to_name(name)?);
        self.made(made, directory, name).map(drop)
    }

    fn rename(&self, directory: &ShareFile, from: &[u8], to: &[u8]) -> Result<()> {
        let node = directory.node.id;
        let session = &self.0.session;
        let renamed = session.rename(node, &to_name(from)?, node, &to_name(to)?);
        let path = text(&join(&directory.path, to));
        renamed.map_err(|source| refused("replace", &path, source))
    }

    fn remove(&self, directory: &ShareFile, name: &[u8], item: &Item<ShareFile>) -> Result<()> {
        let path = text(&join(&directory.path, name));
        let name = to_name(name)?;
        self.0
            .remove_node(&directory.node, &name, &item.file.node, &path)
    }

    fn begin(
        &self,
        directory: &ShareFile,
        name: &[u8],
        old: Option<&Item<ShareFile>>,
        mode: u32,
    ) -> Result<NewFile<'_>> {
        self.0.begin_new(directory.destination(name, old)?, mode)
    }

    fn resume(
        &self,
        directory: &ShareFile,
        name: &[u8],
        temporary: &[u8],
        partial: Option<(&Item<ShareFile>, u64)>,
        mode: u32,
    ) -> Result<NewFile<'_>> {
        let to = directory.destination(name, None)?;
        let partial = partial.map(|(partial, start)| (&partial.file.node, start));
        self.0.continue_new(to, to_name(temporary)?, partial, mode)
    }

    fn must_be_writable(&self, file: &ShareFile) -> Result<()> {
        self.0.must_be_writable(&file.node, &file.shown())
    }

    /// The umask is not the daemon's matter.
    fn mode_of_new(&self, mode: u32) -> u32 {
        mode
    }

    fn fill(
        &self,
        new: &mut NewFile<'_>,
        read: &mut dyn FnMut(&mut Sink<'_>) -> Result<u64>,
    ) -> Result<u64> {
        let mut writer = Writer::new(new.file()?.io(), WriteStart::At(0));
        let read = read(&mut |offset, data| {
            writer.skip_to(offset);
            writer.push(data)
        });
        // The file is not closed while the daemon still writes.
        let written = writer.finish();
        let len = read?;
        written?;
        Ok(len)
    }

    fn publish(
        &self,
        new: NewFile<'_>,
        len: u64,
        prepare: &mut dyn FnMut(&ShareFile) -> Result<()>,
    ) -> Result<()> {
        let path = new.path().as_bytes().to_vec();
        new.publish_with(len, |node| {
            let node = Rc::clone(node);
            prepare(&ShareFile { node, path })
        })
    }

    fn xattrs(&self, file: &ShareFile) -> Result<Vec<(CString, Vec<u8>)>> {
        self.0.xattrs(&file.node, &file.shown())
    }

    fn set_xattr(&self, file: &ShareFile, name: &CString, value: &[u8]) -> Result<()> {
        self.0.set_xattr(&file.node, name, value, &file.shown())
    }

    fn set_owner(&self, file: &ShareFile, uid: Option<u32>, gid: u32) -> Result<()> {
        let mut valid = SetattrValid::GID;
        valid.set(SetattrValid::UID, uid.is_some());
        let args = SetattrIn {
            valid: valid.bits(),
            uid: uid.unwrap_or_default(),
            gid,
            ..SetattrIn::default()
        };
        self.setattr(file, "set the owner of", args)
    }

    fn set_mode(&self, file: &ShareFile, mode: u32) -> Result<()> {
        let args = SetattrIn {
            valid: SetattrValid::MODE.bits(),
            mode,
            ..SetattrIn::default()
        };
        self.setattr(file, "set the permissions of", args)
    }

    fn set_times(&self, file: &ShareFile, like: &Attr) -> Result<()> {
        let args = SetattrIn {
            valid: (SetattrValid::ATIME | SetattrValid::MTIME).bits(),
            atime: like.atime,
            atimensec: like.atimensec,
            mtime: like.mtime,
            mtimensec: like.mtimensec,
            ..SetattrIn::default()
        };
        self.setattr(file, "set the times of", args)
    }
}
