//! A device that is served: its two threads, and their end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use gangplank_service::error_chain;
use gangplank_service::rate_limit::set_thread_peer;
use gangplank_vhost_user::client::Messages;
use log::{error, info, warn};
use parking_lot::Mutex;

use super::backend_link::{Connector, maintain};
use super::fs_device::{Change, FsDevice};
use super::handover::{EventFdError, Handover};
use super::report::Report;
use super::restore::restore;
use super::serve::{Counters, serve};
use super::stop::{StopEvent, WaitEnd};
use crate::config::DeviceConfig;
use crate::hypervisor::Port;
use crate::mmio::{EventFds, Transport};

/// How long a guest may take to make the access that it is prompted to.
const PROMPT_TIMEOUT: Duration = Duration::from_secs(1);

/// A device that is being served.
#[derive(Debug)]
pub struct RunningDevice<P: ?Sized, M> {
    id: u32,
    port: Arc<P>,
    eventfds: Arc<EventFds>,
    pub(super) transport: Arc<Mutex<Transport<FsDevice<M>>>>,
    counters: Arc<Counters>,
    connections: Arc<AtomicU64>,
    /// Whether a successor takes the device over.
    has_successor: bool,
    stop: Arc<StopEvent>,
    stopping: Arc<AtomicBool>,
    ended: Arc<StopEvent>,
    since: Instant,
    /// `None` once it was joined.
    backend_thread: Option<JoinHandle<()>>,
}

