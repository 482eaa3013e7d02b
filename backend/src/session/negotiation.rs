//! INIT: what the guest's kernel offers and what is taken of it.

use std::io;
use std::sync::PoisonError;

use gangplank_fuse::{
    InitFlags, InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, MIN_KERNEL_MINOR_VERSION,
};
use gangplank_service::rate_limited;

use super::{FileSystem, Session};

/// Largest READ and WRITE, in bytes.
const MAX_TRANSFER: u32 = 1 << 20;

/// The same in the 4 KiB pages that INIT counts in.
const MAX_PAGES: u16 = 256;

const _: () = assert!(MAX_PAGES as u32 * 4096 == MAX_TRANSFER);

/// How many requests nobody waits for (read-ahead, write-back) may be under way: the ring is the limit.
const MAX_BACKGROUND: u16 = u16::MAX;

/// What concerns the transport alone and is taken whenever it is offered.
const TRANSPORT: InitFlags = InitFlags::ASYNC_READ
    .union(InitFlags::BIG_WRITES)
    .union(InitFlags::MAX_PAGES)
    .union(InitFlags::INIT_EXT);

impl<F: FileSystem + 'static> Session<F> {
    /// Starts the session anew: a guest that sends INIT again (it rebooted, or reloaded its driver) has forgotten all it held.
    ///
    /// # Errors
    /// EPROTO for a protocol that is not spoken here.
    pub(super) fn init(&self, asked: &InitIn) -> io::Result<InitOut> {
        if asked.major > KERNEL_VERSION {
            // A newer client takes our major version from this and sends INIT again.
            return Ok(InitOut {
                major: KERNEL_VERSION,
                minor: KERNEL_MINOR_VERSION,
                ..InitOut::default()
            });
        }
        if asked.major < KERNEL_VERSION || asked.minor < MIN_KERNEL_MINOR_VERSION {
            rate_limited!(
                error,
                "a guest speaks FUSE {}.{}; {KERNEL_VERSION}.{MIN_KERNEL_MINOR_VERSION} (Linux 4.19) is the oldest supported",
                asked.major,
                asked.minor
            );
            return Err(io::Error::from_raw_os_error(libc::EPROTO));
        }
        self.end();

        let offered = asked.features();
        let taken = offered & (TRANSPORT | self.file_system.init(offered));
        let mut answer = InitOut {
            major: KERNEL_VERSION,
            minor: asked.minor.min(KERNEL_MINOR_VERSION),
            max_readahead: asked.max_readahead,
            max_background: MAX_BACKGROUND,
            congestion_threshold: MAX_BACKGROUND / 4 * 3,
            max_write: MAX_TRANSFER,
            time_gran: 1,
            max_pages: MAX_PAGES,
            ..InitOut::default()
        };
        answer.set_features(taken);
        rate_limited!(
            info,
            "a guest speaks FUSE 7.{}; agreed on {taken:?}",
            asked.minor
        );
        *self.dialect.write().unwrap_or_else(PoisonError::into_inner) = Some(answer.dialect(asked));
        Ok(answer)
    }
}
