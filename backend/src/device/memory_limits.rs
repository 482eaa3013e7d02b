//! The limits of one guest's memory, checked before anything is mapped.
//!
//! vhost-user-backend maps the regions of a message before the device can check them. So the
//! forwarder checks SET_MEM_TABLE and ADD_MEM_REG as they pass, and counts what the messages so far
//! have set up.
//!
//! vhost-user-backend may refuse a message that takes memory away, and go on if the frontend asked
//! for an acknowledgement. So such memory counts until the acknowledgement has passed.

use super::options::Options;

/// Request number of `VHOST_USER_SET_MEM_TABLE`.
const SET_MEM_TABLE: u32 = 5;

/// Request number of `VHOST_USER_GET_MAX_MEM_SLOTS`.
const GET_MAX_MEM_SLOTS: u32 = 36;

/// Request number of `VHOST_USER_ADD_MEM_REG`.
const ADD_MEM_REG: u32 = 37;

/// Request number of `VHOST_USER_REM_MEM_REG`.
const REM_MEM_REG: u32 = 38;

/// How often the limits may be reached at a time: by the current table, and by older ones that
/// requests in flight still use or that nobody has confirmed to be gone.
pub(super) const MAX_TABLES: u16 = 3;

/// Bytes before the regions of each of these messages: their number, or padding.
const REGIONS_OFFSET: usize = 8;

/// Bytes of a region: guest address, size, user address and file offset, 8 bytes each.
const REGION_LEN: usize = 32;

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
    /// The regions that are mapped still if messages were refused that take them away.
    unconfirmed: Vec<Region>,
    /// Acknowledgements to come for messages that take regions away.
    acknowledgements: usize,
}

/// Whether the frontend wants a message acknowledged (vhost-user, `VHOST_USER_F_NEED_REPLY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acknowledged {
    No,
    Yes,
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
            unconfirmed: Vec::new(),
            acknowledgements: 0,
        }
    }

    /// Checks a message of the frontend.
    ///
    /// # Errors
    /// The guest would have more memory or regions than permitted. The message must not be carried
    /// out.
    pub(super) fn check(
        &mut self,
        request: u32,
        acknowledged: Acknowledged,
        payload: &[u8],
    ) -> Result<(), LimitExceeded> {
        let removed = match request {
            SET_MEM_TABLE => std::mem::take(&mut self.regions),
            REM_MEM_REG => {
                let removed: Vec<_> = regions_of(payload).collect();
                let is_removed = |region: &mut Region| removed.contains(region);
                self.regions.extract_if(.., is_removed).collect()
            }
            ADD_MEM_REG => Vec::new(),
            _ => return Ok(()),
        };
        // Without an acknowledgement, vhost-user-backend ends the connection if it refuses.
        if acknowledged == Acknowledged::Yes && request != ADD_MEM_REG {
            self.unconfirmed.extend(removed);
            self.acknowledgements += 1;
        }
        if request != REM_MEM_REG {
            self.regions.extend(regions_of(payload));
        }
        self.check_total()
    }

    /// Looks at a reply of vhost-user-backend. Lowers the number in the reply to GET_MAX_MEM_SLOTS
    /// to the limit, so that the frontend knows it.
    pub(super) fn reply(&mut self, request: u32, payload: &mut [u8]) {
        let Some(value) = payload.first_chunk_mut() else {
            return;
        };
        match request {
            GET_MAX_MEM_SLOTS => {
                let limit = u64::try_from(self.limits.regions).unwrap_or(u64::MAX);
                *value = u64::from_le_bytes(*value).min(limit).to_le_bytes();
            }
            SET_MEM_TABLE | REM_MEM_REG => {
                self.acknowledgements = self.acknowledgements.saturating_sub(1);
                if self.acknowledgements == 0 && u64::from_le_bytes(*value) == 0 {
                    self.unconfirmed.clear();
                }
            }
            _ => {}
        }
    }

    fn check_total(&self) -> Result<(), LimitExceeded> {
        let MemoryLimits { bytes, regions } = self.limits;
        let (current, others) = (&self.regions, &self.unconfirmed);
        let exceeds_tables =
            current.len() + others.len() > regions.saturating_mul(MAX_TABLES.into());
        if current.len() > regions || exceeds_tables {
            return Err(LimitExceeded::Regions {
                regions: current.len() + others.len(),
                limit: regions,
            });
        }
        let is_within = |total: Option<u64>, limit| total.is_some_and(|total| total <= limit);
        let current = total(current);
        let all = current
            .zip(total(others))
            .and_then(|(current, others)| current.checked_add(others));
        if !is_within(current, bytes) || !is_within(all, bytes.saturating_mul(MAX_TABLES.into())) {
            return Err(LimitExceeded::Bytes { limit: bytes });
        }
        Ok(())
    }
}

