//! Gangplank's part of the stream, behind virtiofsd's.
//!
//! ```text
//! "GANG", version u32, then fields until the end: kind u16, length u32, value
//! ```
//!
//! These numbers are little-endian; a value is encoded by postcard. A reader skips fields of
//! unknown kinds. The version changes when a reader must not do so.
//!
//! | kind | value |
//! | ---: | --- |
//! | 1 | [`Init`] |
//! | 2 | [`NegotiatedErrors`] |
//! | 3 | a list of [`FileLock`] |
//! | 4 | the name of the session, a string |
//! | 5 | the number of the process that wakes watchers (`--events`), u32 |

use serde::{Deserialize, Serialize};

use super::MAX_LOCKS;
use super::check::{find, find_handle};
use super::decode::field;
use super::encode::put;
use super::error::ExtensionProblem;
use super::model::{Handle, Inode};

const MAGIC: &[u8; 4] = b"GANG";
const VERSION: u32 = 1;

const INIT: u16 = 1;
const ERRORS: u16 = 2;
const LOCKS: u16 = 3;
const SESSION_NAME: u16 = 4;
const WAKER: u16 = 5;

/// Bytes in the name of a session.
const MAX_SESSION_NAME_LEN: usize = 255;

/// What gangplankd records of a guest beside what virtiofsd does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extension {
    /// The reply to INIT. `None` if the guest has not sent INIT.
    pub init: Option<Init>,
    /// Requests that the guest no longer sends.
    pub errors: NegotiatedErrors,
    /// The locks that the guest holds.
    pub locks: Vec<FileLock>,
    /// The name of the session, at most 255 bytes.
    pub session_name: Option<String>,
    /// The guest's process whose requests change nothing (`--events`).
    pub waker: Option<u32>,
}

/// What the reply to INIT said (linux/fuse.h, `struct fuse_init_out`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Init {
    /// The minor version that both sides use.
    pub minor: u32,
    /// `flags` in the low and `flags2` in the high 32 bits.
    pub flags: u64,
}

/// Requests that were answered with ENOSYS, so that the guest no longer sends them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct NegotiatedErrors {
    /// OPEN: the guest uses files without a handle.
    pub no_open: bool,
    /// OPENDIR: the guest uses directories without a handle.
    pub no_opendir: bool,
    /// FLUSH.
    pub no_flush: bool,
}

/// A lock that the guest holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct FileLock {
    /// The inode's id.
    pub inode: u64,
    /// The handle through which the lock was taken, if the guest uses handles.
    pub handle: Option<u64>,
    /// The guest's number for the owner (`lock_owner`).
    pub owner: u64,
    /// The guest's process id, which F_GETLK reports.
    pub pid: u32,
    /// A write lock; otherwise a read lock.
    pub exclusive: bool,
    /// What it covers.
    pub kind: LockKind,
}

/// What a lock covers. The order of the variants is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum LockKind {
    /// The whole file, by flock(2).
    Flock,
    /// A range, by fcntl(2).
    Range {
        /// First byte.
        start: u64,
        /// Last byte.
        end: u64,
    },
}

