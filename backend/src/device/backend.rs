//! The device as vhost-user-backend sees it: features, configuration space, rings.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use vhost::vhost_user::Backend;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use super::config_space::ConfigSpace;
use super::dirty_log::DirtyLog;
use super::exit_event::ExitEvents;
use super::memory::MemoryCell;
use super::memory_limits::MemoryLimits;
use super::options::Options;
use super::request::Handler;
use super::ring_throttle::RingThrottle;
use super::scheduling::DeviceScheduler;
use super::state_transfer::StateTransfer;
use super::throttle::Throttle;
use super::vring::{Memory, Vring};
use super::worker::Worker;
use crate::state::arena::Arena;
use crate::state::device::DeviceState;
use crate::state::inflight::InflightMemory;
use crate::state::recovery;
use crate::state::requests::{Blame, RingRequests};

/// One guest's device.
pub(super) struct FsBackend {
    handler: Arc<dyn Handler>,
    config_space: ConfigSpace,
    request_queues: usize,
    max_queue_size: u16,
    memory: Arc<MemoryCell>,
    stopping: Arc<AtomicBool>,
    /// The backend request channel. The device sends nothing on it but keeps it open: User Mode
    /// Linux takes its closing for the end of the daemon and marks its device as broken.
    frontend: Mutex<Option<Backend>>,
    exit_events: ExitEvents,
    /// One per ring, if the guest has limits.
    throttles: Vec<RingThrottle>,
    /// One per ring; each ring has a thread of its own.
    workers: Vec<Mutex<Worker>>,
    /// The rings that vhost-user-backend created, from their first event on.
    rings: Vec<OnceLock<Vring>>,
    /// The guest's state, which outlives the process.
    arena: Arc<Arena>,
    recovery: Recovery,
    /// Where the frontend keeps the requests in flight, if it does.
    inflight: Mutex<Option<InflightMemory>>,
    state_transfer: StateTransfer,
    log: Arc<DirtyLog>,
}

/// How far the rings are that the worker before has left.
struct Recovery {
    /// How much the last worker's death counts; `None` if none has died.
    blame: Option<Blame>,
    /// The rings that the frontend has disabled, by number, and whose requests may be left.
    draining: Vec<usize>,
    /// The rings whose threads have found out what is left to do, by number.
    begun: Mutex<Vec<usize>>,
    progress: Condvar,
}

impl FsBackend {
    /// # Errors
    /// The pool's threads cannot be started, or the process is out of descriptors.
    pub(super) fn new(
        options: &Options,
        handler: Arc<dyn Handler>,
        arena: &Arc<Arena>,
    ) -> io::Result<Self> {
        let request_queues = usize::from(
            options
                .num_request_queues
                .clamp(Options::MIN_REQUEST_QUEUES, Options::MAX_REQUEST_QUEUES),
        );
        let memory = Arc::new(MemoryCell::new(MemoryLimits::from(options)));
        let stopping = Arc::new(AtomicBool::new(false));
        let scheduler = DeviceScheduler::new(options, &handler, &stopping)?;
        let is_after_death = recovery::is_after_death(arena);
        let set_up = DeviceState::load(arena).unwrap_or_default();
        let rings = set_up.rings.iter().enumerate();
        let draining = rings.filter(|(_, ring)| ring.is_draining);
        let throttles = match Throttle::new(&options.limits, is_after_death).map(Arc::new) {
            None => Vec::new(),
            Some(throttle) => (0..=request_queues)
                .map(|_| RingThrottle::new(&throttle))
                .collect::<io::Result<_>>()?,
        };
        let workers = (0..=request_queues)
            .map(|ring| {
                Mutex::new(Worker::new(
                    scheduler.for_ring(ring),
                    Arc::clone(&memory),
                    Arc::clone(&stopping),
                    throttles.get(ring).cloned(),
                ))
            })
            .collect();
        Ok(Self {
            handler,
            config_space: ConfigSpace::new(&options.tag, options.num_request_queues.into()),
            request_queues,
            max_queue_size: options.max_queue_size,
            memory,
            stopping,
            frontend: Mutex::new(None),
            exit_events: ExitEvents::new(request_queues + 1)?,
            throttles,
            workers,
            rings: (0..=request_queues).map(|_| OnceLock::new()).collect(),
            arena: Arc::clone(arena),
            recovery: Recovery {
                blame: is_after_death.then(|| recovery::blame(arena)),
                draining: draining.map(|(index, _)| index).collect(),
                begun: Mutex::default(),
                progress: Condvar::new(),
            },
            inflight: Mutex::default(),
            state_transfer: StateTransfer::default(),
            log: Arc::default(),
        })
    }

