//! CREATE, MKDIR, SYMLINK, MKNOD.

use std::ffi::CString;
use std::sync::Arc;

use gangplank_driver::{Pending, call};
use gangplank_fuse::{
    Attr, AttrOut, CreateIn, EntryOut, Extensions, Handle, InitFlags, MkdirIn, MknodIn, OpenOut,
    SupplementaryGroups,
};
use nfs3_types::nfs3::{
    CREATE3resfail, CREATE3resok, Nfs3Option, createhow3, createverf3, devicedata3, nfsstat3,
    nfstime3, sattr3,
};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::attributes::{Changes, Time, device, to_nfs, wcc};
use super::names::{check_directory, new_name};
use super::{Context, Decoded, MAX_TEXT, Object, handle};
use crate::identity::{EXECUTE, WRITE};
use crate::share::connection::Node;
use crate::share::error::{Failure, Result};
use crate::share::files::Access;
use crate::xdr::Reader;

/// Bits of file types (`S_IFCHR` and others).
const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFSOCK: u32 = 0o140_000;
const S_IFIFO: u32 = 0o010_000;
const S_IFREG: u32 = 0o100_000;

/// The mode of a file whose client sets none. A client sets that of an exclusive CREATE later.
const DEFAULT_MODE: u32 = 0o600;

/// Attempts to create a file that others create and remove meanwhile.
const MAX_ATTEMPTS: usize = 8;

/// What was made, or found.
struct Made {
    node: Arc<Node>,
    attr: Attr,
    /// The directory's attributes after the change, which the daemon was asked for.
    directory: Option<Pending<AttrOut>>,
}

impl Made {
    /// What was there before.
    const fn found(node: Arc<Node>, attr: Attr) -> Self {
        Self {
            node,
            attr,
            directory: None,
        }
    }
}

/// What MKNOD makes.
enum Special {
    Device(u32, devicedata3),
    Other(u32, sattr3),
    /// A type that is none of MKNOD's.
    Unsupported,
}

impl Context<'_> {
    pub(super) fn create(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let directory = self.changeable(handle(args)?);
        let name = args.opaque(MAX_TEXT)?;
        let how: createhow3 = args.structure()?;
        self.make(reply, directory, |directory, attr| {
            directory.create(attr, name, how)
        });
        Ok(())
    }

    pub(super) fn mkdir(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let directory = self.changeable(handle(args)?);
        let name = args.opaque(MAX_TEXT)?;
        let changes = Changes::from(args.structure::<sattr3>()?);
        self.make(reply, directory, |directory, attr| {
            let name_for_daemon = directory.check_new(attr, name)?;
            let mode = changes.mode.unwrap_or(0o700) & 0o7777;
            let args = MkdirIn { mode, umask: 0 };
            let mkdir = call::mkdir(directory.node.id, &name_for_daemon, args);
            let entry = directory.call_with_group(attr, mkdir)?;
            directory.finish(
                name,
                entry,
                Changes {
                    mode: None,
                    ..changes
                },
            )
        });
        Ok(())
    }

    pub(super) fn symlink(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let directory = self.changeable(handle(args)?);
        let name = args.opaque(MAX_TEXT)?;
        // A link's own mode is of no use, and Linux cannot set it.
        let changes = Changes {
            mode: None,
            size: None,
            ..Changes::from(args.structure::<sattr3>()?)
        };
        let target = args.opaque(MAX_TEXT)?;
        self.make(reply, directory, |directory, attr| {
            let name_for_daemon = directory.check_new(attr, name)?;
            let target = CString::new(target).map_err(|_| nfsstat3::NFS3ERR_INVAL)?;
            if target.is_empty() {
                return Err(nfsstat3::NFS3ERR_INVAL.into());
            }
            let symlink = call::symlink(directory.node.id, &name_for_daemon, &target);
            let entry = directory.call_with_group(attr, symlink)?;
            directory.finish(name, entry, changes)
        });
        Ok(())
    }

    pub(super) fn mknod(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let directory = self.changeable(handle(args)?);
        let name = args.opaque(MAX_TEXT)?;
        // ftype3.
        let special = match args.u32()? {
            3 => Special::Device(S_IFBLK, args.structure()?),
            4 => Special::Device(S_IFCHR, args.structure()?),
            6 => Special::Other(S_IFSOCK, args.structure()?),
            7 => Special::Other(S_IFIFO, args.structure()?),
            _ => Special::Unsupported,
        };
        self.make(reply, directory, |directory, attr| {
            let name_for_daemon = directory.check_new(attr, name)?;
            let (kind, rdev, changes) = match special {
                Special::Device(kind, data) => {
                    // Only root makes devices (mknod(2)).
                    if directory.identity.uid != 0 {
                        return Err(nfsstat3::NFS3ERR_PERM.into());
                    }
                    let rdev = device(&data.spec).ok_or(nfsstat3::NFS3ERR_INVAL)?;
                    (kind, rdev, Changes::from(data.dev_attributes))
                }
                Special::Other(kind, attributes) => (kind, 0, Changes::from(attributes)),
                Special::Unsupported => return Err(nfsstat3::NFS3ERR_BADTYPE.into()),
            };
            let mode = changes.mode.unwrap_or(DEFAULT_MODE) & 0o7777;
            let args = MknodIn {
                mode: kind | mode,
                rdev,
                ..MknodIn::default()
            };
            let mknod = call::mknod(directory.node.id, &name_for_daemon, args);
            let entry = directory.call_with_group(attr, mknod)?;
            directory.finish(
                name,
                entry,
                Changes {
                    mode: None,
                    ..changes
                },
            )
        });
        Ok(())
    }

    /// Makes an inode by `make`, and appends the results, which all these procedures have in
    /// common.
    fn make(
        &self,
        reply: &mut Vec<u8>,
        directory: Result<Object<'_>>,
        make: impl FnOnce(&Object<'_>, &Attr) -> Result<Made>,
    ) {
        let mut failed = CREATE3resfail::default();
        let done = directory.and_then(|directory| {
            let _lock = directory.share.lock(directory.handle());
            let before = directory.attributes()?;
            let made = check_directory(&before)
                .map_err(Failure::from)
                .and_then(|()| make(&directory, &before));
            let Made {
                node,
                attr,
                directory: asked,
            } = made.inspect_err(|_| failed.dir_wcc = directory.wcc(Some(&before)))?;
            let after = asked.and_then(|asked| asked.wait().ok());
            let dir_wcc = match after {
                Some(after) => wcc(Some(&before), Some(&after.attr), directory.export()),
                None => directory.wcc(Some(&before)),
            };
            Ok(CREATE3resok {
                obj: Nfs3Option::Some(node.handle.to_nfs()),
                obj_attributes: Nfs3Option::Some(to_nfs(&attr, directory.export())),
                dir_wcc,
            })
        });
        self.put(reply, done, failed);
    }
}

