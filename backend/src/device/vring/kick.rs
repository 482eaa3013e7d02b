//! Reading a ring's kick descriptor.
#![allow(unsafe_code)] // vmm-sys-util gives the descriptor as a number only

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::event::PollFlags;
use rustix::io::{Errno, ReadWriteFlags};
use vmm_sys_util::event::EventConsumer;

use crate::device::notifier::{NO_OFFSET, is_ready};

/// Takes a kick out of the descriptor and returns the bytes read. EAGAIN if there is none.
pub(super) fn read(kick: &EventConsumer) -> rustix::io::Result<usize> {
    // SAFETY: the consumer owns the descriptor and is borrowed until the call returns.
    read_kick(unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) })
}

/// Reads a kick, if there is one, by one system call where the kernel can.
///
/// The frontend may have replaced the descriptor since it became readable, so a plain read might
/// wait, with the ring locked.
fn read_kick(kick: BorrowedFd<'_>) -> rustix::io::Result<usize> {
    let mut count = [0; size_of::<u64>()];
    let mut part = [IoSliceMut::new(&mut count)];
    match rustix::io::preadv2(kick, &mut part, NO_OFFSET, ReadWriteFlags::NOWAIT) {
        // Eventfds permit this since Linux 5.8, pipes and sockets since 6.4.
        Err(Errno::OPNOTSUPP) if is_ready(kick, PollFlags::IN)? => {
            rustix::io::read(kick, &mut count)
        }
        Err(Errno::OPNOTSUPP) => Err(Errno::AGAIN),
        read => read,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::inotify;

    use super::*;

    #[test]
    fn a_kick_that_another_read_has_consumed_does_not_block() {
        let kick = eventfd(3, EventfdFlags::CLOEXEC).expect("an eventfd");
        assert_eq!(read_kick(kick.as_fd()), Ok(8));
        assert_eq!(read_kick(kick.as_fd()), Err(Errno::AGAIN));
        // It does not permit RWF_NOWAIT, as eventfds do not before Linux 5.8.
        let old = inotify::init(inotify::CreateFlags::CLOEXEC).expect("an inotify descriptor");
        assert_eq!(read_kick(old.as_fd()), Err(Errno::AGAIN));
    }
}
