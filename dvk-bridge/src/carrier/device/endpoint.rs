//! An endpoint of the kernel: the engine's endpoint with a sendrec of its own.

use std::sync::Arc;
use std::time::Duration;

use super::queued_call::QueuedCall;
use super::work_queue::{Work, WorkQueue};
use crate::abi::{Code, DcId, DcLimits, Endpoint, Message};
use crate::carrier::engine::EngineEndpoint;
use crate::endpoint::{
    BoundEndpoint, Delivery, EndpointError, Operation, RequestId, SharedBuffers,
};

/// How long unbinding waits for the endpoint's thread. Only a call to another node takes longer.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// A bound endpoint. Dropping it unbinds it.
pub(super) struct DeviceEndpoint {
    pub(super) bound: EngineEndpoint,
    pub(super) queue: Arc<WorkQueue>,
}

impl BoundEndpoint for DeviceEndpoint {
    fn dc(&self) -> DcId {
        self.bound.dc()
    }

    fn endpoint(&self) -> Endpoint {
        self.bound.endpoint()
    }

    fn limits(&self) -> DcLimits {
        self.bound.limits()
    }

    fn receive(&self, limit: Duration) -> Result<Delivery, EndpointError> {
        self.bound.receive(limit)
    }

    fn reply(&self, request: RequestId, message: &Message) -> Result<(), EndpointError> {
        self.bound.reply(request, message)
    }

    fn send(&self, to: Endpoint, message: &Message, limit: Duration) -> Result<(), EndpointError> {
        self.bound.send(to, message, limit)
    }

    /// Calls through the kernel. The engine's call would end before the kernel's, and the kernel
    /// may access the shared buffers until its own call ends.
    fn sendrec(
        &self,
        to: Endpoint,
        message: &Message,
        buffers: &mut SharedBuffers<'_>,
        limit: Duration,
    ) -> Result<Message, EndpointError> {
        let operation = Operation::SendRec { to };
        let call = Arc::new(QueuedCall::new(to, *message, limit));
        if self.queue.put(Work::QueuedCall(call.clone())).is_err() {
            return Err(EndpointError::Unbound { operation });
        }
        let outcome = call.wait();
        // The kernel may have changed the buffers through their addresses.
        std::hint::black_box(buffers);
        outcome.map_err(|code| match code {
            Code::EDVSTIMEDOUT => EndpointError::TimedOut { operation, limit },
            Code::EDVSNOTCONN => EndpointError::NotConnected { operation },
            Code::EDVSNOTBIND => EndpointError::Unbound { operation },
            code => EndpointError::Refused { operation, code },
        })
    }

    fn losses(&self, of: Endpoint) -> u64 {
        self.bound.losses(of)
    }

    fn notify(&self, to: Endpoint) -> Result<(), EndpointError> {
        self.bound.notify(to)
    }

    fn copy_from(
        &self,
        request: RequestId,
        address: u32,
        into: &mut [u8],
    ) -> Result<(), EndpointError> {
        self.bound.copy_from(request, address, into)
    }

    fn copy_to(&self, request: RequestId, address: u32, from: &[u8]) -> Result<(), EndpointError> {
        self.bound.copy_to(request, address, from)
    }

    fn unbind(&self) {
        self.bound.unbind();
        self.queue.stop();
        if !self.queue.wait_for_end(STOP_TIMEOUT) {
            log::warn!(
                "endpoint {} is released when the kernel finishes its last call",
                self.endpoint()
            );
        }
    }
}

impl Drop for DeviceEndpoint {
    fn drop(&mut self) {
        self.unbind();
    }
}
