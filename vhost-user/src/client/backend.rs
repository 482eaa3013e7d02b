//! A back-end (the daemon) behind a connection: the order of messages up to running rings, and
//! back.

use std::os::unix::ffi::OsStrExt;

use gangplank_service::fnv::fnv_1a;
use vmm_sys_util::eventfd::EventFd;

use super::{Error, Messages, Region, Result, RingAddresses};
use crate::feature;
use crate::message::ProtocolFeatures as Protocol;

/// Bytes of a file system device's tag (virtio 1.2, 5.11.4).
pub const TAG_LEN: usize = 36;

/// Bytes of a file system device's configuration: tag and `num_request_queues` (virtio 1.2,
/// 5.11.4).
pub const CONFIG_LEN: usize = TAG_LEN + 4;

/// A file system device's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsConfig {
    bytes: [u8; CONFIG_LEN],
}

impl FsConfig {
    /// Takes its bytes on the wire.
    #[must_use]
    pub const fn new(bytes: [u8; CONFIG_LEN]) -> Self {
        Self { bytes }
    }

    /// The configuration with this tag, of which [`TAG_LEN`] bytes count, and request queues.
    #[must_use]
    pub fn with(tag: &[u8], request_queues: u32) -> Self {
        let mut bytes = [0; CONFIG_LEN];
        let count = request_queues.to_le_bytes();
        let tag = tag.iter().copied().chain(std::iter::repeat(0));
        for (to, from) in bytes.iter_mut().zip(tag.take(TAG_LEN).chain(count)) {
            *to = from;
        }
        Self { bytes }
    }

    /// Its bytes on the wire.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; CONFIG_LEN] {
        &self.bytes
    }

    /// The tag, without the NUL bytes that pad its field.
    #[must_use]
    pub fn tag(&self) -> &[u8] {
        let field = self.bytes.get(..TAG_LEN).unwrap_or_default();
        field.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// Request queues, beside the high-priority one.
    #[must_use]
    pub fn num_request_queues(&self) -> u32 {
        let field = self.bytes.last_chunk().copied().unwrap_or_default();
        u32::from_le_bytes(field)
    }
}

/// A ring to start.
#[derive(Clone, Copy, Debug)]
pub struct RingSetup<'a> {
    /// Its number: 0 is the high-priority queue.
    pub index: usize,
    /// Its descriptors.
    pub size: u16,
    /// The addresses of its parts.
    pub addresses: RingAddresses,
    /// Index of the next available entry that the daemon takes; 0 for a fresh ring.
    pub base: u16,
    /// The daemon signals through it that buffers are used.
    pub call: &'a EventFd,
    /// The driver signals through it that buffers are available.
    pub kick: &'a EventFd,
    /// The daemon signals through it that the ring is broken.
    pub error: Option<&'a EventFd>,
}

/// A back-end with which the frontend has negotiated.
#[derive(Debug)]
pub struct Backend<M> {
    messages: M,
    offered: u64,
    protocol: Option<Protocol>,
    config: Option<FsConfig>,
    max_rings: Option<u64>,
    acknowledged: Option<u64>,
    running: Vec<usize>,
}

/// All that was agreed on over a connection. With it another process can take the connection over,
/// while no message is under way.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// A hash of the daemon's socket path.
    pub daemon: u64,
    /// Virtio features that the daemon offers.
    pub offered: u64,
    /// Bits of the protocol features that were agreed on; none if the daemon has no protocol
    /// features.
    pub protocol: Option<u64>,
    /// The device's configuration.
    pub config: Option<[u8; CONFIG_LEN]>,
    /// Rings that the daemon takes.
    pub max_rings: Option<u64>,
    /// Features of the last SET_FEATURES.
    pub acknowledged: Option<u64>,
    /// Rings that run.
    pub running: Vec<usize>,
}

impl<M: Messages> Backend<M> {
    /// Protocol features that the frontend takes where the daemon offers them.
    const WANTED: Protocol = Protocol::MQ
        .union(Protocol::REPLY_ACK)
        .union(Protocol::CONFIG)
        .union(Protocol::RESET_DEVICE);

    /// Negotiates what is negotiated once per connection: owner, features, queue count,
    /// configuration.
    ///
    /// # Errors
    /// The daemon does not reply, or does not offer VIRTIO_F_VERSION_1.
    pub fn negotiate(mut messages: M) -> Result<Self> {
        messages.set_owner()?;
        let offered = messages.features()?;
        if offered & feature::VERSION_1 == 0 {
            return Err(Error::Lacks {
                what: "VIRTIO_F_VERSION_1".to_owned(),
                daemon: messages.daemon().to_owned(),
            });
        }
        let mut protocol = None;
        if offered & feature::PROTOCOL_FEATURES != 0 {
            let agreed = messages.protocol_features()? & Self::WANTED;
            messages.set_protocol_features(agreed)?;
            protocol = Some(agreed);
        }
        let has = |bit| protocol.is_some_and(|agreed| agreed.contains(bit));
        let max_rings = match has(Protocol::MQ) {
            true => Some(messages.queue_count()?),
            false => None,
        };
        let mut config = None;
        if has(Protocol::CONFIG) {
            let mut bytes = [0; CONFIG_LEN];
            messages.config(&mut bytes)?;
            config = Some(FsConfig::new(bytes));
        }
        Ok(Self {
            messages,
            offered,
            protocol,
            config,
            max_rings,
            acknowledged: None,
            running: Vec::new(),
        })
    }

