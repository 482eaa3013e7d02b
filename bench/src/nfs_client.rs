//! An NFSv3 client with one call in flight, so that the servers' latency is what is measured, and
//! gangplank-nfs for it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::{process, tools};
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

/// Limit for a reply, and for a server to start.
const LIMIT: Duration = Duration::from_secs(60);

/// The last fragment of a record (RFC 5531, 11).
const LAST: u32 = 1 << 31;

/// A connection as root.
pub struct Client {
    stream: TcpStream,
    auth: auth_unix,
    xid: u32,
    record: Vec<u8>,
    reply: Vec<u8>,
}

impl Client {
    /// Connects to a port of this machine.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(port: u16) -> Result<Self> {
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
    ///
    /// # Errors
    /// The server refuses, or does not reply in time.
    pub fn mount(&mut self, path: &str) -> Result<nfs_fh3> {
        let procedure = MOUNT_PROGRAM::MOUNTPROC3_MNT as u32;
        let args = dirpath(Opaque::borrowed(path.as_bytes()));
        match self.call(mount::PROGRAM, procedure, &args)? {
            mountres3::Ok(done) => Ok(nfs_fh3 {
                data: Opaque::owned(done.fhandle.0.into_owned()),
            }),
            mountres3::Err(status) => bail!("mounting {path}: {status}"),
        }
    }

    /// LOOKUP: the handle of a name.
    ///
    /// # Errors
    /// The server refuses, or does not reply in time.
    pub fn lookup(&mut self, dir: &nfs_fh3, name: &str) -> Result<nfs_fh3> {
        let args = LOOKUP3args {
            what: entry(dir, name),
        };
        match self.call(nfs3::PROGRAM, P::NFSPROC3_LOOKUP as u32, &args)? {
            LOOKUP3res::Ok(done) => Ok(done.object),
            LOOKUP3res::Err((status, _)) => bail!("LOOKUP {name}: {status}"),
        }
    }

    /// GETATTR.
    ///
    /// # Errors
    /// The server refuses, or does not reply in time.
    pub fn getattr(&mut self, file: &nfs_fh3) -> Result<()> {
        let args = GETATTR3args::from(file.clone());
        match self.call(nfs3::PROGRAM, P::NFSPROC3_GETATTR as u32, &args)? {
            GETATTR3res::Ok(_) => Ok(()),
            GETATTR3res::Err((status, _)) => bail!("GETATTR: {status}"),
        }
    }

    /// CREATE of a regular file.
    ///
    /// # Errors
    /// The server refuses, or does not reply in time.
    pub fn create(&mut self, dir: &nfs_fh3, name: &str) -> Result<()> {
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

    /// REMOVE.
    ///
    /// # Errors
    /// The server refuses, or does not reply in time.
    pub fn remove(&mut self, dir: &nfs_fh3, name: &str) -> Result<()> {
        let args = REMOVE3args {
            object: entry(dir, name),
        };
        match self.call(nfs3::PROGRAM, P::NFSPROC3_REMOVE as u32, &args)? {
            REMOVE3res::Ok(_) => Ok(()),
            REMOVE3res::Err((status, _)) => bail!("REMOVE {name}: {status}"),
        }
    }

    /// READ of `count` bytes, all of which the file has. Drops them.
    ///
    /// # Errors
    /// The server refuses, or does not reply in time.
    pub fn read(&mut self, file: &nfs_fh3, offset: u64, count: u32) -> Result<()> {
        self.read_data(file, offset, count).map(drop)
    }

    /// READ until `into` is full. The file has as many bytes.
    ///
    /// # Errors
    /// The server refuses, or does not reply in time.
    pub fn read_into(&mut self, file: &nfs_fh3, offset: u64, into: &mut [u8]) -> Result<()> {
        let data = self.read_data(file, offset, u32::try_from(into.len())?)?;
        ensure!(data.0.len() == into.len(), "READ: {} bytes", data.0.len());
        into.copy_from_slice(&data.0);
        Ok(())
    }

    fn read_data(&mut self, file: &nfs_fh3, offset: u64, count: u32) -> Result<Opaque<'static>> {
        let args = READ3args {
            file: file.clone(),
            offset,
            count,
        };
        let done: READ3res<'static> = self.call(nfs3::PROGRAM, P::NFSPROC3_READ as u32, &args)?;
        match done {
            Nfs3Result::Ok(done) => {
                ensure!(done.count == count, "READ of {count}: {} bytes", done.count);
                Ok(done.data)
            }
            Nfs3Result::Err((status, _)) => bail!("READ: {status}"),
        }
    }

    /// WRITE without commitment.
    ///
    /// # Errors
    /// The server refuses, or does not reply in time.
    pub fn write(&mut self, file: &nfs_fh3, offset: u64, data: &[u8]) -> Result<()> {
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

    /// COMMIT of the whole file.
    ///
    /// # Errors
    /// The server refuses, or does not reply in time.
    pub fn commit(&mut self, file: &nfs_fh3) -> Result<()> {
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

/// Starts gangplank-nfs on the daemon at `backend`, at a port of this machine, with its state in the
/// directory `state`. Its log is the file `log` there.
///
/// # Errors
/// It does not build or start.
pub fn start_server(backend: &Path, port: u16, state: &Path) -> Result<Child> {
    let mut command = process::tied(tools::nfs()?, None);
    command
        .args([
            "serve",
            "--listen",
            &format!("127.0.0.1:{port}"),
            "--backend",
        ])
        .arg(backend)
        .args([
            "--client",
            "127.0.0.1(rw,insecure,no_root_squash)",
            "--state",
        ])
        .arg(state)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(state.join("log"))?);
    Ok(process::spawn(command)?)
}

/// Connects to a server that is starting, with its port for NFS and that for mounts: the handle of
/// `export`, and a connection for NFS. The export has a file `name`.
///
/// # Errors
/// It does not start in time; with its log.
pub fn reach(ports: (u16, u16), export: &str, name: &str, log: &Path) -> Result<(nfs_fh3, Client)> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let reached = Client::connect(ports.1)
            .and_then(|mut client| client.mount(export))
            .and_then(|root| {
                let mut client = Client::connect(ports.0)?;
                client.lookup(&root, name)?;
                Ok((root, client))
            });
        match reached {
            Ok(reached) => return Ok(reached),
            Err(error) if Instant::now() > deadline => {
                let log = fs::read_to_string(log).unwrap_or_default();
                return Err(error).with_context(|| format!("the server does not start\n{log}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn entry<'a>(dir: &nfs_fh3, name: &'a str) -> diropargs3<'a> {
    diropargs3 {
        dir: dir.clone(),
        name: name.as_bytes().into(),
    }
}
