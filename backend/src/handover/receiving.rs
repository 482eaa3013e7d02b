//! What a new keeper does: takes over what a guest has from its predecessor, or gives up and leaves
//! it there.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::fcntl_dupfd_cloexec;

use super::channel::{Arrived, Channel, Message, unexpected};
use crate::sandbox::GuestPlace;
use crate::state::arena::Arena;
use crate::sys::process;

/// How long a predecessor may take for its next message. The supervisor's limits are shorter.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What a predecessor has offered.
#[derive(Debug)]
pub struct Offer {
    /// The memory of the guest's state.
    pub state: OwnedFd,
    /// The connection to the guest's frontend.
    pub connection: UnixStream,
    /// Where the guest's processes are.
    pub place: GuestPlace,
}

fn deadline() -> Option<Instant> {
    Some(Instant::now() + TIMEOUT)
}

/// Waits for the offer, and checks that this program can read the guest's state. `None` if the
/// guest has gone.
///
/// # Errors
/// Why the guest cannot be taken over, in words.
pub fn receive_offer(predecessor: &Channel) -> Result<Option<Offer>, String> {
    let failed = |error: io::Error| error.to_string();
    let arrived = match predecessor.receive(deadline()).map_err(failed)? {
        None => return Ok(None),
        Some(arrived) => arrived,
    };
    let descriptors = match arrived {
        Arrived {
            message: Message::Offer,
            descriptors,
        } => descriptors,
        Arrived {
            message: Message::Failed(reason),
            ..
        } => return Err(reason),
        Arrived { message, .. } => return Err(unexpected(&message).to_string()),
    };
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or("the offer lacks descriptors");
    let (state, connection, root) = (next()?, next()?, next()?);
    let copy = state.try_clone().map_err(failed)?;
    Arena::attach(copy).map_err(|error| format!("its state cannot be used: {error}"))?;
    Ok(Some(Offer {
        state,
        connection: connection.into(),
        place: GuestPlace {
            root,
            mount_namespace: next().ok(),
        },
    }))
}

/// Has the predecessor stop the guest's worker. Returns the number below which the guest's
/// descriptors are; `None` if the guest has gone.
///
/// # Errors
/// The predecessor failed.
pub fn take(predecessor: &Channel) -> io::Result<Option<RawFd>> {
    match predecessor.send(&Message::Take, &[]) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(None),
        sent => sent?,
    }
    let Some(arrived) = predecessor.receive(deadline())? else {
        return Ok(None);
    };
    match arrived.message {
        Message::Stopped { end } => RawFd::try_from(end)
            .map(Some)
            .map_err(|_| io::ErrorKind::InvalidData.into()),
        Message::Failed(reason) => Err(io::Error::other(reason)),
        other => Err(unexpected(&other)),
    }
}

/// Receives the guest's descriptors, all below `end`, and gives them the numbers that they had.
/// The process's own ones are above, or among the lowest that no guest's has. If they are not all
/// that the guest had, returns which they are.
///
/// # Errors
/// The predecessor failed; a number is in use.
pub fn receive_descriptors(
    predecessor: &Channel,
    end: RawFd,
) -> io::Result<Option<HashSet<RawFd>>> {
    let mut gaps = Gaps::default();
    let mut received = HashSet::new();
    loop {
        let numbers = match predecessor.expect(deadline())?.message {
            Message::Numbers(numbers) => numbers,
            Message::End => return Ok(None),
            Message::Incomplete => return Ok(Some(received)),
            other => return Err(unexpected(&other)),
        };
        let numbers: Vec<RawFd> = numbers
            .into_iter()
            .map(RawFd::try_from)
            .collect::<Result<_, _>>()
            .map_err(io::Error::other)?;
        if numbers.iter().any(|number| *number >= end) || !numbers.is_sorted() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        for number in &numbers {
            gaps.fill_below(*number, predecessor)?;
        }
        let Arrived {
            message,
            descriptors,
        } = predecessor.expect(deadline())?;
        if message != Message::Descriptors || numbers.len() != descriptors.len() {
            return Err(unexpected(&message));
        }
        place(&numbers, descriptors, end)?;
        received.extend(numbers);
    }
}

