//! The network lock manager, version 4 (X/Open XNFS, chapter 10; RFC 1813, appendix II): locks of
//! NFS clients on byte ranges.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `message.rs` | arguments and results |
//! | `locks.rs` | locks and waits, here and at the daemon |
//! | `waiting.rs` | the thread that looks after waits |
//! | `state.rs` | the table, and those who wait |
//! | `table.rs` | who holds what |
//! | `range.rs` | ranges of bytes |
//! | `daemon_file.rs` | a file with locks, at the daemon |

pub mod daemon_file;
pub mod locks;
pub mod message;
pub mod range;
mod state;
pub mod table;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use self::daemon_file::DaemonFile;
use self::locks::{GrantTo, LockCall, Locks, OpenedFile};
use self::message::{Args, PROGRAM, Procedure, Status, VERSION};
use self::range::Held;
use self::table::{ClientId, Owner};
use crate::nsm::Monitor;
use crate::rpc::client::{ClientCall, RpcClient};
use crate::rpc::program::{CallError, Caller, Program};
use crate::rpc::reply::Reply;
use crate::share::Share;
use crate::share::error::Result;
use crate::share::handle::FileHandle;
use crate::xdr::{Reader, put};

/// How long results that go in a call of their own look for the client's port.
const RESULTS_LIMIT: Duration = Duration::from_secs(5);

/// How often a client that reclaims a lock is let wait for the daemon, which may be starting as
/// well. It would give the lock up otherwise.
const RECLAIM_TRIES: u32 = 5;

/// The program.
#[derive(Debug)]
pub struct Nlm4 {
    share: Arc<Share>,
    locks: Arc<Locks>,
    monitor: Arc<Monitor>,
    /// Calls clients.
    client: Arc<RpcClient>,
}

impl Nlm4 {
    /// The program that locks files of `share`. It calls clients by `client`.
    #[must_use]
    pub const fn new(
        share: Arc<Share>,
        locks: Arc<Locks>,
        monitor: Arc<Monitor>,
        client: Arc<RpcClient>,
    ) -> Self {
        Self {
            share,
            locks,
            monitor,
            client,
        }
    }

    fn owner(caller: Caller<'_>, args: &Args<'_>) -> Owner {
        Owner {
            client: Arc::new(client_id(caller, args.lock.caller_name)),
            svid: args.lock.svid,
        }
    }

    /// Opens the file of a call, if the caller may lock it.
    fn open(&self, caller: Caller<'_>, args: &Args<'_>) -> std::result::Result<OpenedFile, Status> {
        let handle = FileHandle::from_bytes(args.lock.handle).ok_or(Status::StaleHandle)?;
        let (_, rule) = self
            .share
            .export(handle, caller)
            .map_err(|failure| locks::status(&failure))?;
        if rule.read_only && args.exclusive {
            return Err(Status::ReadOnly);
        }
        let tries = if args.reclaim { RECLAIM_TRIES } else { 1 };
        let mut connection = self.share.connection();
        for _ in 1..tries {
            if connection.is_err() {
                connection = self.share.connection();
            }
        }
        let connection = connection.map_err(|failure| locks::status(&failure))?;
        let opened = (|| -> Result<DaemonFile> {
            let node = self.share.resolve(&connection, handle)?;
            let attr = connection.attributes(&node)?;
            let identity = rule.identity(caller.credentials);
            // Whoever may open the file may lock it.
            identity
                .check_read(&attr)
                .or_else(|_| identity.check_write(&attr))?;
            DaemonFile::open(&connection, &node)
        })();
        match opened {
            Ok(file) => Ok(OpenedFile {
                handle,
                connection,
                file,
            }),
            Err(failure) => Err(self.locks.status(&connection, &failure)),
        }
    }

    fn test(&self, caller: Caller<'_>, args: &Args<'_>, reply: &mut Vec<u8>) {
        let found = wanted(args).and_then(|wanted| {
            let opened = self.open(caller, args)?;
            self.locks.test(&opened, &Self::owner(caller, args), wanted)
        });
        message::put_test(reply, args.cookie, found);
    }

