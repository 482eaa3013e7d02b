//! NLM version 4 on the wire (RFC 1813, appendix II; X/Open XNFS, chapter 10): arguments and
//! results.
//!
//! Neither `nfs3_types` nor another published crate has these types, so they are ours.

use super::range::Range;
use crate::xdr::{DecodeError, Reader, put, put_opaque};

/// The program's number.
pub const PROGRAM: u32 = 100_021;

/// The version that belongs to NFSv3. Versions 1 to 3 belong to NFSv2.
pub const VERSION: u32 = 4;

/// Longest name of a machine, and longest opaque value (`LM_MAXSTRLEN`, `MAXNETOBJ_SZ`).
const MAX_TEXT: usize = 1024;

/// The procedures that are called. Those with a reply in a call of its own are above 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Procedure {
    /// NULL.
    Null = 0,
    /// TEST: is there a lock in the way?
    Test = 1,
    /// LOCK.
    Lock = 2,
    /// CANCEL: a waiting LOCK.
    Cancel = 3,
    /// UNLOCK.
    Unlock = 4,
    /// GRANTED: a server tells a client that it has the lock that it has waited for.
    Granted = 5,
    /// TEST, whose results come by TEST_RES.
    TestMsg = 6,
    /// LOCK, whose results come by LOCK_RES.
    LockMsg = 7,
    /// CANCEL, whose results come by CANCEL_RES.
    CancelMsg = 8,
    /// UNLOCK, whose results come by UNLOCK_RES.
    UnlockMsg = 9,
    /// SHARE: a reservation of the whole file, as DOS has them.
    Share = 20,
    /// UNSHARE.
    Unshare = 21,
    /// LOCK of a client that does not tell when it restarts.
    NmLock = 22,
    /// FREE_ALL: a client has restarted.
    FreeAll = 23,
}

impl Procedure {
    /// The procedure with this number, if a server has it.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        use Procedure as P;
        let all = [
            P::Null,
            P::Test,
            P::Lock,
            P::Cancel,
            P::Unlock,
            P::Granted,
            P::TestMsg,
            P::LockMsg,
            P::CancelMsg,
            P::UnlockMsg,
            P::Share,
            P::Unshare,
            P::NmLock,
            P::FreeAll,
        ];
        all.into_iter()
            .find(|procedure| *procedure as u32 == number)
    }

    /// The procedure that does the same, and the client's procedure for its results, if results
    /// come in a call of their own.
    #[must_use]
    pub const fn message(self) -> (Self, Option<u32>) {
        match self {
            Self::TestMsg => (Self::Test, Some(11)),
            Self::LockMsg => (Self::Lock, Some(12)),
            Self::CancelMsg => (Self::Cancel, Some(13)),
            Self::UnlockMsg => (Self::Unlock, Some(14)),
            other => (other, None),
        }
    }
}

/// The result of a procedure (`nlm4_stats`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// It is done.
    Granted = 0,
    /// Another owner has a lock in the way.
    Denied = 1,
    /// There are too many locks.
    DeniedNoLocks = 2,
    /// The client waits, until GRANTED.
    Blocked = 3,
    /// Clients reclaim their locks; or the daemon is away. The client tries again.
    DeniedGracePeriod = 4,
    /// The export is read-only.
    ReadOnly = 6,
    /// The handle is of no file.
    StaleHandle = 7,
    /// The range goes beyond the largest file.
    TooBig = 8,
    /// It failed.
    Failed = 9,
}

/// What TEST, LOCK, CANCEL and UNLOCK say of a lock (`nlm4_lock`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockArgs<'a> {
    /// The client's name of itself.
    pub caller_name: &'a [u8],
    /// The file.
    pub handle: &'a [u8],
    /// The client's name of the owner, which GRANTED and TEST give back.
    pub owner_handle: &'a [u8],
    /// The owner's number, unique in the client.
    pub svid: u32,
    /// First byte.
    pub offset: u64,
    /// Bytes; 0 for "to the end".
    pub length: u64,
}

impl<'a> LockArgs<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            caller_name: reader.opaque(MAX_TEXT)?,
            handle: reader.opaque(MAX_TEXT)?,
            owner_handle: reader.opaque(MAX_TEXT)?,
            svid: reader.u32()?,
            offset: reader.u64()?,
            length: reader.u64()?,
        })
    }

    fn put(&self, bytes: &mut Vec<u8>) {
        put_opaque(bytes, self.caller_name);
        put_opaque(bytes, self.handle);
        put_opaque(bytes, self.owner_handle);
        put(bytes, &self.svid);
        put(bytes, &self.offset);
        put(bytes, &self.length);
    }

    /// The range, unless it is too large.
    #[must_use]
    pub fn range(&self) -> Option<Range> {
        Range::new(self.offset, self.length)
    }
}

/// The arguments of TEST, LOCK, CANCEL or UNLOCK. What a procedure does not have is false.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Args<'a> {
    /// The results repeat it.
    pub cookie: &'a [u8],
    /// Whether the client waits.
    pub block: bool,
    /// Whether the lock is exclusive.
    pub exclusive: bool,
    /// The lock.
    pub lock: LockArgs<'a>,
    /// Whether the client had the lock before this server started.
    pub reclaim: bool,
    /// How often the client has started, as its NSM counts; 0 if it does not know.
    pub state: u32,
}