/// Descriptors at the numbers between the guest's.
///
/// The kernel gives what arrives the lowest free numbers. With the gaps filled, these are the right
/// ones.
#[derive(Debug, Default)]
struct Gaps {
    fillers: Vec<OwnedFd>,
    /// All lower numbers are in use.
    next: RawFd,
}

impl Gaps {
    /// Fills the gap between the last number and this one, by copies of `filler`.
    fn fill_below(&mut self, number: RawFd, filler: &Channel) -> io::Result<()> {
        while self.next < number {
            let copy = fcntl_dupfd_cloexec(filler, self.next)?;
            if copy.as_raw_fd() >= number {
                break;
            }
            self.next = copy.as_raw_fd() + 1;
            self.fillers.push(copy);
        }
        self.next = number + 1;
        Ok(())
    }
}

/// Gives those descriptors their numbers that do not have them yet. One that is in the way of
/// another goes out of the way first.
fn place(numbers: &[RawFd], descriptors: Vec<OwnedFd>, end: RawFd) -> io::Result<()> {
    let mut moved = Vec::new();
    for (number, descriptor) in numbers.iter().copied().zip(descriptors) {
        match descriptor.as_raw_fd() == number {
            true => process::place(descriptor, number)?,
            false => moved.push((number, process::move_up(descriptor, end)?)),
        }
    }
    for (number, descriptor) in moved {
        process::place(descriptor, number).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                io::Error::other(format!("descriptor {number} is in use by the new program"))
            }
            _ => error,
        })?;
    }
    Ok(())
}

/// Waits until the predecessor has ended.
///
/// # Errors
/// It does not.
pub fn wait_for_end(predecessor: &Channel) -> io::Result<()> {
    match predecessor.receive(deadline())? {
        None => Ok(()),
        Some(arrived) => Err(unexpected(&arrived.message)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use rustix::process::{WaitOptions, waitpid};

    use super::*;
    use crate::sys::process::Forked;

    /// Descriptors at numbers with gaps, some of which arrive at numbers that are others' targets.
    #[test]
    fn descriptors_get_the_numbers_that_they_had() {
        let files = tempfile::tempdir().unwrap();
        let targets: Vec<u32> = (4..700).filter(|number| number % 7 != 0).collect();
        let path_of = |number: u32| files.path().join(number.to_string());
        for number in &targets {
            File::create(path_of(*number)).unwrap();
        }
        let (one, other) = Channel::pair().unwrap();
        let Forked::Parent(child) = process::fork().unwrap() else {
            let is_right = || -> io::Result<bool> {
                let other = Channel::new(process::move_up(other.into_inner(), 700)?);
                process::close_range(3, 699)?;
                receive_descriptors(&other, 700)?;
                for number in &targets {
                    let placed = process::duplicate(RawFd::try_from(*number).unwrap())?;
                    let expected = rustix::fs::stat(path_of(*number))?;
                    if rustix::fs::fstat(&placed)?.st_ino != expected.st_ino {
                        return Ok(false);
                    }
                }
                Ok(process::duplicate(7).is_err())
            };
            process::exit(u8::from(!is_right().unwrap_or(false)))
        };
        drop(other);
        for batch in targets.chunks(101) {
            let files: Vec<File> = batch
                .iter()
                .map(|number| File::open(path_of(*number)).unwrap())
                .collect();
            let passed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            one.send(&Message::Numbers(batch.to_vec()), &[]).unwrap();
            one.send(&Message::Descriptors, &passed).unwrap();
        }
        one.send(&Message::End, &[]).unwrap();
        let waited = waitpid(Some(child), WaitOptions::empty()).unwrap();
        let (_, status) = waited.expect("ended");
        assert_eq!(status.exit_status(), Some(0));
    }
}
