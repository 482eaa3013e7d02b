//! Which descriptors stay open when a worker has ended.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use super::Keeper;
use super::disconnected::Claim;
use crate::handover::channel::Channel;
use crate::passthrough;
use crate::state::recovery;

/// The descriptors that a keeper has for a while, beside those that it has always.
pub(super) fn passing<'a>(
    successor: Option<&'a Channel>,
    claim: Option<&'a Claim>,
) -> [Option<BorrowedFd<'a>>; 2] {
    [successor.map(AsFd::as_fd), claim.map(AsFd::as_fd)]
}

impl Keeper<'_> {
    /// Makes the state whole, and closes all descriptors that belong neither to it nor to the
    /// keeper, and are not among `others`: what the worker that has ended had open for itself.
    ///
    /// No worker may run, except the calling one before it opens anything.
    ///
    /// # Errors
    /// Those of close_range(2).
    pub(super) fn sweep(
        &self,
        passing: &[Option<BorrowedFd<'_>>],
        others: &[RawFd],
    ) -> io::Result<()> {
        let kept = recovery::descriptors(&self.arena).into_iter();
        let kept = kept.chain(self.descriptors.iter().copied());
        let kept = kept.chain(passing.iter().flatten().map(AsRawFd::as_raw_fd));
        passthrough::correct(&self.arena, kept.chain(others.iter().copied()))
    }
}
