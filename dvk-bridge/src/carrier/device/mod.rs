//! Endpoints of the kernel's own DVK, by the calls of `/dev/dvk`.
//!
//! To the kernel an endpoint is a thread. So each has one that makes all its calls, and it would be asleep in RECEIVE when a
//! client is to be answered or copied with:
//!
//! ```text
//!   engine ── way ──> thread ── RECEIVE, REPLY, VCOPY ... ──> /dev/dvk
//!              └──── NOTIFY, in the hardware's name ──────────────┘
//! ```
//!
//! The thread alternates. Whoever hands something over has the kernel notify the endpoint, as any thread of root's may in the
//! name of the hardware; that ends its RECEIVE, and if the thread is not in it yet, the notification waits for it there. So
//! nothing is slept over, no signal is needed, and no client waits behind a receive. Several endpoints for several threads would
//! not do, since a client takes an answer from the one alone that it has asked. What is parallel so is all that takes long, the
//! daemon's work; what is not, is the kernel's copying, and the half minute that it allows another node to acknowledge one.
//! Where the hardware's notifications do not work, the thread receives by the moment, a few milliseconds each.
//!
//! To the engine all that is a peer that acknowledges each command when its call is done. Beyond it, this carrier
//!
//! - takes each message for a request, since a kernel does not tell who only sends, and one that is not answered hangs;
//! - looks from time to time whether those who have asked are there, since a kernel does not tell that either;
//! - asks by itself: what is lent is the kernel's to touch until the call is over, whatever the limit.
//!
//! DVK and its structures are those of i386 and have no counterpart for other programs, so this is for programs of that kind.

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

/// Where the device is, unless it was made elsewhere.
pub const PATH: &str = "/dev/dvk";

/// How long the kernel may take for anything: a little longer than it allows other nodes, so that it says itself what is wrong.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(35);

/// How long it may take to bind.
const BIND_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there are no endpoints of the kernel's.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// This program is of another kind than the kernel's calls.
    #[error(
        "cannot use {}: DVK's calls are for 32-bit programs of i386 alone, and this is none; let `gangplank-dvk forward` of the i686 \
         build run on the machine with the device", path.display()
    )]
    Width {
        /// The device.
        path: PathBuf,
    },
    /// There is no device.
    #[error(
        "there is no {}: load DVK's module (insmod dvk.ko) and make the device (mknod {0} c {MAJOR} 0)", path.display()
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The device is there and cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is another device.
    #[error("{} does not know DVK's calls: it is another device, or its kernel takes them from programs of another width", path.display())]
    Other {
        /// The device.
        path: PathBuf,
    },
    /// There is no DVS.
    #[error("{}: no DVS is initialised on this machine", path.display())]
    NoDvs {
        /// The device.
        path: PathBuf,
    },
    /// The kernel refuses.
    #[error("{} cannot be asked for the DVS: {code}", path.display())]
    Refused {
        /// The device.
        path: PathBuf,
        /// Why.
        code: Code,
    },
}

/// The kernel's DVK.
pub struct Device {
    driver: Arc<dyn Driver>,
    path: PathBuf,
    /// This machine's number in the DVS.
    node: i32,
    size: Arc<MessageSize>,
    /// One for each endpoint that was bound.
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
                // What is said is the number of this node, and that is -1.
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
        // What comes as soon as it is bound finds it there.
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
}
