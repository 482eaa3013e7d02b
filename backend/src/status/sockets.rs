//! The listening sockets for status and metrics.
//!
//! They are made before the sandbox is entered, and outlive reloads: the supervisor keeps them, and
//! passes them to each program that it starts or becomes, by their numbers in a variable.

use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use gangplank_service::owned_file::{FileId, OwnedFile};
use gangplank_service::unix_listener::{BindError, OwnedListener};
use rustix::fs::{Mode, OFlags};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{SocketFlags, accept_with};
use thiserror::Error;

use super::answer::{Kind, MAX_CLIENTS};
use super::options::{MetricsAddress, Options};
use crate::sys::process;

/// The variable by which a supervisor passes the sockets: the numbers of the control socket's
/// descriptor, of its file's device and inode, and the same of the metrics; -1 for none.
pub const VARIABLE: &str = "GANGPLANKD_STATUS";

/// Who may connect: the owner.
const OWNER_ONLY: Mode = Mode::from_raw_mode(0o600);

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum Error {
    /// A Unix socket cannot be made.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The address cannot be used.
    #[error("cannot listen on {address} for metrics")]
    Address {
        /// As typed.
        address: String,
        /// The reason.
        source: io::Error,
    },
    /// What the program before has passed cannot be used.
    #[error("cannot go on with the sockets for status and metrics")]
    Inherit(#[source] io::Error),
}

/// A listening socket, and its file if it has one.
#[derive(Debug)]
struct Socket {
    listener: OwnedFd,
    file: Option<OwnedFile>,
}

/// All sockets, with their files.
#[derive(Debug, Default)]
pub struct Sockets {
    control: Option<Socket>,
    metrics: Option<Socket>,
}

/// The sockets, for the process that accepts connections.
#[derive(Debug, Default)]
pub struct Listeners {
    /// The control socket.
    pub control: Option<OwnedFd>,
    /// That of the metrics.
    pub metrics: Option<OwnedFd>,
}

impl Listeners {
    fn of(&self, kind: Kind) -> Option<&OwnedFd> {
        match kind {
            Kind::Control => self.control.as_ref(),
            Kind::Metrics => self.metrics.as_ref(),
        }
    }

    /// Where clients are waited for, if `count` of each kind are answered now: those of a kind
    /// nowhere while too many of it are.
    pub fn polled(&self, count: impl Fn(Kind) -> usize) -> Vec<(Kind, BorrowedFd<'_>)> {
        let kinds = Kind::ALL.into_iter();
        let kinds = kinds.filter(|kind| count(*kind) < MAX_CLIENTS);
        kinds
            .filter_map(|kind| Some((kind, self.of(kind)?.as_fd())))
            .collect()
    }

    /// Accepts the next client. `None` if it has gone.
    #[must_use]
    pub fn accept(&self, kind: Kind) -> Option<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        accept_with(self.of(kind)?, flags).ok()
    }
}

impl Sockets {
    /// Makes the sockets.
    ///
    /// # Errors
    /// [`enum@Error`]; no file is left.
    pub fn bind(options: &Options) -> Result<Self, Error> {
        let control = options.control.as_deref().map(bind_path).transpose()?;
        let metrics = match &options.metrics {
            None => Ok(None),
            Some(MetricsAddress::Path(path)) => bind_path(path).map(Some),
            Some(MetricsAddress::Tcp(address)) => {
                let bound = TcpListener::bind(address).and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    Ok(listener.into())
                });
                bound
                    .map(|listener| {
                        Some(Socket {
                            listener,
                            file: None,
                        })
                    })
                    .map_err(|source| {
                        let address = address.to_string();
                        Error::Address { address, source }
                    })
            }
        };
        let mut sockets = Self {
            control,
            metrics: None,
        };
        match metrics {
            Ok(metrics) => {
                sockets.metrics = metrics;
                Ok(sockets)
            }
            Err(error) => {
                sockets.remove();
                Err(error)
            }
        }
    }

    /// The sockets that the program before has passed, in the same options. Must be called once,
    /// before the process opens descriptors.
    ///
    /// # Errors
    /// [`Error::Inherit`].
    pub fn inherit(options: &Options) -> Result<Self, Error> {
        let Some(text) = std::env::var_os(VARIABLE) else {
            return Ok(Self::default());
        };
        let path = |address: &MetricsAddress| match address {
            MetricsAddress::Path(path) => Some(path.clone()),
            MetricsAddress::Tcp(_) => None,
        };
        let paths = [
            options.control.clone(),
            options.metrics.as_ref().and_then(path),
        ];
        adopt(&text, paths).map_err(Error::Inherit)
    }

    /// What [`VARIABLE`] is for the next program; `None` if there are no sockets.
    #[must_use]
    pub fn passed(&self) -> Option<String> {
        if self.control.is_none() && self.metrics.is_none() {
            return None;
        }
        let numbers = [&self.control, &self.metrics].map(|socket| {
            let number = socket
                .as_ref()
                .map_or(-1, |socket| socket.listener.as_raw_fd());
            let file = socket.as_ref().and_then(|socket| socket.file.as_ref());
            let (device, inode) = file.map_or((0, 0), |file| file.id().numbers());
            format!("{number},{device},{inode}")
        });
        Some(numbers.join(","))
    }

    /// Has the programs that this process starts or becomes inherit the sockets.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn pass_on(&self) -> io::Result<()> {
        let sockets = [&self.control, &self.metrics];
        let mut sockets = sockets.into_iter().flatten();
        sockets.try_for_each(|socket| Ok(fcntl_setfd(&socket.listener, FdFlags::empty())?))
    }

    /// Copies of the sockets, for a process that keeps their files as well.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn listeners(&self) -> io::Result<Listeners> {
        let copy = |socket: &Option<Socket>| {
            let copy = socket.as_ref().map(|socket| socket.listener.try_clone());
            copy.transpose()
        };
        Ok(Listeners {
            control: copy(&self.control)?,
            metrics: copy(&self.metrics)?,
        })
    }

    /// The sockets alone, for the confined process, which does not see their files.
    #[must_use]
    pub fn into_listeners(self) -> Listeners {
        Listeners {
            control: self.control.map(|socket| socket.listener),
            metrics: self.metrics.map(|socket| socket.listener),
        }
    }

    /// Removes the files.
    pub fn remove(self) {
        for file in [self.control, self.metrics]
            .into_iter()
            .filter_map(|socket| socket?.file)
        {
            file.remove();
        }
    }
}

