//! The way to the server: one bound endpoint, and what is known of whether the server is there.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use rustix::io::Errno;

use crate::abi::{Code, DcId, Endpoint, Message};
use crate::endpoint::{BoundEndpoint, Carrier, EndpointError, SharedBuffers};

/// How long calls fail at once after the server was lost, before one is let through again.
const RETRY_BACKOFF: Duration = Duration::from_secs(1);

/// Whom to ask, and as whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RpcEndpoints {
    /// The container both are in.
    pub(crate) dc: DcId,
    /// Our endpoint.
    pub(crate) client: Endpoint,
    /// The server's.
    pub(crate) server: Endpoint,
    /// How long an answer may take.
    pub(crate) limit: Duration,
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RpcError {
    /// The carrier says no, or nothing came.
    #[error("no answer from the server")]
    Failed(#[source] EndpointError),
    /// The server was lost a moment ago.
    #[error("the server was lost, and is tried again in a moment")]
    Down,
    /// The answer belongs to an earlier question.
    #[error("the server's answer belongs to an earlier question")]
    OutOfStep,
}

/// The endpoint and what became of it.
pub(crate) struct RpcClient {
    carrier: Box<dyn Carrier>,
    endpoints: RpcEndpoints,
    bound: Option<Arc<dyn BoundEndpoint>>,
    /// When the next attempt may be made, while the server is lost.
    retry_at: Option<Instant>,
    /// How often the server was lost, but for what the bound endpoint counts.
    losses: u64,
    /// The last question had no answer.
    fails: bool,
    /// There was an answer once.
    answered: bool,
}

impl RpcClient {
    /// A line that binds its endpoint when first used.
    pub(crate) fn new(carrier: Box<dyn Carrier>, endpoints: RpcEndpoints) -> Self {
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

    /// Grows whenever the server may have been lost, by ourselves or with a connection: what it held for us before is gone, or
    /// is as good as gone.
    pub(crate) fn losses(&self) -> u64 {
        let server = self.endpoints.server;
        let counted = self.bound.as_ref().map(|endpoint| endpoint.losses(server));
        self.losses + counted.unwrap_or(0)
    }

    /// Binds the endpoint, if it is not bound.
    ///
    /// # Errors
    /// As the carrier says.
    pub(crate) fn bind(&mut self) -> Result<(), EndpointError> {
        self.bound().map(drop)
    }

    /// Asks the server; it may copy from and to what is `buffers` meanwhile.
    ///
    /// # Errors
    /// When there is no answer within the limit. For a moment every call fails at once then, so that programs that wait one
    /// behind another do not each wait the limit.
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
                    info!("endpoint {} answers again", self.endpoints.server);
                }
                Ok(answer)
            }
            Err(error) => {
                // One that was never there is waited for.
                if mem::replace(&mut self.fails, true) || !self.answered {
                    debug!("no answer yet: {error}");
                } else {
                    warn!("no answer: {error}");
                }
                // Before the first answer nobody waits but who mounts, and that is to be there as soon as the server is.
                if self.answered {
                    self.retry_at = Some(Instant::now() + RETRY_BACKOFF);
                }
                match error {
                    // It may never answer, and another question would wait for that; bound anew, none does. Should it answer
                    // yet, the carrier or the stamp in its message tells that from what is asked then.
                    EndpointError::TimedOut { .. } | EndpointError::Unbound { .. } => self.unbind(),
                    _ => self.losses += 1,
                }
                Err(RpcError::Failed(error))
            }
        }
    }

    /// Gives the endpoint up, since what comes on it next may answer a question that nobody asks any more.
    pub(crate) fn out_of_step(&mut self) -> RpcError {
        warn!(
            "endpoint {} answered an earlier question; starting anew",
            self.endpoints.server
        );
        self.retry_at = Some(Instant::now() + RETRY_BACKOFF);
        self.unbind();
        RpcError::OutOfStep
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
    /// What the caller of a file operation is told: nothing there to talk to, or something went wrong on the way.
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Self::Down => Errno::NOTCONN,
            Self::Failed(error) => match error.code() {
                Code::EDVSNOTCONN | Code::EDVSDSTDIED | Code::EDVSNOTBIND => Errno::NOTCONN,
                _ => Errno::IO,
            },
            Self::OutOfStep => Errno::IO,
        }
    }
}