    /// Takes over a connection on which another process agreed on `facts`. It sends nothing: if
    /// this process were killed before it had read a reply, the next one would take that reply for
    /// its own.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the connection is to another daemon.
    pub fn resume(mut messages: M, facts: &Facts) -> Result<Self> {
        if path_hash(&messages) != facts.daemon {
            return Err(Error::Misuse(
                "the connection is to a daemon on another socket",
            ));
        }
        let protocol = facts.protocol.map(Protocol::from_bits_truncate);
        messages.resume(protocol.unwrap_or(Protocol::empty()), facts.max_rings);
        Ok(Self {
            messages,
            offered: facts.offered,
            protocol,
            config: facts.config.map(FsConfig::new),
            max_rings: facts.max_rings,
            acknowledged: facts.acknowledged,
            running: facts.running.clone(),
        })
    }

    /// All that was agreed on so far.
    pub fn facts(&self) -> Facts {
        Facts {
            daemon: path_hash(&self.messages),
            offered: self.offered,
            protocol: self.protocol.map(|agreed| agreed.bits()),
            config: self.config.map(|config| *config.bytes()),
            max_rings: self.max_rings,
            acknowledged: self.acknowledged,
            running: self.running.clone(),
        }
    }

    /// What carries the messages.
    pub const fn messages(&self) -> &M {
        &self.messages
    }

    /// Feature bits that a driver may take: the daemon's, without those of vhost-user itself and of
    /// the platform.
    #[must_use]
    pub const fn offered(&self) -> u64 {
        self.offered & !(feature::LOG_ALL | feature::PROTOCOL_FEATURES | feature::ACCESS_PLATFORM)
    }

    /// The device's configuration, read when connecting; `None` if the daemon does not offer it.
    pub const fn config(&self) -> Option<&FsConfig> {
        self.config.as_ref()
    }

    /// Rings that the daemon takes, the high-priority one included; `None` if it did not tell.
    #[must_use]
    pub const fn max_rings(&self) -> Option<u64> {
        self.max_rings
    }

    /// Whether the daemon has RESET_DEVICE.
    #[must_use]
    pub fn can_reset(&self) -> bool {
        self.has(Protocol::RESET_DEVICE)
    }

    /// Whether rings run.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    fn has(&self, bit: Protocol) -> bool {
        self.protocol.is_some_and(|agreed| agreed.contains(bit))
    }

    /// Sets the driver's features, memory and rings, and starts the rings. Then kicks each ring
    /// once, because buffers may be in it whose kick was lost.
    ///
    /// # Errors
    /// [`Error::Lacks`] for features that were not offered; or the daemon refuses. The caller then
    /// stops the rings that were started.
    pub fn start(
        &mut self,
        features: u64,
        regions: &[Region<'_>],
        rings: &[RingSetup<'_>],
    ) -> Result<()> {
        if self.is_running() {
            return Err(Error::Misuse("the rings run already"));
        }
        let features = features & !feature::ACCESS_PLATFORM;
        let foreign = features & !self.offered();
        if foreign != 0 {
            return Err(Error::Lacks {
                what: format!("virtio features {foreign:#x}"),
                daemon: self.messages.daemon().to_owned(),
            });
        }
        let ours = self.offered & feature::PROTOCOL_FEATURES;
        self.messages.set_features(features | ours)?;
        self.acknowledged = Some(features | ours);
        self.messages.set_memory(regions)?;
        for ring in rings {
            self.running.push(ring.index);
            self.set_up(ring)?;
        }
        if ours != 0 {
            for ring in rings {
                self.messages.set_ring_enabled(ring.index, true)?;
            }
        }
        for ring in rings {
            ring.kick.write(1).map_err(|source| Error::System {
                what: "kicking a fresh ring",
                source,
            })?;
        }
        Ok(())
    }

    /// The addresses need the memory table, and the kick descriptor starts the ring: all else comes
    /// between.
    fn set_up(&mut self, ring: &RingSetup<'_>) -> Result<()> {
        let messages = &mut self.messages;
        messages.set_ring_size(ring.index, ring.size)?;
        messages.set_ring_addresses(ring.index, &ring.addresses)?;
        messages.set_ring_base(ring.index, ring.base)?;
        messages.set_ring_call(ring.index, ring.call)?;
        if let Some(error) = ring.error {
            messages.set_ring_error(ring.index, error)?;
        }
        messages.set_ring_kick(ring.index, ring.kick)
    }

    /// Stops the rings that run. Returns the number of each, and the index where it stopped.
    ///
    /// # Errors
    /// The daemon does not reply; the rings count as stopped nevertheless.
    pub fn stop(&mut self) -> Result<Vec<(usize, u32)>> {
        let rings = std::mem::take(&mut self.running);
        let mut bases = Vec::with_capacity(rings.len());
        if self.offered & feature::PROTOCOL_FEATURES != 0 {
            for ring in &rings {
                self.messages.set_ring_enabled(*ring, false)?;
            }
        }
        for ring in rings {
            bases.push((ring, self.messages.ring_base(ring)?));
        }
        Ok(bases)
    }

    /// Stops the rings, and resets the device if the daemon has RESET_DEVICE.
    ///
    /// # Errors
    /// The daemon does not reply.
    pub fn reset(&mut self) -> Result<()> {
        self.stop()?;
        if self.can_reset() {
            self.messages.reset_device()?;
            self.acknowledged = None;
        }
        Ok(())
    }
}

fn path_hash(messages: &impl Messages) -> u64 {
    fnv_1a(messages.daemon().as_os_str().as_bytes())
}

#[cfg(test)]
mod tests;
