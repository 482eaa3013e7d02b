//! The limit of a guest's open descriptors (RLIMIT_NOFILE), and how many its files may hold.

use std::cmp;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::error::Error;

/// Limit of open descriptors without `--rlimit-nofile`, if the kernel permits it. As in virtiofsd.
pub const DEFAULT_OPEN_FILES: u64 = 1_000_000;

/// Lowest usable limit: the queues, memory regions and sockets of one guest take dozens.
pub const MIN_OPEN_FILES: u64 = 256;

/// Descriptors of a ring: an epoll instance, two exit events, the kick, call and error events, and
/// the timer of the guest's limits.
const DESCRIPTORS_PER_RING: u64 = 7;

/// Descriptors of a worker that belong to no ring and no region: standard streams, log, sockets,
/// the share's root, `/proc`, and some mounts, whose file handles need one each.
const OWN_DESCRIPTORS: u64 = 64;

/// Assumed limit of the kernel if `/proc/sys/fs/nr_open` cannot be read: the kernel's default
/// (`fs/file.c`).
const DEFAULT_NR_OPEN: u64 = 1 << 20;

/// Sets the limit of open descriptors to `wanted` and returns the limit in force.
///
/// `Some(0)` leaves the limit alone. `None` raises it to [`DEFAULT_OPEN_FILES`]. If raising the
/// hard limit is not permitted, the hard limit is set: the file system gets along with what there
/// is.
///
/// # Errors
/// The kernel refuses `wanted`, or the limit in force is below [`MIN_OPEN_FILES`].
pub fn raise_open_files(wanted: Option<u64>) -> Result<u64, Error> {
    let nr_open = std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(DEFAULT_NR_OPEN);
    let before = getrlimit(Resource::Nofile);
    let soft = before.current.unwrap_or(nr_open);
    let hard = before.maximum.unwrap_or(nr_open);

    let limit = match target(wanted, soft, nr_open)? {
        None => soft,
        Some(limit) => match set(limit) {
            Ok(()) => limit,
            // Raising the hard limit takes CAP_SYS_RESOURCE.
            Err(_) if limit > hard => {
                set(hard)?;
                let level = match wanted {
                    Some(_) => log::Level::Warn,
                    // The line at the start has the limit.
                    None => log::Level::Debug,
                };
                log::log!(
                    level,
                    "the limit of open descriptors is {hard}: raising it to {limit} is not \
                     permitted"
                );
                hard
            }
            Err(error) => return Err(error),
        },
    };
    if limit < MIN_OPEN_FILES {
        return Err(Error::LimitTooLow {
            limit,
            min: MIN_OPEN_FILES,
        });
    }
    Ok(limit)
}

/// Descriptors out of `limit` that the file system may hold. The rest is for the guest's `rings`,
/// its `memory_regions` and what the process itself uses.
///
/// At least half of the limit: few frontends use all their regions, and the file
/// system evicts descriptors when the process has none left.
#[must_use]
pub fn fd_budget(limit: u64, rings: u64, memory_regions: u64) -> u64 {
    let taken = OWN_DESCRIPTORS + rings * DESCRIPTORS_PER_RING + memory_regions;
    limit.saturating_sub(taken).max(limit / 2)
}

/// The limit to set; `None` to leave it alone.
fn target(wanted: Option<u64>, soft: u64, nr_open: u64) -> Result<Option<u64>, Error> {
    match wanted {
        Some(0) => Ok(None),
        Some(limit) if limit > nr_open => Err(Error::LimitTooHigh {
            limit,
            max: nr_open,
        }),
        Some(limit) => Ok(Some(limit)),
        None if soft >= DEFAULT_OPEN_FILES => Ok(None),
        None => Ok(Some(cmp::min(DEFAULT_OPEN_FILES, nr_open))),
    }
}

fn set(limit: u64) -> Result<(), Error> {
    let both = Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    setrlimit(Resource::Nofile, both).map_err(|error| Error::Limit {
        limit,
        source: error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_follows_the_operator_within_the_kernels_limit() {
        let nr_open = 1 << 20;
        let table = [
            (Some(0), 1024, None),
            (Some(4096), 1024, Some(4096)),
            (Some(512), 1024, Some(512)),
            (None, 1024, Some(DEFAULT_OPEN_FILES)),
            (None, DEFAULT_OPEN_FILES, None),
        ];
        for (wanted, soft, expected) in table {
            assert_eq!(
                target(wanted, soft, nr_open).unwrap(),
                expected,
                "{wanted:?}"
            );
        }
        assert_eq!(target(None, 1024, 65536).unwrap(), Some(65536));
        let error = target(Some(nr_open + 1), 1024, nr_open).unwrap_err();
        assert!(error.to_string().contains("nr_open"), "{error}");
    }

    #[test]
    fn budget_leaves_room_for_the_rings_and_regions_of_one_guest() {
        assert_eq!(fd_budget(1_000_000, 9, 509), 1_000_000 - 64 - 63 - 509);
        assert_eq!(fd_budget(1_000_000, 64, 32), 1_000_000 - 64 - 448 - 32);
        assert_eq!(fd_budget(4096, 9, 509), 3460);
        assert_eq!(fd_budget(1024, 9, 509), 512);
        assert_eq!(fd_budget(MIN_OPEN_FILES, 9, 509), MIN_OPEN_FILES / 2);
    }
}