    /// Has the threads of the rings wait for the timers of the guest's limits as well.
    ///
    /// # Errors
    /// A timer cannot be added.
    pub(super) fn watch_timers(&self, daemon: &VhostUserDaemon<Arc<Self>>) -> io::Result<()> {
        let handlers = daemon.get_epoll_handlers();
        let event = u64::from(self.timer_event());
        handlers
            .iter()
            .zip(&self.throttles)
            .try_for_each(|(handler, throttle)| {
                let timer = throttle.timer().as_raw_fd();
                handler.register_listener(timer, EventSet::IN, event)
            })
    }

    /// The number of the timer's events: behind those of the rings and vhost-user-backend's own.
    fn timer_event(&self) -> u16 {
        u16::try_from(self.num_queues() + 1).unwrap_or(u16::MAX)
    }

    /// Which pages of the guest's memory the rings write to.
    pub(super) fn log(&self) -> &Arc<DirtyLog> {
        &self.log
    }

    /// Stops the workers from taking requests off their rings, so that their threads can end.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// The rings that have had an event: all that may have requests in flight.
    pub(super) fn rings(&self) -> Vec<Vring> {
        let rings = self.rings.iter().filter_map(OnceLock::get);
        rings.cloned().collect()
    }

    /// Waits until the threads of these rings have begun with what the worker before has left, for
    /// at most `limit`. Messages for a ring must not overtake that. Returns whether all have.
    pub(super) fn wait_until_begun(&self, rings: &[usize], limit: Duration) -> bool {
        let mut begun = self.recovery.begun.lock();
        let is_missing = |begun: &mut Vec<usize>| !rings.iter().all(|ring| begun.contains(ring));
        let waited = self
            .recovery
            .progress
            .wait_while_for(&mut begun, is_missing, limit);
        !waited.timed_out()
    }

    /// Keeps the requests in flight also in the frontend's memory from now on. Before the rings start.
    pub(super) fn set_inflight(&self, memory: InflightMemory) {
        for (index, ring) in self.rings.iter().enumerate() {
            if let Some(ring) = ring.get() {
                ring.replace_inflight(memory.ring(index));
            }
        }
        *self.inflight.lock() = Some(memory);
    }

    /// Ends the ring threads after vhost-user-backend started only some of them.
    pub(super) fn stop_threads(&self) {
        self.exit_events.stop_threads();
    }
}

impl VhostUserBackend for FsBackend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.request_queues + 1
    }

    fn max_queue_size(&self) -> usize {
        usize::from(self.max_queue_size)
    }

    fn features(&self) -> u64 {
        (1 << VIRTIO_F_VERSION_1)
            | (1 << VIRTIO_RING_F_INDIRECT_DESC)
            | (1 << VIRTIO_RING_F_EVENT_IDX)
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
            | VhostUserVirtioFeatures::LOG_ALL.bits()
    }

    /// QEMU is offered less; see `super::quirks`.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::DEVICE_STATE
            | VhostUserProtocolFeatures::LOG_SHMFD
    }

    fn acked_features(&self, features: u64) {
        self.log.set_features(features);
    }

    fn reset_device(&self) {
        self.handler.reset();
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config_space.read(offset, size)
    }

    /// Requests in flight keep the memory they were translated in; later ones use the new memory.
    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        self.memory.replace(memory.memory().into_inner())
    }

    fn set_backend_req_fd(&self, frontend: Backend) {
        *self.frontend.lock() = Some(frontend);
    }

    fn set_device_state_fd(
        &self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        file: File,
    ) -> io::Result<Option<File>> {
        let begun = self
            .state_transfer
            .begin(&self.handler, direction, phase, file);
        begun.map(|()| None)
    }

    fn check_device_state(&self) -> io::Result<()> {
        self.state_transfer.check()
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..=self.request_queues).map(|ring| 1 << ring).collect()
    }

    fn exit_event(&self, thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit_events.take(thread)
    }

    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[Vring],
        thread: usize,
    ) -> io::Result<()> {
        let (Some(worker), Some(ring)) = (self.workers.get(thread), vrings.first()) else {
            return Err(io::Error::other(format!("thread {thread} has no ring")));
        };
        if let Some(known) = self.rings.get(thread) {
            known.get_or_init(|| {
                let inflight = self.inflight.lock();
                ring.set_inflight(inflight.as_ref().and_then(|memory| memory.ring(thread)));
                drop(inflight);
                ring.keep_log(&self.log);
                if let Some(requests) = RingRequests::new(&self.arena, thread) {
                    let memory = self.memory.current();
                    ring.keep_requests(requests, self.recovery.blame, &memory);
                }
                if self.recovery.draining.contains(&thread) {
                    ring.set_draining();
                }
                self.recovery.begun.lock().push(thread);
                self.recovery.progress.notify_all();
                ring.clone()
            });
        }
        // Only the ring's own thread locks its worker, so it never waits here.
        let mut worker = worker.lock();
        if event == self.timer_event() {
            worker.wake_from_throttle();
        }
        worker.serve(ring);
        Ok(())
    }
}
