//! FSSTAT, FSINFO, PATHCONF.

use nfs3_types::nfs3::{
    FSF3_CANSETTIME, FSF3_HOMOGENEOUS, FSF3_LINK, FSF3_SYMLINK, FSINFO3resfail, FSINFO3resok,
    FSSTAT3resfail, FSSTAT3resok, PATHCONF3resfail, PATHCONF3resok, nfstime3,
};

use super::{Context, Decoded, MAX_IO, handle, post_op_of};
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
        let obj_attributes = post_op_of(&object);
        let done = object.and_then(|object| {
            let told = object.session.statfs(object.node.id)?;
            let bytes = |blocks: u64| blocks.saturating_mul(told.frsize.into());
            Ok(FSSTAT3resok {
                obj_attributes: object.post_op(),
                tbytes: bytes(told.blocks),
                fbytes: bytes(told.bfree),
                abytes: bytes(told.bavail),
                tfiles: told.files,
                ffiles: told.ffree,
                afiles: told.ffree,
                invarsec: 0,
            })
        });
        self.put(reply, done, FSSTAT3resfail { obj_attributes });
        Ok(())
    }

    pub(super) fn fsinfo(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let object = self.object(handle(args)?);
        let obj_attributes = post_op_of(&object);
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
        self.put(reply, done, FSINFO3resfail { obj_attributes });
        Ok(())
    }

    pub(super) fn pathconf(&self, args: &mut Reader<'_>, reply: &mut Vec<u8>) -> Decoded {
        let object = self.object(handle(args)?);
        let obj_attributes = post_op_of(&object);
        let done = object.and_then(|object| {
            let told = object.session.statfs(object.node.id)?;
            Ok(PATHCONF3resok {
                obj_attributes: object.post_op(),
                linkmax: MAX_LINKS,
                name_max: told.namelen,
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
