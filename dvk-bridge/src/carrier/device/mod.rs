//! Endpoints of the kernel's own DVK, through the calls of `/dev/dvk`.
//!
//! The kernel identifies an endpoint by its thread. So each endpoint has one thread that makes all
//! its calls. That thread must not sleep in RECEIVE while a client needs an answer or a copy:
//!
//! ```text
//!   engine ── work queue ──> thread ── RECEIVE, REPLY, VCOPY ... ──> /dev/dvk
//!                 └──── NOTIFY, in the name of the hardware ────────────┘
//! ```
//!
//! The thread alternates between both. A thread that queues work has the kernel notify the endpoint
//! in the name of the hardware, as any thread of root may. The notification ends RECEIVE, or waits
//! for the next RECEIVE. So no work is missed, no signal is needed, and no client waits behind a
//! receive. Several endpoints for several threads would not help: a client accepts an answer only
//! from the endpoint that it has called. The daemon's work, which takes most of the time, runs in
//! parallel. The kernel's copies do not, nor does the half minute that it grants another node to
//! acknowledge one. Where hardware notifications do not work, each RECEIVE lasts a few
//! milliseconds.
//!
//! To the engine the kernel is a peer that acknowledges each command when its call returns. Beyond
//! that, this carrier
//!
//! - treats each message as a request, because the kernel does not tell a send from a sendrec and a
//!   caller without an answer hangs;
//! - checks from time to time whether its partners still exist, because the kernel does not report
//!   it;
//! - does sendrec itself, because the kernel may access the shared buffers until the call ends,
//!   whatever the time limit.
//!
//! DVK and its structures exist for i386 alone, so this carrier works in 32-bit programs for i386
//! only.

mod driver;
mod endpoint;
mod endpoint_thread;
#[cfg(test)]
mod fake_kernel;
mod message_buffer;
mod queued_call;
mod sys;
#[cfg(test)]
mod tests;
mod work_queue;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use self::driver::Driver;
use self::endpoint::DeviceEndpoint;
use self::endpoint_thread::{EndpointThread, Partners};
use self::message_buffer::MessageSize;
use self::sys::Kernel;
use self::work_queue::WorkQueue;
use super::engine::{EndpointTable, EngineConfig, EngineEndpoint, PeerId, PeerKind};
use crate::abi::ioctl::{DcUsr, MAJOR};
use crate::abi::{Code, DcId, DcLimits, Endpoint};
use crate::endpoint::{BoundEndpoint, Carrier, EndpointError, Operation};
use crate::status::Report;

/// The usual path of the device.
pub const PATH: &str = "/dev/dvk";

/// Time limit for an exchange. It exceeds the 30 s that the kernel grants other nodes, so that the
/// kernel's own error is reported.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(35);

/// Time limit for a bind.
const BIND_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the kernel's DVK is not available.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program is not a 32-bit program for i386.
    #[error(
        "cannot use {}: DVK's calls need a 32-bit program for i386; run `gangplank-dvk forward` \
         of the i686 build on the machine with the device",
        path.display()
    )]
    Width {
        /// The device.
        path: PathBuf,
    },
    /// The device does not exist.
    #[error(
        "{} does not exist: load DVK's module (insmod dvk.ko) and make the device \
         (mknod {0} c {MAJOR} 0)",
        path.display()
    )]
    Missing {
        /// The device.
        path: PathBuf,
    },
    /// The device exists and cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// It is another device.
    #[error(
        "{} does not support DVK's calls: it is another device, or its kernel has another word \
         size",
        path.display()
    )]
    Other {
        /// The device.
        path: PathBuf,
    },
    /// The machine is not part of a DVS.
    #[error("{}: no DVS is initialised on this machine", path.display())]
    NoDvs {
        /// The device.
        path: PathBuf,
    },
    /// The kernel refuses.
    #[error("cannot read the DVS from {}: {code}", path.display())]
    Refused {
        /// The device.
        path: PathBuf,
        /// The kernel's answer.
        code: Code,
    },
}

/// The kernel's DVK.
pub struct Device {
    driver: Arc<dyn Driver>,
    path: PathBuf,
    /// This machine's node id in the DVS.
    node: i32,
    size: Arc<MessageSize>,
    /// One table for each bound endpoint.
    tables: Mutex<Vec<Weak<EndpointTable>>>,
}

