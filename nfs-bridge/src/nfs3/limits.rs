//! FSSTAT, FSINFO, PATHCONF.

use gangplank_driver::{Error, Pending, call};
use gangplank_fuse::Kstatfs;
use nfs3_types::nfs3::{
    FSF3_CANSETTIME, FSF3_HOMOGENEOUS, FSF3_LINK, FSF3_SYMLINK, FSINFO3resfail, FSINFO3resok,
    FSSTAT3resfail, FSSTAT3resok, PATHCONF3resfail, PATHCONF3resok, nfstime3, post_op_attr,
};

use super::{Context, Decoded, MAX_IO, Object, handle, told};
use crate::xdr::Reader;

/// Largest size of a file, in bytes: `off_t` of the host.
const MAX_FILE_SIZE: u64 = i64::MAX.cast_unsigned();

/// Preferred bytes of a READDIR.
const PREFERRED_LISTING: u32 = 64 << 10;

/// Sizes of READ and WRITE should be multiples of this many bytes.
const MULTIPLE: u32 = 4096;

/// Most links of a file. The daemon does not tell; this is ext4's limit. The host has the last
/// word.
const MAX_LINKS: u32 = 65_000;

impl Context<'_> {
    pub(super) fn fsstat(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let object = self.object(handle(args)?);
        let mut obj_attributes = post_op_attr::None;
        let done = object.and_then(|object| {
            let (limits, attributes) = object.limits();
            obj_attributes = attributes;
            let limits = limits?;
            let bytes = |blocks: u64| blocks.saturating_mul(limits.frsize.into());
            Ok(FSSTAT3resok {
                obj_attributes: std::mem::take(&mut obj_attributes),
                tbytes: bytes(limits.blocks),
                fbytes: bytes(limits.bfree),
                abytes: bytes(limits.bavail),
                tfiles: limits.files,
                ffiles: limits.ffree,
                afiles: limits.ffree,
                invarsec: 0,
            })
        });
        self.put(reply, done, FSSTAT3resfail { obj_attributes });
        Ok(())
    }

    pub(super) fn fsinfo(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let object = self.object(handle(args)?);
        let done = object.map(|object| FSINFO3resok {
            obj_attributes: object.post_op(),
            rtmax: MAX_IO,
            rtpref: MAX_IO,
            rtmult: MULTIPLE,
            wtmax: MAX_IO,
            wtpref: MAX_IO,
            wtmult: MULTIPLE,
            dtpref: PREFERRED_LISTING,
            maxfilesize: MAX_FILE_SIZE,
            time_delta: nfstime3 {
                seconds: 0,
                nseconds: 1,
            },
            properties: FSF3_LINK | FSF3_SYMLINK | FSF3_HOMOGENEOUS | FSF3_CANSETTIME,
        });
        self.put(reply, done, FSINFO3resfail::default());
        Ok(())
    }

    pub(super) fn pathconf(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let object = self.object(handle(args)?);
        let mut obj_attributes = post_op_attr::None;
        let done = object.and_then(|object| {
            let (limits, attributes) = object.limits();
            obj_attributes = attributes;
            let limits = limits?;
            Ok(PATHCONF3resok {
                obj_attributes: std::mem::take(&mut obj_attributes),
                linkmax: MAX_LINKS,
                name_max: limits.namelen,
                no_trunc: true,
                chown_restricted: true,
                case_insensitive: false,
                case_preserving: true,
            })
        });
        self.put(reply, done, PATHCONF3resfail { obj_attributes });
        Ok(())
    }
}

impl Object<'_> {
    /// What the file system has room for, and the attributes of the inode. Both are asked for at
    /// once.
    fn limits(&self) -> (Result<Kstatfs, Error>, post_op_attr) {
        let attributes = self.ask_attributes();
        let limits = self.session.submit(call::statfs(self.node.id));
        // The one that comes last: then both are there.
        let limits = limits.and_then(Pending::wait);
        (limits, told(attributes, self.export()))
    }
}
