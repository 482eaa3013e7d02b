//! The driver against released daemons.

mod in_flight;
mod lost_daemon;
mod operations;

use gangplank_fuse::{CreateIn, NodeId, OpenIn, ReadIn, ReleaseIn};
use rustix::fs::OFlags;
use rustix::io::Errno;

fn create_in(mode: u32) -> CreateIn {
    CreateIn {
        flags: (OFlags::CREATE | OFlags::RDWR | OFlags::LARGEFILE).bits(),
        mode: 0o100_000 | mode,
        umask: 0,
        open_flags: 0,
    }
}

fn open_in(flags: OFlags) -> OpenIn {
    OpenIn {
        flags: (flags | OFlags::LARGEFILE).bits(),
        open_flags: 0,
    }
}

fn release_in(fh: u64) -> ReleaseIn {
    ReleaseIn {
        fh,
        ..ReleaseIn::default()
    }
}

fn read_in(fh: u64, offset: u64, size: u32) -> ReadIn {
    ReadIn {
        fh,
        offset,
        size,
        ..ReadIn::default()
    }
}

fn node(entry: &gangplank_fuse::EntryOut) -> NodeId {
    NodeId::new(entry.nodeid)
}

fn errno<T: std::fmt::Debug>(result: gangplank_driver::Result<T>) -> Option<Errno> {
    result.expect_err("it should have failed").errno()
}
