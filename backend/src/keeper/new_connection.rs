//! How a guest whose connection was lost gets the next one of its frontend.
//!
//! That connection belongs to a new guest's processes at first. They find the session by the memory
//! in which the frontend keeps its requests in flight: whoever has that file is the frontend that
//! has it, or was given it by that one. A number or a name would prove nothing. The acceptor
//! compares the files, and passes a channel between the two.
//!
//! ```text
//! new guest's worker                              keeper with the session
//!        │ <───────────────── Take ────────────────────── │
//!        │ ── Offer: its state, the connection ─────────> │
//!        │ ── Numbers, Descriptors ... End ─────────────> │
//!        │ <──────────────── Placed ───────────────────── │
//!   notes that it has given                               │
//!   the connection away                                   │
//!        │ ── Go ───────────────────────────────────────> │ the next worker serves it
//! ```
//!
//! Whichever process is killed meanwhile, one of them has the connection: until the note, the new
//! guest's next worker looks for the session again. After it, that guest's processes end, and touch
//! the connection no more; the keeper reads the note itself.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::handover::channel::{Arrived, Channel, Message, unexpected};
use crate::handover::sending;
use crate::state::arena::Arena;
use crate::state::device::DeviceState;
use crate::state::recovery;
use crate::sys::process;

/// How long the other side may take for all of its messages up to the last one, and for that one.
/// It only copies descriptors.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Descriptors that a frontend can have sent at most: 509 memory regions, three for each of 64
/// rings, and those of a message that is being carried out.
const MAX_DESCRIPTORS: usize = 1024;

/// What a frontend has set up on its next connection.
#[derive(Debug)]
pub(super) struct NewConnection {
    pub(super) connection: UnixStream,
    /// With the numbers that the descriptors have in this process, which has them open.
    pub(super) state: DeviceState,
}

/// Gives the connection of the guest whose state is in `arena` to the keeper at the other end of
/// `channel`, which has sent [`Message::Take`]. The calling process must touch the connection no
/// more then.
///
/// # Errors
/// The keeper does not take it, and the guest keeps it.
pub(super) fn give(
    channel: &Channel,
    arena: &Arc<Arena>,
    connection: BorrowedFd<'_>,
) -> io::Result<()> {
    let state = arena.file().ok_or(io::ErrorKind::Unsupported)?;
    let device = DeviceState::load(arena).ok_or(io::ErrorKind::InvalidData)?;
    let mut numbers = device.descriptors();
    numbers.sort_unstable();
    numbers.dedup();
    channel.send(&Message::Offer, &[state, connection])?;
    sending::send_numbered(channel, &numbers).map_err(io::Error::other)?;
    expect(channel, &Message::Placed, Instant::now() + TIMEOUT)?;
    if let Some(holder) = arena.holder() {
        holder.release_guest();
    }
    recovery::note_given_away(arena);
    // If this fails, the keeper finds the note.
    let _ = channel.send(&Message::Go, &[]);
    Ok(())
}

