//! Many requests in flight, on all kinds of rings, from several threads.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::thread;

use anyhow::{Context, Result, ensure};
use gangplank_driver::{Data, FuseSession, InitOptions, Options, Pending, WaitMode, call};
use gangplank_fuse::{Handle, NodeId, WriteIn};

use super::{create_in, node, read_in, release_in};
use crate::fixture::Fixture;

#[test]
fn every_kind_of_ring_carries_requests() -> Result<()> {
    let fixture = Fixture::ours(&[])?;
    for (indirect, event_idx) in [(false, false), (false, true), (true, false), (true, true)] {
        for waiting in [WaitMode::Sleep, WaitMode::BusyPoll] {
            for queue_size in [4, 128] {
                let options = Options {
                    indirect,
                    event_idx,
                    waiting,
                    queue_size,
                    ..Options::default()
                };
                let fs = fixture.driver(&options)?.session(&InitOptions::default())?;
                let (entry, opened) = fs.create(NodeId::ROOT, c"file", create_in(0o600))?;
                for round in 0..300_u64 {
                    let data = round.to_le_bytes();
                    fs.write(node(&entry), Handle::new(opened.fh), round * 8, &data)?;
                }
                let all = fs
                    .read(node(&entry), Handle::new(opened.fh), 0, 4096)?
                    .to_vec();
                let expected: Vec<u8> = (0..300_u64).flat_map(u64::to_le_bytes).collect();
                ensure!(all == expected, "{options:?}");
                fs.unlink(NodeId::ROOT, c"file")?;
            }
        }
    }
    Ok(())
}

/// Bytes of a block that is written or read at a time.
const BLOCK: u32 = 65536;

/// The content of block `number`: 256 bytes, repeated.
fn block(number: u64) -> Vec<u8> {
    let pages = (number..).take(256);
    pages
        .flat_map(|page| [page.to_le_bytes()[0]; 256])
        .collect()
}

/// Writes `count` blocks with `depth` in flight, and reads them back likewise.
fn pipeline(fs: &FuseSession, name: &CStr, depth: usize, count: u64) -> Result<()> {
    let (entry, opened) = fs.create(NodeId::ROOT, name, create_in(0o600))?;
    let (file, fh) = (node(&entry), opened.fh);
    let room = usize::try_from(BLOCK)?;
    let mut writing: VecDeque<Pending<u32>> = VecDeque::new();
    for number in 0..count {
        if writing.len() == depth {
            let oldest = writing.pop_front().context("nothing in flight")?;
            ensure!(oldest.wait()? == BLOCK);
        }
        let buffer = fs.buffer(room)?;
        buffer.bytes().copy_from(&block(number));
        let args = WriteIn {
            fh,
            offset: number * u64::from(BLOCK),
            size: BLOCK,
            ..WriteIn::default()
        };
        writing.push_back(fs.submit(call::write(file, args, buffer))?);
    }
    for pending in writing {
        ensure!(pending.wait()? == BLOCK);
    }
    let mut reading: VecDeque<(u64, Pending<Data>)> = VecDeque::new();
    let mut next = 0;
    while next < count || !reading.is_empty() {
        if next < count && reading.len() < depth {
            let args = read_in(fh, next * u64::from(BLOCK), 0);
            let call = call::read(file, args, fs.buffer(room)?);
            reading.push_back((next, fs.submit(call)?));
            next += 1;
        } else if let Some((number, pending)) = reading.pop_front() {
            ensure!(pending.wait()?.to_vec() == block(number), "block {number}");
        }
    }
    fs.release(file, release_in(fh))?;
    Ok(())
}

#[test]
fn thirty_two_requests_are_in_flight_on_each_of_two_queues() -> Result<()> {
    let fixture = Fixture::ours(&["--num-request-queues=2"])?;
    let driver = fixture.driver(&Options::default())?;
    ensure!(driver.request_queues() == 2);
    let fs = driver.session(&InitOptions::default())?;
    let (first, second) = (fs.on_queue(1)?, fs.on_queue(2)?);
    ensure!(fs.on_queue(3).is_err() && fs.on_queue(0).is_err());
    thread::scope(|scope| {
        let one = scope.spawn(|| pipeline(&first, c"one", 32, 200));
        let two = scope.spawn(|| pipeline(&second, c"two", 32, 200));
        one.join().expect("no panic")?;
        two.join().expect("no panic")
    })
}

#[test]
fn many_threads_share_one_queue() -> Result<()> {
    for fixture in Fixture::each(&[])? {
        let fs = fixture.session()?;
        thread::scope(|scope| {
            let threads: Vec<_> = (0..12)
                .map(|number| {
                    let fs = fs.clone();
                    scope.spawn(move || -> Result<()> {
                        let name = CString::new(format!("file-{number}"))?;
                        let (entry, opened) = fs.create(NodeId::ROOT, &name, create_in(0o600))?;
                        let (file, fh) = (node(&entry), Handle::new(opened.fh));
                        for round in 0..100_u64 {
                            let value = (round << 8 | number).to_le_bytes();
                            fs.write(file, fh, 0, &value)?;
                            ensure!(fs.read(file, fh, 0, 8)?.to_vec() == value);
                        }
                        Ok(())
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("no panic"))
        })?;
    }
    Ok(())
}
