//! LOOKUP, REMOVE, RMDIR, RENAME, LINK.

use std::ffi::CString;
use std::sync::Arc;

use gangplank_driver::Pending;
use gangplank_fuse::{Attr, AttrOut, EntryOut};
use nfs3_types::nfs3::{
    LINK3resfail, LINK3resok, LOOKUP3resfail, LOOKUP3resok, Nfs3Option, REMOVE3resfail,
    REMOVE3resok, RENAME3resfail, RENAME3resok, nfsstat3, post_op_attr, wcc_data,
};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::attributes::{post_op, to_nfs, wcc};
use super::{Context, Decoded, MAX_TEXT, Object, handle};
use crate::identity::{EXECUTE, WRITE};
use crate::share::component;
use crate::share::connection::{Connection, Node};
use crate::share::error::{Failure, Result};
use crate::share::store::Place;
use crate::xdr::Reader;

/// What REMOVE and RMDIR remove.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Removal {
    File,
    Directory,
}

impl Context<'_> {
    pub(super) fn lookup(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let directory = self.object(handle(args)?);
        let name = args.opaque(MAX_TEXT)?;
        let mut dir_attributes = Nfs3Option::None;
        let done = directory.and_then(|directory| {
            let asked = directory.ask(name)?;
            let attr = asked.directory.wait()?.attr;
            dir_attributes = Nfs3Option::Some(to_nfs(&attr, directory.export()));
            let (node, attr) = directory.find(&attr, name, asked.entry)?;
            Ok(LOOKUP3resok {
                object: node.handle.to_nfs(),
                obj_attributes: Nfs3Option::Some(to_nfs(&attr, directory.export())),
                dir_attributes: std::mem::take(&mut dir_attributes),
            })
        });
        self.put(reply, done, LOOKUP3resfail { dir_attributes });
        Ok(())
    }

    pub(super) fn remove(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        self.remove_entry(args, reply, Removal::File)
    }

    pub(super) fn rmdir(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        self.remove_entry(args, reply, Removal::Directory)
    }

    fn remove_entry(
        &self,
        args: &mut Reader<'_>,
        reply: &mut Vec<u8>,
        removal: Removal,
    ) -> Decoded {
        let directory = self.changeable(handle(args)?);
        let name = args.opaque(MAX_TEXT)?;
        let mut failed = REMOVE3resfail::default();
        let done = directory.and_then(|directory| {
            let _lock = directory.share.lock(directory.handle());
            let asked = directory.ask(name)?;
            let before = asked.directory.wait()?.attr;
            let done = directory.remove(&before, name, asked.entry, removal);
            failed.dir_wcc = directory.wcc(Some(&before));
            done?;
            // RMDIR has the same results.
            Ok(REMOVE3resok {
                dir_wcc: std::mem::take(&mut failed.dir_wcc),
            })
        });
        self.put(reply, done, failed);
        Ok(())
    }

    pub(super) fn rename(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let from = self.changeable(handle(args)?);
        let old = args.opaque(MAX_TEXT)?;
        let to = self.changeable(handle(args)?);
        let new = args.opaque(MAX_TEXT)?;
        let mut failed = RENAME3resfail::default();
        let done = from.and_then(|from| {
            let to = to?;
            if from.export() != to.export() {
                return Err(nfsstat3::NFS3ERR_XDEV.into());
            }
            let _locks = from.share.lock_both(from.handle(), to.handle());
            let (asked_from, asked_to) = (from.ask(old)?, to.ask(new)?);
            let before_from = asked_from.directory.wait()?.attr;
            let before_to = asked_to.directory.wait()?.attr;
            let source = Named {
                directory: &from,
                attr: &before_from,
                name: old,
                asked: asked_from.entry,
            };
            let target = Named {
                directory: &to,
                attr: &before_to,
                name: new,
                asked: asked_to.entry,
            };
            let done = source.rename(target);
            let (after_from, after_to) = from.attributes_of_both(&to);
            let (after_from, after_to) = (after_from.ok(), after_to.ok());
            failed.fromdir_wcc = wcc(Some(&before_from), after_from.as_ref(), from.export());
            failed.todir_wcc = wcc(Some(&before_to), after_to.as_ref(), to.export());
            done?;
            Ok(RENAME3resok {
                fromdir_wcc: std::mem::take(&mut failed.fromdir_wcc),
                todir_wcc: std::mem::take(&mut failed.todir_wcc),
            })
        });
        self.put(reply, done, failed);
        Ok(())
    }

    pub(super) fn link(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let file = self.changeable(handle(args)?);
        let directory = self.changeable(handle(args)?);
        let name = args.opaque(MAX_TEXT)?;
        let mut failed = LINK3resfail {
            file_attributes: post_op_attr::None,
            linkdir_wcc: wcc_data::default(),
        };
        let done = file.and_then(|file| {
            let directory = directory?;
            if file.export() != directory.export() {
                return Err(nfsstat3::NFS3ERR_XDEV.into());
            }
            let _lock = directory.share.lock(directory.handle());
            let before = directory.attributes()?;
            let done = directory.link(&before, name, &file);
            let (of_file, after) = file.attributes_of_both(&directory);
            failed.file_attributes = post_op(of_file.ok().as_ref(), file.export());
            failed.linkdir_wcc = wcc(Some(&before), after.ok().as_ref(), directory.export());
            done?;
            Ok(LINK3resok {
                file_attributes: std::mem::take(&mut failed.file_attributes),
                linkdir_wcc: std::mem::take(&mut failed.linkdir_wcc),
            })
        });
        self.put(reply, done, failed);
        Ok(())
    }
}

