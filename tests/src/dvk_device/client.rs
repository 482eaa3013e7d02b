//! Clients in the test, as processes of the emulated machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gangplank_dvk::abi::{Code, DcId, DcLimits, Endpoint, Message};
use gangplank_dvk::endpoint::{
    BoundEndpoint, Carrier, Delivery, EndpointError, Operation, RequestId, SharedBuffers,
};

use super::EmulatedDevice;
use super::emulated::{Bytes, Copy};

/// The processes of the emulated machine, as a carrier.
#[derive(Clone)]
pub struct Clients(Arc<EmulatedDevice>);

impl Clients {
    /// The processes of the machine with the module `emulated`.
    #[must_use]
    pub fn of(emulated: &Arc<EmulatedDevice>) -> Self {
        Self(Arc::clone(emulated))
    }
}

impl Carrier for Clients {
    fn bind(
        &self,
        dc: DcId,
        endpoint: Endpoint,
        _: &str,
    ) -> Result<Arc<dyn BoundEndpoint>, EndpointError> {
        let operation = Operation::Bind { dc, endpoint };
        let bound = self.0.lock().bind(endpoint.slot(), None);
        bound.map_err(|code| EndpointError::Refused { operation, code })?;
        Ok(Arc::new(Client {
            emulated: Arc::clone(&self.0),
            endpoint,
        }))
    }
}

/// A client, which only sends requests.
struct Client {
    emulated: Arc<EmulatedDevice>,
    endpoint: Endpoint,
}

impl Client {
    fn refused<T>(operation: Operation, code: Code) -> Result<T, EndpointError> {
        Err(EndpointError::Refused { operation, code })
    }

    fn ask(
        &self,
        to: Endpoint,
        message: &Message,
        lent: &mut SharedBuffers<'_>,
        limit: Duration,
    ) -> Result<Message, Code> {
        let deadline = Instant::now() + limit;
        let slot = self.endpoint.slot();
        let emulated = &self.emulated;
        let mut state = emulated.lock();
        state.ask(slot, to, message)?;
        emulated.changed.notify_all();
        let mut late = false;
        loop {
            let own = state.processes.get_mut(&slot).ok_or(Code::EDVSNOTBIND)?;
            if let Some(copy) = own.copy.take() {
                own.copied = Some(copied(copy, lent));
                emulated.changed.notify_all();
            } else if own.got.is_some() || late {
                own.asks = None;
                return own.got.take().unwrap_or(Err(Code::EDVSTIMEDOUT));
            }
            (state, late) = emulated.wait(state, deadline);
        }
    }
}

fn copied(copy: Copy, lent: &mut SharedBuffers<'_>) -> Result<Vec<u8>, Code> {
    let copied = match copy.bytes {
        Bytes::Out(bytes) => {
            let mut data = vec![0; bytes];
            lent.read(copy.address, &mut data).map(|()| data)
        }
        Bytes::In(data) => lent.write(copy.address, &data).map(|()| Vec::new()),
    };
    copied.map_err(|_| Code::EFAULT)
}

impl BoundEndpoint for Client {
    fn dc(&self) -> DcId {
        DcId::FIRST
    }

    fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    fn limits(&self) -> DcLimits {
        DcLimits::USUAL
    }

    fn receive(&self, _: Duration) -> Result<Delivery, EndpointError> {
        Self::refused(Operation::Receive, Code::EDVSBADCALL)
    }

    fn reply(&self, request: RequestId, _: &Message) -> Result<(), EndpointError> {
        let client = request.client();
        Self::refused(Operation::Reply { client }, Code::EDVSBADCALL)
    }

    fn send(&self, to: Endpoint, _: &Message, _: Duration) -> Result<(), EndpointError> {
        Self::refused(Operation::Send { to }, Code::EDVSBADCALL)
    }

    fn sendrec(
        &self,
        to: Endpoint,
        message: &Message,
        lent: &mut SharedBuffers<'_>,
        limit: Duration,
    ) -> Result<Message, EndpointError> {
        let answer = self.ask(to, message, lent, limit);
        answer.or_else(|code| Self::refused(Operation::SendRec { to }, code))
    }

    fn losses(&self, _: Endpoint) -> u64 {
        0
    }

    fn notify(&self, to: Endpoint) -> Result<(), EndpointError> {
        Self::refused(Operation::Notify { to }, Code::EDVSBADCALL)
    }

    fn copy_from(
        &self,
        request: RequestId,
        address: u32,
        into: &mut [u8],
    ) -> Result<(), EndpointError> {
        let operation = Operation::CopyFrom {
            client: request.client(),
            address,
            bytes: into.len(),
        };
        Self::refused(operation, Code::EDVSBADCALL)
    }

    fn copy_to(&self, request: RequestId, address: u32, from: &[u8]) -> Result<(), EndpointError> {
        let operation = Operation::CopyTo {
            client: request.client(),
            address,
            bytes: from.len(),
        };
        Self::refused(operation, Code::EDVSBADCALL)
    }

    fn unbind(&self) {
        self.emulated.lock().remove(self.endpoint.slot());
        self.emulated.changed.notify_all();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.unbind();
    }
}
