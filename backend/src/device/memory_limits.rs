//! The limits of one guest's memory, checked before anything is mapped.
//!
//! vhost-user-backend maps the regions of a message before the device can check them. So the
//! forwarder checks SET_MEM_TABLE, ADD_MEM_REG and SET_LOG_BASE as they pass, and counts what the
//! messages so far have set up. It need not see their acknowledgements: vhost-user-backend 0.24
//! ends the connection after the first message that it refuses.

use super::options::Options;
use super::recorder::log_area;

/// Request number of `VHOST_USER_SET_MEM_TABLE`.
const SET_MEM_TABLE: u32 = 5;

/// Request number of `VHOST_USER_SET_LOG_BASE`.
const SET_LOG_BASE: u32 = 6;

/// Request number of `VHOST_USER_GET_MAX_MEM_SLOTS`.
const GET_MAX_MEM_SLOTS: u32 = 36;

/// Request number of `VHOST_USER_ADD_MEM_REG`.
const ADD_MEM_REG: u32 = 37;

/// Request number of `VHOST_USER_REM_MEM_REG`.
const REM_MEM_REG: u32 = 38;

/// Bytes before the regions of each of these messages: their number, or padding.
const REGIONS_OFFSET: usize = 8;

/// Bytes of a region: guest address, size, user address and file offset, 8 bytes each.
const REGION_LEN: usize = 32;

/// Bytes of guest addresses for which one byte of the bitmap of dirty pages stands: 8 pages
/// (vhost-user, "Migration": `VHOST_LOG_PAGE`).
const LOGGED_BY_BYTE: u64 = 8 * 4096;

/// Guest addresses without memory that the bitmap of dirty pages covers as well, in bytes: QEMU
/// moves what is above 4 GiB behind the hole that AMD's processors have below 1 TiB.
const MAX_HOLES: u64 = 1 << 40;

/// How much memory one guest may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemoryLimits {
    /// Most bytes.
    pub(super) bytes: u64,
    /// Most regions.
    pub(super) regions: usize,
}

impl From<&Options> for MemoryLimits {
    fn from(options: &Options) -> Self {
        Self {
            bytes: options.max_guest_memory,
            regions: options.max_memory_regions.into(),
        }
    }
}

impl MemoryLimits {
    /// Most bytes of the bitmap of dirty pages.
    const fn log_bytes(self) -> u64 {
        self.bytes
            .saturating_add(MAX_HOLES)
            .div_ceil(LOGGED_BY_BYTE)
    }
}

/// A message would exceed a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitExceeded {
    /// Of bytes.
    #[error(
        "the guest has more than {limit} bytes of memory, the most that a guest may have; raise \
         --max-guest-memory if that is not enough"
    )]
    Bytes {
        /// The most bytes.
        limit: u64,
    },
    /// Of the bitmap of dirty pages.
    #[error(
        "the frontend's bitmap of dirty pages has {size} bytes, and at most {limit} are permitted; \
         raise --max-guest-memory if that is not enough"
    )]
    Log {
        /// The bitmap's bytes.
        size: u64,
        /// The most bytes.
        limit: u64,
    },
    /// Of regions.
    #[error(
        "the guest's memory has {regions} regions, and at most {limit} are permitted; raise \
         --max-memory-regions if that is not enough"
    )]
    Regions {
        /// The regions that there would be.
        regions: usize,
        /// The most regions.
        limit: usize,
    },
}

/// Checks the messages of one frontend.
pub(super) struct MemoryCheck {
    limits: MemoryLimits,
    /// The regions that are mapped once the messages so far have been carried out.
    regions: Vec<Region>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    /// Guest physical address.
    address: u64,
    /// Length in bytes.
    len: u64,
}

impl MemoryCheck {
    /// For a frontend that has not sent any message.
    pub(super) const fn new(limits: MemoryLimits) -> Self {
        Self {
            limits,
            regions: Vec::new(),
        }
    }

