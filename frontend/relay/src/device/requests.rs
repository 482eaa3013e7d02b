//! What a guest sets up by its messages. The device keeps it, and hands it to the daemon that
//! serves it.

use std::os::fd::OwnedFd;

use gangplank_vhost_backend::{Memory, Ring, Signal};
use gangplank_vhost_user::client::FsConfig;
use gangplank_vhost_user::feature;

use super::{Device, Fatal, OFFERED_FEATURES, Phase, RequestError};
use crate::daemon::{Daemon, DaemonError};

impl gangplank_vhost_backend::Device for Device {
    type Fatal = Fatal;

    fn guest(&self) -> u64 {
        self.guest
    }

    fn offered(&self) -> u64 {
        self.daemon().map_or(OFFERED_FEATURES, |daemon| {
            OFFERED_FEATURES & daemon.offered()
        })
    }

    fn num_request_queues(&mut self) -> u16 {
        self.request_queues()
    }

    fn config(&mut self) -> Result<Option<FsConfig>, RequestError> {
        Ok(self.awaited_config()?)
    }

    fn set_features(&mut self, features: u64) -> Result<(), RequestError> {
        let foreign = features & !OFFERED_FEATURES;
        if foreign != 0 {
            return Err(RequestError::Invalid(format!(
                "it takes the features {foreign:#x}, which were not offered"
            )));
        }
        if features & feature::PROTOCOL_FEATURES == 0 {
            // Without it there is no SET_VRING_ENABLE.
            return Err(RequestError::Invalid(
                "it does not take VHOST_USER_F_PROTOCOL_FEATURES".to_owned(),
            ));
        }
        self.features = Some(features);
        self.with_daemon(|daemon, _| daemon.set_features(features))
    }

    fn set_memory(&mut self, memory: Memory) -> Result<(), RequestError> {
        let memory = self.memory.insert(memory);
        let told = match &mut self.phase {
            Phase::Served(daemon) => daemon.set_memory(memory),
            _ => Ok(()),
        };
        told.or_else(|error| self.failed(error))
    }

    fn set_addresses(&mut self, index: u32, payload: &[u8]) -> Result<(), RequestError> {
        self.stop_ring_if_started(index)?;
        let memory = self.memory.take();
        let ring = self.ring_mut(index);
        let set = ring.map(|ring| {
            let rest = payload.get(4..).unwrap_or_default();
            let memory = memory.as_ref();
            memory.is_some_and(|memory| ring.set_addresses(rest, memory))
        });
        self.memory = memory;
        match set? {
            true => self.start_ring_if_ready(index),
            false => Err(RequestError::outside_memory(index)),
        }
    }

    fn change(
        &mut self,
        index: u32,
        change: &mut dyn FnMut(&mut Ring) -> bool,
    ) -> Result<(), RequestError> {
        self.stop_ring_if_started(index)?;
        if !change(self.ring_mut(index)?) {
            return Err(RequestError::value_not_allowed(index));
        }
        self.start_ring_if_ready(index)
    }

    fn set_signal(
        &mut self,
        index: u32,
        signal: Signal,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), RequestError> {
        self.ring_mut(index)?.set_signal(signal, descriptor);
        self.with_daemon(|daemon, rings| {
            let ring = usize::try_from(index).ok().and_then(|at| rings.get(at));
            match ring.filter(|ring| ring.is_started) {
                Some(ring) if signal == Signal::Call => {
                    daemon.set_signal(index, signal, ring.call.as_ref())
                }
                Some(ring) => daemon.set_signal(index, signal, ring.error.as_ref()),
                None => Ok(()),
            }
        })
    }

    fn stop_ring(&mut self, index: u32) -> Result<u16, RequestError> {
        self.stop_ring_if_started(index)?;
        let ring = self.ring_mut(index)?;
        ring.kick = None;
        Ok(ring.base)
    }

    fn reset(&mut self) -> Result<(), RequestError> {
        for index in 0..self.ring_count() {
            self.stop_ring_if_started(index)?;
        }
        self.rings.clear();
        self.features = None;
        self.inflight = None;
        self.successor_until = None;
        match std::mem::replace(&mut self.phase, Phase::Waiting) {
            Phase::Served(mut daemon) if daemon.can_reset() => {
                let reset = daemon.reset();
                self.phase = Phase::Served(daemon);
                reset.or_else(|error| self.failed(error))
            }
            Phase::Paused { .. } => {
                self.phase = Phase::Paused {
                    daemon: None,
                    state: None,
                };
                Ok(())
            }
            // A daemon without RESET_DEVICE forgets when its connection is closed.
            Phase::Served(_) | Phase::Waiting | Phase::Lost => Ok(()),
        }
    }
}

impl Device {
    /// Ring number `index`.
    fn ring_mut(&mut self, index: u32) -> Result<&mut Ring, RequestError> {
        let count = usize::from(self.request_queues()) + 1;
        if self.rings.len() < count {
            self.rings.resize_with(count, Ring::default);
        }
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        let ring = self.rings.get_mut(at);
        ring.ok_or_else(|| RequestError::no_ring(index, count))
    }

    fn start_ring_if_ready(&mut self, index: u32) -> Result<(), RequestError> {
        if self.features.is_none() {
            return Ok(());
        }
        if matches!(self.phase, Phase::Served(_))
            && let Phase::Served(mut daemon) = std::mem::replace(&mut self.phase, Phase::Waiting)
        {
            let kept = self.keep_inflight(&mut daemon);
            self.phase = Phase::Served(daemon);
            kept.or_else(|error| self.failed(error))?;
        }
        self.with_daemon(|daemon, rings| {
            let at = usize::try_from(index).unwrap_or(usize::MAX);
            match rings.get_mut(at) {
                Some(ring) if ring.is_ready() && !ring.is_started => {
                    ring.is_started = true;
                    daemon.start_ring(index, ring)
                }
                _ => Ok(()),
            }
        })
    }

    fn stop_ring_if_started(&mut self, index: u32) -> Result<(), RequestError> {
        self.with_daemon(|daemon, rings| {
            let at = usize::try_from(index).unwrap_or(usize::MAX);
            match rings.get_mut(at) {
                Some(ring) if ring.is_started => {
                    daemon.disable_ring(index)?;
                    ring.base = daemon.stop_ring(index)?;
                    ring.is_started = false;
                    Ok(())
                }
                _ => Ok(()),
            }
        })
    }

    /// Calls `work` if a daemon serves the device.
    fn with_daemon(
        &mut self,
        work: impl FnOnce(&mut Daemon, &mut Vec<Ring>) -> Result<(), DaemonError>,
    ) -> Result<(), RequestError> {
        let done = match &mut self.phase {
            Phase::Served(daemon) => work(daemon, &mut self.rings),
            _ => Ok(()),
        };
        done.or_else(|error| self.failed(error))
    }

    /// The guest gets the error of a daemon that refuses and stays connected. Any other error loses
    /// the daemon; the guest's message succeeds, because the device has kept what it told.
    fn failed(&mut self, error: DaemonError) -> Result<(), RequestError> {
        match error {
            error @ DaemonError::Refused { .. } => Err(error.into()),
            error => Ok(self.lose_after(&error)?),
        }
    }

    fn ring_count(&self) -> u32 {
        u32::try_from(self.rings.len()).unwrap_or(u32::MAX)
    }
}
