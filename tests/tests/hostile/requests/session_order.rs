//! Requests before INIT and after DESTROY, and INIT of other protocol versions.

use std::fs;

use anyhow::{Result, ensure};
use gangplank_fuse::{GetattrIn, InitIn, NodeId, Operation, ReadIn, reply};
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::{Driver, Setup};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{all_on_node, errno};

#[test]
fn before_init_and_after_destroy_nothing_works() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    fs::write(fixture.share().join("good"), "good")?;
    let mut guest = Driver::connect(fixture.socket(), &Setup::default())?;
    let refused = |guest: &mut Driver, when: &str| -> Result<()> {
        for operation in all_on_node() {
            let answer = errno(guest, NodeId::ROOT, operation, &[], 512)?;
            ensure!(
                answer == Some(Errno::IO),
                "{when}, {operation:?}: {answer:?}"
            );
        }
        Ok(())
    };
    refused(&mut guest, "before INIT")?;
    guest.forget(NodeId::ROOT, u64::MAX)?;
    guest.init()?;
    let node = NodeId::new(guest.lookup(NodeId::ROOT, c"good")?.nodeid);
    let file = guest.open(node, OFlags::RDONLY)?;
    guest.destroy()?;
    refused(&mut guest, "after DESTROY")?;
    guest.destroy().err();
    guest.init()?;
    let answer = errno(
        &mut guest,
        node,
        Operation::Getattr(GetattrIn::default()),
        &[],
        512,
    )?;
    ensure!(
        answer == Some(Errno::STALE),
        "a node of the session before: {answer:?}"
    );
    let read = ReadIn {
        fh: file.get(),
        size: 4,
        ..ReadIn::default()
    };
    let node = NodeId::new(guest.lookup(NodeId::ROOT, c"good")?.nodeid);
    let answer = errno(&mut guest, node, Operation::Read(read), &[], 512)?;
    ensure!(
        answer == Some(Errno::BADF),
        "a handle of the session before: {answer:?}"
    );
    // INIT again without DESTROY, as from a guest that was reset.
    guest.init()?;
    let answer = errno(
        &mut guest,
        node,
        Operation::Getattr(GetattrIn::default()),
        &[],
        512,
    )?;
    ensure!(
        answer == Some(Errno::STALE),
        "a node of before the second INIT: {answer:?}"
    );
    guest.getattr(NodeId::ROOT, None)?;
    drop(guest);
    fixture.survive(&[])
}

#[test]
fn init_of_other_versions_is_answered_as_the_protocol_says() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = Driver::connect(fixture.socket(), &Setup::default())?;
    let init = |major, minor| {
        Operation::Init(InitIn {
            major,
            minor,
            ..InitIn::default()
        })
    };
    for (major, minor) in [(0, 0), (6, 99), (7, 0), (7, 26)] {
        let answer = errno(&mut guest, NodeId::default(), init(major, minor), &[], 512)?;
        ensure!(
            answer == Some(Errno::PROTO),
            "INIT {major}.{minor}: {answer:?}"
        );
    }
    for major in [8, u32::MAX] {
        let payload = guest.call(NodeId::default(), init(major, 0), &[], 512)?;
        ensure!(reply::decode_init(&payload)?.major == 7, "INIT {major}.0");
    }
    let answer = errno(
        &mut guest,
        NodeId::ROOT,
        Operation::Getattr(GetattrIn::default()),
        &[],
        512,
    )?;
    ensure!(
        answer == Some(Errno::IO),
        "no INIT has succeeded: {answer:?}"
    );
    let payload = guest.call(NodeId::default(), init(7, u32::MAX), &[], 512)?;
    ensure!(reply::decode_init(&payload)?.minor <= 45);
    guest.init()?;
    drop(guest);
    fixture.survive(&[])
}
