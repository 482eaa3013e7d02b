//! INIT: which of the offers of the guest's kernel the session accepts.
//!
//! INIT has no version of the guest's kernel, only that of the protocol.

use std::io;

use gangplank_fuse::{
    InitFlags, InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, MIN_KERNEL_MINOR_VERSION,
};
use gangplank_service::rate_limited;

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

/// Checks the guest's protocol version.
///
/// Returns the whole reply if the guest's major version is newer: the guest then sends INIT again
/// with the version in the reply.
///
/// # Errors
/// EPROTO: the version is too old.
pub(super) fn check_version(offer: &InitIn) -> io::Result<Option<InitOut>> {
    if offer.major > KERNEL_VERSION {
        return Ok(Some(InitOut {
            major: KERNEL_VERSION,
            minor: KERNEL_MINOR_VERSION,
            ..InitOut::default()
        }));
    }
    if offer.major < KERNEL_VERSION || offer.minor < MIN_KERNEL_MINOR_VERSION {
        rate_limited!(
            error,
            "a guest speaks FUSE {}.{}; the oldest supported version is \
             {KERNEL_VERSION}.{MIN_KERNEL_MINOR_VERSION} (Linux 4.19)",
            offer.major,
            offer.minor
        );
        return Err(io::Error::from_raw_os_error(libc::EPROTO));
    }
    Ok(None)
}

/// The reply to an offer of a supported version. `wanted` holds the flags that the file system
/// wants.
pub(super) fn accept(offer: &InitIn, wanted: InitFlags) -> InitOut {
    let accepted = offer.features() & (TRANSPORT | wanted);
    let mut reply = InitOut {
        major: KERNEL_VERSION,
        minor: offer.minor.min(KERNEL_MINOR_VERSION),
        max_readahead: offer.max_readahead,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write: MAX_TRANSFER,
        time_gran: 1,
        max_pages: MAX_PAGES,
        ..InitOut::default()
    };
    reply.set_features(accepted);
    log::debug!("agreed with a guest on {accepted:?}");
    rate_limited!(
        info,
        "a guest has mounted the share, by FUSE 7.{}",
        offer.minor
    );
    reply
}
