//! A carrier within one process, so that a failure is the server's.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use gangplank_dvk::abi::{Code, DcId, DcLimits, Endpoint, Message};
use gangplank_dvk::endpoint::{
    BoundEndpoint, Carrier, Delivery, EndpointError, Gone, Operation, RequestId, SharedBuffers,
};
use parking_lot::{Condvar, Mutex, MutexGuard};

/// The carrier: its bound endpoints.
#[derive(Clone, Default)]
pub(crate) struct LoopbackCarrier(Arc<Shared>);

#[derive(Default)]
struct Shared {
    slots: Mutex<HashMap<(DcId, Endpoint), Slot>>,
    changed: Condvar,
    /// Number of requests so far.
    asked: AtomicU64,
}

#[derive(Default)]
struct Slot {
    /// The number of its process.
    pid: i32,
    inbox: VecDeque<Delivery>,
    /// The channel to it while it waits for a reply.
    asks: Option<Sender<Exchange>>,
    /// Whether its request has no reply yet, even if it has given up waiting.
    open: bool,
    /// Its next request.
    again: Option<Delivery>,
    /// The number of its last request.
    asked: u64,
}

/// What a server does with a waiting client.
enum Exchange {
    Read(u32, usize, Sender<Option<Vec<u8>>>),
    Write(u32, Vec<u8>, Sender<bool>),
    Answer(Box<Message>),
}

/// An endpoint on the carrier.
struct Bound {
    carrier: LoopbackCarrier,
    dc: DcId,
    endpoint: Endpoint,
}

impl LoopbackCarrier {
    fn lock(&self) -> MutexGuard<'_, HashMap<(DcId, Endpoint), Slot>> {
        self.0.slots.lock()
    }

    /// Binds an endpoint to the process `pid`. Another process with the endpoint is replaced
    /// without unbinding.
    pub(crate) fn bind_as(&self, dc: DcId, endpoint: Endpoint, pid: i32) -> Arc<dyn BoundEndpoint> {
        let slot = Slot {
            pid,
            ..Slot::default()
        };
        self.lock().insert((dc, endpoint), slot);
        Arc::new(Bound {
            carrier: self.clone(),
            dc,
            endpoint,
        })
    }
}

impl Carrier for LoopbackCarrier {
    fn bind(
        &self,
        dc: DcId,
        endpoint: Endpoint,
        _name: &str,
    ) -> Result<Arc<dyn BoundEndpoint>, EndpointError> {
        Ok(self.bind_as(dc, endpoint, 1))
    }
}

impl Bound {
    fn slots(&self) -> MutexGuard<'_, HashMap<(DcId, Endpoint), Slot>> {
        self.carrier.lock()
    }

    /// The channel to a waiting client.
    fn way(
        &self,
        request: RequestId,
        operation: Operation,
    ) -> Result<Sender<Exchange>, EndpointError> {
        let slots = self.slots();
        let slot = slots.get(&(self.dc, request.client()));
        let way = slot
            .filter(|slot| slot.again.is_none() && slot.asked == request.number())
            .and_then(|slot| slot.asks.clone());
        way.ok_or(EndpointError::Refused {
            operation,
            code: Code::EDVSPROCSTS,
        })
    }
}

impl BoundEndpoint for Bound {
    fn dc(&self) -> DcId {
        self.dc
    }

    fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    fn limits(&self) -> DcLimits {
        DcLimits {
            procs: 221,
            tasks: 34,
            sysprocs: 64,
        }
    }

    fn receive(&self, limit: Duration) -> Result<Delivery, EndpointError> {
        let operation = Operation::Receive;
        let deadline = Instant::now() + limit;
        let mut slots = self.slots();
        loop {
            let slot = slots
                .get_mut(&(self.dc, self.endpoint))
                .ok_or(EndpointError::Unbound { operation })?;
            if let Some(delivery) = slot.inbox.pop_front() {
                return Ok(delivery);
            }
            let left = deadline
                .checked_duration_since(Instant::now())
                .ok_or(EndpointError::TimedOut { operation, limit })?;
            self.carrier.0.changed.wait_for(&mut slots, left);
        }
    }

    fn reply(&self, request: RequestId, message: &Message) -> Result<(), EndpointError> {
        let client = request.client();
        let operation = Operation::Reply { client };
        let refused = EndpointError::Refused {
            operation,
            code: Code::EDVSPROCSTS,
        };
        let mut slots = self.slots();
        let slot = slots.get_mut(&(self.dc, client));
        // A client with a new request has another number by now.
        let due = |slot: &&mut Slot| slot.again.is_some() || slot.asked == request.number();
        let slot = slot.filter(|slot| slot.open).filter(due);
        let slot = slot.ok_or(refused.clone())?;
        if let Some(again) = slot.again.take() {
            // The client no longer waits for this reply.
            if let Some(own) = slots.get_mut(&(self.dc, self.endpoint)) {
                own.inbox.push_back(again);
            }
            self.carrier.0.changed.notify_all();
            return Ok(());
        }
        slot.open = false;
        let way = slot.asks.take().ok_or(refused.clone())?;
        let mut answer = *message;
        answer.source = self.endpoint;
        let sent = way.send(Exchange::Answer(Box::new(answer)));
        sent.map_err(|_| refused)
    }

