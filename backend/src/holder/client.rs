//! What a guest's processes do: tell the supervisor which descriptors are to be held.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use gangplank_vhost_user::descriptors::SCM_MAX_FD;
use parking_lot::Mutex;
use rustix::time::ClockId;

use crate::handover::channel::{Channel, Message, unexpected};
use crate::sys::{clock, process};

/// How long the supervisor may take to answer: longer than it takes to start a program that takes
/// over, at a reload or after the death of an acceptor, and to give that up.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The way to the supervisor, which holds descriptors of one guest.
///
/// Each call waits for the answer: what is held is known exactly when a number is stored in the
/// guest's state, and when a descriptor is closed, so that no number is ever mistaken.
#[derive(Debug)]
pub struct Holder {
    /// `None` after a failure: from then on, nothing more is held.
    channel: Mutex<Option<Channel>>,
}

impl Holder {
    /// Speaks to the supervisor by this channel.
    pub const fn new(channel: Channel) -> Self {
        Self {
            channel: Mutex::new(Some(channel)),
        }
    }

    /// Has the guest itself held: its state, its connection, its root and, if it has one, its mount
    /// namespace.
    ///
    /// # Errors
    /// The supervisor does not answer, or does not hold them.
    pub fn hold_guest(&self, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let channel = self.channel.lock();
        let channel = channel.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        ask(channel, Message::HoldGuest, descriptors)
    }

    /// Has descriptors held under their numbers. Returns whether they are. The log says why not.
    pub fn hold(&self, numbers: &[RawFd]) -> bool {
        self.hold_by(numbers, Message::Hold)
    }

    /// [`Self::hold`] of files that are mapped.
    pub fn hold_memory(&self, numbers: &[RawFd]) -> bool {
        self.hold_by(numbers, Message::HoldMemory)
    }

    fn hold_by(&self, numbers: &[RawFd], message: impl Fn(u64, Vec<u32>) -> Message) -> bool {
        numbers.chunks(SCM_MAX_FD).all(|numbers| {
            let descriptors: Vec<_> = numbers.iter().copied().map(process::borrow).collect();
            self.tell(|id| message(id, unsigned(numbers)), &descriptors)
        })
    }

    /// These descriptors need not be held any more. To be called before they are closed.
    pub fn release(&self, numbers: &[RawFd]) {
        for numbers in numbers.chunks(SCM_MAX_FD) {
            self.tell(|id| Message::Unhold(id, unsigned(numbers)), &[]);
        }
    }

    /// Nothing of the guest need be held any more: another one's processes have it. The service
    /// manager would not hold it twice.
    pub fn release_guest(&self) {
        self.tell(Message::UnholdGuest, &[]);
    }

    /// The channel's number, which every process of the guest keeps open.
    pub fn number(&self) -> Option<RawFd> {
        use std::os::fd::AsRawFd;

        let channel = self.channel.lock();
        channel.as_ref().map(|channel| channel.as_fd().as_raw_fd())
    }

    fn tell(&self, message: impl Fn(u64) -> Message, descriptors: &[BorrowedFd<'_>]) -> bool {
        let mut guard = self.channel.lock();
        let Some(channel) = guard.as_ref() else {
            return false;
        };
        match ask(channel, message, descriptors) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::QuotaExceeded => false,
            Err(error) => {
                log::error!(
                    "descriptors of this guest are not held any more, so it ends with the daemon: \
                     {error}"
                );
                // The supervisor forgets the guest then: what is held of it may not be what its
                // state says.
                channel.shut_down();
                *guard = None;
                false
            }
        }
    }
}

/// Sends a message and waits for the answer. `QuotaExceeded` if no more is held.
fn ask(
    channel: &Channel,
    message: impl Fn(u64) -> Message,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    // A worker that died may have left a request without having read the answer.
    let id = clock::now(ClockId::Monotonic).cast_unsigned();
    channel.send(&message(id), descriptors)?;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match channel.expect(Some(deadline))?.message {
            Message::Held(answered, _) if answered != id => {}
            Message::Held(_, true) => return Ok(()),
            Message::Held(_, false) => return Err(io::ErrorKind::QuotaExceeded.into()),
            other => return Err(unexpected(&other)),
        }
    }
}

fn unsigned(numbers: &[RawFd]) -> Vec<u32> {
    numbers
        .iter()
        .map(|number| number.cast_unsigned())
        .collect()
}
