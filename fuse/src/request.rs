//! A whole request: from bytes for the server, to bytes for the client.

use core::ffi::CStr;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::cursor::{Cursor, RECORD_ALIGN};
use crate::*;

/// Something between a request's header and its end.
trait Argument<'a>: Sized {
    fn decode(cursor: &mut Cursor<'a>, dialect: Dialect) -> Result<Self, DecodeError>;
    fn encode(&self, dialect: Dialect, out: &mut Vec<u8>);
}

/// A structure that has one layout in every dialect.
trait Fixed: FromBytes + IntoBytes + Immutable {}

macro_rules! fixed {
    ($($name:ident)*) => { $( impl Fixed for $name {} )* };
}

fixed! {
    ForgetIn GetattrIn SetattrIn StatxIn MknodIn MkdirIn RenameIn Rename2In LinkIn OpenIn CreateIn ReleaseIn FlushIn FsyncIn
    ReadIn WriteIn LseekIn FallocateIn CopyFileRangeIn GetxattrIn LkIn AccessIn InterruptIn SyncfsIn BmapIn IoctlIn PollIn
    NotifyRetrieveIn SetupmappingIn CuseInitIn
}

impl<T: Fixed> Argument<'_> for T {
    fn decode(cursor: &mut Cursor<'_>, _: Dialect) -> Result<Self, DecodeError> {
        cursor.fixed()
    }

    fn encode(&self, _: Dialect, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }
}

impl Argument<'_> for InitIn {
    fn decode(cursor: &mut Cursor<'_>, _: Dialect) -> Result<Self, DecodeError> {
        InitIn::decode(cursor)
    }

    fn encode(&self, _: Dialect, out: &mut Vec<u8>) {
        InitIn::encode(self, out);
    }
}

impl Argument<'_> for SetxattrIn {
    fn decode(cursor: &mut Cursor<'_>, dialect: Dialect) -> Result<Self, DecodeError> {
        SetxattrIn::decode(cursor, dialect)
    }

    fn encode(&self, dialect: Dialect, out: &mut Vec<u8>) {
        SetxattrIn::encode(self, dialect, out);
    }
}

impl<'a> Argument<'a> for &'a CStr {
    fn decode(cursor: &mut Cursor<'a>, _: Dialect) -> Result<Self, DecodeError> {
        cursor.name()
    }

    fn encode(&self, _: Dialect, out: &mut Vec<u8>) {
        out.extend_from_slice(self.to_bytes_with_nul());
    }
}

impl<'a> Argument<'a> for &'a [u8] {
    fn decode(cursor: &mut Cursor<'a>, _: Dialect) -> Result<Self, DecodeError> {
        Ok(cursor.rest())
    }

    fn encode(&self, _: Dialect, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
}

impl<'a> Argument<'a> for BatchForget<'a> {
    fn decode(cursor: &mut Cursor<'a>, _: Dialect) -> Result<Self, DecodeError> {
        let head: BatchForgetIn = cursor.fixed()?;
        cursor.records(head.count)
    }

    fn encode(&self, _: Dialect, out: &mut Vec<u8>) {
        let count = u32::try_from(self.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(BatchForgetIn { count, dummy: 0 }.as_bytes());
        out.extend_from_slice(self.as_bytes());
    }
}

impl<'a> Argument<'a> for Removemapping<'a> {
    fn decode(cursor: &mut Cursor<'a>, _: Dialect) -> Result<Self, DecodeError> {
        let head: RemovemappingIn = cursor.fixed()?;
        cursor.records(head.count)
    }

    fn encode(&self, _: Dialect, out: &mut Vec<u8>) {
        let count = u32::try_from(self.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(RemovemappingIn { count }.as_bytes());
        out.extend_from_slice(self.as_bytes());
    }
}