    fn send(&self, to: Endpoint, message: &Message, _: Duration) -> Result<(), EndpointError> {
        let mut message = *message;
        message.source = self.endpoint;
        let delivery = Delivery::Message {
            client: self.endpoint,
            message,
        };
        if let Some(slot) = self.slots().get_mut(&(self.dc, to)) {
            slot.inbox.push_back(delivery);
        }
        self.carrier.0.changed.notify_all();
        Ok(())
    }

    fn sendrec(
        &self,
        to: Endpoint,
        message: &Message,
        lent: &mut SharedBuffers<'_>,
        limit: Duration,
    ) -> Result<Message, EndpointError> {
        let operation = Operation::SendRec { to };
        let mut message = *message;
        message.source = self.endpoint;
        let (way, exchanges): (_, Receiver<Exchange>) = mpsc::channel();
        {
            let mut slots = self.slots();
            let own = slots
                .get_mut(&(self.dc, self.endpoint))
                .ok_or(EndpointError::Unbound { operation })?;
            own.asks = Some(way);
            own.asked = self.carrier.0.asked.fetch_add(1, Ordering::Relaxed);
            let delivery = Delivery::Request {
                request: RequestId::new(self.endpoint, own.asked),
                pid: Some(own.pid),
                message,
            };
            if own.open {
                own.again = Some(delivery);
            } else {
                own.open = true;
                let server = slots.get_mut(&(self.dc, to));
                let server = server.ok_or(EndpointError::Refused {
                    operation,
                    code: Code::EDVSDEADSRCDST,
                })?;
                server.inbox.push_back(delivery);
            }
        }
        self.carrier.0.changed.notify_all();
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match exchanges.recv_timeout(left) {
                Ok(Exchange::Read(address, len, answer)) => {
                    let mut bytes = vec![0; len];
                    let read = lent.read(address, &mut bytes);
                    let _ = answer.send(read.is_ok().then_some(bytes));
                }
                Ok(Exchange::Write(address, bytes, answer)) => {
                    let _ = answer.send(lent.write(address, &bytes).is_ok());
                }
                Ok(Exchange::Answer(answer)) => return Ok(*answer),
                Err(_) => {
                    if let Some(own) = self.slots().get_mut(&(self.dc, self.endpoint)) {
                        own.asks = None;
                    }
                    return Err(EndpointError::TimedOut { operation, limit });
                }
            }
        }
    }

    /// No one here calls this: clients on the carrier are original clients, which have no such
    /// call.
    fn losses(&self, _: Endpoint) -> u64 {
        0
    }

    fn notify(&self, to: Endpoint) -> Result<(), EndpointError> {
        let delivery = Delivery::Notification {
            source: self.endpoint,
        };
        if let Some(slot) = self.slots().get_mut(&(self.dc, to)) {
            slot.inbox.push_back(delivery);
        }
        self.carrier.0.changed.notify_all();
        Ok(())
    }

    fn copy_from(
        &self,
        request: RequestId,
        address: u32,
        into: &mut [u8],
    ) -> Result<(), EndpointError> {
        let bytes = into.len();
        let operation = Operation::CopyFrom {
            client: request.client(),
            address,
            bytes,
        };
        let fault = EndpointError::Refused {
            operation,
            code: Code::EFAULT,
        };
        let (answer, read) = mpsc::channel();
        let _ = self
            .way(request, operation)?
            .send(Exchange::Read(address, bytes, answer));
        let copied = read.recv().ok().flatten().ok_or(fault)?;
        into.copy_from_slice(&copied);
        Ok(())
    }

    fn copy_to(&self, request: RequestId, address: u32, from: &[u8]) -> Result<(), EndpointError> {
        let operation = Operation::CopyTo {
            client: request.client(),
            address,
            bytes: from.len(),
        };
        let fault = EndpointError::Refused {
            operation,
            code: Code::EFAULT,
        };
        let (answer, written) = mpsc::channel();
        let _ = self
            .way(request, operation)?
            .send(Exchange::Write(address, from.to_vec(), answer));
        written
            .recv()
            .ok()
            .filter(|done| *done)
            .map(|_| ())
            .ok_or(fault)
    }

    fn unbind(&self) {
        let mut slots = self.slots();
        if slots.remove(&(self.dc, self.endpoint)).is_some() {
            for ((dc, _), slot) in slots.iter_mut() {
                if *dc == self.dc {
                    slot.inbox.push_back(Delivery::Gone {
                        client: self.endpoint,
                        reason: Gone::Unbound,
                    });
                }
            }
        }
        drop(slots);
        self.carrier.0.changed.notify_all();
    }
}
