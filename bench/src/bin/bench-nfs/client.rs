//! The procedures that are measured, with one call in flight, so that the servers' latency is what
//! is measured.

use std::net::{Ipv4Addr, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::nfs_client::{self, entry};
use nfs3_types::nfs3::{
    COMMIT3args, COMMIT3res, CREATE3args, CREATE3res, GETATTR3args, GETATTR3res, NFS_PROGRAM as P,
    Nfs3Option, Nfs3Result, READ3args, READ3res, REMOVE3args, REMOVE3res, WRITE3args, WRITE3res,
    createhow3, nfs_fh3, sattr3, stable_how,
};
use nfs3_types::xdr_codec::Opaque;

/// A connection as root.
pub(crate) struct Client(nfs_client::Client);

impl Client {
    /// Connects to a port of this machine.
    pub(crate) fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        Ok(Self(nfs_client::Client::new(stream, 0, 0)?))
    }

    /// The handle of an exported directory.
    pub(crate) fn mount(&mut self, path: &str) -> Result<nfs_fh3> {
        self.0
            .mount(path)
            .with_context(|| format!("mounting {path}"))
    }

    pub(crate) fn lookup(&mut self, dir: &nfs_fh3, name: &str) -> Result<nfs_fh3> {
        self.0.lookup(dir, name)
    }

    pub(crate) fn getattr(&mut self, file: &nfs_fh3) -> Result<()> {
        let args = GETATTR3args::from(file.clone());
        match self.0.nfs(P::NFSPROC3_GETATTR, &args)? {
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
        match self.0.nfs(P::NFSPROC3_CREATE, &args)? {
            CREATE3res::Ok(_) => Ok(()),
            CREATE3res::Err((status, _)) => bail!("CREATE {name}: {status}"),
        }
    }

    pub(crate) fn remove(&mut self, dir: &nfs_fh3, name: &str) -> Result<()> {
        let args = REMOVE3args {
            object: entry(dir, name),
        };
        match self.0.nfs(P::NFSPROC3_REMOVE, &args)? {
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
        let done: READ3res<'static> = self.0.nfs(P::NFSPROC3_READ, &args)?;
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
        match self.0.nfs(P::NFSPROC3_WRITE, &args)? {
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
        match self.0.nfs(P::NFSPROC3_COMMIT, &args)? {
            COMMIT3res::Ok(_) => Ok(()),
            COMMIT3res::Err((status, _)) => bail!("COMMIT: {status}"),
        }
    }
}
