//! ONC RPC version 2 (RFC 5531): the header of a call, and of its reply.
//!
//! `nfs3_types` has these headers as well, but refuses a call with an unknown authentication flavor
//! or another RPC version instead of answering it, and has no results behind an accepted reply. So
//! they are ours, with its constants.

use nfs3_types::rpc::{
    RPC_VERSION_2, accept_stat, auth_flavor, auth_stat, msg_type, reject_stat, reply_stat,
};

use crate::xdr::{DecodeError, Reader, put};

/// Longest body of a credential or verifier (RFC 5531, 8.2).
const MAX_AUTH_BODY: usize = 400;

/// Longest name of a machine in AUTH_SYS (RFC 5531, appendix A).
const MAX_MACHINE_NAME: usize = 255;

/// Most supplementary groups in AUTH_SYS (RFC 5531, appendix A).
pub const MAX_GROUPS: usize = 16;

/// Who calls, as the caller says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// AUTH_NONE: nobody in particular.
    None,
    /// AUTH_SYS.
    Sys {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        /// Supplementary groups, at most [`MAX_GROUPS`].
        groups: Vec<u32>,
    },
}

/// A call.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// The call's number, which its reply repeats.
    pub xid: u32,
    /// The program called.
    pub program: u32,
    /// The version of the program.
    pub version: u32,
    /// The procedure.
    pub procedure: u32,
    /// Who calls.
    pub credentials: Credentials,
    /// The arguments.
    pub args: Reader<'a>,
}

/// Why a record is no call that can be executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadCall {
    /// It is no call at all, so that it has no reply.
    NoCall,
    /// It gets this reply.
    Refused(Vec<u8>),
}

impl<'a> Call<'a> {
    /// Reads the header of a call.
    ///
    /// # Errors
    /// [`BadCall`].
    pub fn parse(record: &'a [u8]) -> Result<Self, BadCall> {
        let mut reader = Reader::new(record);
        let begun = (reader.u32(), reader.u32());
        let (Ok(xid), Ok(kind)) = begun else {
            return Err(BadCall::NoCall);
        };
        if kind != msg_type::CALL as u32 {
            return Err(BadCall::NoCall);
        }
        let garbage = |_| BadCall::Refused(failed(xid, accept_stat::GARBAGE_ARGS));
        if reader.u32().map_err(garbage)? != RPC_VERSION_2 {
            return Err(BadCall::Refused(rpc_mismatch(xid)));
        }
        let program = reader.u32().map_err(garbage)?;
        let version = reader.u32().map_err(garbage)?;
        let procedure = reader.u32().map_err(garbage)?;
        let flavor = reader.u32().map_err(garbage)?;
        let bad_credentials = |_| BadCall::Refused(auth_error(xid, auth_stat::AUTH_BADCRED));
        let body = reader.opaque(MAX_AUTH_BODY).map_err(bad_credentials)?;
        let credentials = if flavor == auth_flavor::AUTH_NULL as u32 {
            Credentials::None
        } else if flavor == auth_flavor::AUTH_UNIX as u32 {
            sys(body).map_err(bad_credentials)?
        } else {
            return Err(BadCall::Refused(auth_error(xid, auth_stat::AUTH_TOOWEAK)));
        };
        // The verifier. These flavors have none.
        let bad_verifier = |_| BadCall::Refused(auth_error(xid, auth_stat::AUTH_BADVERF));
        reader.u32().map_err(bad_verifier)?;
        reader.opaque(MAX_AUTH_BODY).map_err(bad_verifier)?;
        Ok(Self {
            xid,
            program,
            version,
            procedure,
            credentials,
            args: reader,
        })
    }
}

fn sys(body: &[u8]) -> Result<Credentials, DecodeError> {
    let mut reader = Reader::new(body);
    let _stamp = reader.u32()?;
    let _machine = reader.opaque(MAX_MACHINE_NAME)?;
    let (uid, gid) = (reader.u32()?, reader.u32()?);
    let count = reader.u32()?;
    let limit = MAX_GROUPS;
    if usize::try_from(count).is_ok_and(|count| count > limit) {
        return Err(DecodeError::Length { len: count, limit });
    }
    let groups = (0..count).map(|_| reader.u32()).collect::<Result<_, _>>()?;
    Ok(Credentials::Sys { uid, gid, groups })
}

