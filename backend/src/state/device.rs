//! What a guest's frontend has set up: the part of the device's state that comes by messages.
//!
//! The arena holds two copies of it. The header's `device` says which is valid: 0 for none, else
//! the copy's number plus one, with the length of its content. A change writes the other copy as a
//! whole and then stores `device`, so that a worker that is killed leaves the state before or the
//! state after a message, and nothing between.
//!
//! Descriptors are numbers. They are open as long as the state has them: the guest's keeper has the
//! same descriptor table.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_vhost_user::message::FrontendReq;

use super::arena::Arena;
use super::change::Place;

/// Words of one copy, 8 bytes each: 509 memory regions, 64 rings and two messages of 4 KiB, with
/// their descriptors, take 5,000.
pub const DEVICE_WORDS: usize = 8192;

/// What the frontend has set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// SET_OWNER was seen.
    pub is_owned: bool,
    /// GET_FEATURES was seen.
    pub has_asked_features: bool,
    /// Of SET_FEATURES.
    pub features: Option<u64>,
    /// Of SET_PROTOCOL_FEATURES.
    pub protocol_features: Option<u64>,
    /// The backend request channel.
    pub backend_channel: Option<RawFd>,
    /// The memory of SET_INFLIGHT_FD.
    pub inflight: Option<InflightState>,
    /// The bitmap of dirty pages.
    pub log: Option<LogState>,
    /// The memory table.
    pub regions: Vec<RegionState>,
    /// The rings, by number.
    pub rings: Vec<RingState>,
    /// The message that is being carried out, and has a reply.
    pub pending: Option<PendingMessage>,
    /// Header and payload of a message that is recorded, and may not have been taken out of the
    /// socket yet.
    pub arriving: Option<Vec<u8>>,
}

/// The memory in which the frontend keeps the requests in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InflightState {
    /// The file.
    pub file: RawFd,
    /// Offset in the file.
    pub offset: u64,
    /// Number of rings.
    pub rings: u16,
    /// Descriptors of each ring.
    pub ring_size: u16,
}

/// The bitmap of SET_LOG_BASE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// Bytes of the bitmap.
    pub size: u64,
    /// Its offset in the file.
    pub offset: u64,
    /// The file.
    pub file: RawFd,
}

/// One memory region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionState {
    /// Guest physical address.
    pub guest_address: u64,
    /// Length in bytes.
    pub len: u64,
    /// Address in the frontend, which addresses of rings refer to.
    pub user_address: u64,
    /// Offset in the file.
    pub file_offset: u64,
    /// The file.
    pub file: RawFd,
}

/// One ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingState {
    /// Of SET_VRING_NUM: descriptors; 0 if it was not seen.
    pub size: u32,
    /// Of SET_VRING_ADDR: flags, then the frontend's addresses of descriptors, used ring, available
    /// ring and log.
    pub addresses: Option<[u64; 5]>,
    /// The descriptor of SET_VRING_KICK. A ring that has one is started.
    pub kick: Option<RawFd>,
    /// The descriptor of SET_VRING_CALL.
    pub call: Option<RawFd>,
    /// The descriptor of SET_VRING_ERR.
    pub error: Option<RawFd>,
    /// Of SET_VRING_ENABLE.
    pub is_enabled: bool,
    /// The ring was disabled by a message without a reply, and the requests in flight may not have
    /// been finished yet.
    pub is_draining: bool,
}

/// The bits of a ring's word for `is_enabled` and `is_draining`.
const ENABLED: u64 = 1;
const DRAINING: u64 = 2;

/// A message whose reply the frontend waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PendingMessage {
    /// The request's number.
    pub request: u32,
    /// Its flags.
    pub flags: u32,
    /// Its payload.
    pub payload: Vec<u8>,
    /// What came with it.
    pub descriptors: Vec<RawFd>,
}

/// Whether a message of this number brings files to be mapped.
fn brings_memory(request: u32) -> bool {
    matches!(
        FrontendReq::try_from(request),
        Ok(FrontendReq::SET_MEM_TABLE
            | FrontendReq::ADD_MEM_REG
            | FrontendReq::SET_INFLIGHT_FD
            | FrontendReq::SET_LOG_BASE)
    )
}

impl DeviceState {
    /// The state in the arena; the default if there is none. `None` if it cannot be read.
    pub fn load(arena: &Arc<Arena>) -> Option<Self> {
        let valid = arena.header().device.load(Ordering::Acquire);
        let copy = match usize::try_from(valid & 0xff).ok()? {
            0 => return Some(Self::default()),
            copy @ (1 | 2) => copy - 1,
            _ => return None,
        };
        let stored = arena.device(copy);
        let stored = stored.get(..usize::try_from(valid >> 8).ok()?)?;
        let words: Vec<u64> = stored
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .collect();
        Self::decode(&mut Words(&words))
    }

