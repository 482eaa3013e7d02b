//! Error replies to a guest's FUSE requests after its daemon has died.
//!
//! The daemon's knowledge of the guest's files is lost, and the guest would wait for the requests
//! in flight without end. So a frontend takes the rings over and replies to each request that the
//! share is not connected (ENOTCONN), until the guest opens a new session. That request, FUSE_INIT,
//! stays in the ring for the next daemon, unless none is expected.

use std::time::{Duration, Instant};

use gangplank_fuse::{InHeader, Opcode, OutHeader, Unique};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::inflight::Window;
use crate::memory::Memory;
use crate::split_queue::{Chain, QueueError, SplitQueue};

/// Pause between two looks at a ring that a daemon may still work on.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Time without a change after which no thread of its daemon counts as working on a ring.
const STABLE_FOR: Duration = Duration::from_millis(50);

/// Time to wait at most for a ring to stop changing.
const STABLE_LIMIT: Duration = Duration::from_secs(2);

/// How many of the requests in a ring have a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All of them.
    All,
    /// As many as the ring has entries. There are more, because the guest goes on meanwhile.
    Some,
    /// Those before a request that opens a session, which stays in the ring for a daemon.
    UpToInit,
}

/// What becomes of a request that opens a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionOpening {
    /// It stays in the ring for the next daemon.
    Stays,
    /// It gets an error reply as all others, because there is no daemon for it.
    Refused,
}

/// What was done with the requests that a daemon had in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaimed {
    /// The ring goes on from `base`. If the daemon had completed requests out of order, those in
    /// flight have an error reply already.
    At {
        /// Index of the next available entry.
        base: u16,
        /// Requests that have an error reply already.
        refused: u16,
    },
    /// The ring does not tell which requests are in flight.
    Undecidable,
}

/// Replies with an error to each request in the ring from `base` on. Moves `base` on, and adds the
/// replies to `count`. `opening` is for requests that open a session.
///
/// # Errors
/// The driver breaks the ring's rules, or the guest's memory cannot be read or written.
pub fn reply_errors(
    queue: &SplitQueue<'_>,
    base: &mut u16,
    count: &mut u64,
    opening: SessionOpening,
) -> Result<Progress, QueueError> {
    let begun = *count;
    loop {
        while queue.waiting(*base)? > 0 {
            if count.saturating_sub(begun) >= u64::from(queue.size()) {
                return Ok(Progress::Some);
            }
            let head = queue.available_head(*base)?;
            if reply_error(queue, head, opening)? == Progress::UpToInit {
                return Ok(Progress::UpToInit);
            }
            *base = base.wrapping_add(1);
            *count += 1;
        }
        queue.ask_for_kick(*base)?;
        if queue.waiting(*base)? == 0 {
            return Ok(Progress::All);
        }
    }
}

/// Finds the requests that a lost daemon had in flight. Replies to them unless they are the last
/// ones in the ring, which [`reply_errors`] then does. The ring must not change any more:
/// [`wait_until_stable`].
///
/// # Errors
/// As [`reply_errors`].
pub fn reclaim_inflight(queue: &SplitQueue<'_>) -> Result<Reclaimed, QueueError> {
    let used = queue.used_index()?;
    let taken = queue.waiting(used)?;
    if taken == 0 {
        return Ok(Reclaimed::At {
            base: used,
            refused: 0,
        });
    }
    let window = Window::read(queue, used, taken)?;
    let Some(guess) = window.inflight() else {
        return Ok(Reclaimed::Undecidable);
    };
    if !guess.is_certain {
        for head in &guess.heads {
            if is_answered(queue, *head)? {
                return Ok(Reclaimed::Undecidable);
            }
        }
    }
    if guess.is_in_order {
        return Ok(Reclaimed::At {
            base: used,
            refused: 0,
        });
    }
    for head in &guess.heads {
        // FUSE_INIT gets an error as well. A guest sends it alone, so this one breaks the protocol.
        let chain = queue.chain(*head)?;
        let len = refuse(&chain, queue.memory())?;
        queue.complete(*head, len)?;
    }
    Ok(Reclaimed::At {
        base: used.wrapping_add(taken),
        refused: taken,
    })
}

