//! The names of the control registers (virtio 1.2, 4.2.2, table 4.1).

/// A control register, by its offset in the window. All are 32 bits wide and accessed as such.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
#[allow(missing_docs)] // the specification's names
pub enum Register {
    MagicValue = 0x000,
    Version = 0x004,
    DeviceId = 0x008,
    VendorId = 0x00c,
    DeviceFeatures = 0x010,
    DeviceFeaturesSel = 0x014,
    DriverFeatures = 0x020,
    DriverFeaturesSel = 0x024,
    QueueSel = 0x030,
    QueueNumMax = 0x034,
    QueueNum = 0x038,
    QueueReady = 0x044,
    QueueNotify = 0x050,
    InterruptStatus = 0x060,
    InterruptAck = 0x064,
    Status = 0x070,
    QueueDescLow = 0x080,
    QueueDescHigh = 0x084,
    QueueDriverLow = 0x090,
    QueueDriverHigh = 0x094,
    QueueDeviceLow = 0x0a0,
    QueueDeviceHigh = 0x0a4,
    ShmSel = 0x0ac,
    ShmLenLow = 0x0b0,
    ShmLenHigh = 0x0b4,
    ShmBaseLow = 0x0b8,
    ShmBaseHigh = 0x0bc,
    ConfigGeneration = 0x0fc,
}

impl Register {
    /// Every register. `QueueReset` is missing: it needs VIRTIO_F_RING_RESET, which is never
    /// offered.
    pub const ALL: [Self; 28] = [
        Self::MagicValue,
        Self::Version,
        Self::DeviceId,
        Self::VendorId,
        Self::DeviceFeatures,
        Self::DeviceFeaturesSel,
        Self::DriverFeatures,
        Self::DriverFeaturesSel,
        Self::QueueSel,
        Self::QueueNumMax,
        Self::QueueNum,
        Self::QueueReady,
        Self::QueueNotify,
        Self::InterruptStatus,
        Self::InterruptAck,
        Self::Status,
        Self::QueueDescLow,
        Self::QueueDescHigh,
        Self::QueueDriverLow,
        Self::QueueDriverHigh,
        Self::QueueDeviceLow,
        Self::QueueDeviceHigh,
        Self::ShmSel,
        Self::ShmLenLow,
        Self::ShmLenHigh,
        Self::ShmBaseLow,
        Self::ShmBaseHigh,
        Self::ConfigGeneration,
    ];

    /// The register that begins at `offset`, if one does.
    pub fn at(offset: u64) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|register| register.offset() == offset)
    }

    /// Bytes from the start of the window.
    pub const fn offset(self) -> u64 {
        self as u64
    }
}
