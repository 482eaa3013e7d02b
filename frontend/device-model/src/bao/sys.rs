//! The interface of Bao's remote I/O driver: call numbers and structures of each generation.
//!
//! Sources: the I/O dispatcher driver of bao-project/bao-linux-drivers (generation B) and the
//! kernel patches of joaopeixoto13/bao-demos-virtio (A). All integers are little-endian, as on
//! every machine that Bao runs on, and naturally aligned.

use std::mem::{offset_of, size_of};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The number of an ioctl. It includes the size of the argument.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Call(u32);

/// The direction of an argument, as the kernel's `_IOC` macros encode it.
const READ: u32 = 2;
const WRITE: u32 = 1;

impl Call {
    /// The type byte of all calls.
    pub(crate) const TYPE: u32 = 0xa6;

    const fn new(direction: u32, number: u32, size: usize) -> Self {
        assert!(size <= 64 && number < 0x100, "no call of this driver");
        #[allow(clippy::cast_possible_truncation)] // asserted to be small
        Self(direction << 30 | (size as u32) << 16 | Self::TYPE << 8 | number)
    }

    /// The number.
    pub(super) const fn code(self) -> u32 {
        self.0
    }

    /// Bytes that the driver reads from its argument, or writes to it.
    pub(super) const fn size(self) -> usize {
        (self.0 >> 16 & 0x3fff) as usize
    }
}

/// A guest's access, generations A and A'.
#[repr(C)]
#[allow(dead_code)] // it is handled by words: see `word`
pub(super) struct RequestA {
    virtio_id: u64,
    addr: u64,
    op: u64,
    value: u64,
    access_width: u64,
    cpu_id: u64,
    vcpu_id: u64,
    ret: i32,
    padding: u32,
}

/// A guest's access, generation B'.
#[repr(C)]
#[allow(dead_code)] // it is handled by words: see `word`
pub(super) struct RequestBPrime {
    dm_id: u64,
    addr: u64,
    op: u64,
    value: u64,
    access_width: u64,
    cpu_id: u64,
    vcpu_id: u64,
    ret: i32,
    padding: u32,
}

/// A guest's access, generation B.
#[repr(C)]
#[allow(dead_code)] // it is handled by words: see `word`
pub(super) struct RequestB {
    dm_id: u64,
    addr: u64,
    op: u64,
    value: u64,
    access_width: u64,
    request_id: u64,
}

/// Generation B's description of a device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
pub(super) struct Info {
    pub(super) id: u32,
    pub(super) padding_0: u32,
    pub(super) shmem_addr: u64,
    pub(super) shmem_size: u64,
    pub(super) irq: u32,
    pub(super) fd: i32,
}

/// A range of addresses, and the eventfd that a guest's store to it signals.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
pub(super) struct Ioeventfd {
    pub(super) fd: u32,
    pub(super) flags: u32,
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) reserved: u32,
    pub(super) data: u64,
}

/// An eventfd that raises the device's interrupt line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
pub(super) struct Irqfd {
    pub(super) fd: i32,
    pub(super) flags: u32,
}

/// Which 64-bit word of a request is which, in every generation. The other words are given back as
/// they came.
pub(super) mod word {
    pub(crate) const ADDR: usize = 1;
    pub(crate) const OP: usize = 2;
    pub(crate) const VALUE: usize = 3;
    pub(crate) const ACCESS_WIDTH: usize = 4;
    /// What the hypervisor finds the request by: the request's number, or the CPU's and the virtual
    /// CPU's. Words that a generation does not have stay 0.
    pub(crate) const SLOT: std::ops::Range<usize> = 5..7;
}

const _: () = {
    assert!(size_of::<RequestA>() == 64 && size_of::<RequestBPrime>() == 64);
    assert!(size_of::<RequestB>() == 48);
    assert!(size_of::<Info>() == 32 && size_of::<Ioeventfd>() == 32 && size_of::<Irqfd>() == 8);

    assert!(offset_of!(RequestA, virtio_id) == 0 && offset_of!(RequestB, dm_id) == 0);
    assert!(offset_of!(RequestA, addr) == 8 * word::ADDR);
    assert!(offset_of!(RequestA, op) == 8 * word::OP);
    assert!(offset_of!(RequestA, value) == 8 * word::VALUE);
    assert!(offset_of!(RequestA, access_width) == 8 * word::ACCESS_WIDTH);
    assert!(offset_of!(RequestA, cpu_id) == 40 && offset_of!(RequestA, vcpu_id) == 48);
    assert!(offset_of!(RequestA, ret) == 56 && offset_of!(RequestA, padding) == 60);
    assert!(offset_of!(RequestBPrime, dm_id) == 0);
    assert!(offset_of!(RequestBPrime, addr) == 8 * word::ADDR);
    assert!(offset_of!(RequestBPrime, op) == 8 * word::OP);
    assert!(offset_of!(RequestBPrime, value) == 8 * word::VALUE);
    assert!(offset_of!(RequestBPrime, access_width) == 8 * word::ACCESS_WIDTH);
    assert!(offset_of!(RequestBPrime, cpu_id) == 40 && offset_of!(RequestBPrime, vcpu_id) == 48);
    assert!(offset_of!(RequestBPrime, ret) == 56 && offset_of!(RequestBPrime, padding) == 60);
    assert!(offset_of!(RequestB, addr) == 8 * word::ADDR);
    assert!(offset_of!(RequestB, op) == 8 * word::OP);
    assert!(offset_of!(RequestB, value) == 8 * word::VALUE);
    assert!(offset_of!(RequestB, access_width) == 8 * word::ACCESS_WIDTH);
    assert!(offset_of!(RequestB, request_id) == 40);

    assert!(offset_of!(Info, id) == 0 && offset_of!(Info, padding_0) == 4);
    assert!(offset_of!(Info, shmem_addr) == 8 && offset_of!(Info, shmem_size) == 16);
    assert!(offset_of!(Info, irq) == 24 && offset_of!(Info, fd) == 28);
    assert!(offset_of!(Ioeventfd, fd) == 0 && offset_of!(Ioeventfd, flags) == 4);
    assert!(offset_of!(Ioeventfd, addr) == 8 && offset_of!(Ioeventfd, len) == 16);
    assert!(offset_of!(Ioeventfd, reserved) == 20 && offset_of!(Ioeventfd, data) == 24);
    assert!(offset_of!(Irqfd, fd) == 0 && offset_of!(Irqfd, flags) == 4);
};

