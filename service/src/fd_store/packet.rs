//! What a daemon and a holder of descriptors say to each other, over a `SOCK_SEQPACKET` socket
//! (unix(7)): texts in the form of `sd_notify(3)`, with descriptors.
//!
//! ```text
//! daemon                               holder
//! HOLDER=1, OWNER=...           ─>
//!                               <─     FDS=n, or ERROR=..., or BUSY=1
//!                               <─     FDNAME=... with a descriptor, n times
//! FDSTORE=1, FDNAME=... with it ─>
//!                               <─     HELD=1 or HELD=0
//! FDSTOREREMOVE=1, FDNAME=...   ─>
//!                               <─     HELD=1
//! ```

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use crate::seqpacket::{self, Patience};

/// Bytes of a text: an owner has two paths (`PATH_MAX`, 4096 bytes each).
const MAX_LEN: usize = 9000;

/// Characters of a name (`sd_notify(3)`, FDNAME).
const MAX_NAME: usize = 255;

/// A text with what came along.
#[derive(Debug)]
pub struct Packet {
    /// The text.
    pub text: Vec<u8>,
    /// At most one.
    pub descriptor: Option<OwnedFd>,
}

/// What a daemon says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// First: which daemon it is. It alone gets what is held for it.
    Begin(&'a [u8]),
    /// Hold what comes with this.
    Store(&'a str),
    /// Hold it no more.
    Remove(&'a str),
}

/// What a holder says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// To [`Request::Begin`]: this number of [`Answer::Found`] follow.
    Begun(usize),
    /// One of what is held.
    Found(&'a str),
    /// Why it holds nothing for this daemon.
    Refused(&'a str),
    /// The same daemon is still connected.
    Busy,
    /// To the other requests: whether it was done.
    Done(bool),
}

impl<'a> Request<'a> {
    /// The text.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            // The owner comes last: it has paths, which may have any bytes.
            Self::Begin(owner) => [b"HOLDER=1\nOWNER=", *owner].concat(),
            Self::Store(name) => format!("FDSTORE=1\nFDNAME={name}").into(),
            Self::Remove(name) => format!("FDSTOREREMOVE=1\nFDNAME={name}").into(),
        }
    }

    /// Reads a text; `None` if it is not one of these.
    #[must_use]
    pub fn decode(text: &'a [u8]) -> Option<Self> {
        if let Some(owner) = text.strip_prefix(b"HOLDER=1\nOWNER=") {
            return Some(Self::Begin(owner));
        }
        let text = str::from_utf8(text).ok()?;
        if let Some(name) = text.strip_prefix("FDSTORE=1\nFDNAME=") {
            return valid(name).map(Self::Store);
        }
        valid(text.strip_prefix("FDSTOREREMOVE=1\nFDNAME=")?).map(Self::Remove)
    }
}

impl<'a> Answer<'a> {
    /// The text.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Begun(count) => format!("FDS={count}"),
            Self::Found(name) => format!("FDNAME={name}"),
            Self::Refused(why) => format!("ERROR={why}"),
            Self::Busy => "BUSY=1".to_owned(),
            Self::Done(done) => format!("HELD={}", u8::from(*done)),
        }
        .into()
    }

    /// Reads a text; `None` if it is not one of these.
    #[must_use]
    pub fn decode(text: &'a [u8]) -> Option<Self> {
        let (word, value) = str::from_utf8(text).ok()?.split_once('=')?;
        match (word, value) {
            ("FDS", count) => count.parse().ok().map(Self::Begun),
            ("FDNAME", name) => valid(name).map(Self::Found),
            ("ERROR", why) => Some(Self::Refused(why)),
            ("BUSY", "1") => Some(Self::Busy),
            ("HELD", "0") => Some(Self::Done(false)),
            ("HELD", "1") => Some(Self::Done(true)),
            _ => None,
        }
    }
}

/// A name that may be held.
fn valid(name: &str) -> Option<&str> {
    let is_valid = !name.is_empty()
        && name.len() <= MAX_NAME
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b':');
    is_valid.then_some(name)
}

/// Sends a text, with a descriptor if there is one.
///
/// # Errors
/// The other end is closed; `TimedOut` at the deadline; `WouldBlock` at once without one.
pub fn send(
    socket: BorrowedFd<'_>,
    text: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
    deadline: Option<Instant>,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let descriptors = descriptor.as_slice();
    seqpacket::send(socket, text, descriptors, &mut space, patience(deadline))
}

/// Receives a text. `None` if the other end is closed.
///
/// # Errors
/// `TimedOut` at the deadline; `WouldBlock` at once without one; `InvalidData` if it is too long or
/// its descriptors are more than one, or more than the process may have open.
pub fn receive(socket: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<Option<Packet>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut bytes = [0; MAX_LEN];
    let mut descriptors = Vec::new();
    let received = seqpacket::receive(
        socket,
        &mut bytes,
        &mut descriptors,
        &mut space,
        patience(deadline),
    )?;
    if received.is_cut || descriptors.len() > 1 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is too long, or descriptors were lost: the limit of open descriptors is too low",
        ));
    }
    let text = bytes.get(..received.len).unwrap_or_default();
    Ok((!text.is_empty()).then(|| Packet {
        text: text.to_vec(),
        descriptor: descriptors.pop(),
    }))
}

fn patience(deadline: Option<Instant>) -> Patience {
    deadline.map_or(Patience::None, Patience::Until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_they_are_written() {
        let owner = b"/run/fs.sock\n/srv=\xff";
        for request in [
            Request::Begin(owner),
            Request::Store("guest-1-state"),
            Request::Remove("guest-1-state"),
        ] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        for answer in [
            Answer::Begun(17),
            Answer::Found("guest-users"),
            Answer::Refused("why=because"),
            Answer::Busy,
            Answer::Done(true),
            Answer::Done(false),
        ] {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let long = format!("FDSTORE=1\nFDNAME={}", "x".repeat(256));
        for text in [
            "",
            "FDSTORE=1",
            "FDSTORE=1\nFDNAME=",
            "FDSTORE=1\nFDNAME=a:b",
            "FDSTORE=1\nFDNAME=a\nb",
            "FDSTOREREMOVE=1\nFDNAME=a b",
            "OWNER=x",
            &long,
        ] {
            assert_eq!(Request::decode(text.as_bytes()), None, "{text:?}");
        }
        for text in ["", "FDS=x", "FDS=-1", "HELD=2", "BUSY=0", "FDNAME="] {
            assert_eq!(Answer::decode(text.as_bytes()), None, "{text:?}");
        }
    }
}
