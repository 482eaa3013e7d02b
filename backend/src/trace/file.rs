//! The file of `--trace`, which all processes of the program append to.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use gangplank_trace::section_header;
use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::sys::process;

/// What a trace begins with: the type of pcapng's section header.
const MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// The file, from [`open`] to the end of the process.
static FILE: Mutex<Option<TraceFile>> = Mutex::new(None);

/// Why requests cannot be traced.
#[derive(Debug, Error)]
pub enum Error {
    /// The file cannot be opened or written.
    #[error("--trace: cannot {doing} {path:?}")]
    System {
        /// The verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a device or a socket.
    #[error("--trace: {0:?} is neither a file nor a FIFO")]
    Type(PathBuf),
    /// Appending would damage it.
    #[error("--trace: {0:?} exists and is no trace; remove it, or name another file")]
    Foreign(PathBuf),
}

/// An open trace.
#[derive(Debug)]
pub(super) struct TraceFile {
    pub(super) descriptor: OwnedFd,
    /// A write to a FIFO is whole, or fails, if it has at most PIPE_BUF bytes.
    pub(super) is_fifo: bool,
}

/// Opens the file at `path`, which is made with mode 0600 if it is not there, and begins a section.
/// Every tracer of this process and its children then writes to it.
///
/// # Errors
/// [`enum@Error`], worded for the operator.
pub fn open(path: &Path) -> Result<(), Error> {
    let failed = |doing| {
        move |errno: Errno| Error::System {
            doing,
            path: path.to_owned(),
            source: errno.into(),
        }
    };
    // A FIFO that is open for reading as well needs no reader now, and causes no SIGPIPE later.
    let flags = OFlags::RDWR
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NONBLOCK
        | OFlags::NOCTTY
        | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let descriptor = rustix::fs::open(path, flags, mode).map_err(failed("open"))?;
    let stat = rustix::fs::fstat(&descriptor).map_err(failed("look at"))?;
    let is_fifo = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => true,
        FileType::RegularFile => false,
        _ => return Err(Error::Type(path.to_owned())),
    };
    let mut magic = MAGIC;
    if !is_fifo {
        let read = rustix::io::pread(&descriptor, &mut magic, 0).map_err(failed("read"))?;
        if read > 0 && magic != MAGIC {
            return Err(Error::Foreign(path.to_owned()));
        }
    }
    let header = section_header(concat!("gangplankd ", env!("CARGO_PKG_VERSION")));
    match rustix::io::write(&descriptor, &header) {
        Ok(written) if written == header.len() => {}
        // A full FIFO, whose reader does without.
        Err(Errno::AGAIN) if is_fifo => {}
        Ok(_) => return Err(failed("write to")(Errno::NOSPC)),
        Err(errno) => return Err(failed("write to")(errno)),
    }
    *FILE.lock() = Some(TraceFile {
        descriptor,
        is_fifo,
    });
    Ok(())
}

/// The file by a descriptor of the caller's own; `None` without `--trace`.
pub(super) fn current() -> io::Result<Option<TraceFile>> {
    let file = FILE.lock();
    let Some(file) = &*file else {
        return Ok(None);
    };
    Ok(Some(TraceFile {
        descriptor: file.descriptor.as_fd().try_clone_to_owned()?,
        is_fifo: file.is_fifo,
    }))
}

/// Gives the file's descriptor a number from `lowest` on.
///
/// # Errors
/// No descriptor is left.
pub fn move_up(lowest: RawFd) -> io::Result<()> {
    let mut file = FILE.lock();
    if let Some(TraceFile {
        descriptor,
        is_fifo,
    }) = file.take()
    {
        *file = Some(TraceFile {
            descriptor: process::move_up(descriptor, lowest)?,
            is_fifo,
        });
    }
    Ok(())
}

impl From<TraceFile> for File {
    fn from(file: TraceFile) -> Self {
        file.descriptor.into()
    }
}
