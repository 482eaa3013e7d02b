//! The server: receives requests, has them served by threads, and sends the answers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use std::{io, thread};

use gangplank_service::rate_limit::set_thread_peer;
use gangplank_service::{error_chain, rate_limited};
use log::{debug, warn};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::backend::{BackendConnector, BackendTarget};
use super::cache::CacheLimits;
use super::call::{Call, DecodeError};
use super::client::{Client, Clients};
use super::concurrency::{ReleasingEndpoint, Semaphore};
use super::credentials::Credentials;
use super::failure::{Failure, Result};
use super::path::Path;
use super::pool::Pool;
use super::request_context::{Answer, RequestContext};
use super::resolver::{LookupRules, SymlinkPolicy};
use super::settings::Settings;
use crate::abi::{M7, Message};
use crate::endpoint::{BoundEndpoint, Delivery, EndpointError, RequestId};
use crate::status::Report;

/// Time limit of one receive, after which the loop checks whether to stop.
const RECV_TIMEOUT: Duration = Duration::from_millis(500);

/// Threads at most, unless more workers are configured. A container has fewer clients, each of
/// which can make one thread wait for it.
const MAX_THREADS: usize = 256;

/// Time that running requests get when the server stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// Pause after a failed receive, so that an endpoint that keeps failing causes no busy loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// The options of a server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// The daemon's vhost-user socket.
    pub socket: PathBuf,
    /// The directory of the share that clients see as root, as a path from the share's root.
    pub root: String,
    /// The user and group that the server acts for.
    pub credentials: Credentials,
    /// How symbolic links are served.
    pub symlinks: SymlinkPolicy,
    /// Whether the share is read-only for clients.
    pub read_only: bool,
    /// Limit of clients.
    pub clients: usize,
    /// Limit of a client's open files.
    pub handles: usize,
    /// Limit of a client's files that are open at the daemon at once. The others are opened again
    /// when they are used.
    pub open: usize,
    /// Limit of requests that are served at once, except those that wait for their clients.
    pub workers: usize,
    /// Limit of cached directories.
    pub directories: usize,
    /// Longest validity of a cached directory.
    pub cache_timeout: Duration,
    /// Time limit of the daemon for a request.
    pub limit: Duration,
}

impl Options {
    /// The root of the share behind `socket`, for this process's user.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            root: "/".to_owned(),
            credentials: Credentials::own(),
            symlinks: SymlinkPolicy::default(),
            read_only: false,
            clients: 1024,
            handles: 16_384,
            open: 512,
            workers: 64,
            directories: 4096,
            cache_timeout: Duration::from_secs(1),
            limit: Duration::from_secs(30),
        }
    }
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The root is not a valid path.
    #[error("{root:?} is not a valid directory of a share: {why}")]
    Root {
        /// The path as given.
        root: String,
        /// The reason.
        why: &'static str,
    },
    /// The host refuses a thread.
    #[error("cannot start the thread of the daemon's connection")]
    Thread(#[source] io::Error),
}

/// Checks that `root` is a path that the root of a share can have.
pub(in crate::rhostfs) fn check_root(root: &str) -> std::result::Result<(), &'static str> {
    if !root.starts_with('/') {
        return Err("it must start with a slash");
    }
    if root.split('/').any(|name| matches!(name, "." | "..")) {
        return Err("it contains . or ..");
    }
    if root.contains('\0') || root.len() >= super::path::PATH_MAX {
        return Err("it is too long, or contains a NUL");
    }
    Ok(())
}

/// A server of one endpoint.
pub struct Server {
    shared: Arc<Shared>,
    workers: usize,
}

struct Shared {
    /// Copies through it release the caller's permit.
    endpoint: Arc<dyn BoundEndpoint>,
    semaphore: Arc<Semaphore>,
    settings: Settings,
    clients: Clients,
    connector: BackendConnector,
    counts: Counts,
}

/// Counters of the status.
#[derive(Debug, Default)]
struct Counts {
    /// Requests that were answered.
    answered: AtomicU64,
    /// Those of them that were refused.
    refused: AtomicU64,
    /// Requests of clients beyond the limit.
    refused_clients: AtomicU64,
}

/// A request to be served.
struct QueuedRequest {
    /// `None` if there are too many clients.
    client: Option<Arc<Client>>,
    request: RequestId,
    message: Message,
}

