//! The port mapper, version 2 (RFC 1833): which program listens at which port.
//!
//! It knows this server's programs alone. Nobody registers others, and it makes no calls for others
//! (CALLIT), which would let strangers use it as an amplifier.

use nfs3_types::portmap::{PMAP_PROG, PROGRAM, VERSION, mapping};
use nfs3_types::xdr_codec::List;

use crate::rpc::program::{CallError, Caller, Program};
use crate::rpc::reply::Reply;
use crate::xdr::{Reader, put};

/// The program.
#[derive(Debug)]
pub struct Portmap {
    mappings: Vec<mapping>,
}

impl Portmap {
    /// A port mapper that tells `mappings`.
    #[must_use]
    pub const fn new(mappings: Vec<mapping>) -> Self {
        Self { mappings }
    }
}

impl Program for Portmap {
    fn number(&self) -> u32 {
        PROGRAM
    }

    fn version(&self) -> u32 {
        VERSION
    }

    fn call(
        &self,
        _: Caller<'_>,
        procedure: u32,
        mut args: Reader<'_>,
        reply: &mut Reply,
    ) -> Result<(), CallError> {
        let reply = &mut reply.bytes;
        use PMAP_PROG as P;
        match P::try_from(procedure).map_err(|_| CallError::NoProcedure)? {
            P::PMAPPROC_NULL => {}
            P::PMAPPROC_SET | P::PMAPPROC_UNSET => {
                args.structure::<mapping>()?;
                put(reply, &false);
            }
            P::PMAPPROC_GETPORT => {
                let asked: mapping = args.structure()?;
                // A client that asks for another version gets the port as well, and learns the
                // version there (RFC 1833, 3.2).
                let fits =
                    |mapping: &&mapping| mapping.prog == asked.prog && mapping.prot == asked.prot;
                let found = self.mappings.iter().filter(fits);
                let exact = found.clone().find(|mapping| mapping.vers == asked.vers);
                let found = exact.or_else(|| found.into_iter().next());
                put(reply, &found.map_or(0, |mapping| mapping.port));
            }
            P::PMAPPROC_DUMP => put(reply, &List(self.mappings.clone())),
            P::PMAPPROC_CALLIT => return Err(CallError::NoProcedure),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::rpc::message::Credentials;

    fn call(procedure: u32, args: &[u32]) -> Result<Vec<u8>, CallError> {
        let nfs = mapping {
            prog: 100_003,
            vers: 3,
            prot: 6,
            port: 2049,
        };
        let portmap = Portmap::new(vec![nfs]);
        let bytes: Vec<u8> = args.iter().flat_map(|word| word.to_be_bytes()).collect();
        let mut reply = Reply::default();
        let caller = Caller {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 1023,
            server: IpAddr::V4(Ipv4Addr::LOCALHOST),
            credentials: &Credentials::None,
        };
        portmap.call(caller, procedure, Reader::new(&bytes), &mut reply)?;
        Ok(reply.bytes)
    }

    #[test]
    fn a_program_is_found_by_number_and_protocol() {
        assert_eq!(
            call(3, &[100_003, 3, 6, 0]).unwrap(),
            2049_u32.to_be_bytes()
        );
        assert_eq!(
            call(3, &[100_003, 4, 6, 0]).unwrap(),
            2049_u32.to_be_bytes()
        );
        assert_eq!(call(3, &[100_003, 3, 17, 0]).unwrap(), [0; 4]);
        assert_eq!(call(3, &[100_005, 3, 6, 0]).unwrap(), [0; 4]);
        let dump: Vec<u8> = [1, 100_003, 3, 6, 2049, 0_u32]
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .collect();
        assert_eq!(call(4, &[]).unwrap(), dump);
    }

    #[test]
    fn nobody_registers_programs_or_calls_them_through_it() {
        assert_eq!(call(1, &[100_003, 3, 6, 99]).unwrap(), [0; 4]);
        assert_eq!(call(5, &[100_003, 3, 1, 0]), Err(CallError::NoProcedure));
        assert!(matches!(call(3, &[1]), Err(CallError::Garbage(_))));
    }
}