impl<'a> Object<'a> {
    /// Checks that the caller may make `name` in this directory.
    fn check_new(&self, attr: &Attr, name: &[u8]) -> Result<CString> {
        let name_for_daemon = new_name(name)?;
        self.identity.check(attr, EXECUTE)?;
        if self.identity.check(attr, WRITE).is_err() {
            // A name that exists is the better reason.
            return match self.child_if_any(name)? {
                Some(_) => Err(nfsstat3::NFS3ERR_EXIST.into()),
                None => Err(nfsstat3::NFS3ERR_ACCES.into()),
            };
        }
        Ok(name_for_daemon)
    }

    /// Sends a call that makes an inode, with the directory's group if the caller is in it: the
    /// host may give the inode that group.
    fn call_with_group<T>(
        &self,
        directory: &Attr,
        call: gangplank_driver::Call<'_, T>,
    ) -> Result<T> {
        let identity = &self.identity;
        let gid = [directory.gid];
        let takes = self
            .session
            .init()
            .features()
            .contains(InitFlags::CREATE_SUPP_GROUP);
        if !takes || identity.gid == directory.gid || !identity.is_in(directory.gid) {
            return Ok(self.session.call(call)?);
        }
        let extensions = Extensions {
            groups: Some(SupplementaryGroups::new(&gid)),
            ..Extensions::default()
        };
        Ok(self.session.call(call.with_extensions(extensions))?)
    }

    /// The new inode of an entry, with the attributes that the client wants beside the mode.
    fn finish(&self, name: &[u8], entry: EntryOut, changes: Changes) -> Result<Made> {
        self.finish_with(name, entry, changes, |_| ())
    }

    /// As [`Self::finish`]. `begin` uses the inode before its attributes change.
    fn finish_with(
        &self,
        name: &[u8],
        entry: EntryOut,
        changes: Changes,
        begin: impl FnOnce(&Arc<Node>),
    ) -> Result<Made> {
        // What follows does not change the directory.
        let directory = self.ask_attributes().ok();
        let (node, attr) = self.entry(entry)?;
        begin(&node);
        self.remember(&node, name, &attr);
        let made = self.of(&node);
        // The ids that the client names are those that the caller has anyway, unless it is root.
        let changes = Changes {
            uid: changes.uid.filter(|uid| *uid != attr.uid),
            gid: changes.gid.filter(|gid| *gid != attr.gid),
            ..changes
        };
        let attr = if changes.is_empty() {
            attr
        } else {
            made.change(&attr, changes)?;
            made.attributes()?
        };
        Ok(Made {
            node,
            attr,
            directory,
        })
    }