    /// Checks a message of the frontend.
    ///
    /// Messages of a wrong length change nothing here; vhost-user-backend refuses them.
    ///
    /// # Errors
    /// The guest would have more memory or regions than permitted. The message must not be carried
    /// out.
    pub(super) fn check(&mut self, request: u32, payload: &[u8]) -> Result<(), LimitExceeded> {
        match request {
            SET_MEM_TABLE => {
                self.regions.clear();
                self.add(payload)
            }
            ADD_MEM_REG => self.add(payload),
            SET_LOG_BASE => {
                let size = log_area(payload).map_or(0, |[size, _]| size);
                let limit = self.limits.log_bytes();
                match size <= limit {
                    true => Ok(()),
                    false => Err(LimitExceeded::Log { size, limit }),
                }
            }
            REM_MEM_REG => {
                for removed in regions_of(payload) {
                    self.regions.retain(|region| *region != removed);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Lowers the number in vhost-user-backend's reply to GET_MAX_MEM_SLOTS to the limit, so that
    /// the frontend knows it.
    pub(super) fn limit_slots(&self, request: u32, payload: &mut [u8]) {
        if request == GET_MAX_MEM_SLOTS
            && let Some(slots) = payload.first_chunk_mut()
        {
            let limit = u64::try_from(self.limits.regions).unwrap_or(u64::MAX);
            *slots = u64::from_le_bytes(*slots).min(limit).to_le_bytes();
        }
    }

    fn add(&mut self, payload: &[u8]) -> Result<(), LimitExceeded> {
        self.regions.extend(regions_of(payload));
        let MemoryLimits { bytes, regions } = self.limits;
        if self.regions.len() > regions {
            return Err(LimitExceeded::Regions {
                regions: self.regions.len(),
                limit: regions,
            });
        }
        let mut total = Some(0_u64);
        for region in &self.regions {
            total = total.and_then(|total| total.checked_add(region.len));
        }
        if total.is_none_or(|total| total > bytes) {
            return Err(LimitExceeded::Bytes { limit: bytes });
        }
        Ok(())
    }
}

/// The regions in a message's payload.
fn regions_of(payload: &[u8]) -> impl Iterator<Item = Region> {
    let regions = payload.get(REGIONS_OFFSET..).unwrap_or_default();
    regions.chunks_exact(REGION_LEN).filter_map(|region| {
        let (address, rest) = region.split_first_chunk()?;
        Some(Region {
            address: u64::from_le_bytes(*address),
            len: u64::from_le_bytes(*rest.first_chunk()?),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The payload of a message with regions of these guest addresses and lengths.
    fn payload(regions: &[(u64, u64)]) -> Vec<u8> {
        let mut payload = vec![0; REGIONS_OFFSET];
        for (address, len) in regions {
            for word in [*address, *len, *address, 0] {
                payload.extend(word.to_le_bytes());
            }
        }
        payload
    }

    fn check(bytes: u64, regions: usize) -> MemoryCheck {
        MemoryCheck::new(MemoryLimits { bytes, regions })
    }

    #[test]
    fn a_table_replaces_the_one_before_and_further_regions_add_to_it() {
        let mut check = check(100, 3);
        let table = payload(&[(0, 60), (60, 40)]);
        assert_eq!(check.check(SET_MEM_TABLE, &table), Ok(()));
        assert_eq!(check.check(SET_MEM_TABLE, &table), Ok(()));
        let exceeded = Err(LimitExceeded::Bytes { limit: 100 });
        assert_eq!(check.check(ADD_MEM_REG, &payload(&[(100, 1)])), exceeded);
    }

    #[test]
    fn a_region_that_is_removed_makes_room() {
        let mut check = check(100, 1);
        let region = payload(&[(0, 60)]);
        assert_eq!(check.check(ADD_MEM_REG, &region), Ok(()));
        // Removes nothing, because there is no such region.
        assert_eq!(check.check(REM_MEM_REG, &payload(&[(0, 61)])), Ok(()));
        assert_eq!(check.check(REM_MEM_REG, &region), Ok(()));
        assert_eq!(check.check(ADD_MEM_REG, &payload(&[(0, 100)])), Ok(()));
        let (regions, limit) = (2, 1);
        assert_eq!(
            check.check(ADD_MEM_REG, &payload(&[(100, 0)])),
            Err(LimitExceeded::Regions { regions, limit })
        );
    }

    #[test]
    fn lengths_whose_sum_overflows_are_too_much() {
        let table = payload(&[(0, u64::MAX), (0, u64::MAX)]);
        let refused = check(u64::MAX, 8).check(SET_MEM_TABLE, &table);
        assert_eq!(refused, Err(LimitExceeded::Bytes { limit: u64::MAX }));
    }

    #[test]
    fn messages_without_regions_pass() {
        let mut check = check(0, 0);
        for request in (0..64).filter(|request| *request != SET_LOG_BASE) {
            assert_eq!(check.check(request, &[]), Ok(()));
            assert_eq!(check.check(request, &[0xff; 39]), Ok(()));
        }
    }

    #[test]
    fn a_bitmap_of_dirty_pages_covers_the_memory_and_its_holes_and_no_more() {
        let tib = 1 << 40;
        let area = |size: u64| [size, 0].map(u64::to_le_bytes).concat();
        // A bit for each page of 4 KiB: 32 MiB for each TiB.
        for (bytes, limit) in [
            (0, 32 << 20),
            (8 * tib, (9 * 32) << 20),
            (1, (32 << 20) + 1),
        ] {
            let mut check = check(bytes, 8);
            assert_eq!(check.check(SET_LOG_BASE, &area(limit)), Ok(()));
            let (size, limit) = (limit + 1, limit);
            let refused = Err(LimitExceeded::Log { size, limit });
            assert_eq!(check.check(SET_LOG_BASE, &area(size)), refused);
        }
        let mut without_limit = check(u64::MAX, 8);
        assert!(without_limit.check(SET_LOG_BASE, &area(u64::MAX)).is_err());
    }

    #[test]
    fn the_frontend_learns_the_limit_of_regions() {
        for (limit, told) in [(8, 8), (1000, 509)] {
            let mut slots = 509_u64.to_le_bytes();
            check(0, limit).limit_slots(GET_MAX_MEM_SLOTS, &mut slots);
            assert_eq!(u64::from_le_bytes(slots), told);
        }
    }
}
