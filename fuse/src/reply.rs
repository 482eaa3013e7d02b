//! Reading replies, for the client's end.
//!
//! The server's end needs nothing from here: a reply is [`OutHeader::ok`], then the bytes of a
//! structure or data.

use zerocopy::FromBytes;

use crate::cursor::Cursor;
use crate::*;

/// A reply taken apart. Notifications are not replies: their `unique` is zero, see [`NotifyCode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The request that is answered.
    pub unique: Unique,
    /// What the server said: the bytes after the header, or a positive errno.
    pub result: Result<&'a [u8], i32>,
}

/// The least `error` of a reply (`fuse_dev_do_write`, fs/fuse/dev.c, takes what is above -512 and
/// not positive).
const LEAST_ERROR: i32 = -511;

impl<'a> Reply<'a> {
    /// Takes the bytes of one reply apart. Bytes beyond the header's `len` are not looked at, since
    /// a virtqueue's buffer is longer than the reply in it.
    ///
    /// # Errors
    /// [`DecodeError`] if header and bytes do not agree.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let header: OutHeader = Cursor::new("reply", bytes).fixed()?;
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if len < size_of::<OutHeader>() {
            return Err(DecodeError::HeaderLength { len: header.len });
        }
        let payload = bytes
            .get(size_of::<OutHeader>()..len)
            .ok_or(DecodeError::Truncated {
                len: header.len,
                present: bytes.len(),
            })?;
        let result = match header.error {
            0 => Ok(payload),
            error @ LEAST_ERROR..0 => Err(-error),
            error => return Err(DecodeError::BadError { error }),
        };
        Ok(Self {
            unique: Unique::new(header.unique),
            result,
        })
    }
}

/// Longest target of a symbolic link, in bytes (Linux: `PATH_MAX`, of which the NUL is not sent).
const PATH_MAX: usize = 4096;

/// A reply's payload that is one structure and nothing else.
fn whole<T: FromBytes>(what: &'static str, payload: &[u8]) -> Result<T, DecodeError> {
    let mut cursor = Cursor::new(what, payload);
    let value = cursor.fixed()?;
    cursor.finish()?;
    Ok(value)
}

