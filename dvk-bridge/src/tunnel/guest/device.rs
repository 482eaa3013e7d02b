//! The guest's device: what the messages of its connection set up.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gangplank_service::{error_chain, rate_limited};
use gangplank_vhost_backend::{Device, MAX_RING_SIZE, Memory, RequestError, Ring, Signal};
use gangplank_vhost_user::client::FsConfig;
use gangplank_vhost_user::feature;
use gangplank_vhost_user::message::Inflight as Description;

use super::inflight::Inflight;
use super::serve::Shared;
use super::state::{Fatal, Session, State};

/// Virtio features that the tunnel offers guests.
const OFFERED_FEATURES: u64 =
    feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX | feature::PROTOCOL_FEATURES;

/// Request queues of a device at most: the protocol numbers 256 rings.
const MAX_QUEUES: u16 = 255;

/// How long a guest that asks for its configuration waits for a server that is being asked: not
/// quite as long as the relay waits for an answer (`--limit`).
const CONFIG_WAIT: Duration = Duration::from_secs(8);

/// How long it waits for a server that is not reached. A guest may connect just before the link
/// works.
const UNREACHED_WAIT: Duration = Duration::from_millis(1500);

/// How long the requests of a ring get to end when the guest wants the ring back.
const STOP_LIMIT: Duration = Duration::from_secs(5);

type Refusal = RequestError<Fatal>;

/// One guest's device.
pub(super) struct TunnelDevice<'a> {
    shared: &'a Shared,
    /// Fixed once the guest has asked for it.
    queues: Option<u16>,
    /// When the guest first asked for its configuration.
    asked_at: Option<Instant>,
}

impl<'a> TunnelDevice<'a> {
    pub(super) const fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            queues: None,
            asked_at: None,
        }
    }

    /// The configuration that the server tells; why not, if it does not in time.
    fn told(&mut self) -> Result<FsConfig, String> {
        let asked_at = *self.asked_at.get_or_insert_with(Instant::now);
        let mut state = self.shared.state.lock();
        loop {
            if let Some(config) = state.config {
                return Ok(config);
            }
            if matches!(state.session, Session::Open(_)) {
                return Err("its daemon tells none".to_owned());
            }
            if let Some(fatal) = &state.fatal {
                return Err(error_chain(fatal));
            }
            let limit = match state.unreached {
                Some(_) => UNREACHED_WAIT,
                None => CONFIG_WAIT,
            };
            let until = asked_at + limit;
            if until <= Instant::now() {
                let why = state.unreached.clone();
                return Err(why.unwrap_or_else(|| format!("it has not answered for {limit:?}")));
            }
            // The time is looked at above.
            let _ = self.shared.changed.wait_until(&mut state, until);
        }
    }

    fn queues(&mut self) -> u16 {
        if let Some(queues) = self.queues {
            return queues;
        }
        let queues = match self.told() {
            Ok(config) => u16::try_from(config.num_request_queues()).unwrap_or(MAX_QUEUES),
            Err(why) => {
                rate_limited!(
                    warn,
                    "guest {} gets one request queue, since {} tells no number: {why}",
                    self.shared.number,
                    self.shared.options.server_name
                );
                1
            }
        };
        let queues = queues.clamp(1, MAX_QUEUES);
        self.queues = Some(queues);
        queues
    }

    /// Stops a ring if it is started: waits for its requests, and refuses those that take long.
    /// Calls `change` with it.
    fn with_stopped<R>(
        &mut self,
        index: u32,
        change: impl FnOnce(&mut Ring, Option<&Memory>) -> R,
    ) -> Result<R, Refusal> {
        let count = usize::from(self.queues()) + 1;
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        if at >= count {
            return Err(RequestError::no_ring(index, count));
        }
        let mut state = self.shared.state.lock();
        if state.rings.len() < count {
            state.rings.resize_with(count, Ring::default);
            state.in_flight.resize(count, 0);
        }
        stop(self.shared, &mut state, at);
        let memory = state.memory.clone();
        let is_set_up = state.features.is_some();
        state.setup += 1;
        let Some(ring) = state.rings.get_mut(at) else {
            return Err(RequestError::no_ring(index, count));
        };
        let done = change(ring, memory.as_deref());
        ring.is_started = is_set_up && ring.is_ready();
        if ring.is_started {
            // Requests may be in it already.
            ring.signal_kick();
            state.take_over(at);
            self.shared.notify_workers();
        }
        Ok(done)
    }
}

/// Waits until ring `at` has no requests in flight, and fails those that take long: at once if
/// those of another ring just did.
fn stop(shared: &Shared, state: &mut parking_lot::MutexGuard<'_, State>, at: usize) {
    if let Some(ring) = state.rings.get_mut(at) {
        ring.is_started = false;
    }
    let mut until = Instant::now();
    if !state.has_just_given_up() {
        until += STOP_LIMIT;
    }
    let is_awaited = |state: &State| {
        state.in_flight.get(at).is_some_and(|count| *count > 0) && state.fatal.is_none()
    };
    state.stopping = Some(at);
    while is_awaited(state) {
        if shared.changed.wait_until(state, until).timed_out() {
            state.give_up(at);
            break;
        }
    }
    state.stopping = None;
}

