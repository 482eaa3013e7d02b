//! What other threads give the stack to send.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

use crate::rpc::client::SendDatagram;
use crate::rpc::reply::Reply;
use crate::rpc::reply_budget::Reservation;

/// Most datagrams that wait to be sent.
const MAX_DATAGRAMS: usize = 1024;

/// A reply of a worker to a connection.
pub(super) type ReplyTo = (u64, Option<(Arc<Reply>, Reservation)>);

/// Where other threads put what is to be sent.
pub struct Outbox {
    pub(super) replies: Mutex<Vec<ReplyTo>>,
    /// Datagrams from the port of NFS, and to where.
    pub(super) datagrams: Mutex<VecDeque<(SocketAddr, Vec<u8>)>>,
    /// Calls by datagrams without a reply.
    pub(super) datagram_calls: AtomicUsize,
    pub(super) wakeup: OwnedFd,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl SendDatagram for Arc<Outbox> {
    fn send(&self, _: IpAddr, to: SocketAddr, datagram: Vec<u8>) {
        self.put_datagram(to, datagram);
    }
}

impl Outbox {
    /// An empty one.
    ///
    /// # Errors
    /// The system lacks a resource.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            replies: Mutex::default(),
            datagrams: Mutex::default(),
            datagram_calls: AtomicUsize::new(0),
            wakeup: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    pub(super) fn put_datagram(&self, to: SocketAddr, datagram: Vec<u8>) {
        let mut datagrams = self.datagrams.lock();
        // Beyond it they are lost, as in any network.
        if datagrams.len() < MAX_DATAGRAMS {
            datagrams.push_back((to, datagram));
        }
        drop(datagrams);
        self.wake();
    }

    pub(super) fn put(&self, connection: u64, reply: Option<(Arc<Reply>, Reservation)>) {
        self.replies.lock().push((connection, reply));
        self.wake();
    }

    fn wake(&self) {
        // The counter is full at 2^64 - 1 alone.
        let _ = rustix::io::write(&self.wakeup, &1_u64.to_ne_bytes());
    }
}