impl<'a> Args<'a> {
    /// Reads the arguments of `procedure`, one of those four.
    ///
    /// # Errors
    /// They are malformed.
    pub fn read(procedure: Procedure, reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let is_lock = matches!(procedure, Procedure::Lock | Procedure::NmLock);
        let cookie = reader.opaque(MAX_TEXT)?;
        let block = (is_lock || procedure == Procedure::Cancel) && reader.bool()?;
        let exclusive = procedure != Procedure::Unlock && reader.bool()?;
        let lock = LockArgs::read(reader)?;
        let reclaim = is_lock && reader.bool()?;
        let state = if is_lock { reader.u32()? } else { 0 };
        Ok(Self {
            cookie,
            block,
            exclusive,
            lock,
            reclaim,
            state,
        })
    }
}

/// The lock that is in the way of another (`nlm4_holder`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Whether it is exclusive.
    pub exclusive: bool,
    /// Its owner's number; 0 if no NFS client owns it.
    pub svid: u32,
    /// Its owner's name.
    pub owner_handle: Vec<u8>,
    /// Its range.
    pub range: Range,
}

/// Appends the results of most procedures.
pub fn put_status(reply: &mut Vec<u8>, cookie: &[u8], status: Status) {
    put_opaque(reply, cookie);
    put(reply, &(status as u32));
}

/// Appends the results of TEST.
pub fn put_test(reply: &mut Vec<u8>, cookie: &[u8], found: Result<Option<Holder>, Status>) {
    let holder = match found {
        Ok(None) => return put_status(reply, cookie, Status::Granted),
        Err(status) => return put_status(reply, cookie, status),
        Ok(Some(holder)) => holder,
    };
    put_status(reply, cookie, Status::Denied);
    put(reply, &holder.exclusive);
    put(reply, &holder.svid);
    put_opaque(reply, &holder.owner_handle);
    put(reply, &holder.range.first());
    put(reply, &holder.range.length());
}

/// The arguments of GRANTED.
#[must_use]
pub fn granted_args(cookie: &[u8], exclusive: bool, lock: &LockArgs<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    put_opaque(&mut bytes, cookie);
    put(&mut bytes, &exclusive);
    lock.put(&mut bytes);
    bytes
}

/// Whether a client's results of GRANTED say that it takes the lock.
#[must_use]
pub fn takes_grant(results: &[u8]) -> bool {
    let mut reader = Reader::new(results);
    reader.opaque(MAX_TEXT).is_ok() && reader.u32() == Ok(Status::Granted as u32)
}

/// SHARE and UNSHARE: the cookie. What follows is read and not used.
///
/// # Errors
/// They are malformed.
pub fn read_share<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], DecodeError> {
    let cookie = reader.opaque(MAX_TEXT)?;
    for _ in ["caller_name", "fh", "oh"] {
        reader.opaque(MAX_TEXT)?;
    }
    let (_mode, _access, _reclaim) = (reader.u32()?, reader.u32()?, reader.bool()?);
    Ok(cookie)
}

/// FREE_ALL: the client's name of itself, and how often it has started.
///
/// # Errors
/// They are malformed.
pub fn read_free_all<'a>(reader: &mut Reader<'a>) -> Result<(&'a [u8], u32), DecodeError> {
    Ok((reader.opaque(MAX_TEXT + 1)?, reader.u32()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// LOCK as Linux's lockd encodes it: cookie, block, exclusive, alock, reclaim, state.
    #[test]
    fn a_lock_is_read_as_it_is_specified() {
        let mut bytes = Vec::new();
        put_opaque(&mut bytes, &[1, 2, 3, 4]);
        put(&mut bytes, &true);
        put(&mut bytes, &true);
        let lock = LockArgs {
            caller_name: b"guest",
            handle: &[7; 32],
            owner_handle: b"3@guest",
            svid: 3,
            offset: 10,
            length: 0,
        };
        lock.put(&mut bytes);
        put(&mut bytes, &false);
        put(&mut bytes, &9_u32);
        let mut reader = Reader::new(&bytes);
        let args = Args::read(Procedure::Lock, &mut reader).unwrap();
        assert_eq!(
            (args.cookie, args.block, args.exclusive),
            (&[1, 2, 3, 4][..], true, true)
        );
        assert_eq!((args.lock, args.reclaim, args.state), (lock, false, 9));
        assert_eq!(args.lock.range().unwrap().first(), 10);
        assert!(reader.rest().is_empty());
    }

    #[test]
    fn a_lock_in_the_way_is_described() {
        let mut reply = Vec::new();
        let holder = Holder {
            exclusive: true,
            svid: 5,
            owner_handle: b"5@g".to_vec(),
            range: Range::new(3, 0).unwrap(),
        };
        put_test(&mut reply, b"", Ok(Some(holder)));
        let mut reader = Reader::new(&reply);
        assert_eq!(reader.opaque(0), Ok(&[][..]));
        assert_eq!((reader.u32(), reader.bool()), (Ok(1), Ok(true)));
        assert_eq!((reader.u32(), reader.opaque(9)), (Ok(5), Ok(&b"5@g"[..])));
        assert_eq!((reader.u64(), reader.u64()), (Ok(3), Ok(0)));
        assert!(takes_grant(&[0; 8]));
        assert!(!takes_grant(&[0, 0, 0, 0, 0, 0, 0, 1]));
        assert!(!takes_grant(&[0; 7]));
    }
}
