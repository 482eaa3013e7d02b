//! The way to the server: one bound endpoint, and what is known of whether the server is there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use rustix::io::Errno;

use crate::abi::{Code, DcId, Endpoint, Message};
use crate::endpoint::{BoundEndpoint, Carrier, Delivery, EndpointError, Lent};

/// How long calls fail at once after the server was lost, before one is let through again.
const PAUSE: Duration = Duration::from_secs(1);

/// What is heard at most before a question is asked; the rest before the next.
const MOST_NEWS: u32 = 64;

/// Whom to ask, and as whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parties {
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
pub(crate) enum LineError {
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
pub(crate) struct Line {
    carrier: Box<dyn Carrier>,
    parties: Parties,
    bound: Option<Arc<dyn BoundEndpoint>>,
    /// When the next attempt may be made, while the server is lost.
    retry_at: Option<Instant>,
    /// How often the server was lost.
    losses: u64,
}

impl Line {
    /// A line that binds its endpoint when first used.
    pub(crate) fn new(carrier: Box<dyn Carrier>, parties: Parties) -> Self {
        Self {
            carrier,
            parties,
            bound: None,
            retry_at: None,
            losses: 0,
        }
    }

    /// How often the server was lost. What it held for us before is gone.
    pub(crate) const fn losses(&self) -> u64 {
        self.losses
    }

    /// Binds the endpoint, if it is not bound.
    ///
    /// # Errors
    /// As the carrier says.
    pub(crate) fn bind(&mut self) -> Result<(), EndpointError> {
        self.bound().map(drop)
    }

    /// Asks the server; it may copy from and to what is `lent` meanwhile.
    ///
    /// # Errors
    /// When there is no answer within the limit. For a moment every call fails at once then, so that programs that wait one
    /// behind another do not each wait the limit.
    pub(crate) fn ask(
        &mut self,
        message: &Message,
        lent: &mut Lent<'_>,
    ) -> Result<Message, LineError> {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return Err(LineError::Down);
        }
        let answer = self.bound().and_then(|endpoint| {
            self.notice_departure(endpoint.as_ref());
            endpoint.sendrec(self.parties.server, message, lent, self.parties.limit)
        });
        match answer {
            Ok(answer) => {
                if self.retry_at.take().is_some() {
                    info!("endpoint {} answers again", self.parties.server);
                }
                Ok(answer)
            }
            Err(error) => {
                if self.retry_at.is_none() {
                    warn!("no answer: {error}");
                } else {
                    debug!("still no answer: {error}");
                }
                self.retry_at = Some(Instant::now() + PAUSE);
                match error {
                    // It may yet answer, and still hold what it held; the carrier keeps the answer away from later questions.
                    EndpointError::TimedOut { .. } => {}
                    EndpointError::Unbound { .. } => self.unbind(),
                    _ => self.losses += 1,
                }
                Err(LineError::Failed(error))
            }
        }
    }

    /// Gives the endpoint up, since what comes on it next may answer a question that nobody asks any more.
    pub(crate) fn out_of_step(&mut self) -> LineError {
        warn!(
            "endpoint {} answered an earlier question; starting anew",
            self.parties.server
        );
        self.retry_at = Some(Instant::now() + PAUSE);
        self.unbind();
        LineError::OutOfStep
    }

    /// Hears whether the server went since it was last asked. Another may have its place already, which knows nothing of us.
    fn notice_departure(&mut self, endpoint: &dyn BoundEndpoint) {
        for _ in 0..MOST_NEWS {
            let Ok(delivery) = endpoint.receive(Duration::ZERO) else {
                return;
            };
            match delivery {
                Delivery::Gone { client, reason } if client == self.parties.server => {
                    info!("the server, endpoint {client}, has gone: {reason:?}");
                    self.losses += 1;
                }
                other => debug!("not for a client: {other:?}"),
            }
        }
    }

    fn unbind(&mut self) {
        if let Some(endpoint) = self.bound.take() {
            endpoint.unbind();
        }
        self.losses += 1;
    }

    fn bound(&mut self) -> Result<Arc<dyn BoundEndpoint>, EndpointError> {
        if let Some(endpoint) = &self.bound {
            return Ok(Arc::clone(endpoint));
        }
        let endpoint = self
            .carrier
            .bind(self.parties.dc, self.parties.client, "gangplank-dvk")?;
        self.bound = Some(Arc::clone(&endpoint));
        Ok(endpoint)
    }
}

impl LineError {
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
