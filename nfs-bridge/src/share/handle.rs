//! File handles: 32 bytes that name an inode of an export, also after restarts of this program and
//! of the daemon.
//!
//! ```text
//!   0  "gnf1"
//!   4  export     hash of the export's path
//!   8  inode      number, as the daemon reports it
//!  16  birth      when the inode was made, in nanoseconds since 1970; 0 if unknown
//!  24  check      hash of the bytes before
//! ```
//!
//! A new inode may get the number of a removed one, but not its time of birth. The check tells a
//! damaged handle from a stale one. It is no protection: a handle leads to a file only if it was
//! given out for its export before ([`super::store`]).

use gangplank_service::fnv::fnv_1a;
use nfs3_types::nfs3::nfs_fh3;
use nfs3_types::xdr_codec::Opaque;

/// Bytes of a handle.
pub const LEN: usize = 32;

/// The first bytes of a handle: this layout.
const MAGIC: [u8; 4] = *b"gnf1";

/// An inode of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileHandle {
    /// The export.
    pub export: u32,
    /// The inode's number.
    pub ino: u64,
    /// When it was made, in nanoseconds since 1970; 0 if unknown.
    pub birth: u64,
}

impl FileHandle {
    /// As bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let (content, check) = bytes.split_at_mut(24);
        content[..4].copy_from_slice(&MAGIC);
        content[4..8].copy_from_slice(&self.export.to_be_bytes());
        content[8..16].copy_from_slice(&self.ino.to_be_bytes());
        content[16..].copy_from_slice(&self.birth.to_be_bytes());
        check.copy_from_slice(&fnv_1a(content).to_be_bytes());
        bytes
    }

    /// From bytes; `None` if they are no handle of this program.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEN] = bytes.try_into().ok()?;
        let (content, check) = bytes.split_at(24);
        let (magic, content) = content.split_first_chunk::<4>()?;
        let (export, content) = content.split_first_chunk()?;
        let (ino, birth) = content.split_first_chunk()?;
        let handle = Self {
            export: u32::from_be_bytes(*export),
            ino: u64::from_be_bytes(*ino),
            birth: u64::from_be_bytes(birth.try_into().ok()?),
        };
        (*magic == MAGIC && handle.to_bytes().ends_with(check)).then_some(handle)
    }

    /// As results carry it.
    #[must_use]
    pub fn to_nfs(self) -> nfs_fh3 {
        nfs_fh3 {
            data: Opaque::owned(self.to_bytes().to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_handle_survives_the_wire_and_no_damage(
            export: u32, ino: u64, birth: u64, at in 0..LEN, bit in 0..8,
        ) {
            let handle = FileHandle { export, ino, birth };
            let mut bytes = handle.to_bytes();
            prop_assert_eq!(FileHandle::from_bytes(&bytes), Some(handle));
            prop_assert_eq!(FileHandle::from_bytes(&bytes[1..]), None);
            bytes[at] ^= 1_u8 << bit;
            prop_assert_eq!(FileHandle::from_bytes(&bytes), None);
        }
    }
}
