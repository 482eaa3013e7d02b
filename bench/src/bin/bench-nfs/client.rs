//! An NFSv3 client with one call in flight, so that the servers' latency is what is measured.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nfs3_types::mount::{self, MOUNT_PROGRAM, dirpath, mountres3};
use nfs3_types::nfs3::{
    self, COMMIT3args, COMMIT3res, CREATE3args, CREATE3res, GETATTR3args, GETATTR3res, LOOKUP3args,
    LOOKUP3res, NFS_PROGRAM as P, Nfs3Option, Nfs3Result, READ3args, READ3res, REMOVE3args,
    REMOVE3res, WRITE3args, WRITE3res, createhow3, diropargs3, nfs_fh3, sattr3, stable_how,
};
use nfs3_types::rpc::{
    accept_stat_data, auth_unix, call_body, msg_body, opaque_auth, reply_body, rpc_msg,
};
use nfs3_types::xdr_codec::{Opaque, Pack, Unpack};

/// Limit for a reply.
const LIMIT: Duration = Duration::from_secs(60);

/// The last fragment of a record (RFC 5531, 11).
const LAST: u32 = 1 << 31;

/// A connection as root.
pub(crate) struct Client {
    stream: TcpStream,
    auth: auth_unix,
    xid: u32,
    record: Vec<u8>,
    reply: Vec<u8>,
}

impl Client {
    /// Connects to a port of this machine.
    pub(crate) fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self {
            stream,
            auth: auth_unix::default(),
            xid: 0,
            record: Vec::new(),
            reply: Vec::new(),
        })
    }

    fn call<T: Unpack>(&mut self, program: u32, procedure: u32, args: &impl Pack) -> Result<T> {
        self.xid += 1;
        let body = call_body {
            rpcvers: 2,
            prog: program,
            vers: 3,
            proc: procedure,
            cred: opaque_auth::auth_unix(&self.auth),
            verf: opaque_auth::default(),
        };
        let message = rpc_msg {
            xid: self.xid,
            body: msg_body::CALL(body),
        };
        self.record.clear();
        self.record.extend([0; 4]);
        message.pack(&mut self.record)?;
        args.pack(&mut self.record)?;
        let len = u32::try_from(self.record.len() - 4)? | LAST;
        self.record[..4].copy_from_slice(&len.to_be_bytes());
        self.stream.write_all(&self.record)?;
        self.receive()?;
        let mut rest = &self.reply[..];
        let (message, _) = rpc_msg::unpack(&mut rest)?;
        ensure!(message.xid == self.xid, "a reply to another call");
        match message.body {
            msg_body::REPLY(reply_body::MSG_ACCEPTED(accepted)) => match accepted.reply_data {
                accept_stat_data::SUCCESS => Ok(T::unpack(&mut rest)?.0),
                other => bail!("{other:?}"),
            },
            other => bail!("{other:?}"),
        }
    }

    /// Receives the fragments of a record.
    fn receive(&mut self) -> Result<()> {
        self.reply.clear();
        loop {
            let mut header = [0; 4];
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

    /// The handle of an exported directory.
    pub(crate) fn mount(&mut self, path: &str) -> Result<nfs_fh3> {
        let procedure = MOUNT_PROGRAM::MOUNTPROC3_MNT as u32;
        let args = dirpath(Opaque::borrowed(path.as_bytes()));
        match self.call(mount::PROGRAM, procedure, &args)? {
            mountres3::Ok(done) => Ok(nfs_fh3 {
                data: Opaque::owned(done.fhandle.0.into_owned()),
            }),
            mountres3::Err(status) => bail!("mounting {path}: {status}"),
        }
    }

    pub(crate) fn lookup(&mut self, dir: &nfs_fh3, name: &str) -> Result<nfs_fh3> {
        let args = LOOKUP3args {
            what: entry(dir, name),
        };
        match self.call(nfs3::PROGRAM, P::NFSPROC3_LOOKUP as u32, &args)? {
            LOOKUP3res::Ok(done) => Ok(done.object),
            LOOKUP3res::Err((status, _)) => bail!("LOOKUP {name}: {status}"),
        }
    }

    pub(crate) fn getattr(&mut self, file: &nfs_fh3) -> Result<()> {
        let args = GETATTR3args::from(file.clone());
        match self.call(nfs3::PROGRAM, P::NFSPROC3_GETATTR as u32, &args)? {
            GETATTR3res::Ok(_) => Ok(()),
            GETATTR3res::Err((status, _)) => bail!("GETATTR: {status}"),
        }
    }

    pub(crate) fn create(&mut self, dir: &nfs_fh3, name: &str) -> Result<()> {
        let args = CREATE3args {
            where_: entry(dir, name),
            how: createhow3::UNCHECKED(sattr3 {
                mode: Nfs3Option::Some(0o644),
                ..sattr3::default()
            }),
        };
        match self.call(nfs3::PROGRAM, P::NFSPROC3_CREATE as u32, &args)? {
            CREATE3res::Ok(_) => Ok(()),
            CREATE3res::Err((status, _)) => bail!("CREATE {name}: {status}"),
        }
    }

    pub(crate) fn remove(&mut self, dir: &nfs_fh3, name: &str) -> Result<()> {
        let args = REMOVE3args {
            object: entry(dir, name),
        };
        match self.call(nfs3::PROGRAM, P::NFSPROC3_REMOVE as u32, &args)? {
            REMOVE3res::Ok(_) => Ok(()),
            REMOVE3res::Err((status, _)) => bail!("REMOVE {name}: {status}"),
        }
    }

    /// Reads `count` bytes, all of which the file has.
    pub(crate) fn read(&mut self, file: &nfs_fh3, offset: u64, count: u32) -> Result<()> {
        let args = READ3args {
            file: file.clone(),
            offset,
            count,
        };
        let done: READ3res<'static> = self.call(nfs3::PROGRAM, P::NFSPROC3_READ as u32, &args)?;
        match done {
            Nfs3Result::Ok(done) => {
                ensure!(done.count == count, "READ of {count}: {} bytes", done.count);
                Ok(())
            }
            Nfs3Result::Err((status, _)) => bail!("READ: {status}"),
        }
    }

    /// Writes without commitment.
    pub(crate) fn write(&mut self, file: &nfs_fh3, offset: u64, data: &[u8]) -> Result<()> {
        let args = WRITE3args {
            file: file.clone(),
            offset,
            count: u32::try_from(data.len())?,
            stable: stable_how::UNSTABLE,
            data: Opaque::borrowed(data),
        };
        match self.call(nfs3::PROGRAM, P::NFSPROC3_WRITE as u32, &args)? {
            WRITE3res::Ok(done) => {
                ensure!(usize::try_from(done.count)? == data.len(), "a short WRITE");
                Ok(())
            }
            WRITE3res::Err((status, _)) => bail!("WRITE: {status}"),
        }
    }

    pub(crate) fn commit(&mut self, file: &nfs_fh3) -> Result<()> {
        let args = COMMIT3args {
            file: file.clone(),
            offset: 0,
            count: 0,
        };
        match self.call(nfs3::PROGRAM, P::NFSPROC3_COMMIT as u32, &args)? {
            COMMIT3res::Ok(_) => Ok(()),
            COMMIT3res::Err((status, _)) => bail!("COMMIT: {status}"),
        }
    }
}

fn entry<'a>(dir: &nfs_fh3, name: &'a str) -> diropargs3<'a> {
    diropargs3 {
        dir: dir.clone(),
        name: name.as_bytes().into(),
    }
}
