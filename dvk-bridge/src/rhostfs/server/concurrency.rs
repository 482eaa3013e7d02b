//! Limits the requests that are served at once, except those that wait for their own clients.
//!
//! An endpoint has one exchange at a time with a node. So a node that acknowledges nothing makes
//! one thread wait for each of its clients, half a minute at a time. If those threads counted, the
//! clients of all other nodes would not be served.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::abi::{DcId, DcLimits, Endpoint, Message};
use crate::endpoint::{BoundEndpoint, Delivery, EndpointError, RequestId, SharedBuffers};

/// The permits for requests that are served.
#[derive(Debug)]
pub(super) struct Semaphore {
    free: Mutex<usize>,
    freed: Condvar,
}

/// A permit. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Permit<'a>(&'a Semaphore);

impl Semaphore {
    /// A semaphore with `most` permits, at least one.
    pub(super) fn new(most: usize) -> Self {
        Self {
            free: Mutex::new(most.max(1)),
            freed: Condvar::new(),
        }
    }

    /// Waits for a permit.
    pub(super) fn acquire(&self) -> Permit<'_> {
        self.take();
        Permit(self)
    }

    fn take(&self) {
        let mut free = self.free.lock();
        self.freed.wait_while(&mut free, |free| *free == 0);
        *free = free.saturating_sub(1);
    }

    fn give(&self) {
        let mut free = self.free.lock();
        *free = free.saturating_add(1);
        drop(free);
        self.freed.notify_one();
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.give();
    }
}

/// An endpoint that gives the caller's permit back during a copy. Every caller of a copy holds a
/// permit.
pub(super) struct ReleasingEndpoint {
    endpoint: Arc<dyn BoundEndpoint>,
    semaphore: Arc<Semaphore>,
}

/// A permit that is given back until this is dropped.
struct ReleasedPermit<'a>(&'a Semaphore);

impl<'a> ReleasedPermit<'a> {
    fn release(semaphore: &'a Semaphore) -> Self {
        semaphore.give();
        Self(semaphore)
    }
}

impl Drop for ReleasedPermit<'_> {
    fn drop(&mut self) {
        self.0.take();
    }
}

impl ReleasingEndpoint {
    /// `endpoint`, for callers that hold a permit of `semaphore`.
    pub(super) fn new(endpoint: Arc<dyn BoundEndpoint>, semaphore: Arc<Semaphore>) -> Self {
        Self {
            endpoint,
            semaphore,
        }
    }
}

impl BoundEndpoint for ReleasingEndpoint {
    fn dc(&self) -> DcId {
        self.endpoint.dc()
    }

    fn endpoint(&self) -> Endpoint {
        self.endpoint.endpoint()
    }

    fn limits(&self) -> DcLimits {
        self.endpoint.limits()
    }

    fn receive(&self, limit: Duration) -> Result<Delivery, EndpointError> {
        self.endpoint.receive(limit)
    }

    fn reply(&self, request: RequestId, message: &Message) -> Result<(), EndpointError> {
        self.endpoint.reply(request, message)
    }

    fn send(&self, to: Endpoint, message: &Message, limit: Duration) -> Result<(), EndpointError> {
        self.endpoint.send(to, message, limit)
    }

    fn sendrec(
        &self,
        to: Endpoint,
        message: &Message,
        buffers: &mut SharedBuffers<'_>,
        limit: Duration,
    ) -> Result<Message, EndpointError> {
        self.endpoint.sendrec(to, message, buffers, limit)
    }

    fn losses(&self, of: Endpoint) -> u64 {
        self.endpoint.losses(of)
    }

    fn notify(&self, to: Endpoint) -> Result<(), EndpointError> {
        self.endpoint.notify(to)
    }

    fn copy_from(
        &self,
        request: RequestId,
        address: u32,
        into: &mut [u8],
    ) -> Result<(), EndpointError> {
        let _released = ReleasedPermit::release(&self.semaphore);
        self.endpoint.copy_from(request, address, into)
    }

    fn copy_to(&self, request: RequestId, address: u32, from: &[u8]) -> Result<(), EndpointError> {
        let _released = ReleasedPermit::release(&self.semaphore);
        self.endpoint.copy_to(request, address, from)
    }