/// Fails unless `attr` is of a directory.
pub(super) fn check_directory(attr: &Attr) -> std::result::Result<(), nfsstat3> {
    match FileType::from_raw_mode(attr.mode) {
        FileType::Directory => Ok(()),
        _ => Err(nfsstat3::NFS3ERR_NOTDIR),
    }
}

/// A name that is to be created. The dots exist in every directory.
pub(super) fn new_name(name: &[u8]) -> std::result::Result<CString, nfsstat3> {
    match name {
        b"." | b".." => Err(nfsstat3::NFS3ERR_EXIST),
        name => component(name),
    }
}

/// A LOOKUP that the daemon has not answered, which may bring a reference to a node.
struct PendingLookup<'a> {
    connection: &'a Connection,
    /// `None` once it was waited for.
    asked: Option<Pending<EntryOut>>,
}

impl PendingLookup<'_> {
    /// What it has found in the directory `parent`.
    fn wait(mut self, parent: &Node) -> Result<(Arc<Node>, Attr)> {
        match self.asked.take() {
            Some(asked) => self.connection.found(parent, asked),
            None => Err(nfsstat3::NFS3ERR_SERVERFAULT.into()),
        }
    }
}

impl Drop for PendingLookup<'_> {
    fn drop(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.connection.give_back(asked);
        }
    }
}

/// What is asked of a directory at once: its attributes, and a name in it.
struct DirectoryLookup<'a> {
    directory: Pending<AttrOut>,
    /// `None` if the name is none that a daemon takes.
    entry: Option<PendingLookup<'a>>,
}

