//! Executes calls on worker threads, within limits of memory and of calls at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::{io, thread};

use log::debug;
use nfs3_types::rpc::accept_stat;
use parking_lot::{Condvar, Mutex};

use super::message::{self, BadCall, Call};
use super::program::{CallError, Caller, Endpoints, Program, SMALL_RESULTS};
use super::replay::{ReplayCache, Responder};
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
            let len = job.record.len();
            self.execute(job.endpoints, &job.record, job.respond);
            self.queue.lock().bytes -= len;
            self.finished.notify_all();
        }
    }

    /// Executes a record on the calling thread.
    pub fn execute(&self, endpoints: Endpoints, record: &[u8], respond: Responder) {
        let call = match Call::parse(record) {
            Ok(call) => call,
            Err(BadCall::NoCall) => return respond(None),
            Err(BadCall::Refused(reply)) => return respond(Some(Arc::new(reply))),
        };
        let program = match self.program(&call) {
            Ok(program) => program,
            Err(reply) => return respond(Some(Arc::new(reply))),
        };
        if !program.changes(call.procedure) {
            return respond(Some(Arc::new(run(program, endpoints, &call).0)));
        }
        let client = endpoints.client;
        let begun = self.replays.begin(client, call.xid, record, respond);
        if let Some((key, respond)) = begun {
            let (reply, is_final) = run(program, endpoints, &call);
            let reply = Arc::new(reply);
            self.replays.finish(key, &reply, is_final);
            respond(Some(reply));
        }
    }

    fn program(&self, call: &Call<'_>) -> Result<&dyn Program, Vec<u8>> {
        let mut versions = self
            .programs
            .iter()
            .filter(|program| program.number() == call.program)
            .peekable();
        if versions.peek().is_none() {
            return Err(message::failed(call.xid, accept_stat::PROG_UNAVAIL));
        }
        let all: Vec<u32> = versions.clone().map(|program| program.version()).collect();
        versions
            .find(|program| program.version() == call.version)
            .map(|program| &**program)
            .ok_or_else(|| {
                let low = all.iter().copied().min().unwrap_or(0);
                let high = all.iter().copied().max().unwrap_or(0);
                message::version_mismatch(call.xid, low, high)
            })
    }
}

/// Runs a procedure. Returns the reply, and whether a repetition may get it as well: not if the
/// caller is told to try again.
fn run(program: &dyn Program, endpoints: Endpoints, call: &Call<'_>) -> (Vec<u8>, bool) {
    let caller = Caller {
        address: endpoints.client,
        port: endpoints.client_port,
        server: endpoints.server,
        credentials: &call.credentials,
    };
    let mut reply = message::success(call.xid);
    let head = reply.len();
    match program.call(caller, call.procedure, call.args, &mut reply) {
        Ok(()) => {
            let is_final = !program.is_postponed(reply.get(head..).unwrap_or_default());
            (reply, is_final)
        }
        Err(CallError::NoProcedure) => (message::failed(call.xid, accept_stat::PROC_UNAVAIL), true),
        Err(CallError::Garbage(error)) => {
            debug!(
                "{}: program {} procedure {}: {error}",
                endpoints.client, call.program, call.procedure
            );
            (message::failed(call.xid, accept_stat::GARBAGE_ARGS), true)
        }
    }
}
