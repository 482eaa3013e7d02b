//! The registers of one virtqueue.

use super::device::ReadyQueue;
use crate::hypervisor::GuestRange;

/// What the driver has written about one split virtqueue.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct QueueRegisters {
    /// Entries, as written. Checked when the queue is made ready.
    pub size: u32,
    /// The descriptor area.
    pub descriptors: u64,
    /// The driver area: the available ring.
    pub available: u64,
    /// The device area: the used ring.
    pub used: u64,
    /// Whether the driver has made it ready. The fields above do not change while it is.
    pub ready: bool,
    /// Whether the driver's last attempt to make it ready has failed.
    pub refused: bool,
}

/// Why a queue cannot be made ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum QueueError {
    #[error("its size {size} is not a power of two from 1 to {max}")]
    Size { size: u32, max: u16 },
    #[error("its {area} at {address:#x} is not aligned to {alignment}")]
    Alignment {
        area: &'static str,
        address: u64,
        alignment: u64,
    },
    #[error("its {area} at {address:#x} lies outside the shared memory {memory}")]
    Outside {
        area: &'static str,
        address: u64,
        memory: GuestRange,
    },
}

impl QueueError {
    /// The most likely reason, for the log.
    pub(super) const fn hint(self) -> &'static str {
        match self {
            Self::Outside { .. } => {
                "; the guest's kernel needs CONFIG_DMA_RESTRICTED_POOL, and the device's node a \
                 memory-region"
            }
            Self::Size { .. } | Self::Alignment { .. } => "",
        }
    }
}

impl QueueRegisters {
    /// Checks the registers against the largest size and the shared memory. Returns queue `index`
    /// for the device. Lengths and alignments: virtio 1.2, 2.7.
    pub(super) fn validate(
        &self,
        index: u16,
        max: u16,
        memory: GuestRange,
    ) -> Result<ReadyQueue, QueueError> {
        let size = match u16::try_from(self.size) {
            Ok(size) if size <= max && size.is_power_of_two() => size,
            _ => {
                return Err(QueueError::Size {
                    size: self.size,
                    max,
                });
            }
        };
        let entries = u64::from(size);
        let areas = [
            ("descriptor area", self.descriptors, 16, 16 * entries),
            ("driver area", self.available, 2, 6 + 2 * entries),
            ("device area", self.used, 4, 6 + 8 * entries),
        ];
        for (area, address, alignment, len) in areas {
            if !address.is_multiple_of(alignment) {
                return Err(QueueError::Alignment {
                    area,
                    address,
                    alignment,
                });
            }
            if !memory.contains(address, len) {
                return Err(QueueError::Outside {
                    area,
                    address,
                    memory,
                });
            }
        }
        Ok(ReadyQueue {
            index,
            size,
            descriptors: self.descriptors,
            available: self.available,
            used: self.used,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::QueueRegisters as Queue;
    use super::*;

    const BASE: u64 = 0x1000_0000;
    const GOOD: Queue = Queue {
        size: 256,
        descriptors: BASE,
        available: BASE + 4096,
        used: BASE + 8192,
        ready: false,
        refused: false,
    };

    fn fit(queue: Queue) -> Result<ReadyQueue, QueueError> {
        queue.validate(1, 1024, GuestRange::new(BASE, 16384).unwrap())
    }

    #[test]
    fn good_queue_fits() {
        let ready = fit(GOOD).unwrap();
        assert_eq!((ready.index, ready.size), (1, 256));
        assert_eq!(ready.used, GOOD.used);
    }

    #[test]
    fn sizes_that_cannot_be_do_not_fit() {
        for size in [0, 3, 2048, 0x1_0000, 0x1_0100, u32::MAX] {
            let queue_error = fit(Queue { size, ..GOOD });
            assert_eq!(queue_error, Err(QueueError::Size { size, max: 1024 }));
        }
    }

    #[test]
    fn each_area_has_its_alignment() {
        let wrong = [
            (
                Queue {
                    descriptors: BASE + 8,
                    ..GOOD
                },
                16,
            ),
            (
                Queue {
                    available: BASE + 1,
                    ..GOOD
                },
                2,
            ),
            (
                Queue {
                    used: BASE + 2,
                    ..GOOD
                },
                4,
            ),
        ];
        for (queue, wanted) in wrong {
            let Err(QueueError::Alignment { alignment, .. }) = fit(queue) else {
                panic!("{queue:?} fits");
            };
            assert_eq!(alignment, wanted);
        }
    }

    #[test]
    fn no_area_may_leave_the_shared_memory_by_a_byte() {
        let end = BASE + 16384;
        let last_used = (end - (6 + 8 * 256)) & !3;
        assert!(
            fit(Queue {
                used: last_used,
                ..GOOD
            })
            .is_ok()
        );
        for queue in [
            Queue {
                used: last_used + 4,
                ..GOOD
            },
            Queue {
                descriptors: BASE - 16,
                ..GOOD
            },
            Queue {
                available: 0,
                ..GOOD
            },
            Queue {
                available: u64::MAX - 1,
                ..GOOD
            },
        ] {
            assert!(matches!(fit(queue), Err(QueueError::Outside { .. })));
        }
    }
}
