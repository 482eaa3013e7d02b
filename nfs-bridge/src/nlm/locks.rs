//! The locks of NFS clients, which are the daemon's locks where it has any.
//!
//! ```text
//!   LOCK ─> table: another NFS client's lock is in the way ──> waits for its UNLOCK
//!        ─> daemon (SETLK): somebody else's is in the way ───> waits there (SETLKW)
//!        ─> granted                                            GRANTED goes to the client
//! ```
//!
//! A client that waits has its reply already, so it holds no connection and no worker. A few waits
//! at once are requests in flight at the daemon; further ones are tried again from time to time.
//! When the daemon was lost, all locks are taken again at the next one.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};
use std::{io, thread};

use gangplank_service::{error_chain, rate_limited};
use log::{debug, info};
use nfs3_types::nfs3::nfsstat3;
use parking_lot::Mutex;
use rustix::io::Errno;

use super::daemon_file::{Answer, DaemonFile};
use super::message::{self, Holder, LockArgs, Status};
use super::range::{Held, Range};
use super::state::{State, Unconfirmed, Waiter};
use super::table::{ClientId, Full, Owner, Totals};
use crate::rpc::client::{ClientCall, RpcClient};
use crate::share::Share;
use crate::share::connection::Connection;
use crate::share::error::{Failure, Result};
use crate::share::handle::FileHandle;

/// How long GRANTED is repeated. A client that waits asks again by itself every 30 seconds.
const GRANT_LIMIT: Duration = Duration::from_secs(60);

/// How long a lock that a client reclaims may still be another's. After this program was killed,
/// the daemon needs a moment to free what it held, and a client that is denied gives the lock up.
const RECLAIM_LIMIT: Duration = Duration::from_secs(3);

/// Pause between two attempts to take such a lock.
const RECLAIM_INTERVAL: Duration = Duration::from_millis(20);

/// Most clients whose last restart is remembered.
const MAX_NOTIFIED: usize = 4096;

/// How GRANTED reaches a client.
#[derive(Debug, Clone)]
pub struct GrantTo {
    /// Calls the client.
    pub by: Arc<RpcClient>,
    /// The server's address that the client knows.
    pub from: IpAddr,
    /// The client's name of itself.
    pub caller_name: Vec<u8>,
    /// The client's name of the owner.
    pub owner_handle: Vec<u8>,
}

/// A file that a procedure names, open at the daemon.
#[derive(Debug)]
pub struct OpenedFile {
    /// The file's handle.
    pub handle: FileHandle,
    /// The connection that it is open on.
    pub connection: Arc<Connection>,
    /// The file.
    pub file: DaemonFile,
}

/// What LOCK asks for.
#[derive(Debug)]
pub struct LockCall<'a> {
    /// Whose lock it becomes.
    pub owner: &'a Owner,
    /// The range.
    pub wanted: Held,
    /// What the client is told when it does not wait for nothing.
    pub grant_to: GrantTo,
    /// Whether the client waits.
    pub block: bool,
    /// Whether the client had it before this server started.
    pub reclaim: bool,
    /// How often the client has started; 0 if it does not know.
    pub state: u32,
}

/// What the thread is told.
pub(super) enum Event {
    /// There is something new to look after.
    Changed,
    /// A client has answered GRANTED; `None` if it has not.
    Granted(u64, Option<bool>),
}

/// The locks.
pub struct Locks {
    pub(super) share: Arc<Share>,
    pub(super) state: Mutex<State>,
    events: Sender<Event>,
    /// Until then clients reclaim the locks that they had before this program started.
    grace_end: Option<Instant>,
}

impl std::fmt::Debug for Locks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Locks").finish_non_exhaustive()
    }
}

