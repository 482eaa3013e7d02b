//! The device as vhost-user-backend sees it: features, configuration space, rings.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use vhost::vhost_user::Backend;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use super::config_space::ConfigSpace;
use super::exit_event::ExitEvents;
use super::memory::MemoryCell;
use super::memory_limits::MemoryLimits;
use super::options::Options;
use super::request::Handler;
use super::scheduling::DeviceScheduler;
use super::vring::{Memory, Vring};
use super::worker::Worker;

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
    /// One per ring; each ring has a thread of its own.
    workers: Vec<Mutex<Worker>>,
    /// The rings that vhost-user-backend created, from their first event on.
    rings: Vec<OnceLock<Vring>>,
}

impl FsBackend {
    /// # Errors
    /// The pool's threads cannot be started, or the process is out of descriptors.
    pub(super) fn new(options: &Options, handler: Arc<dyn Handler>) -> io::Result<Self> {
        let request_queues = usize::from(
            options
                .num_request_queues
                .clamp(Options::MIN_REQUEST_QUEUES, Options::MAX_REQUEST_QUEUES),
        );
        let memory = Arc::new(MemoryCell::new(MemoryLimits::from(options)));
        let stopping = Arc::new(AtomicBool::new(false));
        let scheduler = DeviceScheduler::new(options, &handler, &stopping)?;
        let workers = (0..=request_queues)
            .map(|ring| {
                Mutex::new(Worker::new(
                    scheduler.for_ring(ring),
                    Arc::clone(&memory),
                    Arc::clone(&stopping),
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
            workers,
            rings: (0..=request_queues).map(|_| OnceLock::new()).collect(),
        })
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
    }

    /// Offers CONFIG always: User Mode Linux and the Bao frontend need it, and QEMU 7.2 only warns.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::BACKEND_REQ
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

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..=self.request_queues).map(|ring| 1 << ring).collect()
    }

    fn exit_event(&self, thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exit_events.take(thread)
    }

    fn handle_event(
        &self,
        _event: u16,
        _events: EventSet,
        vrings: &[Vring],
        thread: usize,
    ) -> io::Result<()> {
        let (Some(worker), Some(ring)) = (self.workers.get(thread), vrings.first()) else {
            return Err(io::Error::other(format!("thread {thread} has no ring")));
        };
        if let Some(known) = self.rings.get(thread) {
            known.get_or_init(|| ring.clone());
        }
        // Only the ring's own thread locks its worker, so it never waits here.
        worker.lock().serve(ring);
        Ok(())
    }
}
