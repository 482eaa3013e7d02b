//! What a request costs of its guest's limits.

use gangplank_fuse::{CopyFileRangeIn, InHeader, Opcode, ReadIn, WriteIn};
use zerocopy::FromBytes;

use super::dispatch::COPY_MAX;
use crate::device::request::Cost;
use crate::sys::buffers::Reader;

/// Bytes of a request that its cost depends on: the longest of the arguments below.
const ARGS_LEN: usize = size_of::<CopyFileRangeIn>();

/// The cost of the request in `request`, of which nothing is consumed.
///
/// The guest may change the request before the session copies it, so the session compares.
pub(super) fn peek(request: &Reader<'_>) -> Cost {
    let mut bytes = [0; size_of::<InHeader>() + ARGS_LEN];
    let len = request.peek(&mut bytes);
    let Some((header, args)) = bytes
        .get(..len)
        .and_then(|bytes| InHeader::read_from_prefix(bytes).ok())
    else {
        return ONE_OPERATION;
    };
    header
        .opcode()
        .map_or(ONE_OPERATION, |opcode| of(opcode, args))
}

const ONE_OPERATION: Cost = Cost {
    operations: 1,
    sent: 0,
    returned: 0,
};

/// The cost of an operation with these arguments, as they were sent.
///
/// One operation, and the bytes of file data: those that a WRITE carries, those that a READ asks
/// for, and those that a COPY_FILE_RANGE moves on the host. What ends a wait or a session, or
/// begins one, costs nothing and is never delayed.
pub(super) fn of(opcode: Opcode, args: &[u8]) -> Cost {
    match opcode {
        Opcode::Init
        | Opcode::Destroy
        | Opcode::Forget
        | Opcode::BatchForget
        | Opcode::Interrupt => Cost::default(),
        Opcode::Read => Cost {
            returned: ReadIn::read_from_prefix(args).map_or(0, |(args, _)| args.size.into()),
            ..ONE_OPERATION
        },
        Opcode::Write => Cost {
            sent: WriteIn::read_from_prefix(args).map_or(0, |(args, _)| args.size.into()),
            ..ONE_OPERATION
        },
        Opcode::CopyFileRange | Opcode::CopyFileRange64 => Cost {
            sent: CopyFileRangeIn::read_from_prefix(args)
                .map_or(0, |(args, _)| args.len.min(COPY_MAX)),
            ..ONE_OPERATION
        },
        _ => ONE_OPERATION,
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn data_costs_its_bytes_and_control_requests_cost_nothing() {
        let read = ReadIn {
            size: 4096,
            ..ReadIn::default()
        };
        let write = WriteIn {
            size: 8192,
            ..WriteIn::default()
        };
        let copy = CopyFileRangeIn {
            len: 1 << 33,
            ..CopyFileRangeIn::default()
        };
        for (opcode, args, (operations, sent, returned)) in [
            (Opcode::Read, read.as_bytes(), (1, 0, 4096)),
            (Opcode::Write, write.as_bytes(), (1, 8192, 0)),
            (Opcode::CopyFileRange, copy.as_bytes(), (1, COPY_MAX, 0)),
            (Opcode::Getattr, &[], (1, 0, 0)),
            (Opcode::Read, &[], (1, 0, 0)),
            (Opcode::Init, &[0; 64], (0, 0, 0)),
            (Opcode::Destroy, &[], (0, 0, 0)),
            (Opcode::Forget, &[0; 8], (0, 0, 0)),
            (Opcode::Interrupt, &[0; 8], (0, 0, 0)),
        ] {
            let cost = Cost {
                operations,
                sent,
                returned,
            };
            assert_eq!(of(opcode, args), cost, "{opcode:?}");
            assert_eq!(cost.is_free(), operations == 0);
        }
    }
}
