//! The interface of Bao's remote I/O driver, each generation of it, as the driver has it.
//!
//! Written down a second time on purpose: the device model's own table is what these numbers are to
//! try. Sources: the I/O dispatcher of bao-project/bao-linux-drivers (generation B), the kernel
//! patches of joaopeixoto13/bao-demos-virtio (A).

/// The type byte of every call, in bits 8 to 15 of its number.
pub const TYPE: u32 = 0xa6;

/// The guest writes.
pub const WRITE: u64 = 0;
/// The guest reads.
pub const READ: u64 = 1;
/// A completion with this op raises the device's interrupt line, and completes nothing.
pub const NOTIFY: u64 = 3;

/// Of an ioeventfd: only writes of its data signal it.
pub const DATAMATCH: u32 = 2;
/// Of an ioeventfd: it is to be taken away.
pub const IOEVENTFD_DEASSIGN: u32 = 4;
/// Of an irqfd: it is to be taken away.
pub const IRQFD_DEASSIGN: u32 = 1;

/// Which 64-bit word of a request is which, in every generation. The rest is the driver's own.
pub mod word {
    /// The device.
    pub const ID: usize = 0;
    /// Guest physical address.
    pub const ADDR: usize = 1;
    /// What the guest does.
    pub const OP: usize = 2;
    /// What it writes, or what a read is answered with.
    pub const VALUE: usize = 3;
    /// Bytes.
    pub const WIDTH: usize = 4;
    /// The place that it takes: the first of those that say which request it is.
    pub const PLACE: usize = 5;
}

/// A request: 8 words, of which generation B has the first 6.
pub type Request = [u64; 8];

/// A generation of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abi {
    /// As people call it.
    pub name: &'static str,
    /// Device models are created by the call on the node, not described by it.
    pub creates: bool,
    /// On the node: create, which returns the descriptor, or get info, which puts it into its
    /// argument.
    pub open: u32,
    /// On the node: destroy.
    pub destroy: Option<u32>,
    /// On a device: wait for a request.
    pub attach: u32,
    /// On a device: give it back.
    pub complete: u32,
    /// On a device: raise the interrupt line.
    pub notify: Option<u32>,
    /// On a device: an eventfd for the guest's stores.
    pub ioeventfd: u32,
    /// On a device: an eventfd that raises the interrupt line.
    pub irqfd: u32,
}

/// Create, A and A'.
const CREATE: u32 = 0x4004_a601;
/// Destroy, A and A'.
const DESTROY: u32 = 0x4004_a602;
/// Get info, B and B'.
const GET_INFO: u32 = 0xc020_a601;

/// Mid 2024: bao-virtio and its demonstrations.
pub const A: Abi = Abi {
    name: "A",
    creates: true,
    open: CREATE,
    destroy: Some(DESTROY),
    attach: 0xc040_a603,
    complete: 0x4040_a604,
    notify: Some(0x0000_a605),
    ioeventfd: 0x4020_a606,
    irqfd: 0x4008_a607,
};

/// A little later: A without NOTIFY.
pub const A_PRIME: Abi = Abi {
    name: "A'",
    notify: None,
    ioeventfd: 0x4020_a605,
    irqfd: 0x4008_a606,
    ..A
};

/// Since October 2024: bao-linux-drivers.
pub const B: Abi = Abi {
    name: "B",
    creates: false,
    open: GET_INFO,
    destroy: None,
    attach: 0xc030_a602,
    complete: 0x4030_a603,
    notify: None,
    ioeventfd: 0x4020_a604,
    irqfd: 0x4008_a605,
};

/// Just before: B with A's requests.
pub const B_PRIME: Abi = Abi {
    name: "B'",
    attach: 0xc040_a602,
    complete: 0x4040_a603,
    ..B
};

impl Abi {
    /// Bytes of a request.
    #[must_use]
    pub const fn request_len(&self) -> usize {
        argument_len(self.attach)
    }

    /// What a signal makes of a wait for a request, by whatever the driver does instead of saying
    /// so: EEXIST or EFAULT.
    #[must_use]
    pub const fn interrupted(&self) -> rustix::io::Errno {
        if self.creates {
            rustix::io::Errno::EXIST
        } else {
            rustix::io::Errno::FAULT
        }
    }

    /// The words that say which request it is, by the place that it takes in the hypervisor: a
    /// number that is another's as soon as it is free. Where there is room for it, `number` makes
    /// it unlike all others.
    #[must_use]
    pub const fn own_words(&self, fixture: u64, number: u64) -> [u64; 3] {
        match self.request_len() {
            48 => [fixture, 0, 0],
            // CPU, virtual CPU, and how many are pending behind it: 32 bits, then padding with
            // whatever was there.
            _ => [fixture, fixture, number << 32 | 1],
        }
    }
}

/// Bytes of the argument that a call's number tells of.
#[must_use]
pub const fn argument_len(call: u32) -> usize {
    (call >> 16 & 0x3fff) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_as_long_as_published() {
        assert_eq!(
            [A, A_PRIME, B_PRIME, B].map(|abi| abi.request_len()),
            [64, 64, 64, 48]
        );
        assert_eq!(
            [A, A_PRIME, B_PRIME, B].map(|abi| argument_len(abi.ioeventfd)),
            [32; 4]
        );
        assert_eq!(
            [A, A_PRIME, B_PRIME, B].map(|abi| argument_len(abi.irqfd)),
            [8; 4]
        );
    }
}
