//! What is measured: one procedure after another, for a given time.

use std::time::{Duration, Instant};

use anyhow::Result;
use gangplank_bench::nfs_client::Client;
use nfs3_types::nfs3::nfs_fh3;

/// The file that is read and written.
pub(crate) const FILE: &str = "data";

/// Its length, in bytes.
pub(crate) const FILE_LEN: u64 = 64 << 20;

const BLOCK: u32 = 4 << 10;
const CHUNK: u32 = 1 << 20;

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    /// GETATTR of one file.
    Getattr,
    /// CREATE of new files. Their removal is not measured.
    Create,
    /// READ of 4 KiB at random places.
    RandomRead,
    /// WRITE of 4 KiB at random places, and one COMMIT.
    RandomWrite,
    /// READ of 1 MiB, one after another.
    Read,
    /// WRITE of 1 MiB, one after another, and one COMMIT.
    Write,
}

impl Workload {
    /// All, in the order of the report.
    pub(crate) const ALL: [Self; 6] = [
        Self::Getattr,
        Self::Create,
        Self::RandomRead,
        Self::RandomWrite,
        Self::Read,
        Self::Write,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Getattr => "getattr",
            Self::Create => "create",
            Self::RandomRead => "read-4k-random",
            Self::RandomWrite => "write-4k-random",
            Self::Read => "read-1m",
            Self::Write => "write-1m",
        }
    }

    /// Reads the whole file, so that it is in the host's page cache.
    pub(crate) fn warm_up(client: &mut Client, dir: &nfs_fh3) -> Result<()> {
        let file = client.lookup(dir, FILE)?;
        let mut offset = 0;
        while offset < FILE_LEN {
            client.read(&file, offset, CHUNK)?;
            offset += u64::from(CHUNK);
        }
        Ok(())
    }

    /// Calls for each second, within at least `time`.
    pub(crate) fn run(self, client: &mut Client, dir: &nfs_fh3, time: Duration) -> Result<f64> {
        let file = client.lookup(dir, FILE)?;
        let data = vec![7; usize::try_from(CHUNK)?];
        let block = &data[..usize::try_from(BLOCK)?];
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut place = |len: u32| {
            // xorshift64: cheap, and the same for all servers.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % (FILE_LEN / u64::from(len)) * u64::from(len)
        };
        let mut calls = 0_u32;
        let started = Instant::now();
        while started.elapsed() < time {
            let next = u64::from(calls) * u64::from(CHUNK) % FILE_LEN;
            match self {
                Self::Getattr => client.getattr(&file)?,
                Self::Create => client.create(dir, &format!("new-{calls}"))?,
                Self::RandomRead => client.read(&file, place(BLOCK), BLOCK)?,
                Self::RandomWrite => client.write(&file, place(BLOCK), block)?,
                Self::Read => client.read(&file, next, CHUNK)?,
                Self::Write => client.write(&file, next, &data)?,
            }
            calls += 1;
        }
        if matches!(self, Self::RandomWrite | Self::Write) {
            client.commit(&file)?;
        }
        let rate = f64::from(calls) / started.elapsed().as_secs_f64();
        if self == Self::Create {
            for number in 0..calls {
                client.remove(dir, &format!("new-{number}"))?;
            }
        }
        Ok(rate)
    }
}
