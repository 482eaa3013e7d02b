//! NFS version 3 (RFC 1813): all 22 procedures.
//!
//! | file | procedures |
//! | --- | --- |
//! | `inode.rs` | GETATTR, SETATTR, ACCESS, READLINK |
//! | `data.rs` | READ, WRITE, COMMIT |
//! | `names.rs` | LOOKUP, REMOVE, RMDIR, RENAME, LINK |
//! | `create.rs` | CREATE, MKDIR, SYMLINK, MKNOD |
//! | `directory.rs` | READDIR, READDIRPLUS |
//! | `limits.rs` | FSSTAT, FSINFO, PATHCONF |

mod attributes;
mod create;
mod data;
mod directory;
mod inode;
mod limits;
mod names;

use std::cell::OnceCell;
use std::sync::Arc;

use gangplank_driver::{FuseSession, Pending};
use gangplank_fuse::{Attr, AttrOut, EntryOut};
use gangplank_service::{error_chain, rate_limited};
use log::debug;
use nfs3_types::nfs3::{
    NFS_PROGRAM, NFS3_FHSIZE, Nfs3Result, PROGRAM, VERSION, nfsstat3, post_op_attr, wcc_data,
};
use nfs3_types::xdr_codec::Pack;

use self::attributes::{post_op, wcc};
use crate::exports::Rule;
use crate::identity::Identity;
use crate::rpc::program::{CallError, Caller, Program, SMALL_RESULTS};
use crate::rpc::reply::Reply;
use crate::share::Share;
use crate::share::connection::{Connection, Node};
use crate::share::error::{Failure, Result};
use crate::share::handle::FileHandle;
use crate::xdr::{DecodeError, Reader, put};

/// Most bytes of one READ or WRITE.
pub const MAX_IO: u32 = 1 << 20;

/// Longest name or link target that is decoded, in bytes. Longer ones than the share takes get
/// `NFS3ERR_NAMETOOLONG`; beyond this limit the arguments are malformed.
const MAX_TEXT: usize = 8192;

/// The program.
#[derive(Debug)]
pub struct Nfs3 {
    share: Arc<Share>,
}

impl Nfs3 {
    /// The program that serves `share`.
    #[must_use]
    pub const fn new(share: Arc<Share>) -> Self {
        Self { share }
    }

    fn context<'a>(&'a self, caller: Caller<'a>, procedure: NFS_PROGRAM) -> Context<'a> {
        Context {
            share: &self.share,
            caller,
            procedure,
            connection: OnceCell::new(),
        }
    }
}

impl Program for Nfs3 {
    fn number(&self) -> u32 {
        PROGRAM
    }

    fn version(&self) -> u32 {
        VERSION
    }

    fn changes(&self, procedure: u32) -> bool {
        use NFS_PROGRAM as P;
        matches!(
            P::try_from(procedure),
            Ok(P::NFSPROC3_SETATTR
                | P::NFSPROC3_WRITE
                | P::NFSPROC3_CREATE
                | P::NFSPROC3_MKDIR
                | P::NFSPROC3_SYMLINK
                | P::NFSPROC3_MKNOD
                | P::NFSPROC3_REMOVE
                | P::NFSPROC3_RMDIR
                | P::NFSPROC3_RENAME
                | P::NFSPROC3_LINK)
        )
    }

    fn largest_results(&self, procedure: u32, mut args: Reader<'_>) -> usize {
        use NFS_PROGRAM as P;
        // What comes before the number of bytes that the client has room for.
        let before: usize = match P::try_from(procedure) {
            Ok(P::NFSPROC3_READ) => 8,
            Ok(P::NFSPROC3_READDIR) => 16,
            Ok(P::NFSPROC3_READDIRPLUS) => 20,
            _ => return SMALL_RESULTS,
        };
        let mut count = || {
            handle(&mut args)?;
            for _ in 0..before / 4 {
                args.u32()?;
            }
            args.u32()
        };
        // Malformed arguments have no results.
        let count = count().unwrap_or(0).min(MAX_IO);
        usize::try_from(count).unwrap_or(0) + SMALL_RESULTS
    }

