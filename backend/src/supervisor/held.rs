//! What the supervisor holds for the acceptor, so that all of it outlives an acceptor that dies.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::handover::PROTOCOL;
use crate::handover::channel::{Arrived, Channel, Message};
use crate::holder::store::Holding;
use crate::state::arena::LAYOUT;

/// A guest's keeper.
#[derive(Debug)]
pub struct HeldKeeper {
    /// The guest's number in the log.
    pub number: u64,
    /// Whether the usual events of its connection are logged.
    pub is_logged: bool,
    /// The keeper, a child of the supervisor.
    pub process: Pid,
    /// The acceptor's end of the channel between them.
    pub control: Channel,
    /// The keeper's pidfd.
    pub handle: OwnedFd,
}

/// Copies of the acceptor's descriptors.
#[derive(Debug, Default)]
pub struct Held {
    /// The listening socket, once the acceptor serves and until the daemon is to end.
    pub listener: Option<OwnedFd>,
    /// The user namespace, if the confined processes have one of their own.
    pub user_namespace: Option<OwnedFd>,
    /// The highest number of a guest so far.
    pub connections: u64,
    /// The keepers that have not ended.
    pub keepers: Vec<HeldKeeper>,
    /// What is held outside of the daemon.
    pub holding: Holding,
}

impl Held {
    /// What a new program's acceptor has in common with the old one's: all but keepers.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn without_keepers(&self) -> io::Result<Self> {
        let copy = |descriptor: &Option<OwnedFd>| {
            let copy = descriptor.as_ref().map(OwnedFd::try_clone);
            copy.transpose()
        };
        Ok(Self {
            listener: copy(&self.listener)?,
            user_namespace: copy(&self.user_namespace)?,
            connections: self.connections,
            keepers: Vec::new(),
            holding: Holding::new(self.holding.store().clone()),
        })
    }

    /// Takes what an acceptor has sent. Returns the message if that is not all about it.
    pub(super) fn take(&mut self, arrived: Arrived) -> Option<Message> {
        let mut descriptors = arrived.descriptors.into_iter();
        match arrived.message {
            Message::Keeper {
                number,
                is_logged,
                process,
            } => {
                self.connections = self.connections.max(number);
                let control = descriptors.next().map(Channel::new);
                let keeper = control.zip(descriptors.next()).zip(Pid::from_raw(process));
                if let Some(channel) = descriptors.next() {
                    self.holding.begin(number, Channel::new(channel));
                    if let Some(users) = &self.user_namespace {
                        self.holding.hold_users(users.as_fd());
                    }
                }
                let keeper = keeper.map(|((control, handle), process)| HeldKeeper {
                    number,
                    is_logged,
                    process,
                    control,
                    handle,
                });
                self.keepers.extend(keeper.filter(HeldKeeper::is_child));
                None
            }
            Message::Serving => {
                self.listener = descriptors.next();
                self.user_namespace = descriptors.next();
                if let Some(users) = &self.user_namespace {
                    self.holding.hold_users(users.as_fd());
                }
                Some(Message::Serving)
            }
            other => Some(other),
        }
    }

    /// Takes the place of an acceptor that has died, towards the next one at the other end of
    /// `successor`.
    ///
    /// # Errors
    /// It does not receive.
    pub fn introduce(&self, successor: &Channel) -> io::Result<()> {
        let hello = Message::Hello {
            protocol: PROTOCOL,
            layout: LAYOUT,
            guests: u32::try_from(self.keepers.len()).map_err(io::Error::other)?,
            connections: self.connections,
        };
        let passed = [self.listener.as_ref(), self.user_namespace.as_ref()];
        let passed: Vec<BorrowedFd<'_>> = passed.into_iter().flatten().map(AsFd::as_fd).collect();
        successor.send(&hello, &passed)?;
        self.keepers.iter().try_for_each(|keeper| {
            let message = Message::Keeper {
                number: keeper.number,
                is_logged: keeper.is_logged,
                process: keeper.process.as_raw_nonzero().get(),
            };
            successor.send(&message, &[keeper.control.as_fd(), keeper.handle.as_fd()])
        })
    }

    /// Has all guests' connections end after their requests in flight, and new ones be refused.
    pub(super) fn shut_down(&mut self) {
        self.listener = None;
        for keeper in &self.keepers {
            keeper.control.shut_down();
        }
    }

    /// Kills all keepers, and with them their workers.
    pub(super) fn kill(&self) {
        for keeper in &self.keepers {
            let _ = pidfd_send_signal(&keeper.handle, Signal::KILL);
        }
    }

    /// Forgets the keeper with this process id, which has ended, and returns it.
    pub(super) fn remove(&mut self, process: Pid) -> Option<HeldKeeper> {
        let index = self
            .keepers
            .iter()
            .position(|keeper| keeper.process == process);
        index.map(|index| self.keepers.remove(index))
    }
}

impl HeldKeeper {
    /// Whether it is a child of this process, also an ended one. If not, the process has waited for
    /// it before its acceptor's message was read.
    fn is_child(&self) -> bool {
        let handle = WaitId::PidFd(self.handle.as_fd());
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(handle, options), Err(Errno::CHILD))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeWriter, Read};

    use rustix::process::{PidfdFlags, WaitOptions, pidfd_open, waitpid};

    use super::*;
    use crate::sys::process::{self, Forked};

    /// What an acceptor says of a keeper whose process has the other end of a pipe.
    fn keeper(number: u64) -> (Arrived, Pid, PipeWriter) {
        let (mut end, keeps) = io::pipe().unwrap();
        let Forked::Parent(process) = process::fork().unwrap() else {
            drop(keeps);
            let _ = end.read(&mut [0]);
            process::exit(0)
        };
        let message = Message::Keeper {
            number,
            is_logged: true,
            process: process.as_raw_nonzero().get(),
        };
        let handle = pidfd_open(process, PidfdFlags::empty()).unwrap();
        let control = Channel::pair().unwrap().0.into_inner();
        let arrived = Arrived {
            message,
            descriptors: vec![control, handle],
        };
        (arrived, process, keeps)
    }

    fn end(process: Pid, keeps: PipeWriter) {
        drop(keeps);
        waitpid(Some(process), WaitOptions::empty()).unwrap();
    }

    #[test]
    fn the_next_acceptor_learns_of_each_keeper_that_lives() {
        let mut held = Held {
            listener: Some(Channel::pair().unwrap().0.into_inner()),
            ..Held::default()
        };
        let (living, process, keeps) = keeper(5);
        let (late, ended, end_it) = keeper(7);
        assert_eq!(held.take(living), None);
        end(ended, end_it);
        assert_eq!(held.take(late), None);
        let (ours, theirs) = Channel::pair().unwrap();
        held.introduce(&ours).unwrap();
        let hello = theirs.receive(None).unwrap().unwrap();
        assert_eq!(hello.descriptors.len(), 1);
        let Message::Hello {
            guests,
            connections,
            ..
        } = hello.message
        else {
            panic!("{:?}", hello.message);
        };
        assert_eq!((guests, connections), (1, 7));
        let adopted = theirs.receive(None).unwrap().unwrap();
        assert!(matches!(adopted.message, Message::Keeper { number: 5, .. }));
        assert_eq!(adopted.descriptors.len(), 2);
        end(process, keeps);
        assert_eq!(held.remove(process).map(|keeper| keeper.number), Some(5));
    }
}
