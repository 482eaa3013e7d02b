//! Executes calls on worker threads, within limits of memory and of calls at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::{io, thread};

use gangplank_service::rate_limit::{peer_at, set_thread_peer};
use log::debug;
use nfs3_types::rpc::accept_stat;
use parking_lot::{Condvar, Mutex};

use super::message::{self, BadCall, Call};
use super::program::{CallError, Caller, Endpoints, Program, SMALL_RESULTS};
use super::record::RecordPool;
use super::replay::{ReplayCache, Responder};
use super::reply::Reply;
use super::reply_budget::{ReplyAccount, ReplyBudget};

/// Most bytes of records that wait or are executed, over all connections. Readers of connections
/// wait beyond it.
const MAX_QUEUED_BYTES: usize = 64 << 20;

/// A record to execute.
struct Job {
    endpoints: Endpoints,
    record: Vec<u8>,
    respond: Responder,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Bytes of the records in `jobs`, and of those in execution.
    bytes: usize,
}

/// The server: its programs, and the queue of calls.
pub struct Server {
    programs: Vec<Arc<dyn Program>>,
    replays: ReplayCache,
    replies: Arc<ReplyBudget>,
    records: Arc<RecordPool>,
    queue: Mutex<Queue>,
    queued: Condvar,
    finished: Condvar,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Server {
    /// A server of `programs`, without threads.
    #[must_use]
    pub fn new(programs: Vec<Arc<dyn Program>>) -> Self {
        Self {
            programs,
            replays: ReplayCache::default(),
            replies: Arc::default(),
            records: Arc::default(),
            queue: Mutex::default(),
            queued: Condvar::new(),
            finished: Condvar::new(),
        }
    }

    /// Starts `workers` threads, which run until the process ends.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(self: &Arc<Self>, workers: usize) -> io::Result<()> {
        for number in 0..workers {
            let server = Arc::clone(self);
            thread::Builder::new()
                .name(format!("nfs_work_{number}"))
                .spawn(move || server.work())?;
        }
        Ok(())
    }

    /// The account of the replies to a new connection.
    #[must_use]
    pub fn reply_account(&self) -> ReplyAccount {
        ReplyAccount::new(&self.replies)
    }

    /// Memory for large records. Those that are executed return theirs.
    #[must_use]
    pub fn records(&self) -> Arc<RecordPool> {
        Arc::clone(&self.records)
    }

    /// Bytes of the largest reply that a record may have, without file data or with it.
    #[must_use]
    pub fn largest_reply(&self, record: &[u8]) -> usize {
        let Ok(call) = Call::parse(record) else {
            return SMALL_RESULTS;
        };
        let program = self.program(&call);
        program.map_or(SMALL_RESULTS, |program| {
            program.largest_results(call.procedure, call.args)
        })
    }

    /// Whether a record can be queued without waiting.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.queue.lock().bytes < MAX_QUEUED_BYTES
    }

    /// Queues a record. `respond` is called once, on any thread, with the reply. Waits while too
    /// much is queued; a caller that must not wait asks [`Server::has_room`] before.
    pub fn submit(&self, endpoints: Endpoints, record: Vec<u8>, respond: Responder) {
        let mut queue = self.queue.lock();
        self.finished
            .wait_while(&mut queue, |queue| queue.bytes >= MAX_QUEUED_BYTES);
        queue.bytes += record.len();
        queue.jobs.push_back(Job {
            endpoints,
            record,
            respond,
        });
        drop(queue);
        self.queued.notify_one();
    }

    fn work(&self) {
        loop {
            let mut queue = self.queue.lock();
            let job = loop {
                match queue.jobs.pop_front() {
                    Some(job) => break job,
                    None => self.queued.wait(&mut queue),
                }
            };
            drop(queue);
            self.execute_reserved(job.endpoints, job.record, job.respond);
        }
    }

    /// Reserves room for a record that the caller executes itself, by [`Self::execute_reserved`].
    /// Returns whether there was room.
    #[must_use]
    pub fn reserve(&self, record: &[u8]) -> bool {
        let mut queue = self.queue.lock();
        let has_room = queue.bytes < MAX_QUEUED_BYTES;
        if has_room {
            queue.bytes += record.len();
        }
        has_room
    }

    /// Executes a record on the calling thread, and gives its room back before it responds: the
    /// client may not take the reply.
    pub fn execute_reserved(&self, endpoints: Endpoints, record: Vec<u8>, respond: Responder) {
        let len = record.len();
        let executed = self.run_call(endpoints, &record, respond);
        self.records.give(record);
        self.queue.lock().bytes -= len;
        self.finished.notify_all();
        if let Some((respond, reply)) = executed {
            respond(reply);
        }
    }

    /// Executes a record on the calling thread.
    pub fn execute(&self, endpoints: Endpoints, record: &[u8], respond: Responder) {
        if let Some((respond, reply)) = self.run_call(endpoints, record, respond) {
            respond(reply);
        }
    }

    /// Executes a record. Returns its reply and who takes it, unless another thread that executes
    /// the same call will respond.
    fn run_call(
        &self,
        endpoints: Endpoints,
        record: &[u8],
        respond: Responder,
    ) -> Option<(Responder, Option<Arc<Reply>>)> {
        set_thread_peer(peer_at(endpoints.client));
        let call = match Call::parse(record) {
            Ok(call) => call,
            Err(BadCall::NoCall) => return Some((respond, None)),
            Err(BadCall::Refused(reply)) => return Some((respond, Some(Arc::new(reply.into())))),
        };
        let program = match self.program(&call) {
            Ok(program) => program,
            Err(reply) => return Some((respond, Some(Arc::new(reply.into())))),
        };
        if !program.changes(call.procedure) {
            let reply = Arc::new(run(program, endpoints, &call).0);
            return Some((respond, Some(reply)));
        }
        let client = endpoints.client;
        let (key, respond) = self.replays.begin(client, call.xid, record, respond)?;
        let (reply, is_final) = run(program, endpoints, &call);
        let reply = Arc::new(reply);
        self.replays.finish(key, &reply, is_final);
        Some((respond, Some(reply)))
    }

    fn program(&self, call: &Call<'_>) -> Result<&dyn Program, Vec<u8>> {
        let versions = || {
            let programs = self.programs.iter();
            programs.filter(|program| program.number() == call.program)
        };
        let found = versions().find(|program| program.version() == call.version);
        found.map(|program| &**program).ok_or_else(|| {
            let all = || versions().map(|program| program.version());
            match (all().min(), all().max()) {
                (Some(low), Some(high)) => message::version_mismatch(call.xid, low, high),
                _ => message::failed(call.xid, accept_stat::PROG_UNAVAIL),
            }
        })
    }
}

