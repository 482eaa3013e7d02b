//! The connections of the host's sockets, and what each has to do.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use gangplank_service::rate_limit::peer_at;
use gangplank_service::rate_limited;
use log::debug;
use parking_lot::{Condvar, Mutex};

use super::admission::{Admission, Standing, admit};
use super::{MAX_CALLS, MAX_CONNECTIONS};
use crate::rpc::reply_budget::ReplyAccount;

/// The connections of all sockets that listen.
#[derive(Debug, Default)]
pub struct Connections(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    open: HashMap<u64, Open>,
    next: u64,
}

#[derive(Debug)]
struct Open {
    client: IpAddr,
    stream: Arc<TcpStream>,
    activity: Arc<Activity>,
}

impl Connections {
    /// Takes a connection in, perhaps in the place of another. `None` if there is no place for it.
    /// The caller [removes](Self::remove) it when it has ended.
    pub(super) fn add(
        &self,
        stream: &Arc<TcpStream>,
        peer: SocketAddr,
    ) -> Option<(u64, Arc<Activity>)> {
        let mut table = self.0.lock();
        let (ids, standings): (Vec<_>, Vec<_>) = table
            .open
            .iter()
            .map(|(id, open)| (*id, open.activity.standing(open.client)))
            .unzip();
        let client = peer.ip();
        match admit(&standings, client) {
            Admission::Free => {}
            Admission::Replaces(index) => {
                let id = ids.get(index)?;
                if let Some(closed) = table.open.remove(id) {
                    debug!("{}: gives way to {client}", closed.client);
                    // Its threads end, and the client connects again when it has calls.
                    let _ = closed.stream.shutdown(Shutdown::Both);
                }
            }
            Admission::Refused => {
                rate_limited!(
                    peer = peer_at(client),
                    warn,
                    "{peer}: refused, {} of {MAX_CONNECTIONS} connections are taken",
                    table.open.len()
                );
                return None;
            }
        }
        let id = table.next;
        table.next += 1;
        let activity = Arc::new(Activity::new());
        let open = Open {
            client,
            stream: Arc::clone(stream),
            activity: Arc::clone(&activity),
        };
        table.open.insert(id, open);
        Some((id, activity))
    }

    /// The clients, by address, with their numbers of connections.
    #[must_use]
    pub fn by_client(&self) -> Vec<(IpAddr, usize)> {
        let mut clients = BTreeMap::new();
        for open in self.0.lock().open.values() {
            *clients.entry(open.client).or_default() += 1;
        }
        clients.into_iter().collect()
    }

    pub(super) fn remove(&self, id: u64) {
        self.0.lock().open.remove(&id);
    }
}

/// What a connection has to do.
#[derive(Debug)]
pub(super) struct Activity {
    state: Mutex<State>,
    finished: Condvar,
}

#[derive(Debug)]
struct State {
    /// Calls whose replies are not written yet.
    calls: usize,
    /// When the record began of which a part has come.
    record: Option<Instant>,
    /// When it had something to do last.
    last: Instant,
}

impl Activity {
    fn new() -> Self {
        Self {
            state: Mutex::new(State {
                calls: 0,
                record: None,
                last: Instant::now(),
            }),
            finished: Condvar::new(),
        }
    }

    fn standing(&self, client: IpAddr) -> Standing {
        let state = self.state.lock();
        Standing {
            client,
            is_busy: state.calls > 0 || state.record.is_some(),
            quiet: state.last.elapsed(),
        }
    }

    /// Notes that bytes have come, the last of them of a record that is not whole yet or not.
    /// Returns when that record began.
    pub(super) fn received(&self, has_part: bool) -> Option<Instant> {
        let mut state = self.state.lock();
        state.last = Instant::now();
        state.record = match has_part {
            true => state.record.or(Some(state.last)),
            false => None,
        };
        state.record
    }

    /// Counts a call, whose record is whole. Waits while the client has too many, or takes too few
    /// of its replies.
    pub(super) fn begin(&self, replies: &ReplyAccount) {
        let mut state = self.state.lock();
        state.record = None;
        self.finished.wait_while(&mut state, |state| {
            state.calls >= MAX_CALLS || state.calls > 0 && !replies.has_room()
        });
        state.calls += 1;
    }

    /// Notes that a call's reply is written, and its bytes are not reserved any more.
    pub(super) fn finish(&self) {
        let mut state = self.state.lock();
        state.calls -= 1;
        state.last = Instant::now();
        self.finished.notify_one();
    }
}
