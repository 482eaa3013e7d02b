//! The limit of open descriptors, and how many of them the file system may hold.

use std::cmp;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Error;

/// What is aimed at when the operator names no limit: virtiofsd's number.
const DEFAULT_OPEN_FILES: u64 = 1_000_000;

/// Fewer make no daemon: its queues, memory regions and sockets alone take dozens.
const MIN_OPEN_FILES: u64 = 256;

/// What the kernel allows at nr_open where it does not say (its own default).
const DEFAULT_NR_OPEN: u64 = 1 << 20;

/// Sets the limit of open descriptors: to `wanted`, not at all for `Some(0)`, else as far up as is
/// useful and allowed. Returns the limit in force.
///
/// # Errors
/// [`enum@Error`] where `wanted` cannot be had, or what there is does not suffice.
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
            // Raising the hard limit takes a privilege (CAP_SYS_RESOURCE) few have.
            Err(_) if wanted.is_none() => {
                set(hard)?;
                log::info!(
                    "open descriptors limited to {hard}: raising that to {limit} is not permitted"
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

/// Descriptors the file system may hold out of `limit`; the others are the queues', the guests'
/// memory's and the connections'.
#[must_use]
pub fn fd_budget(limit: u64) -> u64 {
    let reserve = (limit / 4).clamp(MIN_OPEN_FILES / 2, 16384);
    limit.saturating_sub(reserve)
}

/// The limit to set, `None` to leave it.
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
    fn budget_leaves_room_for_the_rest_of_the_daemon() {
        assert_eq!(fd_budget(MIN_OPEN_FILES), MIN_OPEN_FILES / 2);
        assert_eq!(fd_budget(1024), 768);
        assert_eq!(fd_budget(1_000_000), 983_616);
    }
}