/// Replies with an error to the requests that are most likely in flight, where [`reclaim_inflight`]
/// is not certain. For a device that is broken in any case: a driver to which a request comes back
/// that it does not wait for stops its queue, which then is as it was without replies. Returns the
/// index of the next available entry, and the number of replies.
///
/// # Errors
/// As [`reply_errors`].
pub fn refuse_likely_inflight(queue: &SplitQueue<'_>) -> Result<(u16, u16), QueueError> {
    let used = queue.used_index()?;
    let taken = queue.waiting(used)?;
    let end = used.wrapping_add(taken);
    if taken == 0 {
        return Ok((end, 0));
    }
    let heads = match Window::read(queue, used, taken)?.inflight() {
        Some(guess) => guess.heads,
        // As if the daemon had worked in the ring's order.
        None => (0..taken)
            .map(|offset| queue.available_head(used.wrapping_add(offset)))
            .collect::<Result<_, _>>()?,
    };
    for head in heads {
        let chain = queue.chain(head)?;
        let len = refuse(&chain, queue.memory())?;
        queue.complete(head, len)?;
    }
    Ok((end, taken))
}

/// Waits until the used index stops changing, at most two seconds: threads of a daemon that is
/// being killed may still complete requests.
///
/// # Errors
/// As [`reply_errors`].
pub fn wait_until_stable(queue: &SplitQueue<'_>) -> Result<(), QueueError> {
    let begun = Instant::now();
    let (mut used, mut since) = (queue.used_index()?, Instant::now());
    while queue.waiting(used)? > 0 && since.elapsed() < STABLE_FOR && begun.elapsed() < STABLE_LIMIT
    {
        std::thread::sleep(POLL_INTERVAL);
        let now = queue.used_index()?;
        if now != used {
            (used, since) = (now, Instant::now());
        }
    }
    Ok(())
}

/// Waits up to `limit` until the daemon has completed all requests before `base`. Returns whether
/// it has.
///
/// # Errors
/// As [`reply_errors`].
pub fn is_drained(queue: &SplitQueue<'_>, base: u16, limit: Duration) -> Result<bool, QueueError> {
    let begun = Instant::now();
    loop {
        if queue.used_index()? == base {
            return Ok(true);
        }
        if begun.elapsed() >= limit {
            return Ok(false);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn header(bytes: [u8; size_of::<InHeader>()]) -> InHeader {
    InHeader::read_from_bytes(&bytes).unwrap_or_default()
}

fn reply_error(
    queue: &SplitQueue<'_>,
    head: u16,
    opening: SessionOpening,
) -> Result<Progress, QueueError> {
    let chain = queue.chain(head)?;
    let len = match chain.read(queue.memory())?.map(header) {
        Some(request)
            if opening == SessionOpening::Stays && request.opcode() == Ok(Opcode::Init) =>
        {
            return Ok(Progress::UpToInit);
        }
        Some(request) => reply(&chain, queue.memory(), &request)?,
        // The chain holds no request, so there is no reply to it.
        None => 0,
    };
    queue.complete(head, len)?;
    Ok(Progress::All)
}

/// Whether the chain holds a request that opens a session.
///
/// # Errors
/// As [`reply_errors`].
pub fn opens_session(chain: &Chain, memory: &dyn Memory) -> Result<bool, QueueError> {
    let request = chain.read(memory)?.map(header);
    Ok(request.is_some_and(|request| request.opcode() == Ok(Opcode::Init)))
}

/// Writes an error reply into a chain that was taken from its ring, if the chain holds a request
/// and has room. Returns the length written.
///
/// # Errors
/// As [`reply_errors`].
pub fn refuse(chain: &Chain, memory: &dyn Memory) -> Result<u32, QueueError> {
    let request = chain.read(memory)?.map(header);
    request.map_or(Ok(0), |request| reply(chain, memory, &request))
}

/// Writes the reply to a request if its chain has room. Returns the length written.
fn reply(chain: &Chain, memory: &dyn Memory, request: &InHeader) -> Result<u32, QueueError> {
    let unique = Unique::new(request.unique);
    let reply = match request.opcode() {
        // The guest ends its session, which succeeds.
        Ok(Opcode::Destroy) => OutHeader::ok(unique, 0),
        _ => OutHeader::error(unique, Errno::NOTCONN.raw_os_error()),
    };
    match chain.write_at(memory, 0, reply.as_bytes())? {
        true => Ok(reply.len),
        false => Ok(0),
    }
}

/// Whether the chain holds a reply to its own request.
fn is_answered(queue: &SplitQueue<'_>, head: u16) -> Result<bool, QueueError> {
    let chain = queue.chain(head)?;
    let (Some(request), Some(reply)) = (chain.read(queue.memory())?, chain.peek(queue.memory())?)
    else {
        return Ok(false);
    };
    let reply: [u8; size_of::<OutHeader>()] = reply;
    let reply = OutHeader::read_from_bytes(&reply).unwrap_or_default();
    Ok(reply.unique == header(request).unique)
}

#[cfg(test)]
mod tests;