/// What a request is for.
pub(super) mod op {
    pub(crate) const WRITE: u64 = 0;
    pub(crate) const READ: u64 = 1;
    // 2 is in the argument of ATTACH before the driver fills it: see the journal. COMPLETE with it
    // would make the hypervisor lose a request.
}

/// `Ioeventfd::flags`: only stores of exactly `data` signal.
pub(super) const IOEVENTFD_DATAMATCH: u32 = 2;

/// `Ioeventfd::flags`: undo. Every generation's driver then goes on to assign the entry again,
/// unless it refuses `len`.
pub(super) const IOEVENTFD_DEASSIGN: u32 = 4;

/// `Irqfd::flags`: undo.
pub(super) const IRQFD_DEASSIGN: u32 = 1;

/// How the driver gives a device model out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Family {
    /// CREATE: the call's result is the descriptor.
    Created,
    /// GET_INFO: the driver knows the device from the device tree, and its description has a
    /// descriptor.
    Described,
}

/// The calls of one generation.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Abi {
    pub(super) name: &'static str,
    pub(super) family: Family,
    pub(super) attach: Call,
    pub(super) complete: Call,
    pub(super) ioeventfd: Call,
    pub(super) irqfd: Call,
}

/// Gets a device model of [`Family::Created`]; its argument is the id, 32 bits.
pub(super) const CREATE: Call = Call::new(WRITE, 1, size_of::<u32>());

/// Gets a device model of [`Family::Described`]; its argument is [`Info`].
pub(super) const GET_INFO: Call = Call::new(READ | WRITE, 1, size_of::<Info>());

/// Every generation, in the order in which they are tried. No number has two meanings in two of
/// them, but A and A' share ATTACH: IOEVENTFD tells those apart.
pub(super) static GENERATIONS: [Abi; 4] = [
    Abi {
        name: "B (bao-linux-drivers, October 2024 and later)",
        family: Family::Described,
        attach: Call::new(READ | WRITE, 2, size_of::<RequestB>()),
        complete: Call::new(WRITE, 3, size_of::<RequestB>()),
        ioeventfd: Call::new(WRITE, 4, size_of::<Ioeventfd>()),
        irqfd: Call::new(WRITE, 5, size_of::<Irqfd>()),
    },
    Abi {
        name: "B' (September 2024)",
        family: Family::Described,
        attach: Call::new(READ | WRITE, 2, size_of::<RequestBPrime>()),
        complete: Call::new(WRITE, 3, size_of::<RequestBPrime>()),
        ioeventfd: Call::new(WRITE, 4, size_of::<Ioeventfd>()),
        irqfd: Call::new(WRITE, 5, size_of::<Irqfd>()),
    },
    Abi {
        name: "A (bao-virtio, May 2024)",
        family: Family::Created,
        attach: Call::new(READ | WRITE, 3, size_of::<RequestA>()),
        complete: Call::new(WRITE, 4, size_of::<RequestA>()),
        ioeventfd: Call::new(WRITE, 6, size_of::<Ioeventfd>()),
        irqfd: Call::new(WRITE, 7, size_of::<Irqfd>()),
    },
    Abi {
        name: "A' (August 2024)",
        family: Family::Created,
        attach: Call::new(READ | WRITE, 3, size_of::<RequestA>()),
        complete: Call::new(WRITE, 4, size_of::<RequestA>()),
        ioeventfd: Call::new(WRITE, 5, size_of::<Ioeventfd>()),
        irqfd: Call::new(WRITE, 6, size_of::<Irqfd>()),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_drivers() {
        assert_eq!(CREATE.code(), 0x4004_a601);
        assert_eq!(GET_INFO.code(), 0xc020_a601);
        let codes = GENERATIONS
            .each_ref()
            .map(|abi| [abi.attach, abi.complete, abi.ioeventfd, abi.irqfd].map(Call::code));
        assert_eq!(
            codes[0],
            [0xc030_a602, 0x4030_a603, 0x4020_a604, 0x4008_a605]
        );
        assert_eq!(
            codes[1],
            [0xc040_a602, 0x4040_a603, 0x4020_a604, 0x4008_a605]
        );
        assert_eq!(
            codes[2],
            [0xc040_a603, 0x4040_a604, 0x4020_a606, 0x4008_a607]
        );
        assert_eq!(
            codes[3],
            [0xc040_a603, 0x4040_a604, 0x4020_a605, 0x4008_a606]
        );
    }

    #[test]
    fn sizes_are_read_back_from_the_numbers() {
        assert_eq!(CREATE.size(), 4);
        assert_eq!(GET_INFO.size(), 32);
        assert_eq!(GENERATIONS[0].attach.size(), 48);
        assert_eq!(GENERATIONS[2].complete.size(), 64);
        assert_eq!(GENERATIONS[3].irqfd.size(), 8);
    }
}
