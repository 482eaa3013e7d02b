//! The endpoints here: they receive requests and hand each to the proxy client of its client.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use gangplank_service::rate_limited;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::context::{ClientRequest, Context};
use super::proxy_client::ProxyClient;
use crate::abi::{DcId, Endpoint};
use crate::cli_types::EndpointRange;
use crate::endpoint::{BoundEndpoint, Carrier, Delivery, EndpointError};
use crate::status::Report;

/// Time limit of one receive, after which the loop checks whether to stop.
const RECV_TIMEOUT: Duration = Duration::from_millis(500);

/// Pause after a failed receive, so that an endpoint that keeps failing causes no busy loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// Endpoints of a container, whose clients servers elsewhere serve.
pub struct Forward {
    /// Which endpoints these are.
    endpoints: EndpointRange,
    here: Vec<Arc<dyn BoundEndpoint>>,
    context: Arc<Context>,
    /// One for each client, whichever endpoints here it asks: it waits for one answer at a time.
    proxies: Mutex<HashMap<Endpoint, ProxyClient>>,
}

impl Forward {
    /// Passes requests to each endpoint of `here`, which are `endpoints` of container `dc`, on to the
    /// endpoint of the same number at `there`.
    pub fn new(
        dc: DcId,
        endpoints: EndpointRange,
        here: Vec<Arc<dyn BoundEndpoint>>,
        there: Arc<dyn Carrier>,
        limit: Duration,
    ) -> Self {
        Self {
            endpoints,
            here,
            context: Arc::new(Context {
                dc,
                there,
                limit,
                answered: AtomicU64::new(0),
                failed: AtomicU64::new(0),
            }),
            proxies: Mutex::default(),
        }
    }

    /// Passes requests on until `stop` is set or an endpoint is unbound. After `stop` it ends
    /// within a second and answers every client.
    ///
    /// # Errors
    /// The thread of an endpoint cannot start. Those of the others have ended.
    pub fn run(&self, stop: &AtomicBool) -> io::Result<()> {
        let has_ended = AtomicBool::new(false);
        let is_over = || stop.load(Ordering::Relaxed) || has_ended.load(Ordering::Relaxed);
        let started = thread::scope(|scope| {
            let (has_ended, is_over) = (&has_ended, &is_over);
            self.here.iter().try_for_each(|here| {
                let thread = thread::Builder::new().name(format!("receive_{}", here.endpoint()));
                let started = thread.spawn_scoped(scope, move || {
                    self.receive(here, is_over);
                    has_ended.store(true, Ordering::Relaxed);
                });
                started
                    .map(drop)
                    .inspect_err(|_| has_ended.store(true, Ordering::Relaxed))
            })
        });
        let proxies = std::mem::take(&mut *self.proxies.lock());
        // All of them end before the first is joined. A client that is being served gets an error.
        proxies.values().for_each(ProxyClient::end);
        proxies.into_values().for_each(ProxyClient::wait);
        started
    }

    /// Receives at one endpoint until `is_over`, or until it is unbound.
    fn receive(&self, here: &Arc<dyn BoundEndpoint>, is_over: &dyn Fn() -> bool) {
        while !is_over() {
            match here.receive(RECV_TIMEOUT) {
                Ok(delivery) => self.take(here, delivery),
                Err(EndpointError::TimedOut { .. }) => {}
                Err(EndpointError::Unbound { .. }) => return,
                Err(error) => {
                    rate_limited!(warn, "{error}");
                    thread::sleep(FAILURE_PAUSE);
                }
            }
        }
    }

    fn take(&self, here: &Arc<dyn BoundEndpoint>, delivery: Delivery) {
        match delivery {
            Delivery::Request {
                request, message, ..
            } => self.pass(ClientRequest {
                here: Arc::clone(here),
                request,
                message,
            }),
            Delivery::Message { client, message } => {
                log::debug!("{client} sent {message:?} without waiting for an answer");
            }
            Delivery::Notification { source } => log::debug!("{source} sent a notification"),
            Delivery::Gone { client, reason } => {
                log::debug!("{client}: {reason:?}");
                if let Some(proxy) = self.proxies.lock().get(&client) {
                    proxy.end();
                }
            }
        }
    }

    /// Passes a request to the proxy client of its client.
    fn pass(&self, asked: ClientRequest) {
        let client = asked.request.client();
        let mut proxies = self.proxies.lock();
        let mut proxy = proxies.remove(&client);
        // The next proxy client joins one that has ended, and takes over its endpoint there.
        if proxy.as_ref().is_none_or(ProxyClient::has_ended) {
            let started = ProxyClient::start(self.context.clone(), client, proxy);
            match started {
                Ok(started) => proxy = Some(started),
                Err(error) => {
                    rate_limited!(
                        peer = u64::from(client.raw().cast_unsigned()),
                        error,
                        "cannot start a thread for client {client}: {error}"
                    );
                    drop(proxies);
                    self.context.refuse(&asked);
                    return;
                }
            }
        }
        let taken = match &proxy {
            Some(proxy) => proxy.ask(asked),
            None => Err(asked),
        };
        proxies.extend(proxy.map(|proxy| (client, proxy)));
        drop(proxies);
        if let Err(asked) = taken {
            self.context.refuse(&asked);
        }
    }
}

impl Report for Forward {
    fn report(&self, to: &mut String) {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let proxies = self.proxies.lock();
        let there = proxies.values().filter(|proxy| !proxy.has_ended());
        let verb = match self.here.len() {
            1 => "is",
            _ => "are",
        };
        to.push_str(&format!(
            "{} of container {} {verb} passed on: {} clients, {} requests answered, {} not\n",
            self.endpoints,
            self.context.dc,
            there.count(),
            count(&self.context.answered),
            count(&self.context.failed)
        ));
    }

    fn json(&self) -> Value {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let proxies = self.proxies.lock();
        let there = proxies.values().filter(|proxy| !proxy.has_ended());
        json!({
            "kind": "forward",
            "dc": self.context.dc.raw(),
            "endpoint": self.endpoints.first().raw(),
            "endpoints": self.endpoints.iter().map(Endpoint::raw).collect::<Vec<_>>(),
            "clients": there.count(),
            "answered": count(&self.context.answered),
            "failed": count(&self.context.failed),
        })
    }
}

#[cfg(test)]
mod tests;
