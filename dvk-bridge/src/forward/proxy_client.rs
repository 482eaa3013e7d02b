//! Sends requests to a server elsewhere on behalf of a client here.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread::{self, JoinHandle};

use gangplank_service::rate_limit::set_thread_peer;
use gangplank_service::rate_limited;
use parking_lot::Mutex;

use super::context::{ClientRequest, Context};
use crate::abi::{Endpoint, Message};
use crate::endpoint::{
    BoundEndpoint, EndpointError, NotShared, RemoteMemory, RequestId, SharedBuffers,
};

/// Requests of one client that can be queued. A client itself waits for one answer at a time.
const MAX_REQUESTS: usize = 2;

/// The proxy of one client.
pub(super) struct ProxyClient {
    requests: SyncSender<ClientRequest>,
    remote: Arc<RemoteEndpoint>,
    thread: JoinHandle<()>,
}

/// The client's endpoint at the server's side.
#[derive(Default)]
struct RemoteEndpoint(Mutex<State>);

#[derive(Default)]
struct State {
    ended: bool,
    bound: Option<Arc<dyn BoundEndpoint>>,
}

impl ProxyClient {
    /// Starts the proxy of `client`. Joins `former`, which has ended, first.
    pub(super) fn start(
        context: Arc<Context>,
        client: Endpoint,
        former: Option<Self>,
    ) -> io::Result<Self> {
        let (requests, taken) = mpsc::sync_channel(MAX_REQUESTS);
        let remote = Arc::new(RemoteEndpoint::default());
        let there = remote.clone();
        let thread = thread::Builder::new().name(format!("forward_{client}"));
        let thread = thread.spawn(move || {
            set_thread_peer(client.log_key());
            former.into_iter().for_each(Self::wait);
            run(&context, client, &there, &taken);
        })?;
        Ok(Self {
            requests,
            remote,
            thread,
        })
    }

    /// Queues a request, or returns it if there is no room.
    pub(super) fn ask(&self, asked: ClientRequest) -> Result<(), ClientRequest> {
        let queued = self.requests.try_send(asked);
        queued.map_err(|error| match error {
            TrySendError::Full(asked) | TrySendError::Disconnected(asked) => asked,
        })
    }

    /// Ends the proxy, whatever it waits for.
    pub(super) fn end(&self) {
        let mut state = self.remote.0.lock();
        state.ended = true;
        if let Some(bound) = state.bound.take() {
            bound.unbind();
        }
    }

    /// Joins a proxy that is to end.
    pub(super) fn wait(self) {
        drop(self.requests);
        // The thread has ended, or panicked, which is logged.
        let _ = self.thread.join();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.remote.0.lock().ended
    }
}

/// Sends one request after another, in the proxy's thread.
fn run(
    context: &Context,
    client: Endpoint,
    remote: &RemoteEndpoint,
    requests: &Receiver<ClientRequest>,
) {
    while let Ok(asked) = requests.recv() {
        match pass(context, client, remote, &asked) {
            Ok(answer) => {
                context.answered.fetch_add(1, Ordering::Relaxed);
                asked.answer(&answer);
            }
            Err(error) => {
                if !remote.0.lock().ended {
                    rate_limited!(warn, "client {client} is not served: {error}");
                }
                context.refuse(&asked);
            }
        }
        if remote.0.lock().ended {
            return;
        }
    }
}

/// Sends one request and returns the answer.
fn pass(
    context: &Context,
    client: Endpoint,
    remote: &RemoteEndpoint,
    asked: &ClientRequest,
) -> Result<Message, EndpointError> {
    let bound = remote.bind(context, client)?;
    let memory = ClientMemory {
        here: &*asked.here,
        request: asked.request,
    };
    let server = asked.here.endpoint();
    let mut buffers = SharedBuffers::proxied(&memory);
    let answer = bound.sendrec(server, &asked.message, &mut buffers, context.limit);
    if let Err(EndpointError::Unbound { .. }) = answer {
        // The endpoint was taken away there. The next request binds it again.
        remote.0.lock().bound = None;
    }
    answer
}

impl RemoteEndpoint {
    /// Returns the endpoint there. Binds it if necessary.
    fn bind(
        &self,
        context: &Context,
        client: Endpoint,
    ) -> Result<Arc<dyn BoundEndpoint>, EndpointError> {
        if let Some(bound) = &self.0.lock().bound {
            return Ok(bound.clone());
        }
        let bound = context.there.bind(context.dc, client, "forwarded")?;
        let mut state = self.0.lock();
        if state.ended {
            // `end` has run already and would not unbind it.
            bound.unbind();
        } else {
            state.bound = Some(bound.clone());
        }
        Ok(bound)
    }
}

/// The client's memory, accessed through the endpoint here.
#[derive(Clone, Copy)]
struct ClientMemory<'a> {
    here: &'a dyn BoundEndpoint,
    request: RequestId,
}

impl ClientMemory<'_> {
    fn fault(error: &EndpointError, address: u32, bytes: usize) -> NotShared {
        log::debug!("{error}");
        NotShared { address, bytes }
    }
}

impl RemoteMemory for ClientMemory<'_> {
    fn read(&self, address: u32, into: &mut [u8]) -> Result<(), NotShared> {
        let bytes = into.len();
        let read = self.here.copy_from(self.request, address, into);
        read.map_err(|error| Self::fault(&error, address, bytes))
    }

    fn write(&self, address: u32, from: &[u8]) -> Result<(), NotShared> {
        let written = self.here.copy_to(self.request, address, from);
        written.map_err(|error| Self::fault(&error, address, from.len()))
    }
}
