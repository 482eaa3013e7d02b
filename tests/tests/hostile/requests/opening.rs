//! OPEN and CREATE with flags that a kernel never sends, of special files, and without end.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Result, ensure};
use gangplank_fuse::{
    CreateIn, MknodIn, NodeId, OpenIn, Operation, SetattrIn, SetattrValid, reply,
};
use gangplank_tests::driver::Setup;
use gangplank_tests::driver::fixture::Fixture;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{errno, with_guest};

#[test]
fn flags_that_a_kernel_never_sends_open_nothing_strange() -> Result<()> {
    with_guest(&[], |guest, fixture| {
        fs::write(fixture.share().join("good"), "good")?;
        let secret = fixture.outside().join("secret");
        fs::write(&secret, "secret")?;
        symlink(&secret, fixture.share().join("link"))?;
        let link = NodeId::new(guest.lookup(NodeId::ROOT, c"link")?.nodeid);
        for flags in [
            0,
            2,
            0o1000,
            0o2,
            0o400_000,
            0o200_000,
            0o10_000_000,
            0o20_000_000,
            u32::MAX,
        ] {
            for node in [link, NodeId::ROOT] {
                let answer = errno(
                    guest,
                    node,
                    Operation::Open(OpenIn {
                        flags,
                        open_flags: 0,
                    }),
                    &[],
                    512,
                )?;
                if node == link {
                    ensure!(
                        answer.is_some(),
                        "OPEN of a symbolic link with {flags:#o} succeeded"
                    );
                }
            }
            let good = NodeId::new(guest.lookup(NodeId::ROOT, c"good")?.nodeid);
            errno(
                guest,
                good,
                Operation::Open(OpenIn {
                    flags,
                    open_flags: u32::MAX,
                }),
                &[],
                512,
            )?;
            let args = CreateIn {
                flags,
                mode: u32::MAX,
                umask: u32::MAX,
                open_flags: u32::MAX,
            };
            let created = errno(
                guest,
                NodeId::ROOT,
                Operation::Create {
                    args,
                    name: c"link",
                },
                &[],
                512,
            )?;
            ensure!(
                created.is_some(),
                "CREATE of a symbolic link's name with {flags:#o} succeeded"
            );
        }
        let through = errno(guest, link, Operation::Lookup { name: c"secret" }, &[], 512)?;
        ensure!(
            through == Some(Errno::NOTDIR),
            "LOOKUP in a symbolic link: {through:?}"
        );
        ensure!(
            fs::read(&secret)? == b"secret",
            "a file outside the share was changed"
        );
        Ok(())
    })
}

#[test]
fn opening_what_blocks_does_not_block() -> Result<()> {
    with_guest(&[], |guest, _| {
        for (name, kind) in [(c"fifo", 0o010_000), (c"socket", 0o140_000)] {
            let args = MknodIn {
                mode: kind | 0o666,
                ..MknodIn::default()
            };
            let payload = guest.call(NodeId::ROOT, Operation::Mknod { args, name }, &[], 512)?;
            let node = NodeId::new(reply::decode_entry(&payload)?.nodeid);
            for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR] {
                // A guest's kernel opens these itself. The daemon may succeed, but must not wait
                // for a peer.
                errno(
                    guest,
                    node,
                    Operation::Open(OpenIn {
                        flags: flags.bits(),
                        open_flags: 0,
                    }),
                    &[],
                    512,
                )?;
                let args = CreateIn {
                    flags: flags.bits(),
                    mode: 0o100_666,
                    ..CreateIn::default()
                };
                errno(
                    guest,
                    NodeId::ROOT,
                    Operation::Create { args, name },
                    &[],
                    512,
                )?;
            }
            let size = SetattrIn {
                valid: SetattrValid::SIZE.bits(),
                size: 1,
                ..SetattrIn::default()
            };
            errno(guest, node, Operation::Setattr(size), &[], 512)?;
        }
        Ok(())
    })
}

#[test]
fn many_open_files_run_into_a_limit_and_not_into_the_neighbour() -> Result<()> {
    let fixture = Fixture::new(&["--rlimit-nofile=1024"])?;
    fs::write(fixture.share().join("good"), "good")?;
    let mut guest = fixture.guest(&Setup::default())?;
    let node = NodeId::new(guest.lookup(NodeId::ROOT, c"good")?.nodeid);
    let mut opened = 0;
    let refused = loop {
        match guest.open(node, OFlags::RDONLY) {
            Ok(_) => opened += 1,
            Err(error) => break error.errno(),
        }
        ensure!(
            opened < 4096,
            "{opened} files are open although 1024 are the limit"
        );
    };
    ensure!(
        matches!(refused, Some(Errno::NFILE | Errno::MFILE)),
        "{refused:?} after {opened}"
    );
    let mut fixture = fixture;
    fixture.neighbour_goes_on()?;
    // Another guest can still connect.
    fixture
        .guest(&Setup::default())?
        .getattr(NodeId::ROOT, None)?;
    drop(guest);
    fixture.survive(&[])
}
