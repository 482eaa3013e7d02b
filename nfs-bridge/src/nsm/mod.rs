//! The network status monitor, version 1 (X/Open XNFS, chapter 11): who has started again.
//!
//! A client that starts again tells it by SM_NOTIFY, and its locks are freed. When this program
//! starts again, it tells the clients that had locks, so that they reclaim them.

mod client_log;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gangplank_service::{error_chain, rate_limited};
use parking_lot::Mutex;

use self::client_log::MonitorLog;
pub use self::client_log::Monitored;
use crate::nlm::locks::Locks;
use crate::rpc::client::{ClientCall, RpcClient};
use crate::rpc::program::{CallError, Caller, Program};
use crate::rpc::reply::Reply;
use crate::state_log::LogError;
use crate::xdr::{Reader, put, put_opaque};

/// The program's number.
pub const PROGRAM: u32 = 100_024;

/// Its only version.
pub const VERSION: u32 = 1;

/// Longest name of a machine (`SM_MAXSTRLEN`).
const MAX_NAME: usize = 1024;

/// How long a client is told that this program has started again.
const NOTIFY_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The procedures.
const NULL: u32 = 0;
const STAT: u32 = 1;
const NOTIFY: u32 = 6;

/// `STAT_FAIL`: this program monitors no machine for others.
const STAT_FAIL: u32 = 1;

/// The clients that are told when this program starts again.
#[derive(Debug)]
pub struct Monitor {
    /// How often this program has started: odd while it runs.
    state: u32,
    log: Mutex<MonitorLog>,
}

impl Monitor {
    /// Reads the log in `directory`. Without one, clients are not told, and `state` is made of the
    /// time.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(directory: Option<&Path>) -> Result<Self, LogError> {
        let log = MonitorLog::open(directory)?;
        Ok(Self {
            state: log.state(),
            log: Mutex::new(log),
        })
    }

    /// The clients that had locks when this program ended.
    #[must_use]
    pub fn before(&self) -> Vec<Monitored> {
        self.log.lock().before().to_vec()
    }

    /// Notes that a client has locks. It knows this server by the address `server`.
    pub fn add(&self, client: IpAddr, server: IpAddr) {
        let added = self.log.lock().add(Monitored { client, server });
        if let Err(error) = added {
            rate_limited!(
                warn,
                "{client}: cannot be remembered, and will not reclaim its locks after a restart: \
                 {}",
                error_chain(&error)
            );
        }
    }

    /// Tells the clients of the last time that this program has started. `caller` knows how to
    /// reach those that know the server by an address.
    pub fn notify(self: &Arc<Self>, caller: impl Fn(IpAddr) -> Option<Arc<RpcClient>>) {
        for client in self.before() {
            let Some(caller) = caller(client.server) else {
                continue;
            };
            let mut args = Vec::new();
            // Clients compare this name with that of the server which they have mounted.
            put_opaque(&mut args, client.server.to_string().as_bytes());
            put(&mut args, &self.state);
            let call = ClientCall {
                from: client.server,
                to: client.client,
                program: PROGRAM,
                version: VERSION,
                procedure: NOTIFY,
                args,
                limit: NOTIFY_LIMIT,
            };
            let monitor = Arc::clone(self);
            let done = move |told: Option<&[u8]>| {
                if told.is_some() {
                    monitor.log.lock().told(client);
                }
            };
            caller.call(call, Box::new(done));
        }
    }
}

/// The program.
#[derive(Debug)]
pub struct Nsm1 {
    monitor: Arc<Monitor>,
    locks: Arc<Locks>,
}

impl Nsm1 {
    /// The program that frees `locks` of clients that have started again.
    #[must_use]
    pub const fn new(monitor: Arc<Monitor>, locks: Arc<Locks>) -> Self {
        Self { monitor, locks }
    }
}

impl Program for Nsm1 {
    fn number(&self) -> u32 {
        PROGRAM
    }

    fn version(&self) -> u32 {
        VERSION
    }

    fn call(
        &self,
        caller: Caller<'_>,
        procedure: u32,
        mut args: Reader<'_>,
        reply: &mut Reply,
    ) -> Result<(), CallError> {
        let reply = &mut reply.bytes;
        match procedure {
            NULL => {}
            STAT => {
                args.opaque(MAX_NAME)?;
                put(reply, &STAT_FAIL);
                put(reply, &self.monitor.state);
            }
            NOTIFY => {
                // Names lie. The address is that of the machine that has started again.
                let _name = args.opaque(MAX_NAME)?;
                let state = args.u32()?;
                self.locks
                    .client_restarted(caller.address.to_canonical(), state);
            }
            // The others are for the machine's own lock manager alone.
            _ => return Err(CallError::NoProcedure),
        }
        Ok(())
    }
}
