//! INIT: which of the offers of the guest's kernel the session accepts.

use std::io;
use std::sync::PoisonError;

use gangplank_fuse::{
    InitFlags, InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, MIN_KERNEL_MINOR_VERSION,
};

use super::{FileSystem, Session};
use crate::rate_limited;

/// Largest READ and WRITE, in bytes.
const MAX_TRANSFER: u32 = 1 << 20;

/// [`MAX_TRANSFER`] in the 4 KiB pages of `max_pages` in INIT's reply.
const MAX_PAGES: u16 = 256;

const _: () = assert!(MAX_PAGES as u32 * 4096 == MAX_TRANSFER);

/// Most background requests (read-ahead, write-back) in flight. The field's maximum, so that only
/// the ring's size limits them.
const MAX_BACKGROUND: u16 = u16::MAX;

/// Flags of the transport, which the session accepts whenever the guest offers them.
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
