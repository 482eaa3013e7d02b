//! FUSE requests that no kernel sends. The daemon answers each with an error, loses nothing by it,
//! and the session continues.

mod malformed;
mod names;
mod nodes_and_handles;
mod opening;
mod session_order;
mod sizes_and_offsets;

use std::time::Duration;

use anyhow::{Context, Result};
use gangplank_fuse::{
    CreateIn, GetattrIn, InHeader, MkdirIn, NodeId, OpenIn, Operation, Rename2In, SetattrIn,
    SetattrValid, Unique,
};
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::{Driver, Setup};
use rustix::io::Errno;

/// Limit for each request. None has a reason to wait.
const LIMIT: Duration = Duration::from_secs(30);

/// Sends the bytes as a request with 4 KiB of room for the reply. Returns the errno of the reply.
fn send(guest: &mut Driver, request: &[u8]) -> Result<Option<Errno>> {
    let unique = unique_in(request);
    let ticket = guest.submit_bytes(1, unique, request, 4096)?;
    match guest.finish_within(ticket, LIMIT) {
        Ok(_) => Ok(None),
        Err(error) => match error.errno() {
            Some(errno) => Ok(Some(errno)),
            None => Err(error.into()),
        },
    }
}

/// The number that the reply must have: the header's, or zero for an incomplete header.
fn unique_in(request: &[u8]) -> Unique {
    let header = request.len() >= size_of::<InHeader>();
    let number = request.get(8..).and_then(|rest| rest.first_chunk());
    Unique::new(
        number
            .filter(|_| header)
            .map_or(0, |number| u64::from_le_bytes(*number)),
    )
}

/// A request with a correct header and any arguments.
fn request(opcode: u32, node: u64, arguments: &[u8]) -> Vec<u8> {
    let len = u32::try_from(40 + arguments.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&opcode.to_le_bytes());
    bytes.extend_from_slice(&0x1234_5678u64.to_le_bytes());
    bytes.extend_from_slice(&node.to_le_bytes());
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(arguments);
    bytes
}

/// The errno of the reply to an operation, if it has one.
fn errno(
    guest: &mut Driver,
    node: NodeId,
    operation: Operation<'_>,
    data: &[u8],
    room: usize,
) -> Result<Option<Errno>> {
    let ticket = guest.submit(1, node, operation, data, room)?;
    match guest.finish_within(ticket, LIMIT) {
        Ok(_) => Ok(None),
        Err(error) => match error.errno() {
            Some(errno) => Ok(Some(errno)),
            None => Err(error).with_context(|| format!("{operation:?}")),
        },
    }
}

/// Runs a hostile guest beside a neighbour. The session must still work at the end.
fn with_guest(told: &[&str], test: impl FnOnce(&mut Driver, &Fixture) -> Result<()>) -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&Setup::default())?;
    test(&mut guest, &fixture).with_context(|| fixture.log())?;
    guest.getattr(NodeId::ROOT, None).context("afterwards")?;
    drop(guest);
    fixture.survive(told)
}

/// Operations on a node that must exist.
fn all_on_node() -> Vec<Operation<'static>> {
    vec![
        Operation::Lookup { name: c"good" },
        Operation::Getattr(GetattrIn::default()),
        Operation::Setattr(SetattrIn {
            valid: SetattrValid::MODE.bits(),
            mode: 0o777,
            ..SetattrIn::default()
        }),
        Operation::Readlink,
        Operation::Mkdir {
            args: MkdirIn {
                mode: 0o755,
                umask: 0,
            },
            name: c"made",
        },
        Operation::Unlink { name: c"good" },
        Operation::Open(OpenIn::default()),
        Operation::Opendir(OpenIn::default()),
        Operation::Statfs,
        Operation::Create {
            args: CreateIn {
                flags: 2,
                mode: 0o100_644,
                ..CreateIn::default()
            },
            name: c"made",
        },
        Operation::Rename2 {
            args: Rename2In {
                newdir: 1,
                ..Rename2In::default()
            },
            name: c"good",
            new_name: c"made",
        },
    ]
}
