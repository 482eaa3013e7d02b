//! Feature bits between guest and device (virtio 1.2, 6).

use bitflags::bitflags;

bitflags! {
    /// Feature bits with the same meaning for every device type.
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    pub struct FeatureBits: u64 {
        /// Descriptors may point at tables of descriptors.
        const INDIRECT_DESC = 1 << 28;
        /// Each side says when it wants a notification, which saves traps.
        const EVENT_IDX = 1 << 29;
        /// The device is not a legacy one.
        const VERSION_1 = 1 << 32;
        /// Addresses in rings are what the guest's platform assigns for the device. Without this
        /// bit a Linux guest puts its rings into memory that it does not share.
        const ACCESS_PLATFORM = 1 << 33;
        /// Buffers are used in the order in which they were made available.
        const IN_ORDER = 1 << 35;
    }
}

impl FeatureBits {
    /// The bits that a driver must accept.
    pub const REQUIRED: u64 = Self::VERSION_1.union(Self::ACCESS_PLATFORM).bits();

    /// Bits of the device type: 0 to 23 and 50 to 127. Those from 64 on are never offered.
    const DEVICE_TYPE: u64 = 0x00ff_ffff | (u64::MAX << 50);

    /// Bits of the transport and the rings that the guest sees if the device offers them. Missing
    /// on purpose: 26 and 30, which are vhost's own; 34, because ring state is saved for split
    /// rings; 38 and 40, because queues are kicked and reset in the plain way only; 36, because
    /// guest and device are cache-coherent.
    const PASSED_ON: u64 = Self::INDIRECT_DESC
        .union(Self::EVENT_IDX)
        .union(Self::IN_ORDER)
        .bits();

    /// The bits that the guest sees of a device that offers `device`.
    pub const fn offered(device: u64) -> u64 {
        device & (Self::DEVICE_TYPE | Self::PASSED_ON) | Self::REQUIRED
    }

    /// Whether a driver may accept `driver` if it was offered `offered`.
    pub const fn acceptable(driver: u64, offered: u64) -> bool {
        driver & !offered == 0 && driver & Self::REQUIRED == Self::REQUIRED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vhosts_own_bits_are_kept_from_the_guest() {
        let virtiofsd = 1 << 26 | 1 << 28 | 1 << 29 | 1 << 30 | 1 << 32;
        assert_eq!(
            FeatureBits::offered(virtiofsd),
            1 << 28 | 1 << 29 | 1 << 32 | 1 << 33
        );
    }

    #[test]
    fn everything_is_reduced_to_what_can_be_served() {
        let offered = FeatureBits::offered(u64::MAX);
        for bit in [24, 25, 26, 27, 30, 31, 34, 36, 37, 38, 39, 40, 41, 49] {
            assert_eq!(offered & 1 << bit, 0, "bit {bit}");
        }
        for bit in [0, 23, 28, 29, 32, 33, 35, 50, 63] {
            assert_ne!(offered & 1 << bit, 0, "bit {bit}");
        }
    }

    #[test]
    fn drivers_need_both_required_bits_and_none_that_was_not_offered() {
        let offered = FeatureBits::offered(1 << 28);
        assert!(FeatureBits::acceptable(FeatureBits::REQUIRED, offered));
        assert!(FeatureBits::acceptable(offered, offered));
        assert!(!FeatureBits::acceptable(1 << 32, offered));
        assert!(!FeatureBits::acceptable(1 << 33, offered));
        assert!(!FeatureBits::acceptable(offered | 1 << 29, offered));
    }
}