    fn is_postponed(&self, results: &[u8]) -> bool {
        // All results begin with the status.
        let status = Reader::new(results).u32();
        status == Ok(nfsstat3::NFS3ERR_JUKEBOX as u32)
    }

    fn call(
        &self,
        caller: Caller<'_>,
        procedure: u32,
        args: Reader<'_>,
        reply: &mut Reply,
    ) -> std::result::Result<(), CallError> {
        let number = procedure;
        let procedure = NFS_PROGRAM::try_from(number).map_err(|_| CallError::NoProcedure)?;
        let begun = reply.bytes.len();
        self.context(caller, procedure).run(args, reply)?;
        let results = reply.bytes.get(begun..).unwrap_or_default();
        if self.is_postponed(results) && !self.changes(number) {
            // The daemon may have returned, and a second time does no harm.
            reply.bytes.truncate(begun);
            self.context(caller, procedure).run(args, reply)?;
        }
        Ok(())
    }
}

/// The result of reading arguments.
type Decoded = std::result::Result<(), DecodeError>;

/// One call in progress.
struct Context<'a> {
    share: &'a Share,
    caller: Caller<'a>,
    procedure: NFS_PROGRAM,
    connection: OnceCell<Arc<Connection>>,
}

/// An inode that a call names, and who calls.
struct Object<'a> {
    share: &'a Share,
    connection: Arc<Connection>,
    /// The session on behalf of the caller.
    session: FuseSession,
    node: Arc<Node>,
    rule: Rule,
    identity: Identity,
}

/// The handle in the arguments.
fn handle<'a>(args: &mut Reader<'a>) -> std::result::Result<&'a [u8], DecodeError> {
    args.opaque(NFS3_FHSIZE)
}

impl<'a> Context<'a> {
    /// Runs the procedure.
    fn run(&self, mut args: Reader<'_>, reply: &mut Reply) -> Decoded {
        use NFS_PROGRAM as P;
        let args = &mut args;
        if self.procedure == P::NFSPROC3_READ {
            return self.read(args, reply);
        }
        let reply = &mut reply.bytes;
        match self.procedure {
            P::NFSPROC3_NULL | P::NFSPROC3_READ => {}
            P::NFSPROC3_GETATTR => self.getattr(args, reply)?,
            P::NFSPROC3_SETATTR => self.setattr(args, reply)?,
            P::NFSPROC3_LOOKUP => self.lookup(args, reply)?,
            P::NFSPROC3_ACCESS => self.access(args, reply)?,
            P::NFSPROC3_READLINK => self.readlink(args, reply)?,
            P::NFSPROC3_WRITE => self.write(args, reply)?,
            P::NFSPROC3_CREATE => self.create(args, reply)?,
            P::NFSPROC3_MKDIR => self.mkdir(args, reply)?,
            P::NFSPROC3_SYMLINK => self.symlink(args, reply)?,
            P::NFSPROC3_MKNOD => self.mknod(args, reply)?,
            P::NFSPROC3_REMOVE => self.remove(args, reply)?,
            P::NFSPROC3_RMDIR => self.rmdir(args, reply)?,
            P::NFSPROC3_RENAME => self.rename(args, reply)?,
            P::NFSPROC3_LINK => self.link(args, reply)?,
            P::NFSPROC3_READDIR => self.readdir(args, reply)?,
            P::NFSPROC3_READDIRPLUS => self.readdirplus(args, reply)?,
            P::NFSPROC3_FSSTAT => self.fsstat(args, reply)?,
            P::NFSPROC3_FSINFO => self.fsinfo(args, reply)?,
            P::NFSPROC3_PATHCONF => self.pathconf(args, reply)?,
            P::NFSPROC3_COMMIT => self.commit(args, reply)?,
        }
        Ok(())
    }

