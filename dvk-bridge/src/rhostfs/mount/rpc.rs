//! Requests to the server through a bound endpoint, with the state of the server.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gangplank_service::rate_limited;
use log::debug;
use rustix::io::Errno;

use crate::abi::{Code, DcId, Endpoint, Message};
use crate::endpoint::{BoundEndpoint, Carrier, EndpointError, SharedBuffers};

/// How long calls fail at once after a loss of the server, before one is sent again.
const RETRY_BACKOFF: Duration = Duration::from_secs(1);

/// The endpoints of server and client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RpcEndpoints {
    /// The container of both.
    pub(crate) dc: DcId,
    /// The client's endpoint.
    pub(crate) client: Endpoint,
    /// The server's endpoint.
    pub(crate) server: Endpoint,
    /// How long to wait for an answer.
    pub(crate) limit: Duration,
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RpcError {
    /// The carrier failed, or no answer came in time.
    #[error("no answer from the server")]
    Failed(#[source] EndpointError),
    /// The server was lost less than [`RETRY_BACKOFF`] ago.
    #[error("the server was lost; retrying soon")]
    Down,
    /// The answer belongs to an earlier request.
    #[error("the server's answer belongs to an earlier request")]
    StaleAnswer,
}

/// The endpoint and its state.
pub(crate) struct RpcClient {
    carrier: Arc<dyn Carrier>,
    endpoints: RpcEndpoints,
    bound: Option<Arc<dyn BoundEndpoint>>,
    /// The time of the next attempt, while the server is lost.
    retry_at: Option<Instant>,
    /// How often the server was lost, without the losses that the bound endpoint counts.
    losses: u64,
    /// Whether the last request had no answer.
    fails: bool,
    /// Whether any answer came.
    answered: bool,
}

impl RpcClient {
    /// A client that binds its endpoint on first use.
    pub(crate) fn new(carrier: Arc<dyn Carrier>, endpoints: RpcEndpoints) -> Self {
        Self {
            carrier,
            endpoints,
            bound: None,
            retry_at: None,
            losses: 0,
            fails: false,
            answered: false,
        }
    }

    /// Grows when the server may have been lost, or its connection. The server has then dropped
    /// this client's handles, or they must not be used.
    pub(crate) fn losses(&self) -> u64 {
        let server = self.endpoints.server;
        let counted = self.bound.as_ref().map(|endpoint| endpoint.losses(server));
        self.losses + counted.unwrap_or(0)
    }

    /// Binds the endpoint unless it is bound.
    ///
    /// # Errors
    ///
    /// [`EndpointError`] of the carrier.
    pub(crate) fn bind(&mut self) -> Result<(), EndpointError> {
        self.bound().map(drop)
    }

    /// Sends a request, and waits for the answer. The server may copy from and to `buffers`
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// [`RpcError`]. After the limit has passed, every call fails at once for [`RETRY_BACKOFF`], so
    /// that queued programs do not wait for the limit one after another.
    pub(crate) fn ask(
        &mut self,
        message: &Message,
        buffers: &mut SharedBuffers<'_>,
    ) -> Result<Message, RpcError> {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return Err(RpcError::Down);
        }
        let answer = self.bound().and_then(|endpoint| {
            endpoint.sendrec(
                self.endpoints.server,
                message,
                buffers,
                self.endpoints.limit,
            )
        });
        match answer {
            Ok(answer) => {
                self.retry_at = None;
                let failed = mem::take(&mut self.fails);
                let is_first = !mem::replace(&mut self.answered, true);
                if failed && !is_first {
                    rate_limited!(info, "endpoint {} answers again", self.endpoints.server);
                }
                Ok(answer)
            }
            Err(error) => {
                // The client waits again for a server that never answered.
                if mem::replace(&mut self.fails, true) || !self.answered {
                    debug!("no answer yet: {error}");
                } else {
                    rate_limited!(warn, "no answer: {error}");
                }
                // Before the first answer only the mount itself waits, and it must notice the
                // server at once.
                if self.answered {
                    self.retry_at = Some(Instant::now() + RETRY_BACKOFF);
                }
                match error {
                    // The server may never answer, and another request would wait for that. A newly
                    // bound endpoint does not. The carrier or the stamp detects a late answer.
                    EndpointError::TimedOut { .. } | EndpointError::Unbound { .. } => self.unbind(),
                    _ => self.losses += 1,
                }
                Err(RpcError::Failed(error))
            }
        }
    }

    /// Releases the endpoint, because the next message on it may answer an old request.
    pub(crate) fn release_stale(&mut self) -> RpcError {
        rate_limited!(
            warn,
            "endpoint {} answered an earlier request; binding it again",
            self.endpoints.server
        );
        self.retry_at = Some(Instant::now() + RETRY_BACKOFF);
        self.unbind();
        RpcError::StaleAnswer
    }

    fn unbind(&mut self) {
        if let Some(endpoint) = self.bound.take() {
            self.losses += endpoint.losses(self.endpoints.server);
            endpoint.unbind();
        }
        self.losses += 1;
    }

    fn bound(&mut self) -> Result<Arc<dyn BoundEndpoint>, EndpointError> {
        if let Some(endpoint) = &self.bound {
            return Ok(Arc::clone(endpoint));
        }
        let endpoint =
            self.carrier
                .bind(self.endpoints.dc, self.endpoints.client, "gangplank-dvk")?;
        self.bound = Some(Arc::clone(&endpoint));
        Ok(endpoint)
    }
}

impl RpcError {
    /// The error for the caller of a file operation: ENOTCONN if the server is missing, else EIO.
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Self::Down => Errno::NOTCONN,
            Self::Failed(error) => match error.code() {
                Code::EDVSNOTCONN | Code::EDVSDSTDIED | Code::EDVSNOTBIND => Errno::NOTCONN,
                _ => Errno::IO,
            },
            Self::StaleAnswer => Errno::IO,
        }
    }
}