    /// Whether an arena has room for it.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.encode().len() <= DEVICE_WORDS
    }

    /// Makes this the state in the arena. Returns false if it has too many parts, which the limits
    /// of regions, rings and messages exclude.
    #[must_use]
    pub fn store(&self, arena: &Arc<Arena>) -> bool {
        let words = self.encode();
        let valid = &arena.header().device;
        let copy = usize::from(valid.load(Ordering::Relaxed) & 0xff == 1);
        let target = arena.device(copy);
        let Some(target) = target.get(..words.len()) else {
            return false;
        };
        for (target, word) in target.iter().zip(&words) {
            target.set(*word);
        }
        let number = u64::try_from(copy + 1).unwrap_or_default();
        let len = u64::try_from(words.len()).unwrap_or_default();
        valid.set(len << 8 | number);
        true
    }

    /// The ring of this number, which is added if it is new.
    pub fn ring(&mut self, index: usize) -> &mut RingState {
        if self.rings.len() <= index {
            self.rings.resize(index + 1, RingState::default());
        }
        &mut self.rings[index]
    }

    /// All descriptors.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let rings = self.rings.iter();
        let rings = rings.flat_map(|ring| [ring.kick, ring.call, ring.error]);
        let pending = self.pending.iter().flat_map(|message| &message.descriptors);
        rings
            .chain([
                self.backend_channel,
                self.inflight.map(|it| it.file),
                self.log.map(|log| log.file),
            ])
            .flatten()
            .chain(self.regions.iter().map(|region| region.file))
            .chain(pending.copied())
            .collect()
    }

    /// The same with the number that `renumber` gives each descriptor. `None` if it gives one none.
    #[must_use]
    pub fn renumbered(mut self, renumber: impl Fn(RawFd) -> Option<RawFd>) -> Option<Self> {
        let rings = self.rings.iter_mut();
        let rings = rings.flat_map(|ring| [&mut ring.kick, &mut ring.call, &mut ring.error]);
        let pending = self.pending.iter_mut();
        let pending = pending.flat_map(|message| &mut message.descriptors);
        let numbers = rings
            .chain([&mut self.backend_channel])
            .flatten()
            .chain(self.inflight.iter_mut().map(|it| &mut it.file))
            .chain(self.log.iter_mut().map(|log| &mut log.file))
            .chain(self.regions.iter_mut().map(|region| &mut region.file))
            .chain(pending);
        for number in numbers {
            *number = renumber(*number)?;
        }
        Some(self)
    }

    /// The descriptors among them that are files to be mapped, those of a message that has not been
    /// replied to included.
    pub fn memory_files(&self) -> Vec<RawFd> {
        let pending = self.pending.iter();
        let pending = pending
            .filter(|message| brings_memory(message.request))
            .flat_map(|message| message.descriptors.iter().copied());
        let regions = self.regions.iter().map(|region| region.file);
        let others = [
            self.inflight.map(|inflight| inflight.file),
            self.log.map(|log| log.file),
        ];
        regions
            .chain(others.into_iter().flatten())
            .chain(pending)
            .collect()
    }

    fn encode(&self) -> Vec<u64> {
        let mut words = vec![u64::from(self.is_owned), u64::from(self.has_asked_features)];
        put_option(&mut words, self.features);
        put_option(&mut words, self.protocol_features);
        put_option(&mut words, self.backend_channel.map(from_fd));
        words.push(u64::from(self.inflight.is_some()));
        let inflight = self.inflight.unwrap_or_default();
        words.extend([
            from_fd(inflight.file),
            inflight.offset,
            inflight.rings.into(),
            inflight.ring_size.into(),
        ]);
        words.push(u64::from(self.log.is_some()));
        let log = self.log.unwrap_or_default();
        words.extend([log.size, log.offset, from_fd(log.file)]);
        words.push(self.regions.len() as u64);
        for region in &self.regions {
            words.extend([
                region.guest_address,
                region.len,
                region.user_address,
                region.file_offset,
                from_fd(region.file),
            ]);
        }
        words.push(self.rings.len() as u64);
        for ring in &self.rings {
            words.push(ring.size.into());
            words.push(u64::from(ring.addresses.is_some()));
            words.extend(ring.addresses.unwrap_or_default());
            for descriptor in [ring.kick, ring.call, ring.error] {
                put_option(&mut words, descriptor.map(from_fd));
            }
            let enabled = if ring.is_enabled { ENABLED } else { 0 };
            let draining = if ring.is_draining { DRAINING } else { 0 };
            words.push(enabled | draining);
        }
        words.push(u64::from(self.pending.is_some()));
        if let Some(message) = &self.pending {
            words.extend([u64::from(message.request), u64::from(message.flags)]);
            put_bytes(&mut words, &message.payload);
            words.push(message.descriptors.len() as u64);
            words.extend(message.descriptors.iter().copied().map(from_fd));
        }
        words.push(u64::from(self.arriving.is_some()));
        if let Some(bytes) = &self.arriving {
            put_bytes(&mut words, bytes);
        }
        words
    }

    fn decode(words: &mut Words<'_>) -> Option<Self> {
        let mut state = Self {
            is_owned: words.flag()?,
            has_asked_features: words.flag()?,
            features: words.option()?,
            protocol_features: words.option()?,
            backend_channel: words.descriptor()?,
            inflight: {
                let is_set = words.flag()?;
                let inflight = InflightState {
                    file: RawFd::try_from(words.next()?).ok()?,
                    offset: words.next()?,
                    rings: u16::try_from(words.next()?).ok()?,
                    ring_size: u16::try_from(words.next()?).ok()?,
                };
                is_set.then_some(inflight)
            },
            ..Self::default()
        };
        let has_log = words.flag()?;
        let log = LogState {
            size: words.next()?,
            offset: words.next()?,
            file: RawFd::try_from(words.next()?).ok()?,
        };
        state.log = has_log.then_some(log);
        for _ in 0..words.count()? {
            state.regions.push(RegionState {
                guest_address: words.next()?,
                len: words.next()?,
                user_address: words.next()?,
                file_offset: words.next()?,
                file: RawFd::try_from(words.next()?).ok()?,
            });
        }
        for _ in 0..words.count()? {
            let mut ring = RingState {
                size: u32::try_from(words.next()?).ok()?,
                addresses: {
                    let is_set = words.flag()?;
                    let addresses = words.take(5)?.try_into().ok()?;
                    is_set.then_some(addresses)
                },
                kick: words.descriptor()?,
                call: words.descriptor()?,
                error: words.descriptor()?,
                ..RingState::default()
            };
            let bits = words.next()?;
            ring.is_enabled = bits & ENABLED != 0;
            ring.is_draining = bits & DRAINING != 0;
            state.rings.push(ring);
        }
        if words.flag()? {
            let (request, flags) = (words.next()?, words.next()?);
            let payload = words.bytes()?;
            let count = words.count()?;
            let descriptors = words.take(count)?.iter();
            let descriptors = descriptors.map(|fd| RawFd::try_from(*fd).ok());
            state.pending = Some(PendingMessage {
                request: u32::try_from(request).ok()?,
                flags: u32::try_from(flags).ok()?,
                payload,
                descriptors: descriptors.collect::<Option<_>>()?,
            });
        }
        if words.flag()? {
            state.arriving = Some(words.bytes()?);
        }
        Some(state)
    }
}

