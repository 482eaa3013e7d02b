//! GETATTR, SETATTR, ACCESS, READLINK.

use gangplank_driver::call;
use gangplank_fuse::{Attr, SetattrValid};
use nfs3_types::nfs3::{
    ACCESS3_DELETE, ACCESS3_EXECUTE, ACCESS3_EXTEND, ACCESS3_LOOKUP, ACCESS3_MODIFY, ACCESS3_READ,
    ACCESS3resfail, ACCESS3resok, GETATTR3resok, Nfs3Option, READLINK3resfail, READLINK3resok,
    SETATTR3resfail, SETATTR3resok, nfsstat3, sattr3, sattrguard3,
};
use nfs3_types::xdr_codec::Void;
use rustix::fs::FileType;

use super::attributes::{Changes, Time, time, to_nfs};
use super::{Context, Decoded, Object, handle};
use crate::identity::{EXECUTE, READ, WRITE};
use crate::share::error::Result;
use crate::share::files::Access;
use crate::xdr::Reader;

impl Context<'_> {
    pub(super) fn getattr(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let object = self.object(handle(args)?);
        let done = object.and_then(|object| {
            Ok(GETATTR3resok {
                obj_attributes: to_nfs(&object.attributes()?, object.export()),
            })
        });
        self.put(reply, done, Void);
        Ok(())
    }

    pub(super) fn setattr(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let object = self.changeable(handle(args)?);
        let changes = Changes::from(args.structure::<sattr3>()?);
        let guard: sattrguard3 = args.structure()?;
        let mut failed = SETATTR3resfail::default();
        let done = object.and_then(|object| {
            let _lock = object.share.lock(object.handle());
            let before = object.attributes()?;
            let unchanged = match guard {
                Nfs3Option::Some(ctime) => ctime == time(before.ctime, before.ctimensec),
                Nfs3Option::None => true,
            };
            let done = match unchanged {
                true => object.change(&before, changes),
                false => Err(nfsstat3::NFS3ERR_NOT_SYNC.into()),
            };
            failed.obj_wcc = object.wcc(Some(&before));
            done?;
            let obj_wcc = std::mem::take(&mut failed.obj_wcc);
            Ok(SETATTR3resok { obj_wcc })
        });
        self.put(reply, done, failed);
        Ok(())
    }

    pub(super) fn access(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let object = self.object(handle(args)?);
        let wanted = args.u32()?;
        let done = object.and_then(|object| {
            let attr = object.attributes()?;
            Ok(ACCESS3resok {
                access: wanted & object.access(&attr),
                obj_attributes: Nfs3Option::Some(to_nfs(&attr, object.export())),
            })
        });
        self.put(reply, done, ACCESS3resfail::default());
        Ok(())
    }

    pub(super) fn readlink(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let object = self.object(handle(args)?);
        let mut symlink_attributes = Nfs3Option::None;
        let done = object.and_then(|object| {
            let asked = object.ask_attributes()?;
            let target = object.session.submit(call::readlink(object.node.id))?;
            // The one that comes last: then both are there.
            let target = target.wait();
            let attr = asked.wait()?.attr;
            symlink_attributes = Nfs3Option::Some(to_nfs(&attr, object.export()));
            if FileType::from_raw_mode(attr.mode) != FileType::Symlink {
                return Err(nfsstat3::NFS3ERR_INVAL.into());
            }
            Ok(READLINK3resok {
                data: target?.into(),
                symlink_attributes: std::mem::take(&mut symlink_attributes),
            })
        });
        self.put(reply, done, READLINK3resfail { symlink_attributes });
        Ok(())
    }
}

impl Object<'_> {
    /// The `ACCESS3_*` bits that the caller has.
    fn access(&self, attr: &Attr) -> u32 {
        let permissions = self.identity.permissions(attr);
        let is_directory = FileType::from_raw_mode(attr.mode) == FileType::Directory;
        let mut access = 0;
        if permissions & READ != 0 {
            access |= ACCESS3_READ;
        }
        if permissions & WRITE != 0 && !self.rule.read_only {
            access |= ACCESS3_MODIFY | ACCESS3_EXTEND;
            if is_directory {
                access |= ACCESS3_DELETE;
            }
        }
        if permissions & EXECUTE != 0 {
            access |= if is_directory {
                ACCESS3_LOOKUP
            } else {
                ACCESS3_EXECUTE
            };
        }
        access
    }

    /// Changes attributes, if the caller may.
    pub(super) fn change(&self, attr: &Attr, mut changes: Changes) -> Result<()> {
        let identity = &self.identity;
        identity.check_give(attr, changes.uid, changes.gid)?;
        let gid = changes.gid.unwrap_or(attr.gid);
        if let Some(mode) = &mut changes.mode {
            if !identity.owns(attr) {
                return Err(nfsstat3::NFS3ERR_PERM.into());
            }
            *mode = identity.mode(gid, *mode);
        }
        if changes.size.is_some() {
            match FileType::from_raw_mode(attr.mode) {
                FileType::RegularFile => identity.check_write(attr)?,
                FileType::Directory => return Err(nfsstat3::NFS3ERR_ISDIR.into()),
                _ => return Err(nfsstat3::NFS3ERR_INVAL.into()),
            }
        }
        for time in [changes.atime, changes.mtime] {
            match time {
                Time::Keep => {}
                Time::Now if identity.owns(attr) => {}
                Time::Now => identity.check(attr, WRITE)?,
                Time::At(_) if identity.owns(attr) => {}
                Time::At(_) => return Err(nfsstat3::NFS3ERR_PERM.into()),
            }
        }
        self.set(changes)
    }

    /// Changes attributes.
    pub(super) fn set(&self, changes: Changes) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut args = changes.setattr();
        let file = match changes.size {
            // An owner may have created a file that it cannot open for writing again.
            Some(_) => self.connection.files.find(self.node.id, Access::Write),
            None => None,
        };
        if let Some(file) = &file {
            args.valid |= SetattrValid::FH.bits();
            args.fh = file.handle.get();
        }
        if changes.size.is_some() && self.identity.uid != 0 {
            args.valid |= SetattrValid::KILL_SUIDGID.bits();
        }
        self.session.setattr(self.node.id, args)?;
        Ok(())
    }
}
