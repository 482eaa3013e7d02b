//! An NFSv3 client without a kernel: calls and records as a test wants them, one at a time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nfs3_types::nfs3::{
    self, LOOKUP3args, LOOKUP3res, NFS_PROGRAM, Nfs3Option, Nfs3Result, diropargs3, nfs_fh3,
};
use nfs3_types::rpc::{
    accept_stat_data, auth_unix, call_body, msg_body, opaque_auth, reply_body, rpc_msg,
};
use nfs3_types::xdr_codec::{Opaque, Pack, Unpack, Void};
use nfs3_types::{mount, portmap};

/// The lock manager's program.
pub const NLM: u32 = 100_021;

/// The status monitor's program.
pub const NSM: u32 = 100_024;

/// Limit for a reply.
const LIMIT: Duration = Duration::from_secs(20);

/// Marks the last fragment of a record (RFC 5531, 11).
const LAST: u32 = 1 << 31;

/// Bytes of the header of a fragment (RFC 5531, 11).
const FRAGMENT_HEADER_LEN: usize = 4;

/// Bytes before the results of a call that was accepted, with an empty verifier (RFC 5531, 9).
const REPLY_HEADER_LEN: usize = 24;

/// The version of a program.
const fn version(program: u32) -> u32 {
    match program {
        portmap::PROGRAM => 2,
        NLM => 4,
        NSM => 1,
        _ => 3,
    }
}

/// A connection to a server.
pub struct Client {
    stream: TcpStream,
    auth: auth_unix,
    xid: u32,
    /// The latest call and its reply. They keep their room, since a benchmark calls.
    call: Vec<u8>,
    reply: Vec<u8>,
}

impl Client {
    /// The user with these ids on a connection.
    ///
    /// # Errors
    /// The stream has no options.
    pub fn new(stream: TcpStream, uid: u32, gid: u32) -> Result<Self> {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        let auth = auth_unix {
            uid,
            gid,
            ..auth_unix::default()
        };
        Ok(Self {
            stream,
            auth,
            xid: 1,
            call: Vec::new(),
            reply: Vec::new(),
        })
    }

    /// The same user, in these further groups (at most 16).
    #[must_use]
    pub fn in_groups(mut self, groups: &[u32]) -> Self {
        self.auth.gids = groups.to_vec();
        self
    }

    /// The record of a call, without its header.
    ///
    /// # Errors
    /// The arguments cannot be encoded.
    pub fn record(&self, program: u32, procedure: u32, args: &impl Pack) -> Result<Vec<u8>> {
        let mut record = Vec::new();
        self.encode(&mut record, program, procedure, args)?;
        Ok(record)
    }

    fn encode(
        &self,
        record: &mut Vec<u8>,
        program: u32,
        procedure: u32,
        args: &impl Pack,
    ) -> Result<()> {
        let body = call_body {
            rpcvers: 2,
            prog: program,
            vers: version(program),
            proc: procedure,
            cred: opaque_auth::auth_unix(&self.auth),
            verf: opaque_auth::default(),
        };
        let message = rpc_msg {
            xid: self.xid,
            body: msg_body::CALL(body),
        };
        message.pack(record)?;
        args.pack(record)?;
        Ok(())
    }

    /// Calls a procedure with arguments as bytes. Returns the results.
    ///
    /// # Errors
    /// The call is not accepted, or there is no reply in time.
    pub fn raw(&mut self, program: u32, procedure: u32, args: &[u8]) -> Result<Vec<u8>> {
        self.xid += 1;
        let mut record = self.record(program, procedure, &Void)?;
        record.extend_from_slice(args);
        let reply = self.exchange(&record)?;
        results::<Void>(&reply)?;
        Ok(reply.get(REPLY_HEADER_LEN..).unwrap_or_default().to_vec())
    }