/// What is left to decode.
struct Words<'a>(&'a [u64]);

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, count: usize) -> Option<&'a [u64]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn flag(&mut self) -> Option<bool> {
        Some(self.next()? != 0)
    }

    fn option(&mut self) -> Option<Option<u64>> {
        let is_set = self.flag()?;
        let value = self.next()?;
        Some(is_set.then_some(value))
    }

    fn descriptor(&mut self) -> Option<Option<RawFd>> {
        match self.option()? {
            Some(number) => RawFd::try_from(number).ok().map(Some),
            None => Some(None),
        }
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let len = usize::try_from(self.next()?).ok()?;
        let content = self.take(len.div_ceil(8))?;
        let mut bytes: Vec<u8> = content.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.truncate(len);
        Some(bytes)
    }

    /// A number of elements, of which each takes a word at least.
    fn count(&mut self) -> Option<usize> {
        let count = usize::try_from(self.next()?).ok()?;
        (count <= self.0.len()).then_some(count)
    }
}

fn put_bytes(words: &mut Vec<u64>, bytes: &[u8]) {
    words.push(bytes.len() as u64);
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        words.push(u64::from_ne_bytes(word));
    }
}

fn put_option(words: &mut Vec<u64>, value: Option<u64>) {
    words.extend([u64::from(value.is_some()), value.unwrap_or_default()]);
}

/// A descriptor's number is not negative.
fn from_fd(descriptor: RawFd) -> u64 {
    u64::try_from(descriptor).unwrap_or_default()
}

#[cfg(test)]
mod tests;