/// Bytes of all regions together; `None` if 64 bits cannot hold the sum.
fn total(regions: &[Region]) -> Option<u64> {
    let mut lengths = regions.iter().map(|region| region.len);
    lengths.try_fold(0_u64, u64::checked_add)
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

    fn send(check: &mut MemoryCheck, request: u32, regions: &[(u64, u64)]) -> bool {
        let checked = check.check(request, Acknowledged::No, &payload(regions));
        checked.is_ok()
    }

    #[test]
    fn a_table_replaces_the_one_before_and_further_regions_add_to_it() {
        let mut check = check(100, 3);
        let table = [(0, 60), (60, 40)];
        for _ in 0..10 {
            assert!(send(&mut check, SET_MEM_TABLE, &table));
        }
        let refused = check.check(ADD_MEM_REG, Acknowledged::No, &payload(&[(100, 1)]));
        assert_eq!(refused, Err(LimitExceeded::Bytes { limit: 100 }));
    }

    #[test]
    fn a_region_that_is_removed_makes_room() {
        let mut check = check(100, 1);
        assert!(send(&mut check, ADD_MEM_REG, &[(0, 60)]));
        // Removes nothing, because there is no such region.
        assert!(send(&mut check, REM_MEM_REG, &[(0, 61)]));
        assert!(send(&mut check, REM_MEM_REG, &[(0, 60)]));
        assert!(send(&mut check, ADD_MEM_REG, &[(0, 100)]));
        let (regions, limit) = (2, 1);
        assert_eq!(
            check.check(ADD_MEM_REG, Acknowledged::No, &payload(&[(100, 0)])),
            Err(LimitExceeded::Regions { regions, limit })
        );
    }

    #[test]
    fn memory_counts_until_it_is_confirmed_to_be_gone() {
        for request in [SET_MEM_TABLE, REM_MEM_REG] {
            let mut check = check(100, 10);
            // Refused each time, so that the memory stays.
            let sent = (0..10).take_while(|_| {
                let removed = check.check(request, Acknowledged::Yes, &payload(&[(0, 100)]));
                check.reply(request, &mut 1_u64.to_le_bytes());
                removed.is_ok()
                    && (request == SET_MEM_TABLE || send(&mut check, ADD_MEM_REG, &[(0, 100)]))
            });
            assert_eq!(sent.count(), 3);
        }
    }

    #[test]
    fn memory_that_is_confirmed_to_be_gone_does_not_count() {
        let mut check = check(100, 10);
        let table = payload(&[(0, 100)]);
        for replies in [1, 2, 1, 2, 1, 2] {
            for _ in 0..replies {
                let taken = check.check(SET_MEM_TABLE, Acknowledged::Yes, &table);
                assert_eq!(taken, Ok(()));
            }
            for _ in 0..replies {
                check.reply(SET_MEM_TABLE, &mut 0_u64.to_le_bytes());
            }
            assert_eq!((check.regions.len(), check.unconfirmed.len()), (1, 0));
        }
    }

    #[test]
    fn lengths_whose_sum_overflows_are_too_much() {
        let table = payload(&[(0, u64::MAX), (0, u64::MAX)]);
        let refused = check(u64::MAX, 8).check(SET_MEM_TABLE, Acknowledged::No, &table);
        assert_eq!(refused, Err(LimitExceeded::Bytes { limit: u64::MAX }));
    }

    #[test]
    fn messages_without_regions_pass() {
        let mut check = check(0, 0);
        for request in 0..64 {
            for payload in [&[][..], &[0xff; 39]] {
                let passed = check.check(request, Acknowledged::No, payload);
                assert_eq!(passed, Ok(()));
            }
        }
    }

    #[test]
    fn the_frontend_learns_the_limit_of_regions() {
        for (limit, told) in [(8, 8), (1000, 509)] {
            let mut slots = 509_u64.to_le_bytes();
            check(0, limit).reply(GET_MAX_MEM_SLOTS, &mut slots);
            assert_eq!(u64::from_le_bytes(slots), told);
        }
    }
}
