//! Eventfds as they are handed over: descriptors.
#![allow(unsafe_code)] // the eventfd type can be had from a bare number only

use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use vmm_sys_util::eventfd::EventFd;

/// The eventfd behind `descriptor`. If it is something else, using it fails.
pub(super) fn from_descriptor(descriptor: OwnedFd) -> EventFd {
    // SAFETY: the descriptor was owned, and whoever owned it has just given it up.
    unsafe { EventFd::from_raw_fd(descriptor.into_raw_fd()) }
}

/// The descriptor of `eventfd`.
pub(super) fn as_descriptor(eventfd: &EventFd) -> BorrowedFd<'_> {
    let number = std::os::fd::AsRawFd::as_raw_fd(eventfd);
    // SAFETY: the eventfd keeps it open, and outlives the result.
    unsafe { BorrowedFd::borrow_raw(number) }
}