impl Server {
    /// A server at `endpoint`. It starts to connect to the daemon. [`Server::run`] serves.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn start(
        endpoint: Arc<dyn BoundEndpoint>,
        options: &Options,
    ) -> std::result::Result<Self, StartError> {
        let bad_root = |why| StartError::Root {
            root: options.root.clone(),
            why,
        };
        check_root(&options.root).map_err(bad_root)?;
        let root = Path::parse(format!("{}\0", options.root).as_bytes());
        let root = root.map_err(|_| bad_root("it is not a path"))?;
        let target = BackendTarget {
            socket: options.socket.clone(),
            root,
            root_name: options.root.clone(),
            rules: LookupRules {
                credentials: options.credentials,
                symlinks: options.symlinks,
                cache: CacheLimits {
                    directories: options.directories,
                    max_age: options.cache_timeout,
                },
            },
            limit: options.limit,
            workers: options.workers,
        };
        let semaphore = Arc::new(Semaphore::new(options.workers));
        let shared = Shared {
            endpoint: Arc::new(ReleasingEndpoint::new(endpoint, semaphore.clone())),
            semaphore,
            settings: Settings {
                credentials: options.credentials,
                symlinks: options.symlinks,
                read_only: options.read_only,
                handles: options.handles,
                open: options.open.max(1),
                root_name: options.root.clone(),
            },
            clients: Clients::new(options.clients, options.handles),
            connector: BackendConnector::start(target).map_err(StartError::Thread)?,
            counts: Counts::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            workers: options.workers,
        })
    }

    /// Waits up to `limit` until the daemon is connected. Returns whether it is.
    #[must_use]
    pub fn wait_for_daemon(&self, limit: Duration) -> bool {
        self.shared.connector.wait(limit)
    }

    /// Serves until `stop` is set or the endpoint is unbound. Running requests get a moment to end,
    /// and waiting clients are told that the endpoint is gone. It ends within two seconds, or when
    /// the daemon has answered.
    pub fn run(&self, stop: &AtomicBool) {
        let pool = Pool::new(self.workers.max(MAX_THREADS), {
            let shared = Arc::clone(&self.shared);
            move |job| shared.serve(&job)
        });
        while !stop.load(Ordering::Relaxed) {
            match self.shared.endpoint.receive(RECV_TIMEOUT) {
                Ok(delivery) => self.shared.take(&pool, delivery),
                Err(EndpointError::TimedOut { .. }) => {}
                Err(EndpointError::Unbound { .. }) => break,
                Err(error) => {
                    rate_limited!(warn, "{}", error_chain(&error));
                    thread::sleep(FAILURE_PAUSE);
                }
            }
        }
        pool.finish(SHUTDOWN_GRACE);
        // This ends all exchanges with clients.
        self.shared.endpoint.unbind();
    }
}

impl Report for Server {
    fn report(&self, to: &mut String) {
        let Shared {
            connector,
            clients,
            counts,
            ..
        } = &*self.shared;
        let daemon = match connector.current() {
            Ok(backend) => format!("in use, by connection {}", backend.number),
            Err(failure) => failure.to_string(),
        };
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let numbers = format!(
            "{} requests answered, {} of them refused; {} turned away",
            count(&counts.answered),
            count(&counts.refused),
            count(&counts.refused_clients)
        );
        to.push_str(&format!("  daemon {daemon}\n  {numbers}\n"));
        clients.report(to);
    }

    fn json(&self) -> Value {
        let Shared {
            connector,
            clients,
            counts,
            ..
        } = &*self.shared;
        let (connection, failure) = match connector.current() {
            Ok(backend) => (Some(backend.number), None),
            Err(failure) => (None, Some(failure.to_string())),
        };
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        json!({
            "daemon_connection": connection,
            "daemon_error": failure,
            "answered": count(&counts.answered),
            "refused": count(&counts.refused),
            "clients_turned_away": count(&counts.refused_clients),
            "clients": clients.json(),
        })
    }
}