    fn connection(&self) -> Result<Arc<Connection>> {
        if let Some(connection) = self.connection.get() {
            return Ok(Arc::clone(connection));
        }
        let connection = self.share.connection()?;
        Ok(Arc::clone(self.connection.get_or_init(|| connection)))
    }

    /// The inode of a handle.
    fn object(&self, handle: &[u8]) -> Result<Object<'a>> {
        let handle = FileHandle::from_bytes(handle).ok_or(nfsstat3::NFS3ERR_BADHANDLE)?;
        let (_, rule) = self.share.export(handle, self.caller)?;
        let rule = *rule;
        let connection = self.connection()?;
        let identity = rule.identity(self.caller.credentials);
        let node = self.share.resolve(&connection, handle)?;
        Ok(Object {
            share: self.share,
            session: node.session.as_caller(identity.caller()),
            connection,
            node,
            rule,
            identity,
        })
    }

    /// The inode of a handle, for a procedure that changes something.
    fn changeable(&self, handle: &[u8]) -> Result<Object<'a>> {
        let object = self.object(handle)?;
        match object.rule.read_only {
            true => Err(nfsstat3::NFS3ERR_ROFS.into()),
            false => Ok(object),
        }
    }

    /// The status for a failure, which is noted.
    fn status(&self, failure: &Failure) -> nfsstat3 {
        if let Some(connection) = self.connection.get() {
            self.share.met(connection, failure);
        }
        let status = failure.status();
        match status {
            nfsstat3::NFS3ERR_IO | nfsstat3::NFS3ERR_SERVERFAULT => {
                rate_limited!(
                    warn,
                    "{}: {}: {status}: {}",
                    self.caller.address,
                    self.procedure,
                    error_chain(failure)
                );
            }
            _ => debug!(
                "{}: {}: {status}: {}",
                self.caller.address,
                self.procedure,
                error_chain(failure)
            ),
        }
        status
    }

    /// Appends the results, or the status of a failure and what comes with it.
    fn put<T: Pack, E: Pack>(&self, reply: &mut Vec<u8>, done: Result<T>, failed: E) {
        let result = match done {
            Ok(done) => Nfs3Result::Ok(done),
            Err(failure) => Nfs3Result::Err((self.status(&failure), failed)),
        };
        put(reply, &result);
    }
}

impl Object<'_> {
    fn handle(&self) -> FileHandle {
        self.node.handle
    }

    fn export(&self) -> u32 {
        self.node.handle.export
    }

    fn attributes(&self) -> Result<Attr> {
        self.connection.attributes(&self.node)
    }

    /// Asks for the attributes, without waiting for them.
    fn ask_attributes(&self) -> Result<Pending<AttrOut>> {
        self.connection.ask_attributes(&self.node)
    }

    /// The attributes after an operation. They may be absent from results.
    fn post_op(&self) -> post_op_attr {
        post_op(self.attributes().ok().as_ref(), self.export())
    }

    /// The node of an entry that the daemon has replied about this directory.
    fn entry(&self, entry: EntryOut) -> Result<(Arc<Node>, Attr)> {
        let queue = &self.node.session;
        self.connection.entry(queue, self.export(), entry)
    }

    /// The attributes of two inodes, which are asked for at once.
    fn attributes_of_both(&self, other: &Self) -> (Result<Attr>, Result<Attr>) {
        let asked = (self.ask_attributes(), other.ask_attributes());
        let wait = |asked: Result<Pending<AttrOut>>| Ok(asked?.wait()?.attr);
        (wait(asked.0), wait(asked.1))
    }

    /// The attributes before and after a change.
    fn wcc(&self, before: Option<&Attr>) -> wcc_data {
        wcc(before, self.attributes().ok().as_ref(), self.export())
    }
}

/// What [`Object::ask_attributes`] brings, as attributes after an operation.
fn told(asked: Result<Pending<AttrOut>>, export: u32) -> post_op_attr {
    let told = asked.ok().and_then(|asked| asked.wait().ok());
    post_op(told.map(|told| told.attr).as_ref(), export)
}