    /// Another inode, for the same caller.
    fn of(&self, node: &Arc<Node>) -> Object<'a> {
        Object {
            share: self.share,
            connection: Arc::clone(&self.connection),
            session: self.session.clone(),
            node: Arc::clone(node),
            rule: self.rule,
            identity: self.identity.clone(),
        }
    }

    fn create(&self, attr: &Attr, name: &[u8], how: createhow3) -> Result<Made> {
        let name_for_daemon = new_name(name)?;
        self.identity.check(attr, EXECUTE)?;
        // Most names are new, and the daemon says so if one is not.
        let mut is_new = self.identity.check(attr, WRITE).is_ok();
        for _ in 0..MAX_ATTEMPTS {
            if !is_new && let Some((node, found)) = self.child_if_any(name)? {
                return self.existing(node, found, how);
            }
            self.identity.check(attr, WRITE)?;
            let (mode, changes) = match &how {
                createhow3::UNCHECKED(attributes) | createhow3::GUARDED(attributes) => {
                    let changes = Changes::from(attributes.clone());
                    (changes.mode.unwrap_or(DEFAULT_MODE), changes)
                }
                createhow3::EXCLUSIVE(verifier) => (DEFAULT_MODE, verifier_as_times(*verifier)),
            };
            match self.create_new(attr, &name_for_daemon, mode) {
                Ok((entry, open)) => {
                    let changes = Changes {
                        mode: None,
                        // It is empty already.
                        size: changes.size.filter(|size| *size != 0),
                        ..changes
                    };
                    return self.finish_with(name, entry, changes, |node| {
                        let files = &self.connection.files;
                        let flags = OFlags::RDWR.bits();
                        files.keep(node, Access::Write, Handle::new(open.fh), flags);
                    });
                }
                // It exists, or another guest was faster.
                Err(failure) if failure.is(Errno::EXIST) || failure.is(Errno::STALE) => {}
                // A name that exists is not in need of what was refused.
                Err(failure) if !is_new || failure.is_daemon_lost() => return Err(failure),
                Err(failure) => {
                    return match self.child_if_any(name)? {
                        Some((node, found)) => self.existing(node, found, how),
                        None => Err(failure),
                    };
                }
            }
            is_new = false;
        }
        Err(nfsstat3::NFS3ERR_JUKEBOX.into())
    }

    fn create_new(
        &self,
        directory: &Attr,
        name: &CString,
        mode: u32,
    ) -> Result<(EntryOut, OpenOut)> {
        let args = CreateIn {
            flags: (OFlags::RDWR | OFlags::CREATE | OFlags::EXCL).bits(),
            mode: S_IFREG | mode & 0o7777,
            ..CreateIn::default()
        };
        self.call_with_group(directory, call::create(self.node.id, name, args))
    }

    /// CREATE of a name that exists.
    fn existing(&self, node: Arc<Node>, attr: Attr, how: createhow3) -> Result<Made> {
        match how {
            createhow3::GUARDED(_) => Err(nfsstat3::NFS3ERR_EXIST.into()),
            createhow3::EXCLUSIVE(verifier) => {
                // The client's own file, if it was created with this verifier, and the reply was
                // lost.
                let times = verifier_as_times(verifier);
                let same = |time, seconds| match time {
                    Time::At(at) => u64::from(at.seconds) == seconds,
                    _ => false,
                };
                match same(times.atime, attr.atime) && same(times.mtime, attr.mtime) {
                    true => Ok(Made::found(node, attr)),
                    false => Err(nfsstat3::NFS3ERR_EXIST.into()),
                }
            }
            createhow3::UNCHECKED(attributes) => {
                match FileType::from_raw_mode(attr.mode) {
                    FileType::RegularFile => {}
                    FileType::Directory => return Err(nfsstat3::NFS3ERR_ISDIR.into()),
                    _ => return Err(nfsstat3::NFS3ERR_EXIST.into()),
                }
                // Of an existing file only the size is set, as open(2) does with O_TRUNC.
                let size = Changes::from(attributes).size;
                let found = self.of(&node);
                if size.is_none() {
                    return Ok(Made::found(node, attr));
                }
                found.change(
                    &attr,
                    Changes {
                        size,
                        ..Changes::default()
                    },
                )?;
                let attr = found.attributes()?;
                Ok(Made::found(node, attr))
            }
        }
    }
}

/// The verifier of an exclusive CREATE as times of the file, where it survives restarts. The client
/// sets the times later. Bits that a file system may not have are left out.
fn verifier_as_times(verifier: createverf3) -> Changes {
    let [a, b, c, d, e, f, g, h] = verifier.0;
    let time = |bytes| {
        Time::At(nfstime3 {
            seconds: u32::from_be_bytes(bytes) & 0x7fff_ffff,
            nseconds: 0,
        })
    };
    Changes {
        atime: time([a, b, c, d]),
        mtime: time([e, f, g, h]),
        ..Changes::default()
    }
}
