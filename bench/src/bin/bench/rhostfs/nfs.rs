//! Access by NFS, over the same link as a tunnel's.

use std::path::Path;
use std::process::Child;

use anyhow::Result;
use gangplank_bench::nfs_client::{Client, reach, start_server};
use gangplank_tests::{process, tools};
use nfs3_types::nfs3::nfs_fh3;
use tempfile::TempDir;

use super::FileAccess;

/// A file at a server of its own.
pub(super) struct Exported {
    client: Client,
    file: nfs_fh3,
    server: Child,
    _state: TempDir,
}

impl Exported {
    /// Starts gangplank-nfs on the daemon at `backend`, at `port` of the loopback device, and looks
    /// `name` up.
    pub(super) fn start(backend: &Path, port: u16, name: &str) -> Result<Self> {
        let state = tempfile::tempdir()?;
        let mut server = start_server(&tools::nfs()?, backend, port, state.path())?;
        let reached = reach((port, port), "/", name, &state.path().join("log"));
        let found = reached.and_then(|(root, mut client)| {
            let file = client.lookup(&root, name)?;
            Ok((client, file))
        });
        let (client, file) = found.inspect_err(|_| process::kill_group(&mut server))?;
        Ok(Self {
            client,
            file,
            server,
            _state: state,
        })
    }

    /// The server's process.
    pub(super) fn pid(&self) -> u32 {
        self.server.id()
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        process::kill_group(&mut self.server);
    }
}

impl FileAccess for Exported {
    fn look(&mut self) -> Result<()> {
        self.client.getattr(&self.file)
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        self.client.read_into(&self.file, at, into)
    }

    fn write(&mut self, at: u64, from: &[u8]) -> Result<()> {
        self.client.write(&self.file, at, from)
    }
}