fn bind_path(path: &Path) -> Result<Socket, Error> {
    let (listener, file) = OwnedListener::bind(path, Some(OWNER_ONLY))?.into_parts();
    Ok(Socket {
        listener: listener.into(),
        file,
    })
}

fn adopt(text: &OsStr, paths: [Option<PathBuf>; 2]) -> io::Result<Sockets> {
    let invalid = || {
        let text = format!("{VARIABLE} is malformed");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let numbers = text.to_str().unwrap_or_default().split(',');
    let numbers: Result<Vec<i128>, _> = numbers.map(str::parse).collect();
    let numbers = numbers.map_err(|_| invalid())?;
    if numbers.len() != 6 {
        return Err(invalid());
    }
    let mut sockets = numbers.chunks(3).zip(paths).map(|(numbers, path)| {
        let &[number, device, inode] = numbers else {
            return Err(invalid());
        };
        if number == -1 {
            return Ok(None);
        }
        let listener = process::adopt(RawFd::try_from(number).map_err(|_| invalid())?)?;
        fcntl_setfd(&listener, FdFlags::CLOEXEC)?;
        let long = |number: i128| u64::try_from(number).map_err(|_| invalid());
        let id = FileId::from_numbers(long(device)?, long(inode)?);
        let file = match path {
            Some(path) if inode != 0 => owned(&path, id),
            _ => None,
        };
        Ok(Some(Socket { listener, file }))
    });
    Ok(Sockets {
        control: sockets.next().transpose()?.flatten(),
        metrics: sockets.next().transpose()?.flatten(),
    })
}

/// `None` if the directory is out of reach: then the file stays.
fn owned(path: &Path, id: FileId) -> Option<OwnedFile> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory =
        rustix::fs::open(parent.unwrap_or(Path::new(".")), flags, Mode::empty()).ok()?;
    OwnedFile::new(directory.as_fd(), path.file_name()?, id).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn sockets_are_the_owners_alone_and_go_at_the_end_of_the_last_program() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let options = Options {
            control: Some(path.clone()),
            metrics: Some(MetricsAddress::Tcp("127.0.0.1:0".parse().unwrap())),
        };
        let first = Sockets::bind(&options).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        let passed = first.passed().unwrap();
        // As the next program finds them.
        let Sockets { control, metrics } = first;
        let [control, metrics] = [control, metrics].map(|socket| socket.unwrap());
        std::mem::forget((control.listener, metrics.listener));
        let next = adopt(passed.as_ref(), [Some(path.clone()), None]).unwrap();
        assert_eq!(next.passed(), Some(passed));
        UnixStream::connect(&path).unwrap();
        next.remove();
        assert!(!path.exists());
    }

    #[test]
    fn an_address_that_cannot_be_used_is_named_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let options = Options {
            control: Some(dir.path().join("c")),
            metrics: Some(MetricsAddress::Tcp(address)),
        };
        let error = Sockets::bind(&options).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()), "{error}");
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        for malformed in ["", "1,2", "-1,0,0,x,0,0", "-1,0,0"] {
            assert!(
                adopt(malformed.as_ref(), [None, None]).is_err(),
                "{malformed}"
            );
        }
    }
}