impl Shared {
    fn take(&self, pool: &Pool<QueuedRequest>, delivery: Delivery) {
        match delivery {
            Delivery::Request {
                request,
                pid,
                message,
            } => {
                let client = request.client();
                let begins = Call::begins(&message);
                let known = self.clients.get_or_create(client, pid, begins);
                if let Some(known) = &known {
                    known.begin_request();
                }
                let job = QueuedRequest {
                    request,
                    client: known,
                    message,
                };
                pool.submit(client, job);
            }
            Delivery::Message { client, message } => {
                debug!("{client} sent {message:?} without waiting for an answer");
            }
            Delivery::Notification { source } => debug!("{source} sent a notification"),
            Delivery::Gone { client, reason } => {
                debug!("{client}: {reason:?}");
                self.clients.gone(client);
            }
        }
    }

    /// Serves a request and answers it.
    fn serve(&self, job: &QueuedRequest) {
        set_thread_peer(job.request.client().log_key());
        let Some(client) = &job.client else {
            let times = self
                .counts
                .refused_clients
                .fetch_add(1, Ordering::Relaxed)
                .saturating_add(1);
            // Clients can cause this as often as they like.
            if times.is_power_of_two() {
                warn!(
                    "refusing client {} because there are too many: refusal number {times}",
                    job.request.client()
                );
            }
            self.reply(job, &job.message.answer(-Errno::NFILE.raw_os_error()));
            return;
        };
        // The client gets an answer even after a panic.
        let permit = self.semaphore.acquire();
        let answer = catch_unwind(AssertUnwindSafe(|| self.answer(job, client)));
        drop(permit);
        let answer = answer.unwrap_or_else(|_| {
            rate_limited!(error, "serving {:?} failed", job.message);
            job.message.answer(-Errno::IO.raw_os_error())
        });
        client.finish_request(&answer);
        self.counts.answered.fetch_add(1, Ordering::Relaxed);
        if answer.kind < 0 {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
        }
        self.reply(job, &answer);
    }

    fn reply(&self, job: &QueuedRequest, answer: &Message) {
        if let Err(error) = self.endpoint.reply(job.request, answer) {
            debug!("{}", error_chain(&error));
        }
    }

    /// The answer to a request.
    fn answer(&self, job: &QueuedRequest, client: &Client) -> Message {
        let message = &job.message;
        let refuse = |errno: Errno| message.answer(-errno.raw_os_error());
        let call = match Call::decode(message) {
            Ok(call) => call,
            Err(DecodeError::Again) => {
                return client.last().unwrap_or_else(|| refuse(Errno::NOSYS));
            }
            Err(DecodeError::Negative) => {
                // As with zero, it may be an answer that is sent back as a request. No other
                // request looks like it.
                let last = client.last().filter(|last| is_same(message, last));
                return last.unwrap_or_else(|| refuse(Errno::INVAL));
            }
            Err(DecodeError::Unknown) => {
                debug!(
                    "client {}: unknown call {}",
                    job.request.client(),
                    message.kind
                );
                return refuse(Errno::NOSYS);
            }
        };
        match self.execute(job, client, &call) {
            Ok(answer) => {
                debug!("client {}: {call:?}: {answer:?}", job.request.client());
                answer.to(message)
            }
            Err(failure) => {
                let errno = failure.errno();
                debug!(
                    "client {}: {call:?}: -{errno}: {}",
                    job.request.client(),
                    error_chain(&failure)
                );
                message.answer(-errno)
            }
        }
    }

    fn execute(&self, job: &QueuedRequest, client: &Client, call: &Call) -> Result<Answer> {
        let backend = self.connector.current()?;
        let slot = usize::try_from(job.request.client().slot()).unwrap_or_default();
        let queue = 1 + slot % backend.queues.max(1);
        let done = backend
            .session
            .on_queue(queue)
            .map_err(Failure::from)
            .and_then(|session| {
                let context = RequestContext {
                    settings: &self.settings,
                    endpoint: &*self.endpoint,
                    clients: &self.clients,
                    client,
                    request: job.request,
                    backend: &backend,
                    session,
                };
                let answer = context.run(call);
                client.park_idle(&backend, self.settings.open);
                answer
            });
        if let Err(failure) = &done
            && failure.is_daemon_lost()
        {
            self.connector.lost(&backend);
        }
        done
    }
}

/// Whether a request equals the last answer to its client.
fn is_same(message: &Message, last: &Message) -> bool {
    last.kind == message.kind && last.arm::<M7>() == message.arm()
}
