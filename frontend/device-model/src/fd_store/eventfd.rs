//! Conversion between eventfds and descriptors.
#![allow(unsafe_code)] // the eventfd type can be had from a bare number only

use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use vmm_sys_util::eventfd::EventFd;

/// The eventfd of `descriptor`. If the descriptor is something else, using the eventfd fails.
pub(super) fn from_descriptor(descriptor: OwnedFd) -> EventFd {
    // SAFETY: the descriptor is open and owned; `into_raw_fd` has given the ownership up.
    unsafe { EventFd::from_raw_fd(descriptor.into_raw_fd()) }
}

/// The descriptor of `eventfd`.
pub(crate) fn as_descriptor(eventfd: &EventFd) -> BorrowedFd<'_> {
    let number = std::os::fd::AsRawFd::as_raw_fd(eventfd);
    // SAFETY: the eventfd keeps the descriptor open, and outlives the result.
    unsafe { BorrowedFd::borrow_raw(number) }
}
