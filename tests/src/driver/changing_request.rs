//! A request that the guest changes while the daemon reads it.

use gangplank_fuse::{GetattrIn, NodeId, Operation};

use super::{Driver, Result};

/// A name of a look-up, which comes behind the header of 40 bytes.
const NAME: &std::ffi::CStr = c"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Sends a LOOKUP `rounds` times, and changes its length, operation, node and name until its reply
/// comes. The daemon must not read again what it has checked. It may see either value, and reply
/// with success, an error, or nothing that can be used.
///
/// # Errors
/// The daemon does not give the request back.
pub fn change_while_served(guest: &mut Driver, rounds: u32) -> Result<()> {
    let (_, bytes) = guest.encode(NodeId::ROOT, Operation::Lookup { name: NAME })?;
    for round in 0..rounds {
        let getattr = Operation::Getattr(GetattrIn::default());
        let (unique, _) = guest.encode(NodeId::ROOT, getattr)?;
        let mut bytes = bytes.clone();
        bytes[8..16].copy_from_slice(&unique.get().to_le_bytes());
        let ticket = guest.submit_bytes(1, unique, &bytes, 16 + 256)?;
        let at = ticket.request_address();
        for value in 0u32.. {
            let memory = &guest.memory;
            memory.write(at, &value.wrapping_mul(round).to_le_bytes());
            memory.write(at + 4, &(value % 60).to_le_bytes());
            memory.write(at + 16, &u64::from(value).to_le_bytes());
            memory.write(at + 40 + u64::from(value % 30), b"/");
            if guest.is_finished(&ticket)? {
                break;
            }
        }
        let _ = guest.finish(ticket);
    }
    Ok(())
}
