//! One of a guest's rings, as the guest has set it up.

use std::os::fd::{AsFd, OwnedFd};

use gangplank_rings::SplitQueue;
use gangplank_service::rate_limited;
use gangplank_vhost_user::message::{VringAddr, payload};
use rustix::fs::OFlags;

use super::memory::Memory;

/// Descriptors of a split ring at most (virtio 1.2, 2.7).
pub const MAX_RING_SIZE: u16 = 32768;

/// The addresses of a ring's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Addresses {
    /// In the guest's monitor: descriptor table, used ring, available ring.
    user: [u64; 3],
    /// In the guest.
    guest: gangplank_rings::Addresses,
}

/// A ring's event descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The guest signals that buffers are available.
    Kick,
    /// The device signals that buffers are used.
    Call,
    /// The device signals that the ring is broken.
    Error,
}

/// One ring.
#[derive(Debug, Default)]
pub struct Ring {
    /// Its descriptors; 0 until SET_VRING_NUM.
    pub size: u16,
    addresses: Option<Addresses>,
    /// Index of the next available entry to take. It is right while the ring is stopped.
    pub base: u16,
    /// [`Signal::Kick`].
    pub kick: Option<OwnedFd>,
    /// [`Signal::Call`].
    pub call: Option<OwnedFd>,
    /// [`Signal::Error`].
    pub error: Option<OwnedFd>,
    /// SET_VRING_ENABLE has enabled it.
    pub enabled: bool,
    /// Another process works on it, or a thread of this one.
    pub is_started: bool,
    /// Its driver broke the ring's rules while this process worked on it.
    pub broken: bool,
}

impl Ring {
    /// Whether a daemon can start it: it is set up and enabled.
    pub fn is_ready(&self) -> bool {
        self.enabled && self.size > 0 && self.addresses.is_some() && self.kick.is_some()
    }

    /// The ring in the guest's memory; None if its size or addresses are missing.
    pub fn queue<'a>(&self, memory: &'a Memory, event_idx: bool) -> Option<SplitQueue<'a>> {
        SplitQueue::new(memory, self.addresses?.guest, self.size, event_idx)
    }

    /// SET_VRING_NUM; returns whether the size is allowed.
    pub fn set_size(&mut self, size: u32) -> bool {
        let possible = size.is_power_of_two() && size <= u32::from(MAX_RING_SIZE);
        if possible {
            self.size = u16::try_from(size).unwrap_or(0);
        }
        possible
    }

    /// SET_VRING_ADDR's payload behind the ring's number: flags, and the addresses of descriptor
    /// table, used ring, available ring, log. Returns whether the ring lies in `memory`.
    pub fn set_addresses(&mut self, payload: &[u8], memory: &Memory) -> bool {
        let word = |index: usize| {
            let bytes = payload.get(4 + index * 8..)?.first_chunk()?;
            Some(u64::from_le_bytes(*bytes))
        };
        let size = u64::from(self.size);
        let addresses = (|| {
            let user = [word(0)?, word(1)?, word(2)?];
            let [descriptors, used, available] = user;
            Some(Addresses {
                user,
                guest: gangplank_rings::Addresses {
                    descriptors: memory.guest_address(descriptors, size * 16)?,
                    used: memory.guest_address(used, 6 + size * 8)?,
                    available: memory.guest_address(available, 6 + size * 2)?,
                },
            })
        })();
        if addresses.is_some() {
            self.addresses = addresses;
            self.broken = false;
        }
        addresses.is_some()
    }

    /// SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR. Without a descriptor the guest polls, or
    /// wants no signal.
    pub fn set_signal(&mut self, signal: Signal, descriptor: Option<OwnedFd>) {
        let descriptor = descriptor.inspect(make_non_blocking);
        match signal {
            Signal::Kick => self.kick = descriptor,
            Signal::Call => self.call = descriptor,
            Signal::Error => self.error = descriptor,
        }
    }

    /// The payload of SET_VRING_ADDR for this ring. It has no log, which is not offered.
    pub fn encode_addresses(&self, index: u32) -> Option<Vec<u8>> {
        let [descriptor, used, available] = self.addresses?.user;
        Some(payload::encode(&VringAddr {
            index,
            descriptor,
            used,
            available,
            ..VringAddr::default()
        }))
    }

    /// Signals the guest that buffers are used.
    pub fn signal_call(&self) {
        signal(self.call.as_ref());
    }

    /// Has the process that works on the ring look at it.
    pub fn signal_kick(&self) {
        signal(self.kick.as_ref());
    }

    /// Signals the guest's monitor that the ring is broken.
    pub fn signal_error(&self) {
        signal(self.error.as_ref());
    }

    /// Resets the kick descriptor.
    pub fn take_kicks(&self) {
        if let Some(kick) = &self.kick {
            // It fails if there was no kick.
            let _ = rustix::io::read(kick, &mut [0; 8]);
        }
    }
}

