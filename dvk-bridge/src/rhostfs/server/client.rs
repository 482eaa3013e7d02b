//! The clients of a server and what each of them holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use log::debug;
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};

use super::backend::Backend;
use super::backend_file::OpenCount;
use super::cookies::Cookies;
use super::dir_handles::DirHandles;
use super::fd_numbers::{FdNumbers, FdRange};
use super::handle::Handles;
use super::path::Path;
use super::path_cache::PathMemory;
use crate::abi::{Endpoint, Message};

/// A client, from its first request to its end. Dropping it frees what it holds.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) endpoint: Endpoint,
    /// Its process on its own machine, if known.
    pid: Option<i32>,
    handles: Mutex<Handles>,
    /// Files of it that the daemon has open, and the number at which idle ones are parked.
    pub(super) open: OpenCount,
    park_at: AtomicUsize,
    /// The memory that the paths of its open files occupy.
    pub(super) memory: PathMemory,
    listing: Mutex<Listing>,
    /// The last answer, which it may request again.
    last: Mutex<Option<Message>>,
    /// Requests that were received and not answered yet.
    pending_requests: AtomicUsize,
    /// The client has gone. Nobody waits for an answer, and its memory may be another process's.
    gone: AtomicBool,
}

/// A client's open directories and its positions in directories.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) dir_handles: DirHandles,
    pub(super) cookies: Cookies,
}

impl Client {
    fn new(endpoint: Endpoint, pid: Option<i32>, numbers: FdRange) -> Self {
        Self {
            endpoint,
            pid,
            handles: Mutex::new(Handles::new(numbers)),
            open: OpenCount::default(),
            park_at: AtomicUsize::new(0),
            memory: PathMemory::default(),
            listing: Mutex::default(),
            last: Mutex::default(),
            pending_requests: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
        }
    }

    pub(super) fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock()
    }

    pub(super) fn listing(&self) -> MutexGuard<'_, Listing> {
        self.listing.lock()
    }

    pub(super) fn last(&self) -> Option<Message> {
        *self.last.lock()
    }

    /// Parks the least used files if more than `most` are open.
    pub(super) fn park_idle(&self, backend: &Backend, most: usize) {
        let open = self.open.get();
        if open <= most.max(self.park_at.load(Ordering::Relaxed)) {
            return;
        }
        let enough = most - most / 4;
        // The handles are not locked while the daemon is asked.
        let idle = self.handles().least_used(open - enough);
        for file in idle {
            if let Err(failure) = file.park(backend) {
                debug!(
                    "client {}: cannot close an open file: {failure}",
                    self.endpoint
                );
            }
        }
        // Files that cannot be parked are not tried every time.
        let left = self.open.get();
        let next = if left > most { left + most / 4 } else { 0 };
        self.park_at.store(next, Ordering::Relaxed);
    }

    /// Counts a request that was received.
    pub(super) fn begin_request(&self) {
        self.pending_requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request that is about to be answered.
    pub(super) fn finish_request(&self, answer: &Message) {
        *self.last.lock() = Some(*answer);
        self.pending_requests.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether it has gone.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Whether it waits for nothing and has no file open.
    fn is_idle(&self) -> bool {
        // A client whose handles are locked counts as busy.
        let handles = self.handles.try_lock();
        self.pending_requests.load(Ordering::Relaxed) == 0
            && handles.is_some_and(|handles| handles.count() == 0)
    }
}

/// The clients of one endpoint.
#[derive(Debug)]
pub(super) struct Clients {
    most: usize,
    numbers: FdNumbers,
    known: Mutex<HashMap<Endpoint, Arc<Client>>>,
}

impl Clients {
    /// No clients yet. Up to `most` later, each with up to `files` open files.
    pub(super) fn new(most: usize, files: usize) -> Self {
        Self {
            most,
            numbers: FdNumbers::new(files),
            known: Mutex::default(),
        }
    }

    /// The client at `endpoint`. If the request `begins` a mount and comes from another process
    /// than before, it is a new client, and what the old one held is freed: its machine has booted
    /// again. Returns `None` if there are too many clients. A client that holds nothing is replaced
    /// first.
    pub(super) fn get_or_create(
        &self,
        endpoint: Endpoint,
        pid: Option<i32>,
        begins: bool,
    ) -> Option<Arc<Client>> {
        let mut known = self.known.lock();
        let mut gone = None;
        if let Some(client) = known.get(&endpoint) {
            let another = matches!((pid, client.pid), (Some(now), Some(then)) if now != then);
            if !(begins && another) {
                return Some(Arc::clone(client));
            }
            gone = known.remove(&endpoint);
        } else if known.len() >= self.most {
            let idle = known.values().find(|client| client.is_idle());
            let idle = idle.map(|client| client.endpoint)?;
            gone = known.remove(&idle);
        }
        let client = Arc::new(Client::new(endpoint, pid, self.numbers.range()));
        known.insert(endpoint, Arc::clone(&client));
        drop(known);
        if let Some(gone) = gone {
            gone.gone.store(true, Ordering::Release);
        }
        Some(client)
    }

    /// Frees what a client held.
    pub(super) fn gone(&self, endpoint: Endpoint) {
        let client = self.known.lock().remove(&endpoint);
        if let Some(client) = client {
            client.gone.store(true, Ordering::Release);
            let files = client.handles().count();
            debug!("client {endpoint} is gone; closing its {files} open files");
        }
    }

    /// Describes each client in a line.
    pub(super) fn report(&self, to: &mut String) {
        let mut clients: Vec<_> = self.known.lock().values().map(Arc::clone).collect();
        clients.sort_unstable_by_key(|client| client.endpoint);
        for client in clients {
            let files = client.handles().count();
            let state = match client.pending_requests.load(Ordering::Relaxed) {
                0 => "idle",
                _ => "being served",
            };
            let endpoint = client.endpoint;
            to.push_str(&format!(
                "  client {endpoint}: {files} open files, {state}\n"
            ));
        }
    }

    /// Each client as an object.
    pub(super) fn json(&self) -> Value {
        let mut clients: Vec<_> = self.known.lock().values().map(Arc::clone).collect();
        clients.sort_unstable_by_key(|client| client.endpoint);
        let clients = clients.iter().map(|client| {
            json!({
                "endpoint": client.endpoint.raw(),
                "open_files": client.handles().count(),
                "pending_requests": client.pending_requests.load(Ordering::Relaxed),
            })
        });
        clients.collect()
    }

    /// Opens the parked files of inode `ino`, which may lose its last name.
    pub(super) fn reopen_parked(&self, ino: u64, backend: &Backend) {
        let clients: Vec<_> = self.known.lock().values().map(Arc::clone).collect();
        for client in clients {
            let parked = client.handles().parked(ino);
            for file in parked {
                // A file that cannot be opened now fails when its client uses it.
                drop(file.backend_file(backend));
            }
        }
    }

    /// Updates the paths of open files after a rename.
    pub(super) fn moved(&self, from: &Path, to: &Path) {
        let clients: Vec<_> = self.known.lock().values().map(Arc::clone).collect();
        for client in clients {
            client.handles().moved(from, to);
        }
    }
}