macro_rules! replies {
    ($( $(#[$meta:meta])* $function:ident -> $ty:ty, $what:literal; )*) => {
        $(
            $(#[$meta])*
            ///
            /// # Errors
            /// [`DecodeError`] if the payload is not exactly this structure.
            pub fn $function(payload: &[u8]) -> Result<$ty, DecodeError> {
                whole($what, payload)
            }
        )*
    };
}

replies! {
    /// LOOKUP, SYMLINK, MKNOD, MKDIR, LINK.
    decode_entry -> EntryOut, "entry reply";
    /// GETATTR, SETATTR.
    decode_attr -> AttrOut, "attribute reply";
    /// STATX.
    decode_statx -> StatxOut, "STATX reply";
    /// OPEN, OPENDIR.
    decode_open -> OpenOut, "open reply";
    /// WRITE, COPY_FILE_RANGE.
    decode_write -> WriteOut, "WRITE reply";
    /// COPY_FILE_RANGE_64.
    decode_copy_file_range_64 -> CopyFileRangeOut, "COPY_FILE_RANGE_64 reply";
    /// STATFS.
    decode_statfs -> StatfsOut, "STATFS reply";
    /// GETXATTR, LISTXATTR that asked for the length.
    decode_xattr_size -> GetxattrOut, "xattr length reply";
    /// GETLK.
    decode_lk -> LkOut, "GETLK reply";
    /// BMAP.
    decode_bmap -> BmapOut, "BMAP reply";
    /// POLL.
    decode_poll -> PollOut, "POLL reply";
    /// LSEEK.
    decode_lseek -> LseekOut, "LSEEK reply";
}

/// CREATE, TMPFILE: the node and the open file.
///
/// # Errors
/// [`DecodeError`] if the payload is not exactly these structures.
pub fn decode_create(payload: &[u8]) -> Result<(EntryOut, OpenOut), DecodeError> {
    let mut cursor = Cursor::new("create reply", payload);
    let parts = (cursor.fixed()?, cursor.fixed()?);
    cursor.finish()?;
    Ok(parts)
}

/// INIT: filled up with zeros where the server sent a shorter form.
///
/// # Errors
/// [`DecodeError`] if not even the versions are there.
pub fn decode_init(payload: &[u8]) -> Result<InitOut, DecodeError> {
    Cursor::new("INIT reply", payload).extensible(InitOut::COMPAT_SIZE)
}

/// IOCTL: the result, and the data or vectors after it.
///
/// # Errors
/// [`DecodeError`] if the result is not there.
pub fn decode_ioctl(payload: &[u8]) -> Result<(IoctlOut, &[u8]), DecodeError> {
    let mut cursor = Cursor::new("IOCTL reply", payload);
    Ok((cursor.fixed()?, cursor.rest()))
}

/// CUSE_INIT: the answer, and the device's information after it.
///
/// # Errors
/// [`DecodeError`] if the answer is not there.
pub fn decode_cuse_init(payload: &[u8]) -> Result<(CuseInitOut, &[u8]), DecodeError> {
    let mut cursor = Cursor::new("CUSE_INIT reply", payload);
    Ok((cursor.fixed()?, cursor.rest()))
}

/// LISTXATTR that asked for names: each without its NUL, in order.
///
/// # Errors
/// An item is [`DecodeError::Unterminated`] if the last has no NUL; none follow.
pub fn decode_xattr_names(payload: &[u8]) -> impl Iterator<Item = Result<&[u8], DecodeError>> {
    payload
        .split_inclusive(|&byte| byte == 0)
        .map(|name| match name {
            [name @ .., 0] => Ok(name),
            cut => Err(DecodeError::Unterminated {
                what: "LISTXATTR reply",
                present: cut.len(),
            }),
        })
}

impl Operation<'_> {
    /// Most bytes that may follow the header of a successful reply: what a client must offer.
    #[must_use]
    pub fn reply_capacity(&self) -> usize {
        let bytes = |size: u32| usize::try_from(size).unwrap_or(usize::MAX);
        match self {
            Operation::Lookup { .. }
            | Operation::Symlink { .. }
            | Operation::Mknod { .. }
            | Operation::Mkdir { .. }
            | Operation::Link { .. } => size_of::<EntryOut>(),
            Operation::Create { .. } | Operation::Tmpfile { .. } => {
                size_of::<EntryOut>() + size_of::<OpenOut>()
            }
            Operation::Getattr(_) | Operation::Setattr(_) => size_of::<AttrOut>(),
            Operation::Statx(_) => size_of::<StatxOut>(),
            Operation::Readlink => PATH_MAX,
            Operation::Open(_) | Operation::Opendir(_) => size_of::<OpenOut>(),
            Operation::Read(args) | Operation::Readdir(args) | Operation::Readdirplus(args) => {
                bytes(args.size)
            }
            Operation::Write(_) | Operation::CopyFileRange(_) => size_of::<WriteOut>(),
            Operation::CopyFileRange64(_) => size_of::<CopyFileRangeOut>(),
            Operation::Statfs => size_of::<StatfsOut>(),
            Operation::Getxattr { args, .. } | Operation::Listxattr(args) => match args.size {
                0 => size_of::<GetxattrOut>(),
                size => bytes(size),
            },
            Operation::Init(_) => size_of::<InitOut>(),
            Operation::Getlk(_) => size_of::<LkOut>(),
            Operation::Bmap(_) => size_of::<BmapOut>(),
            Operation::Ioctl(args) => {
                let vectors = bytes(IOCTL_MAX_IOV) * size_of::<IoctlIovec>();
                bytes(args.out_size)
                    .max(vectors)
                    .saturating_add(size_of::<IoctlOut>())
            }
            Operation::Poll(_) => size_of::<PollOut>(),
            Operation::Lseek(_) => size_of::<LseekOut>(),
            Operation::CuseInit(_) => size_of::<CuseInitOut>() + CUSE_INIT_INFO_MAX,
            Operation::Forget(_)
            | Operation::BatchForget(_)
            | Operation::Unlink { .. }
            | Operation::Rmdir { .. }
            | Operation::Rename { .. }
            | Operation::Rename2 { .. }
            | Operation::Release(_)
            | Operation::Releasedir(_)
            | Operation::Fsync(_)
            | Operation::Fsyncdir(_)
            | Operation::Flush(_)
            | Operation::Setxattr { .. }
            | Operation::Removexattr { .. }
            | Operation::Setlk(_)
            | Operation::Setlkw(_)
            | Operation::Access(_)
            | Operation::Interrupt(_)
            | Operation::Destroy
            | Operation::NotifyReply(_)
            | Operation::Fallocate(_)
            | Operation::Setupmapping(_)
            | Operation::Removemapping(_)
            | Operation::Syncfs(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn reply(len: u32, error: i32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = OutHeader {
            len,
            error,
            unique: 5,
        }
        .as_bytes()
        .to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn the_header_says_how_much_of_the_buffer_counts() {
        let bytes = reply(20, 0, b"data, then what the buffer held before");
        assert_eq!(
            Reply::decode(&bytes),
            Ok(Reply {
                unique: Unique::new(5),
                result: Ok(b"data")
            })
        );
    }

    #[test]
    fn errors_come_out_positive() {
        assert_eq!(Reply::decode(&reply(16, -2, b"")).unwrap().result, Err(2));
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        assert!(matches!(
            Reply::decode(&[0; 15]),
            Err(DecodeError::TooShort { .. })
        ));
        assert_eq!(
            Reply::decode(&reply(15, 0, b"")),
            Err(DecodeError::HeaderLength { len: 15 })
        );
        assert_eq!(
            Reply::decode(&reply(17, 0, b"")),
            Err(DecodeError::Truncated {
                len: 17,
                present: 16
            })
        );
        for error in [1, -512, i32::MIN] {
            assert_eq!(
                Reply::decode(&reply(16, error, b"")),
                Err(DecodeError::BadError { error })
            );
        }
    }

    #[test]
    fn structures_must_fill_the_payload() {
        let attr = AttrOut {
            attr_valid: 1,
            ..AttrOut::default()
        };
        assert_eq!(decode_attr(attr.as_bytes()), Ok(attr));
        assert!(matches!(
            decode_attr(&[0; 103]),
            Err(DecodeError::TooShort { .. })
        ));
        assert!(matches!(
            decode_attr(&[0; 105]),
            Err(DecodeError::Trailing { .. })
        ));
    }

    #[test]
    fn short_init_replies_read_as_zero_beyond_their_end() {
        let full = InitOut {
            major: 7,
            minor: 22,
            max_write: 4096,
            max_pages: 9,
            ..InitOut::default()
        };
        let short = decode_init(&full.as_bytes()[..InitOut::COMPAT_22_SIZE]).unwrap();
        assert_eq!(
            (short.minor, short.max_write, short.max_pages),
            (22, 4096, 0)
        );
        assert!(decode_init(&[0; 7]).is_err());
    }

    #[test]
    fn xattr_names_are_split_at_their_nul() {
        let names: Result<Vec<_>, _> = decode_xattr_names(b"user.a\0user.b\0").collect();
        assert_eq!(names, Ok(vec![&b"user.a"[..], b"user.b"]));
        assert!(decode_xattr_names(b"user.a\0user").any(|name| name.is_err()));
        assert_eq!(decode_xattr_names(b"").count(), 0);
    }
}