/// The write fails on a full descriptor, which holds a signal already, and on a closed socket,
/// which has no reader.
fn signal(descriptor: Option<&OwnedFd>) {
    if let Some(descriptor) = descriptor {
        let _ = rustix::io::write(descriptor, &1u64.to_ne_bytes());
    }
}

/// The descriptors come from the guest and may be anything, so they must not block this process.
fn make_non_blocking(descriptor: &OwnedFd) {
    let descriptor = descriptor.as_fd();
    let set = rustix::fs::fcntl_getfl(descriptor)
        .and_then(|flags| rustix::fs::fcntl_setfl(descriptor, flags | OFlags::NONBLOCK));
    if let Err(error) = set {
        rate_limited!(
            warn,
            "cannot make a guest's notification descriptor non-blocking: {error}"
        );
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::super::memory::tests::memory;
    use super::*;

    fn payload(user: [u64; 3]) -> Vec<u8> {
        let mut payload = 0u32.to_le_bytes().to_vec();
        // User Mode Linux sends a log address of all ones.
        for word in user.into_iter().chain([u64::MAX]) {
            payload.extend_from_slice(&word.to_le_bytes());
        }
        payload
    }

    #[test]
    fn ring_is_ready_once_everything_is_told() {
        let (memory, _file) = memory(0x10_0000, 0x5000, 0x4000);
        let mut ring = Ring::default();
        assert!(ring.set_size(128));
        assert!(ring.set_addresses(&payload([0x5000, 0x6000, 0x7000]), &memory));
        let addresses = ring.addresses.unwrap().guest;
        assert_eq!(
            [addresses.descriptors, addresses.used, addresses.available],
            [0x10_0000, 0x10_1000, 0x10_2000]
        );
        ring.enabled = true;
        assert!(!ring.is_ready());
        let kick = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        ring.set_signal(Signal::Kick, Some(kick));
        assert!(ring.is_ready());
        ring.take_kicks();
        ring.signal_kick();
        ring.take_kicks();
        ring.take_kicks();
        let mut told = 7u32.to_le_bytes().to_vec();
        told.extend_from_slice(&payload([0x5000, 0x6000, 0x7000]));
        let len = told.len();
        told[len - 8..].fill(0);
        assert_eq!(ring.encode_addresses(7).unwrap(), told);
    }

    #[test]
    fn sizes_are_powers_of_two_up_to_the_greatest() {
        let mut ring = Ring::default();
        for size in [0, 3, 65536, 1 << 31, u32::MAX] {
            assert!(!ring.set_size(size), "{size}");
        }
        assert!(ring.set_size(32768) && ring.size == 32768);
    }

    #[test]
    fn rings_outside_memory_or_cut_off_are_refused() {
        let (memory, _file) = memory(0, 0x5000, 0x4000);
        let mut ring = Ring::default();
        ring.set_size(256);
        for user in [
            [0x4000, 0x6000, 0x7000],
            [0x8001, 0x6000, 0x7000],
            [0x5000, 0x8fff, 0x7000],
            [0x5000, 0x6000, u64::MAX],
        ] {
            assert!(!ring.set_addresses(&payload(user), &memory), "{user:x?}");
        }
        let whole = payload([0x5000, 0x6000, 0x7000]);
        assert!(!ring.set_addresses(&whole[..27], &memory));
        assert!(ring.addresses.is_none());
    }
}
