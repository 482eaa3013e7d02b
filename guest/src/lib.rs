//! What a guest's kernel cannot do itself: its watchers hear of changes that the host and other
//! guests make.
//!
//! `gangplankd --events` tells changes in a file of the share ([`gangplank_events`]). For each,
//! [`wake`] makes system calls after which the guest's kernel tells the watchers of the file or
//! directory. Of what was lost, [`rescan`] finds as much as the attributes show.

pub mod args;
pub mod manual;
pub mod rescan;
pub mod wake;
pub mod watch;
