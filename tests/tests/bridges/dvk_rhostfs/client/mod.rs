//! A client that sends what the original client sends: the same calls with the same fields filled
//! in, and stack contents in all others.

mod directories;
mod files;
mod paths;

use std::sync::Arc;
use std::time::Duration;

use gangplank_dvk::abi::rhostfs::{Timeval, UsrDirent, Utimes};
use gangplank_dvk::abi::{Arm, Endpoint, M1, M2, Message};
use gangplank_dvk::endpoint::{BoundEndpoint, SharedBuffers};
use zerocopy::{FromBytes, IntoBytes};

/// Limit for a reply.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The contents of the client's stack in fields that it does not set: numbers that a server must
/// not use.
pub(crate) const STACK_1: M1 = M1 {
    i1: 0x7fbd_4948,
    i2: 0x7fbd_4949,
    i3: 3,
    p1: 0x4849_bc90,
    p2: 0x4849_bd60,
    p3: 0x0843_8d60,
};

pub(crate) const STACK_2: M2 = M2 {
    i1: 0x7fbd_4948,
    i2: 0x7fbd_4949,
    i3: 2,
    l1: -1,
    l2: 0x1234,
    p1: 0x4849_bc90,
};

/// A result, or a positive errno.
pub(crate) type Answer<T> = Result<T, i32>;

/// A directory's entry as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) cookie: i32,
    pub(crate) raw: UsrDirent,
}

/// An original client.
pub(crate) struct Client {
    endpoint: Arc<dyn BoundEndpoint>,
    server: Endpoint,
}

impl Client {
    pub(crate) fn new(endpoint: Arc<dyn BoundEndpoint>, server: Endpoint) -> Self {
        Self { endpoint, server }
    }

    /// Unbinds, as a process does when it ends.
    pub(crate) fn leave(self) {
        self.endpoint.unbind();
    }

    /// Sends a request. Returns the unparsed reply.
    pub(crate) fn ask(&self, message: &Message, lent: &mut SharedBuffers<'_>) -> Message {
        let answer = self.endpoint.sendrec(self.server, message, lent, LIMIT);
        answer.expect("every request is answered")
    }

    /// Sends a request without shared buffers.
    pub(crate) fn call(&self, kind: i32, arm: &impl Arm) -> Answer<i32> {
        result(&self.ask(&Message::new(kind, arm), &mut SharedBuffers::new()))
    }

    /// Sends a request with one name, in the fields of the first shape.
    pub(crate) fn named(&self, kind: i32, name: &[u8], arm: M1) -> Answer<i32> {
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            i1: length(name),
            p1: lent.read_only(name),
            ..arm
        };
        result(&self.ask(&Message::new(kind, &arm), &mut lent))
    }

    /// Sends a request with two names.
    pub(crate) fn named_twice(&self, kind: i32, first: &str, second: &str) -> Answer<()> {
        let (first, second) = (text(first), text(second));
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            i1: length(&first),
            i2: length(&second),
            p1: lent.read_only(&first),
            p2: lent.read_only(&second),
            ..STACK_1
        };
        done(&self.ask(&Message::new(kind, &arm), &mut lent))
    }
}

/// A name with its NUL.
pub(crate) fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

fn length(bytes: &[u8]) -> i32 {
    i32::try_from(bytes.len()).unwrap()
}

fn low(number: u64) -> i32 {
    i32::read_from_prefix(number.as_bytes()).unwrap().0
}

fn timevals(times: [(i32, i32); 2]) -> Utimes {
    let [atime, mtime] = times.map(|(sec, usec)| Timeval { sec, usec });
    Utimes { atime, mtime }
}

fn transfer(handle: i32, count: usize, position: u64, buffer: u32) -> M2 {
    M2 {
        i1: handle,
        i2: i32::try_from(count).unwrap(),
        l1: low(position),
        l2: low(position >> 32),
        p1: buffer,
        ..STACK_2
    }
}

/// The result in a reply.
fn result(answer: &Message) -> Answer<i32> {
    if answer.kind < 0 {
        Err(-answer.kind)
    } else {
        Ok(answer.kind)
    }
}

/// Fails unless the reply is a plain success or an errno.
fn done(answer: &Message) -> Answer<()> {
    nothing(result(answer))
}

fn nothing(answer: Answer<i32>) -> Answer<()> {
    assert!(
        matches!(answer, Err(_) | Ok(0)),
        "the answer is 0 or an errno, not {answer:?}"
    );
    answer.map(|_| ())
}