    /// Sends a record, and returns the record of the reply.
    ///
    /// # Errors
    /// There is no reply in time.
    pub fn exchange(&mut self, record: &[u8]) -> Result<Vec<u8>> {
        let header = u32::try_from(record.len())? | LAST;
        self.send(&[&header.to_be_bytes()[..], record].concat())?;
        self.receive()?;
        Ok(self.reply.clone())
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The server has closed the connection.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Whether the server has closed the connection, perhaps after replies.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).is_ok()
    }

    /// Receives the fragments of a record.
    fn receive(&mut self) -> Result<()> {
        self.reply.clear();
        loop {
            let mut header = [0; FRAGMENT_HEADER_LEN];
            self.stream.read_exact(&mut header)?;
            let header = u32::from_be_bytes(header);
            let begin = self.reply.len();
            self.reply
                .resize(begin + usize::try_from(header & !LAST)?, 0);
            self.stream.read_exact(&mut self.reply[begin..])?;
            if header & LAST != 0 {
                return Ok(());
            }
        }
    }

    /// Calls a procedure.
    ///
    /// # Errors
    /// The call is not accepted, or its results are others. There is no reply in time.
    pub fn call<T: Unpack>(&mut self, program: u32, procedure: u32, args: &impl Pack) -> Result<T> {
        self.xid += 1;
        let mut call = std::mem::take(&mut self.call);
        call.clear();
        call.extend([0; FRAGMENT_HEADER_LEN]);
        self.encode(&mut call, program, procedure, args)?;
        let len = u32::try_from(call.len() - FRAGMENT_HEADER_LEN)? | LAST;
        call[..FRAGMENT_HEADER_LEN].copy_from_slice(&len.to_be_bytes());
        self.send(&call)?;
        self.call = call;
        self.receive()?;
        let xid = self.reply.first_chunk().context("a short reply")?;
        ensure!(
            u32::from_be_bytes(*xid) == self.xid,
            "a reply to another call"
        );
        results(&self.reply)
    }

    /// Calls a procedure of NFS.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn nfs<T: Unpack>(&mut self, procedure: NFS_PROGRAM, args: &impl Pack) -> Result<T> {
        self.call(nfs3::PROGRAM, procedure as u32, args)
    }

    /// Calls a procedure of the port mapper.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn portmap<T: Unpack>(&mut self, procedure: u32, args: &impl Pack) -> Result<T> {
        self.call(portmap::PROGRAM, procedure, args)
    }

    /// The handle of a path, by MOUNT.
    ///
    /// # Errors
    /// As [`Self::call`], and when the server refuses it.
    pub fn mount(&mut self, path: &str) -> Result<nfs_fh3> {
        let procedure = mount::MOUNT_PROGRAM::MOUNTPROC3_MNT as u32;
        let args = mount::dirpath(Opaque::borrowed(path.as_bytes()));
        match self.call(mount::PROGRAM, procedure, &args)? {
            mount::mountres3::Ok(done) => Ok(nfs_fh3 {
                data: Opaque::owned(done.fhandle.0.into_owned()),
            }),
            mount::mountres3::Err(status) => bail!("{status}"),
        }
    }

    /// The handle of a name.
    ///
    /// # Errors
    /// As [`Self::call`], and when there is no such name.
    pub fn lookup(&mut self, dir: &nfs_fh3, name: &str) -> Result<nfs_fh3> {
        let args = LOOKUP3args {
            what: entry(dir, name),
        };
        match self.nfs::<LOOKUP3res>(NFS_PROGRAM::NFSPROC3_LOOKUP, &args)? {
            Nfs3Result::Ok(done) => Ok(done.object),
            Nfs3Result::Err((status, _)) => bail!("{name}: {status}"),
        }
    }
}

/// A directory and a name.
#[must_use]
pub fn entry<'a>(dir: &nfs_fh3, name: &'a str) -> diropargs3<'a> {
    diropargs3 {
        dir: dir.clone(),
        name: name.as_bytes().into(),
    }
}

/// The results in the record of a reply.
///
/// # Errors
/// The call was not accepted, or the results are of another type.
pub fn results<T: Unpack>(reply: &[u8]) -> Result<T> {
    let mut rest = reply;
    let (message, _) = rpc_msg::unpack(&mut rest)?;
    match message.body {
        msg_body::REPLY(reply_body::MSG_ACCEPTED(accepted)) => match accepted.reply_data {
            accept_stat_data::SUCCESS => Ok(T::unpack(&mut rest)?.0),
            other => bail!("{other:?}"),
        },
        other => bail!("{other:?}"),
    }
}

/// The value of an option of NFS.
///
/// # Errors
/// It is not there.
pub fn some<T: Pack + Unpack>(value: Nfs3Option<T>) -> Result<T> {
    match value {
        Nfs3Option::Some(value) => Ok(value),
        Nfs3Option::None => bail!("it is not there"),
    }
}
