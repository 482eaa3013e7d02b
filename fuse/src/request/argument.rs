//! What stands between a request's header and its end: how each kind is read and written.

use core::ffi::CStr;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::cursor::Cursor;
use crate::*;

/// Something between a request's header and its end.
pub(super) trait Argument<'a>: Sized {
    fn decode(cursor: &mut Cursor<'a>, dialect: Dialect) -> Result<Self, DecodeError>;
    fn encode(&self, dialect: Dialect, out: &mut Vec<u8>);
}

/// A structure that has one layout in every dialect.
trait Fixed: FromBytes + IntoBytes + Immutable {}

macro_rules! fixed {
    ($($name:ident)*) => { $( impl Fixed for $name {} )* };
}

fixed! {
    ForgetIn GetattrIn SetattrIn StatxIn MknodIn MkdirIn RenameIn Rename2In LinkIn OpenIn CreateIn
    ReleaseIn FlushIn FsyncIn ReadIn WriteIn LseekIn FallocateIn CopyFileRangeIn GetxattrIn LkIn
    AccessIn InterruptIn SyncfsIn BmapIn IoctlIn PollIn NotifyRetrieveIn SetupmappingIn CuseInitIn
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