impl Locks {
    /// No locks yet. For the time `grace`, clients can only reclaim those that they had. Starts the
    /// thread that looks after waiting clients.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(share: Arc<Share>, grace: Option<Duration>) -> io::Result<Arc<Self>> {
        let (events, queue) = mpsc::channel();
        let locks = Arc::new(Self {
            share,
            state: Mutex::default(),
            events,
            grace_end: grace.map(|grace| Instant::now() + grace),
        });
        let runner = Arc::clone(&locks);
        thread::Builder::new()
            .name("nfs_locks".to_owned())
            .spawn(move || runner.run(&queue))?;
        Ok(locks)
    }

    /// Whether clients can only reclaim locks.
    #[must_use]
    pub fn in_grace(&self) -> bool {
        self.grace_end.is_some_and(|end| Instant::now() < end)
    }

    /// How many there are.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.state.lock().table.totals()
    }

    /// A lock that is in the way of `wanted`.
    ///
    /// # Errors
    /// The status for the client.
    pub fn test(
        &self,
        opened: &OpenedFile,
        owner: &Owner,
        wanted: Held,
    ) -> std::result::Result<Option<Holder>, Status> {
        if self.in_grace() {
            return Err(Status::DeniedGracePeriod);
        }
        let mut state = self.state.lock();
        self.follow(&mut state, &opened.connection);
        if let Some(holder) = state.table.conflict(opened.handle, owner, wanted) {
            return Ok(Some(holder));
        }
        // An owner without locks is none of those in the table.
        let known = state.table.entry(opened.handle, owner);
        let number = known.map_or(u64::MAX, |entry| entry.number);
        let found = opened.file.test(number, wanted);
        if known.is_none() {
            opened.file.forget_owner(number);
        }
        drop(state);
        let found = found.map_err(|failure| self.status(&opened.connection, &failure))?;
        Ok(found.map(|held| Holder {
            exclusive: held.exclusive,
            svid: 0,
            owner_handle: Vec::new(),
            range: held.range,
        }))
    }

    /// Locks a range, or begins to wait for it. A lock that is reclaimed may take three seconds.
    pub fn lock(&self, opened: &OpenedFile, call: &LockCall<'_>) -> Status {
        let deadline = Instant::now() + RECLAIM_LIMIT;
        loop {
            match self.lock_once(opened, call) {
                Status::Denied if call.reclaim && Instant::now() < deadline => {
                    thread::sleep(RECLAIM_INTERVAL);
                }
                status => return status,
            }
        }
    }

    fn lock_once(&self, opened: &OpenedFile, call: &LockCall<'_>) -> Status {
        if self.in_grace() != call.reclaim {
            return Status::DeniedGracePeriod;
        }
        let mut state = self.state.lock();
        self.follow(&mut state, &opened.connection);
        let client = &call.owner.client;
        if state.table.note_state(client, call.state) {
            info!("{}: has started again; its locks are freed", client.address);
            self.free(&mut state, client);
        }
        match self.lock_now(&mut state, opened, call) {
            Ok(status) => status,
            Err(failure) => {
                drop(state);
                self.status(&opened.connection, &failure)
            }
        }
    }

    fn lock_now(
        &self,
        state: &mut State,
        opened: &OpenedFile,
        call: &LockCall<'_>,
    ) -> Result<Status> {
        let (handle, owner, wanted) = (opened.handle, call.owner, call.wanted);
        // It asks again, so it does not know yet, and gets its answer now.
        state.confirm(handle, owner, wanted.range);
        let position = state.waiting(handle, owner, wanted);
        if let Some(position) = position {
            if call.block {
                return Ok(Status::Blocked);
            }
            self.cancel_waiter(state, position);
        }
        let oh = &call.grant_to.owner_handle;
        let begun = state.table.begin(handle, owner, oh, || opened.file.clone());
        let Ok(number) = begun else {
            rate_limited!(warn, "{}: too many locks", owner.client.address);
            return Ok(Status::DeniedNoLocks);
        };
        state.table.note_state(&owner.client, call.state);
        let is_free = state.table.conflict(handle, owner, wanted).is_none();
        let answer = match is_free {
            true => state.set(handle, number, wanted.range, Some(wanted.exclusive)),
            false => Ok(Answer::InUse),
        };
        let status = match answer {
            Ok(Answer::Done) => {
                state.table.lock(handle, owner, wanted);
                Ok(Status::Granted)
            }
            Ok(Answer::InUse) if !call.block => Ok(Status::Denied),
            Ok(Answer::InUse) => match state.table.begin_wait(handle, owner) {
                Err(Full) => Ok(Status::DeniedNoLocks),
                Ok(()) => {
                    let mut waiter = Waiter {
                        file: handle,
                        owner: owner.clone(),
                        number,
                        wanted,
                        grant_to: call.grant_to.clone(),
                        pending: None,
                        is_canceled: false,
                    };
                    if is_free {
                        state.wait_at_daemon(&mut waiter);
                    }
                    state.waiters.push(waiter);
                    self.wake();
                    Ok(Status::Blocked)
                }
            },
            Err(failure) => Err(failure),
        };
        state.tidy(handle, owner);
        status
    }

    /// Unlocks a range.
    pub fn unlock(&self, file: FileHandle, owner: &Owner, range: Range) -> Status {
        let mut state = self.state.lock();
        state.confirm(file, owner, range);
        self.release(&mut state, file, owner, range);
        self.advance(&mut state, Some(file));
        Status::Granted
    }

    /// Ends a wait.
    pub fn cancel(&self, file: FileHandle, owner: &Owner, wanted: Held) -> Status {
        let mut state = self.state.lock();
        if let Some(position) = state.waiting(file, owner, wanted) {
            self.cancel_waiter(&mut state, position);
            return Status::Granted;
        }
        // It was granted meanwhile, and the client does not know.
        if state.confirm(file, owner, wanted.range) {
            self.release(&mut state, file, owner, wanted.range);
            self.advance(&mut state, Some(file));
            return Status::Granted;
        }
        Status::Denied
    }

    /// Frees the locks of the clients at an address, which has started again: by its own account
    /// `state` times.
    pub fn client_restarted(&self, address: IpAddr, started: u32) {
        let mut state = self.state.lock();
        // Such a notice comes several times, and the client may have new locks by then.
        if state.notified.get(&address) == Some(&started) {
            return;
        }
        if state.notified.len() >= MAX_NOTIFIED {
            state.notified.clear();
        }
        state.notified.insert(address, started);
        for client in state.table.older_clients(address, started) {
            info!("{address}: has started again; its locks are freed");
            self.free(&mut state, &client);
        }
    }

    /// Frees all locks of a client.
    pub fn free_all(&self, client: &ClientId) {
        self.free(&mut self.state.lock(), client);
    }

    fn free(&self, state: &mut State, client: &ClientId) {
        while let Some(position) = state
            .waiters
            .iter()
            .position(|waiter| !waiter.is_canceled && *waiter.owner.client == *client)
        {
            self.cancel_waiter(state, position);
        }
        for (file, owner) in state.table.owned_by(client) {
            state.confirm(file, &owner, Range::ALL);
            self.release(state, file, &owner, Range::ALL);
        }
        self.advance(state, None);
    }

    /// Unlocks a range here and at the daemon.
    pub(super) fn release(&self, state: &mut State, file: FileHandle, owner: &Owner, range: Range) {
        let Some(entry) = state.table.entry(file, owner) else {
            return;
        };
        if let Err(failure) = state.set(file, entry.number, range, None) {
            // A daemon that is lost has lost its locks.
            debug!("unlocking: {}", error_chain(&failure));
        }
        state.table.unlock(file, owner, range);
        state.tidy(file, owner);
    }

    /// Ends the wait of `waiters[position]`. A request at the daemon remains until its reply.
    fn cancel_waiter(&self, state: &mut State, position: usize) {
        let Some(waiter) = state.waiters.get_mut(position) else {
            return;
        };
        if let Some(pending) = &waiter.pending {
            waiter.is_canceled = true;
            // If the daemon does not know it yet, it is asked again later.
            let _ = pending.interrupt();
            self.wake();
        } else {
            state.end(position);
        }
    }

    /// Tries the waits that are not at the daemon, of one file or of all.
    pub(super) fn advance(&self, state: &mut State, only: Option<FileHandle>) {
        let mut position = 0;
        while let Some(waiter) = state.waiters.get(position) {
            let is_meant = only.is_none_or(|file| file == waiter.file);
            let (file, wanted) = (waiter.file, waiter.wanted);
            let is_free = state.table.conflict(file, &waiter.owner, wanted).is_none();
            if !is_meant || waiter.pending.is_some() || !is_free {
                position += 1;
                continue;
            }
            match state.set(file, waiter.number, wanted.range, Some(wanted.exclusive)) {
                Ok(Answer::Done) => self.grant(state, position),
                Ok(Answer::InUse) => {
                    let mut waiter = state.waiters.remove(position);
                    state.wait_at_daemon(&mut waiter);
                    state.waiters.insert(position, waiter);
                    self.wake();
                    position += 1;
                }
                Err(failure) => {
                    debug!("locking: {}", error_chain(&failure));
                    position += 1;
                }
            }
        }
    }

    /// Notes that `waiters[position]` has its lock, and tells its client.
    pub(super) fn grant(&self, state: &mut State, position: usize) {
        let Some(waiter) = state.end_keeping(position) else {
            return;
        };
        let Waiter {
            file,
            owner,
            wanted,
            grant_to,
            ..
        } = waiter;
        state.table.lock(file, &owner, wanted);
        let id = state.next_grant;
        state.next_grant += 1;
        let handle = file.to_bytes();
        let lock = LockArgs {
            caller_name: &grant_to.caller_name,
            handle: &handle,
            owner_handle: &grant_to.owner_handle,
            svid: owner.svid,
            offset: wanted.range.first(),
            length: wanted.range.length(),
        };
        let call = ClientCall {
            from: grant_to.from,
            to: owner.client.address,
            program: message::PROGRAM,
            version: message::VERSION,
            procedure: message::Procedure::Granted as u32,
            args: message::granted_args(&id.to_be_bytes(), wanted.exclusive, &lock),
            limit: GRANT_LIMIT,
        };
        let unconfirmed = Unconfirmed {
            file,
            owner,
            wanted,
        };
        state.unconfirmed.insert(id, unconfirmed);
        let events = self.events.clone();
        let done = move |results: Option<&[u8]>| {
            // The thread that takes events ends with the process.
            let _ = events.send(Event::Granted(id, results.map(message::takes_grant)));
        };
        grant_to.by.call(call, Box::new(done));
    }

    /// The status for a failure, which is noted.
    pub fn status(&self, connection: &Connection, failure: &Failure) -> Status {
        self.share.met(connection, failure);
        debug!("a lock: {}", error_chain(failure));
        status(failure)
    }

    fn wake(&self) {
        // The thread that takes events ends with the process.
        let _ = self.events.send(Event::Changed);
    }
}

/// The status for a failure.
pub fn status(failure: &Failure) -> Status {
    let errors = [Errno::NOLCK, Errno::NOMEM, Errno::MFILE, Errno::NFILE];
    if errors.iter().any(|errno| failure.is(*errno)) {
        return Status::DeniedNoLocks;
    }
    match failure.status() {
        // The client tries again.
        nfsstat3::NFS3ERR_JUKEBOX => Status::DeniedGracePeriod,
        nfsstat3::NFS3ERR_STALE | nfsstat3::NFS3ERR_BADHANDLE => Status::StaleHandle,
        nfsstat3::NFS3ERR_ROFS => Status::ReadOnly,
        _ => Status::Failed,
    }
}