/// Why a device is not served.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The hypervisor does not connect the device's eventfds, or the fd store does not keep them.
    #[error("cannot connect device {id} to the hypervisor")]
    EventFds {
        /// The device's id.
        id: u32,
        /// The cause.
        #[source]
        source: EventFdError,
    },
    /// The host refused a resource.
    #[error("cannot {doing} for device {id}")]
    System {
        /// The verb.
        doing: &'static str,
        /// The device's id.
        id: u32,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Sets the event when its thread ends, also by a panic.
struct SetOnDrop(Arc<StopEvent>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// What the thread that answers the guest owns.
struct GuestThread<P: ?Sized, M> {
    id: u32,
    /// Gets a message when a backend is attached; `None` if the guest need not wait for that.
    first_backend: Option<mpsc::Receiver<()>>,
    port: Arc<P>,
    transport: Arc<Mutex<Transport<FsDevice<M>>>>,
    counters: Arc<Counters>,
    stopping: Arc<AtomicBool>,
    _ended: SetOnDrop,
}

impl<P: Port + ?Sized, M: Messages + Send> GuestThread<P, M> {
    fn run(mut self) {
        if let Some(first_backend) = self.first_backend.take()
            && first_backend.recv().is_err()
        {
            return; // the device ends before a backend was attached
        }
        if let Err(error) = serve(&*self.port, &self.transport, &self.counters, &self.stopping) {
            error!(
                "device {} is not served any more: {}",
                self.id,
                error_chain(&error)
            );
        }
    }
}

impl<P: Port + ?Sized + 'static, M: Messages + Send + 'static> RunningDevice<P, M> {
    /// Serves the device of `config` to the guest behind `port`, with the backend that `connector`
    /// connects to. Neither has to be there. Without a configured tag, the guest's first access
    /// waits for the backend's.
    pub fn start(
        config: &DeviceConfig,
        port: Arc<P>,
        connector: impl Connector<Messages = M> + Send + 'static,
    ) -> Result<Self, StartError> {
        Self::start_with(config, port, connector, None)
    }

    /// As [`RunningDevice::start`], but continues as a predecessor, and leaves everything to a
    /// successor in the end.
    pub fn take_over(
        config: &DeviceConfig,
        port: Arc<P>,
        connector: impl Connector<Messages = M> + Send + 'static,
        handover: Handover,
    ) -> Result<Self, StartError> {
        Self::start_with(config, port, connector, Some(Arc::new(handover)))
    }

    fn start_with(
        config: &DeviceConfig,
        port: Arc<P>,
        connector: impl Connector<Messages = M> + Send + 'static,
        handover: Option<Arc<Handover>>,
    ) -> Result<Self, StartError> {
        let id = config.id;
        let system = |doing| move |source| StartError::System { doing, id, source };
        let queues = config.num_request_queues.saturating_add(1);
        let eventfds = match &handover {
            None => EventFds::connect(&*port, queues).map_err(EventFdError::from),
            Some(handover) => handover.eventfds(&*port, queues),
        };
        let eventfds = Arc::new(eventfds.map_err(|source| StartError::EventFds { id, source })?);
        let memory = port.memory().try_clone();
        let memory = memory.map_err(system("duplicate the memory's descriptor"))?;
        let range = memory.range;
        let device = FsDevice::new(config, memory, Arc::clone(&eventfds));
        let mut transport = Transport::new(device, Arc::clone(&eventfds), port.window(), range);
        let connection = handover
            .as_ref()
            .and_then(|handover| restore(&mut transport, handover, &connector));
        let knows_tag = transport.device().knows_tag();
        let transport = Arc::new(Mutex::new(transport));
        let stop = Arc::new(StopEvent::new().map_err(system("make an eventfd"))?);
        let connections = Arc::new(AtomicU64::new(0));
        let counters = Arc::new(Counters::default());
        let stopping = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(StopEvent::new().map_err(system("make an eventfd"))?);
        let (ready, first_backend) = mpsc::channel();

        let backend_thread = {
            let transport = Arc::clone(&transport);
            let stop = Arc::clone(&stop);
            let connections = Arc::clone(&connections);
            Builder::new().name(format!("daemon {id}")).spawn(move || {
                set_thread_peer(id.into());
                maintain(
                    &connector,
                    connection,
                    &transport,
                    &stop,
                    &connections,
                    || {
                        // The receiver is gone after the first message.
                        let _ = ready.send(());
                    },
                );
            })
        };
        let backend_thread = Some(backend_thread.map_err(system("start a thread"))?);
        let guest = GuestThread {
            id,
            first_backend: (!knows_tag).then_some(first_backend),
            port: Arc::clone(&port),
            transport: Arc::clone(&transport),
            counters: Arc::clone(&counters),
            stopping: Arc::clone(&stopping),
            _ended: SetOnDrop(Arc::clone(&ended)),
        };
        let thread = Builder::new().name(format!("guest {id}"));
        let thread = thread.spawn(move || {
            set_thread_peer(id.into());
            guest.run();
        });
        thread.map_err(|source| {
            stop.set();
            system("start a thread")(source)
        })?;
        info!("device {id} is ready for its guest");
        Ok(Self {
            id,
            port,
            eventfds,
            transport,
            counters,
            connections,
            has_successor: handover.is_some(),
            stop,
            stopping,
            ended,
            since: Instant::now(),
            backend_thread,
        })
    }
}

impl<P: Port + ?Sized, M: Messages + Send> RunningDevice<P, M> {
    /// The device's status.
    pub fn report(&self) -> Report {
        let transport = self.transport.lock();
        Report {
            id: self.id,
            status: transport.status(),
            daemon: transport.device().is_attached(),
            is_lost: transport.device().lost_queues().is_some(),
            requests_failed: transport.device().error_replies(),
            connections: self.connections.load(Ordering::Relaxed),
            accesses: self.counters.accesses.load(Ordering::Relaxed),
            faults: self.counters.faults.load(Ordering::Relaxed),
            slowest_us: self.counters.slowest_us.load(Ordering::Relaxed),
            interrupts: self.eventfds.calls(),
            own_interrupts: transport.counts().own_interrupts,
            kicks_seen: transport.counts().kicks,
            kicks_waiting: self.eventfds.kicks_waiting(),
            uptime: self.since.elapsed(),
        }
    }

    /// A descriptor that becomes readable, for good, when the guest cannot be served any more.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Whether its guest cannot be served any more.
    pub fn has_ended(&self) -> bool {
        self.ended.is_set()
    }

    /// Ends the device when the process is about to end. Completes the access that is being
    /// handled. The thread that waits for the guest goes on until the process ends: not every
    /// hypervisor's driver lets it be stopped.
    ///
    /// If a successor takes the device over, guest and backend notice nothing and go on without a
    /// process until the guest accesses a register. Otherwise the backend is disconnected, a
    /// running driver is told to reset, and kicks turn back into accesses, which wait for the next
    /// process that serves the device.
    pub fn end(mut self) {
        self.stop.set();
        let ended = self.backend_thread.take().map(JoinHandle::join);
        if ended.is_some_and(|ended| ended.is_err()) {
            warn!("device {}: the daemon's thread panicked", self.id);
        }
        if !self.has_successor {
            let mut transport = self.transport.lock();
            if transport.device_mut().cut_off() == Change::NeedsReset {
                transport.needs_reset();
            }
            drop(transport);
            if let Err(error) = self.eventfds.disconnect(&*self.port) {
                warn!("device {}: {error}", self.id);
            }
        }
        self.stopping.store(true, Ordering::Release);
        self.counters.wait_idle();
        if self.port.is_wait_fragile() && !self.has_ended() {
            self.end_wait();
        }
    }

    /// Makes the guest access a register, which ends the wait for an access, and the thread.
    /// Without a driver the guest makes no access, and the wait does not end.
    fn end_wait(&self) {
        let prompted = self.transport.lock().prompt();
        let waited = prompted.then(|| self.ended.wait(None, Some(PROMPT_TIMEOUT)));
        if !matches!(waited, Some(Ok(WaitEnd::Stopped))) {
            warn!(
                "device {}: the process ends while it waits for the guest, which this generation \
                 of the driver may not survive",
                self.id
            );
        }
    }
}