fn begin(xid: u32, stat: reply_stat) -> Vec<u8> {
    let mut reply = Vec::with_capacity(256);
    put(&mut reply, &xid);
    put(&mut reply, &msg_type::REPLY);
    put(&mut reply, &stat);
    reply
}

fn accepted(xid: u32, stat: accept_stat) -> Vec<u8> {
    let mut reply = begin(xid, reply_stat::MSG_ACCEPTED);
    // The verifier: AUTH_NONE, and no body.
    put(&mut reply, &auth_flavor::AUTH_NULL);
    put(&mut reply, &0_u32);
    put(&mut reply, &stat);
    reply
}

/// The reply to a call that was executed. The results follow.
#[must_use]
pub fn success(xid: u32) -> Vec<u8> {
    accepted(xid, accept_stat::SUCCESS)
}

/// The reply to a call that was not executed.
#[must_use]
pub fn failed(xid: u32, stat: accept_stat) -> Vec<u8> {
    accepted(xid, stat)
}

/// The reply to a call of another version than `low` to `high`.
#[must_use]
pub fn version_mismatch(xid: u32, low: u32, high: u32) -> Vec<u8> {
    let mut reply = accepted(xid, accept_stat::PROG_MISMATCH);
    put(&mut reply, &low);
    put(&mut reply, &high);
    reply
}

fn rpc_mismatch(xid: u32) -> Vec<u8> {
    let mut reply = begin(xid, reply_stat::MSG_DENIED);
    put(&mut reply, &reject_stat::RPC_MISMATCH);
    put(&mut reply, &RPC_VERSION_2);
    put(&mut reply, &RPC_VERSION_2);
    reply
}

/// The reply to a call whose caller is not accepted.
#[must_use]
pub fn auth_error(xid: u32, stat: auth_stat) -> Vec<u8> {
    let mut reply = begin(xid, reply_stat::MSG_DENIED);
    put(&mut reply, &reject_stat::AUTH_ERROR);
    put(&mut reply, &stat);
    reply
}

#[cfg(test)]
mod tests {
    use nfs3_types::rpc::{auth_unix, call_body, msg_body, opaque_auth, rpc_msg};
    use nfs3_types::xdr_codec::Pack;
    use proptest::prelude::*;

    use super::*;

    fn call(cred: opaque_auth<'static>, rpcvers: u32) -> Vec<u8> {
        let body = call_body {
            rpcvers,
            prog: 100_003,
            vers: 3,
            proc: 1,
            cred,
            verf: opaque_auth::default(),
        };
        let message = rpc_msg {
            xid: 7,
            body: msg_body::CALL(body),
        };
        let mut bytes = Vec::new();
        message.pack(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_call_of_another_implementation_is_read() {
        let auth = auth_unix {
            uid: 1000,
            gid: 100,
            gids: vec![4, 24],
            ..auth_unix::default()
        };
        let mut bytes = call(opaque_auth::auth_unix(&auth), 2);
        bytes.extend([1, 2, 3, 4]);
        let call = Call::parse(&bytes).unwrap();
        assert_eq!((call.xid, call.program, call.procedure), (7, 100_003, 1));
        let (uid, gid, groups) = (1000, 100, vec![4, 24]);
        assert_eq!(call.credentials, Credentials::Sys { uid, gid, groups });
        assert_eq!(call.args.rest(), [1, 2, 3, 4]);
    }

    #[test]
    fn callers_that_are_not_understood_are_told_why() {
        let refused = |bytes: &[u8]| match Call::parse(bytes) {
            Err(BadCall::Refused(reply)) => reply,
            other => panic!("{other:?}"),
        };
        // RPCSEC_GSS.
        let mut gss = call(opaque_auth::default(), 2);
        gss[27] = 6;
        assert_eq!(refused(&gss), auth_error(7, auth_stat::AUTH_TOOWEAK));
        let many = auth_unix {
            gids: vec![0; 17],
            ..auth_unix::default()
        };
        let many = call(opaque_auth::auth_unix(&many), 2);
        assert_eq!(refused(&many), auth_error(7, auth_stat::AUTH_BADCRED));
        assert_eq!(refused(&call(opaque_auth::default(), 3)), rpc_mismatch(7));
    }

    proptest! {
        #[test]
        fn no_record_causes_a_panic(mut bytes: Vec<u8>, is_call: bool) {
            let _ = Call::parse(&bytes);
            if is_call && bytes.len() >= 12 {
                bytes[4..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 2]);
            }
            let _ = Call::parse(&bytes);
        }
    }
}