/// Declares every operation once: its name, its arguments in the order of the wire. [`Operation`], the decoder, the encoder
/// and [`Operation::opcode`] all come from the same line.
macro_rules! operations {
    ($(
        $(#[$meta:meta])*
        $name:ident $( ( $value:ident: $ty:ty ) )? $( { $($field:ident: $field_ty:ty),* } )?;
    )*) => {
        /// What a request asks, with its arguments. One variant for each opcode.
        ///
        /// Structures and names are as the client sent them: nothing here says that a node exists, that a handle is open or that
        /// a name is a single component.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, reason = "a variant's structures and the order on the wire document its fields")]
        pub enum Operation<'a> {
            $( $(#[$meta])* $name $( ( $ty ) )? $( { $($field: $field_ty),* } )?, )*
        }

        impl<'a> Operation<'a> {
            /// The operation's number.
            #[must_use]
            pub const fn opcode(&self) -> Opcode {
                match self {
                    $( Operation::$name { .. } => Opcode::$name, )*
                }
            }

            fn decode_arguments(
                opcode: Opcode,
                cursor: &mut Cursor<'a>,
                dialect: Dialect,
            ) -> Result<Self, DecodeError> {
                Ok(match opcode {
                    $( Opcode::$name => Operation::$name
                        $( ( <$ty as Argument<'a>>::decode(cursor, dialect)? ) )?
                        $( { $($field: Argument::decode(cursor, dialect)?),* } )?, )*
                })
            }

            fn encode_arguments(&self, dialect: Dialect, out: &mut Vec<u8>) {
                match self {
                    $( Operation::$name $( ( $value ) )? $( { $($field),* } )? => {
                        $( Argument::encode($value, dialect, out); )?
                        $( $( Argument::encode($field, dialect, out); )* )?
                    } )*
                }
            }
        }
    };
}

operations! {
    Lookup { name: &'a CStr };
    Forget(args: ForgetIn);
    Getattr(args: GetattrIn);
    Setattr(args: SetattrIn);
    Readlink;
    Symlink { name: &'a CStr, target: &'a CStr };
    Mknod { args: MknodIn, name: &'a CStr };
    Mkdir { args: MkdirIn, name: &'a CStr };
    Unlink { name: &'a CStr };
    Rmdir { name: &'a CStr };
    Rename { args: RenameIn, name: &'a CStr, new_name: &'a CStr };
    Link { args: LinkIn, name: &'a CStr };
    Open(args: OpenIn);
    Read(args: ReadIn);
    /// The data stays in the transport: see [`Opcode::bulk_offset`].
    Write(args: WriteIn);
    Statfs;
    Release(args: ReleaseIn);
    Fsync(args: FsyncIn);
    /// `args.size` is the value's length, checked when decoded and taken from `value` when encoded.
    Setxattr { args: SetxattrIn, name: &'a CStr, value: &'a [u8] };
    Getxattr { args: GetxattrIn, name: &'a CStr };
    Listxattr(args: GetxattrIn);
    Removexattr { name: &'a CStr };
    Flush(args: FlushIn);
    /// Filled up with zeros where the client sent a shorter form.
    Init(args: InitIn);
    Opendir(args: OpenIn);
    Readdir(args: ReadIn);
    Releasedir(args: ReleaseIn);
    Fsyncdir(args: FsyncIn);
    Getlk(args: LkIn);
    Setlk(args: LkIn);
    Setlkw(args: LkIn);
    Access(args: AccessIn);
    Create { args: CreateIn, name: &'a CStr };
    Interrupt(args: InterruptIn);
    Bmap(args: BmapIn);
    Destroy;
    /// The data stays in the transport: see [`Opcode::bulk_offset`].
    Ioctl(args: IoctlIn);
    Poll(args: PollIn);
    /// The data stays in the transport: see [`Opcode::bulk_offset`].
    NotifyReply(args: NotifyRetrieveIn);
    BatchForget(nodes: BatchForget<'a>);
    Fallocate(args: FallocateIn);
    Readdirplus(args: ReadIn);
    Rename2 { args: Rename2In, name: &'a CStr, new_name: &'a CStr };
    Lseek(args: LseekIn);
    CopyFileRange(args: CopyFileRangeIn);
    Setupmapping(args: SetupmappingIn);
    Removemapping(mappings: Removemapping<'a>);
    Syncfs(args: SyncfsIn);
    /// The name tells nothing: Linux sends "/", the placeholder of an entry without a name.
    Tmpfile { args: CreateIn, name: &'a CStr };
    Statx(args: StatxIn);
    CopyFileRange64(args: CopyFileRangeIn);
    CuseInit(args: CuseInitIn);
}

/// A request: what is asked and what came after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// What is asked.
    pub operation: Operation<'a>,
    /// What came after it.
    pub extensions: Extensions<'a>,
}

impl<'a> From<Operation<'a>> for Request<'a> {
    fn from(operation: Operation<'a>) -> Self {
        Self {
            operation,
            extensions: Extensions::default(),
        }
    }
}

impl<'a> Operation<'a> {
    /// Decodes a request in place. `args` are the bytes after the header, for operations with [`Opcode::bulk_offset`] only
    /// that many of them.
    ///
    /// Bytes beyond the header's `len` are not the request's and are not looked at. Any bytes give a request or an error.
    ///
    /// # Errors
    /// [`DecodeError`]; ENOSYS answers [`DecodeError::UnknownOpcode`], EINVAL every other.
    pub fn decode(
        header: &InHeader,
        args: &'a [u8],
        dialect: Dialect,
    ) -> Result<Request<'a>, DecodeError> {
        let opcode = header.opcode()?;
        let length = usize::try_from(header.len)
            .unwrap_or(usize::MAX)
            .checked_sub(size_of::<InHeader>())
            .ok_or(DecodeError::HeaderLength { len: header.len })?;
        let expected = opcode.bulk_offset().map_or(length, |bulk| bulk.min(length));
        let args = args.get(..expected).ok_or(DecodeError::Truncated {
            len: header.len,
            present: args.len().saturating_add(size_of::<InHeader>()),
        })?;

        // Before 7.38 the field was padding, which nobody promised to clear.
        let extlen = if dialect.minor < 38 {
            0
        } else {
            usize::from(header.total_extlen) * RECORD_ALIGN
        };
        if extlen != 0 && opcode.bulk_offset().is_some() {
            return Err(DecodeError::MisplacedExtension { opcode });
        }
        let split = args
            .len()
            .checked_sub(extlen)
            .and_then(|at| args.split_at_checked(at));
        let (args, extensions) = split.ok_or(DecodeError::TooShort {
            what: opcode.name(),
            wanted: extlen,
            present: args.len(),
        })?;

        let mut cursor = Cursor::new(opcode.name(), args);
        let operation = Self::decode_arguments(opcode, &mut cursor, dialect)?;
        let extensions = if extlen == 0 && dialect.security_ctx && opcode.creates() {
            // Linux 5.17 to 6.2: the security context, alone, follows the names and is counted nowhere.
            let groups = None;
            Extensions {
                groups,
                ..Extensions::decode(opcode, cursor.rest())?
            }
        } else {
            Extensions::decode(opcode, extensions)?
        };
        cursor.finish()?;
        operation.check_sizes(length)?;
        Ok(Request {
            operation,
            extensions,
        })
    }

    /// Bytes of data that follow the arguments in the transport.
    #[must_use]
    pub const fn bulk_len(&self) -> u32 {
        match self {
            Operation::Write(args) => args.size,
            Operation::NotifyReply(args) => args.size,
            Operation::Ioctl(args) => args.in_size,
            _ => 0,
        }
    }

    /// The sizes inside against `length`, the bytes that the header claims to follow it: a value must match to the byte, bulk
    /// data must at least be there.
    fn check_sizes(&self, length: usize) -> Result<(), DecodeError> {
        let opcode = self.opcode();
        let (count, present, holds) = match (self, opcode.bulk_offset()) {
            (Operation::Setxattr { args, value, .. }, _) => {
                let (count, present) = (u64::from(args.size), value.len() as u64);
                (count, present, count == present)
            }
            (_, Some(offset)) => {
                let (count, present) = (
                    u64::from(self.bulk_len()),
                    length.saturating_sub(offset) as u64,
                );
                (count, present, count <= present)
            }
            _ => return Ok(()),
        };
        if holds {
            return Ok(());
        }
        Err(DecodeError::Count {
            what: opcode.name(),
            count,
            present,
        })
    }
}

/// What a client puts into a request's header; lengths and opcode are filled in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestHeader {
    /// Number of the request.
    pub unique: Unique,
    /// The node it is about.
    pub node: NodeId,
    /// On whose behalf: user.
    pub uid: u32,
    /// On whose behalf: group.
    pub gid: u32,
    /// On whose behalf: thread.
    pub pid: u32,
}

impl Request<'_> {
    /// Appends the request to `out`: header, arguments, extensions. Bulk data is counted in the header's `len` and is the
    /// caller's to send behind.
    ///
    /// What the dialect cannot express is left out: `setxattr_flags` without `setxattr_ext`, groups before 7.38.
    ///
    /// # Errors
    /// [`EncodeError`] if lengths do not fit in the header; `out` is as before then.
    pub fn encode(
        &self,
        header: &RequestHeader,
        dialect: Dialect,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let start = out.len();
        let encoded = self.try_encode(header, dialect, out);
        if encoded.is_err() {
            out.truncate(start);
        }
        encoded
    }

    fn try_encode(
        &self,
        header: &RequestHeader,
        dialect: Dialect,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let opcode = self.operation.opcode();
        let start = out.len();
        out.extend_from_slice(InHeader::default().as_bytes());
        self.operation.sized().encode_arguments(dialect, out);
        let before_extensions = out.len();
        let counted = dialect.minor >= 38;
        if counted {
            self.extensions.encode(out);
        } else if dialect.security_ctx && opcode.creates() {
            Extensions {
                groups: None,
                ..self.extensions
            }
            .encode(out);
        }
        let extensions = out.len() - before_extensions;
        if extensions != 0 && opcode.bulk_offset().is_some() {
            return Err(EncodeError::MisplacedExtension { opcode });
        }
        let units = u16::try_from(extensions / RECORD_ALIGN).map_err(|_| {
            EncodeError::ExtensionsTooLong {
                opcode,
                bytes: extensions,
            }
        })?;
        let bytes = (out.len() - start) as u64 + u64::from(self.operation.bulk_len());
        let len = u32::try_from(bytes).map_err(|_| EncodeError::TooLong { opcode, bytes })?;
        let header = InHeader {
            len,
            opcode: opcode as u32,
            unique: header.unique.get(),
            nodeid: header.node.get(),
            uid: header.uid,
            gid: header.gid,
            pid: header.pid,
            total_extlen: if counted { units } else { 0 },
            padding: 0,
        };
        if let Some(place) = out.get_mut(start..start.saturating_add(size_of::<InHeader>())) {
            place.copy_from_slice(header.as_bytes());
        }
        Ok(())
    }
}

impl Operation<'_> {
    /// With the sizes that follow from its own slices.
    fn sized(mut self) -> Self {
        if let Operation::Setxattr { args, value, .. } = &mut self {
            // Longer values are refused for the length of the request.
            args.size = u32::try_from(value.len()).unwrap_or(u32::MAX);
        }
        self
    }
}

#[cfg(test)]
mod tests;
