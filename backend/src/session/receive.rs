//! Copies a request's header and arguments out of guest memory and checks their lengths.

use gangplank_fuse::{InHeader, Opcode, Unique};
use gangplank_service::rate_limited;

use crate::sys::buffers::Reader;
use crate::trace;

/// Most bytes of a request's arguments, without the data of a WRITE: an extended attribute of
/// 64 KiB with its name, rounded up.
const MAX_ARGS_LEN: usize = 128 * 1024;

/// A request whose header or arguments are invalid.
#[derive(Debug)]
pub(super) struct Invalid {
    /// The request's number; 0 if the guest sent no whole header.
    pub(super) unique: Unique,
    /// The errno for the reply.
    pub(super) errno: i32,
}

/// Copies the header, which it returns, and the arguments, which it puts into `args`. The data of a
/// WRITE stays in `request`.
///
/// # Errors
/// EINVAL: the header is incomplete or its length is wrong. ENOSYS: the opcode is unknown. E2BIG:
/// the arguments are too long.
pub(super) fn receive(
    request: &mut Reader<'_>,
    args: &mut Vec<u8>,
) -> Result<(InHeader, Opcode), Invalid> {
    let total = request.remaining();
    let Some(header) = request.read_value::<InHeader>() else {
        let header_len = size_of::<InHeader>();
        rate_limited!(
            warn,
            "a guest sent a request of {total} bytes; its header alone has {header_len}"
        );
        return Err(Invalid {
            unique: Unique::new(0),
            errno: libc::EINVAL,
        });
    };
    trace::note_header(&header);
    let invalid = |errno| Invalid {
        unique: header.unique(),
        errno,
    };
    if usize::try_from(header.len) != Ok(total) {
        let claimed = header.len;
        rate_limited!(
            warn,
            "a guest sent a request of {total} bytes whose header claims {claimed}"
        );
        return Err(invalid(libc::EINVAL));
    }
    let opcode = header.opcode().map_err(|unknown| {
        rate_limited!(warn, "a guest sent an unknown request: {unknown}");
        invalid(libc::ENOSYS)
    })?;
    let args_len = opcode
        .bulk_offset()
        .unwrap_or(usize::MAX)
        .min(request.remaining());
    if args_len > MAX_ARGS_LEN {
        rate_limited!(
            warn,
            "a guest sent {args_len} bytes of arguments with {}; at most {MAX_ARGS_LEN} are \
             supported",
            opcode.name()
        );
        return Err(invalid(libc::E2BIG));
    }
    args.resize(args_len, 0);
    request.read(args);
    Ok((header, opcode))
}
