//! The interface of each generation of Bao's remote I/O driver, as the driver defines it.
//!
//! This is a second copy on purpose: the tests compare the device model's own table with it.
//! Sources: the I/O dispatcher of bao-project/bao-linux-drivers (generation B) and the kernel
//! patches of joaopeixoto13/bao-demos-virtio (A).

/// The type byte of every call, in bits 8 to 15 of its number.
pub const TYPE: u32 = 0xa6;

/// The guest writes.
pub const WRITE: u64 = 0;
/// The guest reads.
pub const READ: u64 = 1;
/// A completion with this op raises the device's interrupt line, and completes nothing.
pub const NOTIFY: u64 = 3;

/// ioeventfd: only a write of its data signals it.
pub const DATAMATCH: u32 = 2;
/// ioeventfd: remove it.
pub const IOEVENTFD_DEASSIGN: u32 = 4;
/// irqfd: remove it.
pub const IRQFD_DEASSIGN: u32 = 1;

/// The 64-bit words of a request that every generation has. The driver owns the rest.
pub mod word {
    /// The device.
    pub const ID: usize = 0;
    /// Guest physical address.
    pub const ADDR: usize = 1;
    /// The operation.
    pub const OP: usize = 2;
    /// The value of a write, or the result of a read.
    pub const VALUE: usize = 3;
    /// The width in bytes.
    pub const WIDTH: usize = 4;
    /// The slot. It is the first of the words that identify the request.
    pub const PLACE: usize = 5;
}

/// A request: 8 words, of which generation B has the first 6.
pub type Request = [u64; 8];

/// A generation of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abi {
    /// Its common name.
    pub name: &'static str,
    /// Whether the call on the node creates the device model. Otherwise the call describes it.
    pub creates: bool,
    /// On the node: create, which returns the descriptor, or get info, which writes it into its
    /// argument.
    pub open: u32,
    /// On the node: destroy.
    pub destroy: Option<u32>,
    /// On a device: wait for a request.
    pub attach: u32,
    /// On a device: complete a request.
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

/// Mid 2024, in bao-virtio and its demonstrations.
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

/// Later in 2024: A without NOTIFY.
pub const A_PRIME: Abi = Abi {
    name: "A'",
    notify: None,
    ioeventfd: 0x4020_a605,
    irqfd: 0x4008_a606,
    ..A
};

/// Since October 2024, in bao-linux-drivers.
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

/// Shortly before B: B with A's requests.
pub const B_PRIME: Abi = Abi {
    name: "B'",
    attach: 0xc040_a602,
    complete: 0x4040_a603,
    ..B
};

impl Abi {
    /// The length of a request in bytes.
    #[must_use]
    pub const fn request_len(&self) -> usize {
        argument_len(self.attach)
    }

    /// The errno of a wait for a request that a signal interrupts. The driver returns EEXIST or
    /// EFAULT instead of EINTR.
    #[must_use]
    pub const fn interrupted(&self) -> rustix::io::Errno {
        if self.creates {
            rustix::io::Errno::EXIST
        } else {
            rustix::io::Errno::FAULT
        }
    }

    /// The words that identify a request, for its slot in the hypervisor, which another request
    /// reuses as soon as it is free. Where the layout has room, `number` makes them unique.
    #[must_use]
    pub const fn own_words(&self, fixture: u64, number: u64) -> [u64; 3] {
        match self.request_len() {
            48 => [fixture, 0, 0],
            // CPU, virtual CPU, and the number of pending requests: 32 bits each, then
            // uninitialised padding.
            _ => [fixture, fixture, number << 32 | 1],
        }
    }
}

/// The length of the argument that a call's number encodes, in bytes.
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