impl Object<'_> {
    /// Asks for the attributes of this directory and for a name in it, without waiting. The caller
    /// may turn out to have no permission to know the name.
    fn ask(&self, name: &[u8]) -> Result<DirectoryLookup<'_>> {
        let directory = self.ask_attributes()?;
        let connection = &*self.connection;
        let entry = match component(name) {
            Ok(name) => Some(PendingLookup {
                connection,
                asked: Some(connection.ask_lookup(&self.node, &name)?),
            }),
            Err(_) => None,
        };
        Ok(DirectoryLookup { directory, entry })
    }

    /// What a name stands for that was asked for, dots included. Remembers where it is.
    fn find(
        &self,
        attr: &Attr,
        name: &[u8],
        asked: Option<PendingLookup<'_>>,
    ) -> Result<(Arc<Node>, Attr)> {
        check_directory(attr)?;
        self.identity.check(attr, EXECUTE)?;
        match name {
            b"." => Ok((Arc::clone(&self.node), *attr)),
            b".." => {
                // The parent of an export's root is the root.
                let parent = self.share.parent(&self.node);
                let parent = self.share.resolve(&self.connection, parent)?;
                let attr = self.connection.attributes(&parent)?;
                Ok((parent, attr))
            }
            name => self.asked_child(name, asked),
        }
    }

    /// As [`Self::child`], of a name that was asked for.
    fn asked_child(
        &self,
        name: &[u8],
        asked: Option<PendingLookup<'_>>,
    ) -> Result<(Arc<Node>, Attr)> {
        let Some(asked) = asked else {
            return self.child(name);
        };
        let (node, attr) = asked.wait(&self.node)?;
        self.remember(&node, name, &attr);
        Ok((node, attr))
    }

    /// Looks a name up that is not "." or "..", and remembers where it is.
    pub(super) fn child(&self, name: &[u8]) -> Result<(Arc<Node>, Attr)> {
        let (node, attr) = self.connection.lookup(&self.node, &component(name)?)?;
        self.remember(&node, name, &attr);
        Ok((node, attr))
    }

    /// As [`Self::child`]; `None` if there is no such name.
    pub(super) fn child_if_any(&self, name: &[u8]) -> Result<Option<(Arc<Node>, Attr)>> {
        if_any(self.child(name))
    }

    /// Remembers that an inode is in this directory.
    pub(super) fn remember(&self, node: &Node, name: &[u8], attr: &Attr) {
        self.share.remember(node, self.handle(), name, attr);
    }

    /// Notes that an inode has lost its name in this directory. `attr` is of before.
    fn unlinked(&self, node: &Node, attr: &Attr, name: &[u8]) {
        let (share, connection) = (self.share, &self.connection);
        share.unlinked(connection, node, attr, self.handle(), name);
    }

    /// A name in this directory.
    fn place(&self, name: &[u8]) -> Place {
        Place {
            parent: self.handle(),
            name: name.into(),
        }
    }

    fn remove(
        &self,
        directory: &Attr,
        name: &[u8],
        asked: Option<PendingLookup<'_>>,
        removal: Removal,
    ) -> Result<()> {
        check_directory(directory)?;
        if removal == Removal::Directory && name == b".." {
            return Err(nfsstat3::NFS3ERR_EXIST.into());
        }
        let name_for_daemon = component(name)?;
        self.identity.check(directory, EXECUTE)?;
        let (node, attr) = self.asked_child(name, asked)?;
        self.identity.check_remove(directory, &attr)?;
        match removal {
            Removal::File if FileType::from_raw_mode(attr.mode) == FileType::Directory => {
                return Err(nfsstat3::NFS3ERR_ISDIR.into());
            }
            Removal::File => self.session.unlink(self.node.id, &name_for_daemon)?,
            Removal::Directory => self.session.rmdir(self.node.id, &name_for_daemon)?,
        }
        self.unlinked(&node, &attr, name);
        Ok(())
    }

    fn link(&self, directory: &Attr, name: &[u8], file: &Self) -> Result<()> {
        check_directory(directory)?;
        let name_for_daemon = new_name(name)?;
        self.identity.check(directory, WRITE | EXECUTE)?;
        let entry = self
            .session
            .link(file.node.id, self.node.id, &name_for_daemon)?;
        let (node, attr) = self.entry(entry)?;
        self.remember(&node, name, &attr);
        Ok(())
    }
}

/// One of the two names of a RENAME.
struct Named<'a> {
    directory: &'a Object<'a>,
    /// The directory's attributes.
    attr: &'a Attr,
    name: &'a [u8],
    /// What the name stands for was asked for.
    asked: Option<PendingLookup<'a>>,
}

impl Named<'_> {
    /// Renames what this name stands for.
    fn rename(self, to: Self) -> Result<()> {
        let (from, target) = (self.directory, to.directory);
        check_directory(self.attr)?;
        check_directory(to.attr)?;
        let (old_name, new_name) = (component(self.name)?, component(to.name)?);
        from.identity.check(self.attr, EXECUTE)?;
        target.identity.check(to.attr, WRITE | EXECUTE)?;
        let (node, node_attr) = from.asked_child(self.name, self.asked)?;
        from.identity.check_remove(self.attr, &node_attr)?;
        // A directory that gets another parent is itself changed: its "..".
        let moves_directory = from.handle() != target.handle()
            && FileType::from_raw_mode(node_attr.mode) == FileType::Directory;
        if moves_directory {
            from.identity.check(&node_attr, WRITE)?;
        }
        let replaced = if_any(target.asked_child(to.name, to.asked))?;
        if let Some((_, replaced_attr)) = &replaced {
            target.identity.check_remove(to.attr, replaced_attr)?;
        }
        from.session
            .rename(from.node.id, &old_name, target.node.id, &new_name)?;
        match replaced {
            // Two names of one file: nothing happens (rename(2)).
            Some((replaced, _)) if replaced.handle == node.handle => return Ok(()),
            Some((replaced, attr)) => target.unlinked(&replaced, &attr, to.name),
            None => {}
        }
        let (old, new) = (from.place(self.name), target.place(to.name));
        from.share.moved(&node, &old, new);
        Ok(())
    }
}

/// What was found; `None` if there is no such name.
fn if_any<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(failure) if is_absent(&failure) => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn is_absent(failure: &Failure) -> bool {
    failure.is(Errno::NOENT) || matches!(failure, Failure::Refused(nfsstat3::NFS3ERR_NOENT))
}