impl Device {
    /// Opens the device at `path`, usually [`PATH`].
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open(path: &Path) -> Result<Self, DeviceError> {
        let path = path.to_owned();
        if cfg!(not(target_arch = "x86")) {
            return Err(DeviceError::Width { path });
        }
        let kernel = Kernel::open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => DeviceError::Missing { path: path.clone() },
            _ => {
                let path = path.clone();
                DeviceError::Open { path, source }
            }
        })?;
        Self::on(Arc::new(kernel), path)
    }

    fn on(driver: Arc<dyn Driver>, path: PathBuf) -> Result<Self, DeviceError> {
        let node = driver.dvs().map_err(|code| {
            let path = path.clone();
            match code {
                Code::ENOTTY => DeviceError::Other { path },
                // The call returns the number of this node, which is -1 here.
                Code::EPERM | Code::EDVSDVSINIT => DeviceError::NoDvs { path },
                code => DeviceError::Refused { path, code },
            }
        })?;
        Ok(Self {
            driver,
            path,
            node,
            size: Arc::default(),
            tables: Mutex::default(),
        })
    }

    /// The dimensions of a container, if it runs.
    fn limits(&self, dc: DcId) -> Result<DcLimits, Code> {
        let DcUsr {
            flags,
            nr_procs,
            nr_tasks,
            nr_sysprocs,
            ..
        } = self.driver.container(dc)?;
        if flags != 0 {
            return Err(Code::EDVSDCNOTRUN);
        }
        Ok(DcLimits {
            procs: nr_procs,
            tasks: nr_tasks,
            sysprocs: nr_sysprocs,
        })
    }

    fn try_bind(
        &self,
        dc: DcId,
        endpoint: Endpoint,
        name: &str,
    ) -> Result<DeviceEndpoint, EndpointError> {
        let operation = Operation::Bind { dc, endpoint };
        let refused = |code| EndpointError::Refused { operation, code };
        let limits = self.limits(dc).map_err(refused)?;
        let table = Arc::new(EndpointTable::new(EngineConfig {
            kind: PeerKind::Nodes,
            exchange_limit: EXCHANGE_TIMEOUT,
            dcs: HashMap::from([(dc, limits)]),
        }));
        let queue = Arc::new(WorkQueue::new(self.driver.clone(), dc, endpoint));
        let kernel = PeerId(self.node);
        table.add_peer(kernel, queue.clone());
        // The state must exist before the kernel can deliver messages to the endpoint.
        let bound = EngineEndpoint::new(table.clone(), dc, endpoint, name)?;
        let endpoint_thread = EndpointThread {
            driver: self.driver.clone(),
            dc,
            endpoint,
            table: table.clone(),
            kernel,
            queue: queue.clone(),
            size: self.size.clone(),
            partners: Partners::default(),
        };
        let (tell, told) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(format!("dvk_{endpoint}"));
        let started = thread.spawn(move || endpoint_thread.run(&tell));
        started.map_err(|_| refused(Code::EAGAIN))?;
        match told.recv_timeout(BIND_TIMEOUT) {
            Ok(outcome) => outcome.map_err(refused)?,
            Err(_) => {
                queue.stop();
                let limit = BIND_TIMEOUT;
                return Err(EndpointError::TimedOut { operation, limit });
            }
        }
        let mut tables = self.tables.lock();
        tables.retain(|table| table.strong_count() > 0);
        tables.push(Arc::downgrade(&table));
        Ok(DeviceEndpoint { bound, queue })
    }
}

impl Carrier for Device {
    fn bind(
        &self,
        dc: DcId,
        endpoint: Endpoint,
        name: &str,
    ) -> Result<Arc<dyn BoundEndpoint>, EndpointError> {
        Ok(Arc::new(self.try_bind(dc, endpoint, name)?))
    }
}

impl Report for Device {
    fn report(&self, to: &mut String) {
        to.push_str(&format!(
            "device {}: node {} of its DVS, {}\n",
            self.path.display(),
            self.node,
            self.size
        ));
        let tables = self.tables.lock().clone();
        for table in tables.iter().filter_map(Weak::upgrade) {
            table.report(to);
        }
    }

    fn json(&self) -> Value {
        let tables = self.tables.lock().clone();
        let endpoints: Vec<Value> = tables
            .iter()
            .filter_map(Weak::upgrade)
            .flat_map(|table| table.json())
            .collect();
        json!({
            "kind": "dvk_device",
            "path": self.path.to_string_lossy(),
            "node": self.node,
            "endpoints": endpoints,
        })
    }
}