    fn unbind(&self) {
        self.endpoint.unbind();
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::thread;

    use super::*;
    use crate::abi::{Code, M1};
    use crate::endpoint::Operation;
    use crate::rhostfs::server::{Options, Server};

    const LIMIT: Duration = Duration::from_secs(20);

    /// An endpoint whose clients from 30 on are at a node that acknowledges nothing, until it is
    /// unbound.
    struct StuckEndpoint {
        events: Mutex<Receiver<Delivery>>,
        answered: Sender<Endpoint>,
        waiting: Sender<()>,
        unbound: Mutex<bool>,
        changed: Condvar,
    }

    type StuckChannels = (Sender<Delivery>, Receiver<Endpoint>, Receiver<()>);

    impl StuckEndpoint {
        fn new() -> (Arc<Self>, StuckChannels) {
            let (event, events) = mpsc::channel();
            let (answered, answers) = mpsc::channel();
            let (waiting, waits) = mpsc::channel();
            let silent = Self {
                events: Mutex::new(events),
                answered,
                waiting,
                unbound: Mutex::default(),
                changed: Condvar::new(),
            };
            (Arc::new(silent), (event, answers, waits))
        }

        /// An exchange with a client.
        fn exchange(&self, client: Endpoint) -> Result<(), EndpointError> {
            if client.slot() < 30 {
                return Ok(());
            }
            self.waiting.send(()).unwrap();
            let mut unbound = self.unbound.lock();
            self.changed.wait_while(&mut unbound, |unbound| !*unbound);
            drop(unbound);
            let operation = Operation::Reply { client };
            Err(EndpointError::Unbound { operation })
        }
    }

    impl BoundEndpoint for StuckEndpoint {
        fn dc(&self) -> DcId {
            DcId::FIRST
        }

        fn endpoint(&self) -> Endpoint {
            Endpoint::from_raw(1)
        }

        fn limits(&self) -> DcLimits {
            DcLimits::USUAL
        }

        fn receive(&self, _: Duration) -> Result<Delivery, EndpointError> {
            let limit = Duration::from_millis(10);
            let event = self.events.lock().recv_timeout(limit);
            let operation = Operation::Receive;
            event.map_err(|_| EndpointError::TimedOut { operation, limit })
        }

        fn reply(&self, request: RequestId, _: &Message) -> Result<(), EndpointError> {
            self.exchange(request.client())?;
            self.answered.send(request.client()).unwrap();
            Ok(())
        }

        fn send(&self, to: Endpoint, _: &Message, _: Duration) -> Result<(), EndpointError> {
            self.notify(to)
        }

        fn sendrec(
            &self,
            to: Endpoint,
            _: &Message,
            _: &mut SharedBuffers<'_>,
            _: Duration,
        ) -> Result<Message, EndpointError> {
            self.notify(to).map(|()| Message::default())
        }

        fn losses(&self, _: Endpoint) -> u64 {
            0
        }

        fn notify(&self, to: Endpoint) -> Result<(), EndpointError> {
            Err(EndpointError::Refused {
                operation: Operation::Notify { to },
                code: Code::ENOSYS,
            })
        }

        fn copy_from(&self, request: RequestId, _: u32, _: &mut [u8]) -> Result<(), EndpointError> {
            self.exchange(request.client())
        }

        fn copy_to(&self, request: RequestId, _: u32, _: &[u8]) -> Result<(), EndpointError> {
            self.exchange(request.client())
        }

        fn unbind(&self) {
            *self.unbound.lock() = true;
            self.changed.notify_all();
        }
    }

    #[test]
    fn clients_of_a_stuck_node_do_not_block_others() {
        let (endpoint, (event, answers, waits)) = StuckEndpoint::new();
        let mut options = Options::new(PathBuf::from("/nonexistent/fs.sock"));
        options.workers = 2;
        let server = Server::start(endpoint.clone(), &options).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let serving = thread::spawn(move || server.run(&stopped));
        let ask = |slot: i32| {
            let request = RequestId::new(Endpoint::from_raw(slot), slot.unsigned_abs().into());
            let message = Message::new(33, &M1::default());
            let pid = None;
            let asked = Delivery::Request {
                request,
                pid,
                message,
            };
            event.send(asked).unwrap();
        };
        for slot in 30..100 {
            ask(slot);
        }
        // All of them are being answered, without success.
        for _ in 30..100 {
            waits.recv_timeout(LIMIT).unwrap();
        }
        ask(10);
        let answered = answers.recv_timeout(LIMIT).unwrap();
        assert_eq!(answered, Endpoint::from_raw(10));
        stop.store(true, Ordering::Relaxed);
        endpoint.unbind();
        serving.join().unwrap();
    }

    #[test]
    fn a_copy_releases_its_permit_and_takes_it_again() {
        let (endpoint, (_event, _answers, waits)) = StuckEndpoint::new();
        let semaphore = Arc::new(Semaphore::new(1));
        let releasing = Arc::new(ReleasingEndpoint::new(endpoint.clone(), semaphore.clone()));
        let here = (releasing.clone(), semaphore.clone());
        let copying = thread::spawn(move || {
            let _permit = here.1.acquire();
            let request = RequestId::new(Endpoint::from_raw(30), 0);
            let copied = here.0.copy_from(request, 0, &mut [0]);
            (copied, *here.1.free.lock())
        });
        waits.recv_timeout(LIMIT).unwrap();
        let permit = semaphore.acquire();
        endpoint.unbind();
        assert!(!copying.is_finished(), "no permit is available");
        drop(permit);
        let (copied, free) = copying.join().unwrap();
        assert!(copied.is_err());
        assert_eq!(free, 0);
        assert_eq!(*semaphore.free.lock(), 1);
    }
}