/// Whether a device may have this number of rings, with this number of descriptors each.
fn check_inflight(rings: u16, ring_size: u16) -> Result<(), Refusal> {
    if rings > MAX_QUEUES + 1 || ring_size > MAX_RING_SIZE {
        return Err(RequestError::Invalid(format!(
            "it keeps requests in flight of {rings} rings of {ring_size} descriptors"
        )));
    }
    Ok(())
}

impl Device for TunnelDevice<'_> {
    type Fatal = Fatal;

    fn guest(&self) -> u64 {
        self.shared.number
    }

    fn offered(&self) -> u64 {
        OFFERED_FEATURES
    }

    fn num_request_queues(&mut self) -> u16 {
        self.queues()
    }

    fn config(&mut self) -> Result<Option<FsConfig>, Refusal> {
        let tag = match &self.shared.options.tag {
            Some(tag) => tag.clone().into_bytes(),
            None => match self.told() {
                Ok(config) => config.tag().to_vec(),
                // The frontend can connect again when the server is there. A reply would be for
                // the device's life.
                Err(why) => {
                    let server = self.shared.options.server_name.clone();
                    let fatal = self.shared.state.lock().take_fatal();
                    let fatal = fatal.unwrap_or(Fatal::Untold { server, why });
                    return Err(RequestError::Fatal(fatal));
                }
            },
        };
        let queues = self.queues().into();
        Ok(Some(FsConfig::with(&tag, queues)))
    }

    fn set_features(&mut self, features: u64) -> Result<(), Refusal> {
        let foreign = features & !OFFERED_FEATURES;
        if foreign != 0 || features & feature::PROTOCOL_FEATURES == 0 {
            return Err(RequestError::Invalid(format!(
                "it takes the features {features:#x} of {OFFERED_FEATURES:#x}, where \
                 VHOST_USER_F_PROTOCOL_FEATURES is needed"
            )));
        }
        self.shared.state.lock().features = Some(features);
        Ok(())
    }

    fn set_memory(&mut self, memory: Memory) -> Result<(), Refusal> {
        self.shared.state.lock().memory = Some(Arc::new(memory));
        Ok(())
    }

    fn set_addresses(&mut self, index: u32, payload: &[u8]) -> Result<(), Refusal> {
        let rest = payload.get(4..).unwrap_or_default();
        let is_inside = self.with_stopped(index, |ring, memory| {
            memory.is_some_and(|memory| ring.set_addresses(rest, memory))
        })?;
        match is_inside {
            true => Ok(()),
            false => Err(RequestError::outside_memory(index)),
        }
    }

    fn change(
        &mut self,
        index: u32,
        change: &mut dyn FnMut(&mut Ring) -> bool,
    ) -> Result<(), Refusal> {
        match self.with_stopped(index, |ring, _| change(ring))? {
            true => Ok(()),
            false => Err(RequestError::value_not_allowed(index)),
        }
    }

    fn set_signal(
        &mut self,
        index: u32,
        signal: Signal,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), Refusal> {
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        let count = usize::from(self.queues()) + 1;
        let mut state = self.shared.state.lock();
        if state.rings.len() < count {
            state.rings.resize_with(count, Ring::default);
            state.in_flight.resize(count, 0);
        }
        match state.rings.get_mut(at) {
            Some(ring) => ring.set_signal(signal, descriptor),
            None => return Err(RequestError::no_ring(index, count)),
        }
        Ok(())
    }

    fn stop_ring(&mut self, index: u32) -> Result<u16, Refusal> {
        self.with_stopped(index, |ring, _| {
            ring.kick = None;
            ring.base
        })
    }

    fn has_inflight(&self) -> bool {
        true
    }

    fn new_inflight(&mut self, rings: u16, ring_size: u16) -> Result<(OwnedFd, u64), Refusal> {
        check_inflight(rings, ring_size)?;
        let what = "make memory for the requests in flight";
        let made = Inflight::create(rings, ring_size);
        made.map_err(|source| RequestError::Fatal(Fatal::System { what, source }))
    }

    fn set_inflight(&mut self, file: OwnedFd, description: Description) -> Result<(), Refusal> {
        let Description {
            mmap_offset,
            num_queues,
            queue_size,
            ..
        } = description;
        check_inflight(num_queues, queue_size)?;
        let inflight = Inflight::new(file, mmap_offset, num_queues, queue_size);
        self.shared.state.lock().set_inflight(inflight);
        self.shared.notify_all();
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Refusal> {
        let mut state = self.shared.state.lock();
        for at in 0..state.rings.len() {
            stop(self.shared, &mut state, at);
        }
        state.reset();
        drop(state);
        self.shared.notify_all();
        Ok(())
    }
}
