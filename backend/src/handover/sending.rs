//! What an old keeper does: gives what its guest has to its successor.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use gangplank_vhost_user::descriptors::SCM_MAX_FD;
use thiserror::Error;

use super::channel::{Channel, Message};
use crate::sandbox::GuestPlace;
use crate::sys::process;

/// Why a guest cannot be handed over.
#[derive(Debug, Error)]
pub enum Error {
    /// The state has no file.
    #[error("its state has no file, because of a limit of file sizes (RLIMIT_FSIZE)")]
    NoFile,
    /// The keeper does not find its own namespace.
    #[error("{0}")]
    Place(String),
    /// The successor does not receive.
    #[error("its descriptors cannot be sent")]
    Send(#[from] io::Error),
}

/// Offers a guest: its state, its connection, and where the keeper is.
///
/// # Errors
/// The guest cannot be handed over; the successor does not receive.
pub fn offer(
    successor: &Channel,
    state: Option<BorrowedFd<'_>>,
    connection: BorrowedFd<'_>,
    place: &GuestPlace,
) -> Result<(), Error> {
    let Some(state) = state else {
        let error = Error::NoFile;
        successor.send(&Message::failed(&error.to_string()), &[])?;
        return Err(error);
    };
    let namespace = place.mount_namespace.as_ref().map(AsFd::as_fd);
    let passed = [state, connection, place.root.as_fd()];
    let passed: Vec<_> = passed.into_iter().chain(namespace).collect();
    Ok(successor.send(&Message::Offer, &passed)?)
}

/// Sends all descriptors of the process, whose numbers are `open`, except its `own`, after the
/// worker has ended.
///
/// # Errors
/// The successor does not receive.
pub fn send_descriptors(successor: &Channel, open: Vec<RawFd>, own: &[RawFd]) -> Result<(), Error> {
    let own: BTreeSet<RawFd> = own.iter().copied().collect();
    let mut numbers = open;
    numbers.retain(|number| !own.contains(number));
    numbers.sort_unstable();
    let end = numbers.last().map_or(0, |last| last + 1);
    let end = u32::try_from(end).unwrap_or_default();
    successor.send(&Message::Stopped { end }, &[])?;
    send_numbered(successor, &numbers)
}

/// Sends descriptors of the process with their numbers, and that these are all.
///
/// # Errors
/// The receiver does not receive.
pub fn send_numbered(successor: &Channel, numbers: &[RawFd]) -> Result<(), Error> {
    for batch in numbers.chunks(SCM_MAX_FD) {
        let numbers = batch.iter().map(|number| u32::try_from(*number));
        let numbers = numbers
            .collect::<Result<_, _>>()
            .map_err(io::Error::other)?;
        successor.send(&Message::Numbers(numbers), &[])?;
        let descriptors = batch.iter().copied().map(process::borrow);
        let descriptors: Vec<_> = descriptors.collect();
        successor.send(&Message::Descriptors, &descriptors)?;
    }
    Ok(successor.send(&Message::End, &[])?)
}