/// Runs a procedure. Returns the reply, and whether a repetition may get it as well: not if the
/// caller is told to try again.
fn run(program: &dyn Program, endpoints: Endpoints, call: &Call<'_>) -> (Reply, bool) {
    let caller = Caller {
        address: endpoints.client,
        port: endpoints.client_port,
        server: endpoints.server,
        credentials: &call.credentials,
    };
    let mut reply = Reply::from(message::success(call.xid));
    let head = reply.bytes.len();
    match program.call(caller, call.procedure, call.args, &mut reply) {
        Ok(()) => {
            let is_final = !program.is_postponed(reply.bytes.get(head..).unwrap_or_default());
            (reply, is_final)
        }
        Err(CallError::NoProcedure) => {
            let reply = message::failed(call.xid, accept_stat::PROC_UNAVAIL);
            (reply.into(), true)
        }
        Err(CallError::Garbage(error)) => {
            debug!(
                "{}: program {} procedure {}: {error}",
                endpoints.client, call.program, call.procedure
            );
            let reply = message::failed(call.xid, accept_stat::GARBAGE_ARGS);
            (reply.into(), true)
        }
    }
}

#[cfg(test)]
mod tests {
    use gangplank_service::rate_limit::{self, thread_peer};
    use nfs3_types::rpc::{call_body, msg_body, opaque_auth, rpc_msg};
    use nfs3_types::xdr_codec::Pack;

    use super::*;
    use crate::xdr::Reader;

    /// Notes whom the messages of each call count for.
    #[derive(Default)]
    struct Peers(Mutex<Vec<rate_limit::Peer>>);

    impl Program for Arc<Peers> {
        fn number(&self) -> u32 {
            1
        }

        fn version(&self) -> u32 {
            1
        }

        fn call(
            &self,
            _: Caller<'_>,
            _: u32,
            _: Reader<'_>,
            _: &mut Reply,
        ) -> Result<(), CallError> {
            self.0.lock().push(thread_peer());
            Ok(())
        }
    }

    #[test]
    fn what_one_client_has_logged_counts_for_no_other() {
        let peers = Arc::new(Peers::default());
        let server = Server::new(vec![Arc::new(Arc::clone(&peers))]);
        let body = call_body {
            rpcvers: 2,
            prog: 1,
            vers: 1,
            proc: 0,
            cred: opaque_auth::default(),
            verf: opaque_auth::default(),
        };
        let call = rpc_msg {
            xid: 7,
            body: msg_body::CALL(body),
        };
        let mut record = Vec::new();
        call.pack(&mut record).unwrap();
        for client in ["10.0.0.1", "10.0.0.2", "10.0.0.1"] {
            let endpoints = Endpoints {
                client: client.parse().unwrap(),
                client_port: 700,
                server: "10.0.0.9".parse().unwrap(),
            };
            server.execute(endpoints, &record, Box::new(|_| ()));
        }
        let peers = peers.0.lock();
        assert_eq!(peers.len(), 3);
        assert_eq!(peers[0], peers[2]);
        assert_ne!(peers[0], peers[1]);
    }
}
