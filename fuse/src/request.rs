//! A whole request: one table of operations, from which the server's decoder and the client's
//! encoder both come.

mod argument;
mod encode;

use core::ffi::CStr;

use self::argument::Argument;
pub use self::encode::RequestHeader;
use crate::cursor::{Cursor, RECORD_ALIGN};
use crate::*;

/// Declares every operation once: its name, its arguments in the order of the wire. [`Operation`],
/// the decoder, the encoder and [`Operation::opcode`] all come from the same line.
macro_rules! operations {
    ($(
        $(#[$meta:meta])*
        $name:ident $( ( $value:ident: $ty:ty ) )? $( { $($field:ident: $field_ty:ty),* } )?;
    )*) => {
        /// What a request asks, with its arguments. One variant for each opcode.
        ///
        /// Structures and names are as the client sent them: nothing here says that a node exists,
        /// that a handle is open or that a name is a single component.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(
            missing_docs,
            reason = "a variant's structures and the order on the wire document its fields"
        )]
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
    /// The name has no meaning: Linux sends "/", the placeholder of an entry without a name.
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
    /// Decodes a request in place. `args` are the bytes after the header, for operations with
    /// [`Opcode::bulk_offset`] only that many of them.
    ///
    /// Bytes beyond the header's `len` are not the request's and are not looked at. Any bytes give
    /// a request or an error.
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

        // Before 7.38 the field was padding, which a kernel need not clear.
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
            // Linux 5.17 to 6.2: the security context, alone, follows the names and is counted
            // nowhere.
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

    /// The sizes inside against `length`, the bytes that the header claims to follow it: a value
    /// must match to the byte, bulk data must at least be there.
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

#[cfg(test)]
mod tests;
