//! The NFSv3 procedures that are measured, with one call in flight, so that the servers' latency is
//! what is measured, and gangplank-nfs for them.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::nfs_client::{self, entry};
use gangplank_tests::process;
use nfs3_types::nfs3::{
    COMMIT3args, COMMIT3res, CREATE3args, CREATE3res, GETATTR3args, GETATTR3res, NFS_PROGRAM as P,
    Nfs3Option, Nfs3Result, READ3args, READ3res, REMOVE3args, REMOVE3res, WRITE3args, WRITE3res,
    createhow3, nfs_fh3, sattr3, stable_how,
};
use nfs3_types::xdr_codec::Opaque;

/// Limit for a server to start.
const LIMIT: Duration = Duration::from_secs(60);

/// A connection as root.
pub struct Client(nfs_client::Client);

impl Client {
    /// Connects to a port of this machine.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        Ok(Self(nfs_client::Client::new(stream, 0, 0)?))
    }

    /// MNT: the handle of an exported directory.
    ///
    /// # Errors
    /// The server refuses, or does not reply in time.
    pub fn mount(&mut self, path: &str) -> Result<nfs_fh3> {
        self.0
            .mount(path)
            .with_context(|| format!("mounting {path}"))
    }

    /// LOOKUP: the handle of a name.
    ///
    /// # Errors
    /// The server refuses, or does not reply in time.
    pub fn lookup(&mut self, dir: &nfs_fh3, name: &str) -> Result<nfs_fh3> {
        self.0.lookup(dir, name)
    }

    /// GETATTR.
    ///
    /// # Errors
    /// The server refuses, or does not reply in time.
    pub fn getattr(&mut self, file: &nfs_fh3) -> Result<()> {
        let args = GETATTR3args::from(file.clone());
        match self.0.nfs(P::NFSPROC3_GETATTR, &args)? {
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
        match self.0.nfs(P::NFSPROC3_CREATE, &args)? {
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
        match self.0.nfs(P::NFSPROC3_REMOVE, &args)? {
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
        let done: READ3res<'static> = self.0.nfs(P::NFSPROC3_READ, &args)?;
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
        match self.0.nfs(P::NFSPROC3_WRITE, &args)? {
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
        match self.0.nfs(P::NFSPROC3_COMMIT, &args)? {
            COMMIT3res::Ok(_) => Ok(()),
            COMMIT3res::Err((status, _)) => bail!("COMMIT: {status}"),
        }
    }
}

/// Starts the gangplank-nfs `program` on the daemon at `backend`, at a port of this machine, with
/// its state in the directory `state`. Its log is the file `log` there.
///
/// # Errors
/// It does not start.
pub fn start_server(program: &Path, backend: &Path, port: u16, state: &Path) -> Result<Child> {
    let mut command = process::tied(program, None);
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
