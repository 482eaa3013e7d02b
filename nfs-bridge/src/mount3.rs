//! MOUNT version 3 (RFC 1813, appendix I): the handle of an exported directory.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use gangplank_service::{error_chain, rate_limited};
use nfs3_types::mount::{
    MNTPATHLEN, MOUNT_PROGRAM, PROGRAM, VERSION, dirpath, export_node, exports, fhandle3,
    mountbody, mountlist, mountres3, mountres3_ok, mountstat3, name as client_name,
};
use nfs3_types::nfs3::nfsstat3;
use nfs3_types::rpc::auth_flavor;
use nfs3_types::xdr_codec::{List, Opaque};
use parking_lot::Mutex;
use rustix::fs::FileType;

use crate::rpc::program::{CallError, Caller, Program};
use crate::rpc::reply::Reply;
use crate::share::error::Failure;
use crate::share::handle::FileHandle;
use crate::share::{Share, component};
use crate::xdr::{Reader, put};

/// Most entries of the list of mounts, which is for people alone.
const MAX_MOUNTS: usize = 1024;

/// The program.
#[derive(Debug)]
pub struct Mount3 {
    share: Arc<Share>,
    /// Who has mounted what, as far as clients tell.
    mounts: Mutex<BTreeSet<(IpAddr, Vec<u8>)>>,
}

impl Mount3 {
    /// The program that gives out the handles of `share`.
    #[must_use]
    pub fn new(share: Arc<Share>) -> Self {
        Self {
            share,
            mounts: Mutex::default(),
        }
    }

    fn mount(&self, caller: Caller<'_>, path: &[u8]) -> Result<FileHandle, Failure> {
        let client = caller.address.to_canonical();
        if !path.starts_with(b"/") {
            return Err(nfsstat3::NFS3ERR_NOENT.into());
        }
        let names = path.split(|byte| *byte == b'/');
        let names = names.filter(|name| !matches!(*name, b"" | b"."));
        let names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
        let exports = self.share.exports();
        let found = exports.containing(&names);
        let (export, below) = found.ok_or(nfsstat3::NFS3ERR_ACCES)?;
        let rule = export.rule(client).ok_or(nfsstat3::NFS3ERR_ACCES)?;
        if !rule.permits_port(caller.port) {
            rate_limited!(
                warn,
                "{client}: calls from port {}, and {} may from ports below 1024 alone, unless its \
                 options have insecure",
                caller.port,
                rule.client
            );
            // As rpc.mountd of Linux says.
            return Err(nfsstat3::NFS3ERR_ACCES.into());
        }
        let connection = self.share.connection()?;
        let handle = (|| {
            let mut node = self.share.root(&connection, export)?;
            for name in below {
                let (child, attr) = connection.lookup(&node, &component(name)?)?;
                if FileType::from_raw_mode(attr.mode) != FileType::Directory {
                    return Err(nfsstat3::NFS3ERR_NOTDIR.into());
                }
                self.share.remember(&child, node.handle, name, &attr);
                node = child;
            }
            Ok(node.handle)
        })();
        let handle = handle.inspect_err(|failure| self.share.met(&connection, failure))?;
        let mode = if rule.read_only { "ro" } else { "rw" };
        let shown = String::from_utf8_lossy(path);
        rate_limited!(
            info,
            "{client}: mounts {shown:?} ({mode}, as {})",
            rule.client
        );
        let mut mounts = self.mounts.lock();
        if mounts.len() < MAX_MOUNTS {
            mounts.insert((client, path.to_vec()));
        }
        Ok(handle)
    }

    fn mount_results(&self, caller: Caller<'_>, path: &[u8], reply: &mut Vec<u8>) {
        let client = caller.address.to_canonical();
        let results = match self.mount(caller, path) {
            Ok(handle) => mountres3::Ok(mountres3_ok {
                fhandle: fhandle3(Opaque::owned(handle.to_bytes().to_vec())),
                auth_flavors: vec![auth_flavor::AUTH_UNIX as u32],
            }),
            Err(failure) => {
                let shown = String::from_utf8_lossy(path);
                rate_limited!(
                    warn,
                    "{client}: cannot mount {shown:?}: {}",
                    error_chain(&failure)
                );
                mountres3::Err(mount_status(failure.status()))
            }
        };
        put(reply, &results);
    }

    fn exports(&self) -> exports<'static, 'static> {
        let exports = self.share.exports().iter().map(|export| export_node {
            ex_dir: dirpath(Opaque::owned(export.name())),
            ex_groups: List(
                export
                    .rules
                    .iter()
                    .map(|rule| client_name(Opaque::owned(rule.client.to_string().into_bytes())))
                    .collect(),
            ),
        });
        List(exports.collect())
    }

    fn mounts(&self) -> mountlist<'static, 'static> {
        let mounts = self.mounts.lock();
        let mounts = mounts.iter().map(|(client, path)| mountbody {
            ml_hostname: client_name(Opaque::owned(client.to_string().into_bytes())),
            ml_directory: dirpath(Opaque::owned(path.clone())),
        });
        List(mounts.collect())
    }
}

fn mount_status(status: nfsstat3) -> mountstat3 {
    match status {
        nfsstat3::NFS3ERR_PERM => mountstat3::MNT3ERR_PERM,
        nfsstat3::NFS3ERR_NOENT => mountstat3::MNT3ERR_NOENT,
        nfsstat3::NFS3ERR_IO => mountstat3::MNT3ERR_IO,
        nfsstat3::NFS3ERR_ACCES => mountstat3::MNT3ERR_ACCES,
        nfsstat3::NFS3ERR_NOTDIR => mountstat3::MNT3ERR_NOTDIR,
        nfsstat3::NFS3ERR_INVAL => mountstat3::MNT3ERR_INVAL,
        nfsstat3::NFS3ERR_NAMETOOLONG => mountstat3::MNT3ERR_NAMETOOLONG,
        _ => mountstat3::MNT3ERR_SERVERFAULT,
    }
}

impl Program for Mount3 {
    fn number(&self) -> u32 {
        PROGRAM
    }

    fn version(&self) -> u32 {
        VERSION
    }

    fn call(
        &self,
        caller: Caller<'_>,
        procedure: u32,
        mut args: Reader<'_>,
        reply: &mut Reply,
    ) -> Result<(), CallError> {
        let reply = &mut reply.bytes;
        use MOUNT_PROGRAM as P;
        let client = caller.address.to_canonical();
        match P::try_from(procedure).map_err(|_| CallError::NoProcedure)? {
            P::MOUNTPROC3_NULL => {}
            P::MOUNTPROC3_MNT => {
                let path = args.opaque(MNTPATHLEN)?;
                self.mount_results(caller, path, reply);
            }
            P::MOUNTPROC3_DUMP => put(reply, &self.mounts()),
            P::MOUNTPROC3_UMNT => {
                let path = args.opaque(MNTPATHLEN)?;
                self.mounts.lock().remove(&(client, path.to_vec()));
            }
            P::MOUNTPROC3_UMNTALL => self.mounts.lock().retain(|(other, _)| *other != client),
            P::MOUNTPROC3_EXPORT => put(reply, &self.exports()),
        }
        Ok(())
    }
}