    fn lock(&self, caller: Caller<'_>, args: &Args<'_>, is_monitored: bool) -> Status {
        let locked = wanted(args).and_then(|wanted| {
            let opened = self.open(caller, args)?;
            if is_monitored {
                // Before it has the lock, so that it is told of a restart in any case.
                self.monitor
                    .add(caller.address.to_canonical(), caller.server);
            }
            let call = LockCall {
                owner: &Self::owner(caller, args),
                wanted,
                grant_to: GrantTo {
                    by: Arc::clone(&self.client),
                    from: caller.server,
                    caller_name: args.lock.caller_name.to_vec(),
                    owner_handle: args.lock.owner_handle.to_vec(),
                },
                block: args.block && is_monitored,
                reclaim: args.reclaim,
                state: args.state,
            };
            Ok(self.locks.lock(&opened, &call))
        });
        locked.unwrap_or_else(|status| status)
    }

    fn unlock(&self, caller: Caller<'_>, args: &Args<'_>) -> Status {
        match (FileHandle::from_bytes(args.lock.handle), args.lock.range()) {
            (None, _) => Status::StaleHandle,
            (_, None) => Status::TooBig,
            (Some(file), Some(range)) => self.locks.unlock(file, &Self::owner(caller, args), range),
        }
    }

    fn cancel(&self, caller: Caller<'_>, args: &Args<'_>) -> Status {
        match (FileHandle::from_bytes(args.lock.handle), wanted(args)) {
            (None, _) => Status::StaleHandle,
            (_, Err(status)) => status,
            (Some(file), Ok(wanted)) => self.locks.cancel(file, &Self::owner(caller, args), wanted),
        }
    }

    /// Sends results in a call to the client's `procedure`.
    fn send_results(&self, caller: Caller<'_>, procedure: u32, results: Vec<u8>) {
        let call = ClientCall {
            from: caller.server,
            to: caller.address.to_canonical(),
            program: PROGRAM,
            version: VERSION,
            procedure,
            args: results,
            limit: RESULTS_LIMIT,
        };
        // A client that does not get them asks again.
        self.client.call(call, Box::new(|_| {}));
    }
}

fn client_id(caller: Caller<'_>, name: &[u8]) -> ClientId {
    ClientId {
        address: caller.address.to_canonical(),
        name: name.into(),
    }
}

fn wanted(args: &Args<'_>) -> std::result::Result<Held, Status> {
    Ok(Held {
        range: args.lock.range().ok_or(Status::TooBig)?,
        exclusive: args.exclusive,
    })
}

impl Program for Nlm4 {
    fn number(&self) -> u32 {
        PROGRAM
    }

    fn version(&self) -> u32 {
        VERSION
    }

    fn changes(&self, procedure: u32) -> bool {
        // A LOCK that comes again after its UNLOCK must not lock again.
        procedure != Procedure::Null as u32 && procedure != Procedure::Test as u32
    }

    fn call(
        &self,
        caller: Caller<'_>,
        procedure: u32,
        mut args: Reader<'_>,
        reply: &mut Reply,
    ) -> std::result::Result<(), CallError> {
        let reply = &mut reply.bytes;
        use Procedure as P;
        let procedure = P::new(procedure).ok_or(CallError::NoProcedure)?;
        let (procedure, results_by) = procedure.message();
        let reader = &mut args;
        let mut results = Vec::new();
        match procedure {
            P::Null => {}
            P::Test => {
                let args = Args::read(procedure, reader)?;
                self.test(caller, &args, &mut results);
            }
            P::Lock | P::NmLock | P::Cancel | P::Unlock => {
                let args = Args::read(procedure, reader)?;
                let status = match procedure {
                    P::Unlock => self.unlock(caller, &args),
                    P::Cancel => self.cancel(caller, &args),
                    other => self.lock(caller, &args, other == P::Lock),
                };
                message::put_status(&mut results, args.cookie, status);
            }
            P::Granted => {
                // This program waits for no lock of another server.
                let args = Args::read(P::Test, reader)?;
                message::put_status(&mut results, args.cookie, Status::Denied);
            }
            P::Share | P::Unshare => {
                let cookie = message::read_share(reader)?;
                let status = match procedure {
                    // There are no reservations, so there is none to give back.
                    P::Unshare => Status::Granted,
                    _ => Status::DeniedNoLocks,
                };
                message::put_status(&mut results, cookie, status);
                put(&mut results, &0_u32);
            }
            P::FreeAll => {
                let (name, _state) = message::read_free_all(reader)?;
                self.locks.free_all(&client_id(caller, name));
            }
            P::TestMsg | P::LockMsg | P::CancelMsg | P::UnlockMsg => {}
        }
        match results_by {
            None => reply.extend(results),
            Some(procedure) => self.send_results(caller, procedure, results),
        }
        Ok(())
    }
}
