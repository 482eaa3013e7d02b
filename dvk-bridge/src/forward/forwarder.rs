//! The endpoint here: it receives requests and hands each to the proxy client of its client.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use gangplank_service::rate_limited;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::context::Context;
use super::proxy_client::ProxyClient;
use crate::abi::{Endpoint, Message};
use crate::endpoint::{BoundEndpoint, Carrier, Delivery, EndpointError, RequestId};
use crate::status::Report;

/// Time limit of one receive, after which the loop checks whether to stop.
const RECV_TIMEOUT: Duration = Duration::from_millis(500);

/// Pause after a failed receive, so that an endpoint that keeps failing causes no busy loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// An endpoint whose clients a server elsewhere serves.
pub struct Forward {
    context: Arc<Context>,
    proxies: Mutex<HashMap<Endpoint, ProxyClient>>,
}

impl Forward {
    /// Passes requests to `here` on to the endpoint of the same number at `there`.
    pub fn new(here: Arc<dyn BoundEndpoint>, there: Arc<dyn Carrier>, limit: Duration) -> Self {
        Self {
            context: Arc::new(Context {
                here,
                there,
                limit,
                answered: AtomicU64::new(0),
                failed: AtomicU64::new(0),
            }),
            proxies: Mutex::default(),
        }
    }

    /// Passes requests on until `stop` is set or the endpoint is unbound. After `stop` it ends
    /// within a second and answers every client.
    pub fn run(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            match self.context.here.receive(RECV_TIMEOUT) {
                Ok(delivery) => self.take(delivery),
                Err(EndpointError::TimedOut { .. }) => {}
                Err(EndpointError::Unbound { .. }) => break,
                Err(error) => {
                    rate_limited!(warn, "{error}");
                    thread::sleep(FAILURE_PAUSE);
                }
            }
        }
        let proxies = std::mem::take(&mut *self.proxies.lock());
        // All of them end before the first is joined. A client that is being served gets an error.
        proxies.values().for_each(ProxyClient::end);
        proxies.into_values().for_each(ProxyClient::wait);
    }

    fn take(&self, delivery: Delivery) {
        match delivery {
            Delivery::Request {
                request, message, ..
            } => self.pass(request, message),
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
    fn pass(&self, request: RequestId, message: Message) {
        let client = request.client();
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
                    self.context.refuse(request, &message);
                    return;
                }
            }
        }
        let taken = proxy.as_ref().is_some_and(|it| it.ask(request, message));
        proxies.extend(proxy.map(|proxy| (client, proxy)));
        drop(proxies);
        if !taken {
            self.context.refuse(request, &message);
        }
    }
}

impl Report for Forward {
    fn report(&self, to: &mut String) {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let proxies = self.proxies.lock();
        let there = proxies.values().filter(|proxy| !proxy.has_ended());
        to.push_str(&format!(
            "endpoint {} of container {} is passed on: {} clients, {} requests answered, {} not\n",
            self.context.here.endpoint(),
            self.context.here.dc(),
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
            "dc": self.context.here.dc().raw(),
            "endpoint": self.context.here.endpoint().raw(),
            "clients": there.count(),
            "answered": count(&self.context.answered),
            "failed": count(&self.context.failed),
        })
    }
}

#[cfg(test)]
mod tests;