/// Takes the connection of the guest at the other end of `channel` over. Its descriptors get
/// numbers from `lowest` on.
///
/// # Errors
/// That guest has ended, or does not give it away within [`TIMEOUT`]: its worker may not be honest,
/// and must not hold this keeper up.
pub(super) fn take(channel: &Channel, lowest: RawFd) -> io::Result<NewConnection> {
    let deadline = Instant::now() + TIMEOUT;
    channel.send_at_once(&Message::Take, &[])?;
    let Arrived {
        message,
        descriptors,
    } = channel.expect(Some(deadline))?;
    let mut descriptors = descriptors.into_iter();
    let (Message::Offer, Some(state), Some(connection)) =
        (&message, descriptors.next(), descriptors.next())
    else {
        return Err(unexpected(&message));
    };
    let arena = Arena::attach(state).map_err(io::Error::other)?;
    let connection = process::move_up(connection, lowest)?;
    let received = receive_numbered(channel, lowest, deadline)?;
    let state = DeviceState::load(&arena).ok_or(io::ErrorKind::InvalidData)?;
    let number_of = |number| received.get(&number).map(AsRawFd::as_raw_fd);
    let state = state.renumbered(number_of);
    let state = state.ok_or(io::ErrorKind::InvalidData)?;
    if !state.fits() {
        // From the next message on, the other guest has no connection to go on with.
        let text = "what its frontend has set up is too large";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    channel.send_at_once(&Message::Placed, &[])?;
    // Whatever it says or does not say: only the note counts.
    let _ = channel.receive(Some(Instant::now() + TIMEOUT));
    if !recovery::is_given_away(&arena) {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    // From now on, they are the state's.
    for descriptor in received.into_values() {
        let _ = descriptor.into_raw_fd();
    }
    Ok(NewConnection {
        connection: connection.into(),
        state,
    })
}

/// The descriptors that come, by the numbers that they have in the other process.
fn receive_numbered(
    channel: &Channel,
    lowest: RawFd,
    deadline: Instant,
) -> io::Result<BTreeMap<RawFd, OwnedFd>> {
    let mut received = BTreeMap::new();
    loop {
        let numbers = match channel.expect(Some(deadline))?.message {
            Message::Numbers(numbers) => numbers,
            Message::End => return Ok(received),
            other => return Err(unexpected(&other)),
        };
        if received.len() + numbers.len() > MAX_DESCRIPTORS {
            return Err(io::Error::other(
                "it has more descriptors than a guest can have",
            ));
        }
        let arrived = channel.expect(Some(deadline))?;
        if arrived.message != Message::Descriptors || numbers.len() != arrived.descriptors.len() {
            return Err(unexpected(&arrived.message));
        }
        for (number, descriptor) in numbers.into_iter().zip(arrived.descriptors) {
            let number = RawFd::try_from(number).map_err(io::Error::other)?;
            received.insert(number, process::move_up(descriptor, lowest)?);
        }
    }
}

fn expect(channel: &Channel, expected: &Message, deadline: Instant) -> io::Result<()> {
    let arrived = channel.expect(Some(deadline))?.message;
    match arrived == *expected {
        true => Ok(()),
        false => Err(unexpected(&arrived)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::thread;

    use super::*;
    use crate::state::device::{InflightState, RegionState};

    /// A new guest with a connection, and what its frontend has set up: one file twice.
    fn new_guest() -> (Arc<Arena>, UnixStream, UnixStream, UnixStream) {
        let arena = Arena::small();
        let (connection, frontend) = UnixStream::pair().unwrap();
        let (file, other_end) = UnixStream::pair().unwrap();
        let state = DeviceState {
            is_owned: true,
            inflight: Some(InflightState {
                file: file.as_raw_fd(),
                ..InflightState::default()
            }),
            regions: vec![RegionState {
                file: file.as_raw_fd(),
                ..RegionState::default()
            }],
            ..DeviceState::default()
        };
        assert!(state.store(&arena));
        // The state's from now on.
        let _ = file.into_raw_fd();
        (arena, connection, frontend, other_end)
    }

    fn soon() -> Instant {
        Instant::now() + TIMEOUT
    }

    #[test]
    fn a_keeper_gets_the_connection_and_all_that_was_set_up_on_it() {
        let (arena, connection, mut frontend, mut other_end) = new_guest();
        let (ours, theirs) = Channel::pair().unwrap();
        let giver = thread::spawn(move || {
            expect(&theirs, &Message::Take, soon()).unwrap();
            give(&theirs, &arena, connection.as_fd()).unwrap();
        });
        let taken = take(&ours, 500).unwrap();
        giver.join().unwrap();
        frontend.write_all(b"x").unwrap();
        let mut byte = [0];
        rustix::io::read(&taken.connection, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
        assert!(taken.state.is_owned);
        let numbers = taken.state.descriptors();
        assert_eq!(numbers.len(), 2);
        assert_eq!(numbers[0], numbers[1]);
        assert!(numbers[0] >= 500 && taken.connection.as_raw_fd() >= 500);
        other_end.write_all(b"y").unwrap();
        rustix::io::read(process::borrow(numbers[0]), &mut byte).unwrap();
        assert_eq!(&byte, b"y");
    }

    #[test]
    fn a_guest_that_ends_before_its_note_keeps_its_connection_and_after_it_does_not() {
        for has_noted in [false, true] {
            let (arena, connection, ..) = new_guest();
            let (ours, theirs) = Channel::pair().unwrap();
            let dying = thread::spawn(move || {
                expect(&theirs, &Message::Take, soon()).unwrap();
                let passed = [arena.file().unwrap(), connection.as_fd()];
                theirs.send(&Message::Offer, &passed).unwrap();
                let numbers = DeviceState::load(&arena).unwrap().descriptors();
                sending::send_numbered(&theirs, &numbers[..1]).unwrap();
                expect(&theirs, &Message::Placed, soon()).unwrap();
                if has_noted {
                    recovery::note_given_away(&arena);
                }
            });
            assert_eq!(take(&ours, 0).is_ok(), has_noted);
            dying.join().unwrap();
        }
    }

    #[test]
    fn a_state_with_a_descriptor_that_was_not_sent_is_refused() {
        let (arena, connection, ..) = new_guest();
        let (ours, theirs) = Channel::pair().unwrap();
        let giver = thread::spawn(move || {
            expect(&theirs, &Message::Take, soon()).unwrap();
            let passed = [arena.file().unwrap(), connection.as_fd()];
            theirs.send(&Message::Offer, &passed).unwrap();
            theirs.send(&Message::End, &[]).unwrap();
            recovery::note_given_away(&arena);
        });
        let error = take(&ours, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        giver.join().unwrap();
    }

    /// Offers a connection, and then sends this number of descriptors again and again.
    fn offer_without_end(theirs: &Channel, count: u32, pause: Duration) {
        let (arena, connection, ..) = new_guest();
        expect(theirs, &Message::Take, soon()).unwrap();
        let passed = [arena.file().unwrap(), connection.as_fd()];
        theirs.send(&Message::Offer, &passed).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let files = vec![file.as_fd(); count as usize];
        for first in (0..).step_by(count as usize) {
            let numbers = Message::Numbers((first..first + count).collect());
            let is_heard = theirs.send(&numbers, &[]).is_ok()
                && theirs.send(&Message::Descriptors, &files).is_ok();
            if !is_heard || first > 100_000 {
                return;
            }
            thread::sleep(pause);
        }
    }

    #[test]
    fn a_guest_that_goes_on_sending_holds_a_keeper_up_for_a_moment_only() {
        for (count, pause, expected) in [
            (200, Duration::ZERO, io::ErrorKind::Other),
            (1, TIMEOUT / 8, io::ErrorKind::TimedOut),
        ] {
            let (ours, theirs) = Channel::pair().unwrap();
            let giver = thread::spawn(move || offer_without_end(&theirs, count, pause));
            let begun = Instant::now();
            let error = take(&ours, 0).unwrap_err();
            assert_eq!(error.kind(), expected);
            assert!(begun.elapsed() < 2 * TIMEOUT);
            drop(ours);
            giver.join().unwrap();
        }
    }
}