impl Extension {
    /// Reads the part, up to the stream's end. [`Extension::check`] checks it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, ExtensionProblem> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(ExtensionProblem::Magic)?;
        let (version, mut rest) = rest.split_first_chunk().ok_or(ExtensionProblem::Cut)?;
        match u32::from_le_bytes(*version) {
            VERSION => {}
            other => return Err(ExtensionProblem::Version(other)),
        }
        let mut extension = Self::default();
        let mut seen = Vec::new();
        while !rest.is_empty() {
            let (kind, value);
            (kind, value, rest) = next_field(rest)?;
            match kind {
                INIT => extension.init = Some(field(kind, value)?),
                ERRORS => extension.errors = field(kind, value)?,
                LOCKS => extension.locks = locks(value)?,
                SESSION_NAME => extension.session_name = Some(session_name(value)?),
                WAKER => extension.waker = Some(field(kind, value)?),
                _ => continue,
            }
            if seen.contains(&kind) {
                return Err(ExtensionProblem::FieldTwice(kind));
            }
            seen.push(kind);
        }
        Ok(extension)
    }

    /// Appends the part.
    pub(super) fn encode(&self, stream: &mut Vec<u8>) {
        stream.extend_from_slice(MAGIC);
        stream.extend_from_slice(&VERSION.to_le_bytes());
        if let Some(init) = &self.init {
            put_field(stream, INIT, init);
        }
        put_field(stream, ERRORS, &self.errors);
        if !self.locks.is_empty() {
            put_field(stream, LOCKS, &self.locks);
        }
        if let Some(name) = &self.session_name {
            put_field(stream, SESSION_NAME, name);
        }
        if let Some(waker) = &self.waker {
            put_field(stream, WAKER, waker);
        }
    }

    /// Makes sure that the part fits the guest's inodes and handles, which are sorted by id.
    pub(super) fn check(
        &self,
        inodes: &[Inode],
        handles: &[Handle],
    ) -> Result<(), ExtensionProblem> {
        match &self.session_name {
            Some(name) if name.len() > MAX_SESSION_NAME_LEN => {
                return Err(ExtensionProblem::SessionName(name.len()));
            }
            _ => {}
        }
        if self.locks.len() as u64 > MAX_LOCKS {
            return Err(ExtensionProblem::Field(LOCKS));
        }
        for lock in &self.locks {
            if find(inodes, lock.inode).is_none() {
                return Err(ExtensionProblem::LockInode(lock.inode));
            }
            if let Some(id) = lock.handle {
                let handle = find_handle(handles, id);
                if handle.is_none_or(|handle| handle.inode != lock.inode) {
                    return Err(ExtensionProblem::LockHandle(id));
                }
            }
            if let LockKind::Range { start, end } = lock.kind
                && start > end
            {
                return Err(ExtensionProblem::LockRange { start, end });
            }
        }
        Ok(())
    }
}

/// Splits the first field off: its kind, its value, and what follows.
fn next_field(bytes: &[u8]) -> Result<(u16, &[u8], &[u8]), ExtensionProblem> {
    let (kind, rest) = bytes.split_first_chunk().ok_or(ExtensionProblem::Cut)?;
    let (len, rest) = rest.split_first_chunk().ok_or(ExtensionProblem::Cut)?;
    let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| ExtensionProblem::Cut)?;
    let (value, rest) = rest.split_at_checked(len).ok_or(ExtensionProblem::Cut)?;
    Ok((u16::from_le_bytes(*kind), value, rest))
}

fn put_field(stream: &mut Vec<u8>, kind: u16, value: &impl Serialize) {
    let mut bytes = Vec::new();
    put(&mut bytes, value);
    // Checked parts are far shorter than 4 GiB: a lock takes less than 64 bytes.
    let len = u32::try_from(bytes.len()).expect("a field is shorter than 4 GiB");
    stream.extend_from_slice(&kind.to_le_bytes());
    stream.extend_from_slice(&len.to_le_bytes());
    stream.extend_from_slice(&bytes);
}

fn locks(value: &[u8]) -> Result<Vec<FileLock>, ExtensionProblem> {
    let damaged = |_| ExtensionProblem::Field(LOCKS);
    let (count, mut rest) = postcard::take_from_bytes::<u64>(value).map_err(damaged)?;
    if count > MAX_LOCKS {
        return Err(ExtensionProblem::Field(LOCKS));
    }
    let mut locks = Vec::new();
    for _ in 0..count {
        let lock;
        (lock, rest) = postcard::take_from_bytes(rest).map_err(damaged)?;
        locks.push(lock);
    }
    match rest {
        [] => Ok(locks),
        _ => Err(ExtensionProblem::Field(LOCKS)),
    }
}

fn session_name(value: &[u8]) -> Result<String, ExtensionProblem> {
    let name: &str = field(SESSION_NAME, value)?;
    match name.len() {
        len if len > MAX_SESSION_NAME_LEN => Err(ExtensionProblem::SessionName(len)),
        _ => Ok(name.to_owned()),
    }
}
