//! Links that the command line gives: TAP devices, and descriptors of another program.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::str::FromStr;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{SocketType, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use smoltcp::phy::{Medium, TunTapInterface};

use super::line::Line;

/// Longest name of a network device (`IFNAMSIZ`, without the zero).
const MAX_NAME: usize = 15;

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// A TAP device of the host, by its name.
    Tap(String),
    /// A descriptor that this program has from the one that started it.
    Descriptor(RawFd),
}

impl FromStr for Link {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "tap:NAME or fd:NUMBER, such as tap:tap0";
        match text.split_once(':').ok_or(wrong)? {
            ("tap", name) => {
                let is_name = !name.is_empty() && name.len() <= MAX_NAME && !name.contains('/');
                is_name.then(|| Self::Tap(name.to_owned())).ok_or(wrong)
            }
            ("fd", number) => {
                let number = number.parse().ok().filter(|number| *number >= 0);
                number.map(Self::Descriptor).ok_or(wrong)
            }
            _ => Err(wrong),
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap(name) => write!(f, "tap:{name}"),
            Self::Descriptor(number) => write!(f, "fd:{number}"),
        }
    }
}

impl Link {
    /// Opens it. A TAP device is made if there is none of this name, which needs `CAP_NET_ADMIN`.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn open(&self) -> io::Result<Line> {
        let fd = match self {
            Self::Tap(name) => {
                let device = TunTapInterface::new(name, Medium::Ethernet)?;
                duplicate(device.as_raw_fd())?
            }
            Self::Descriptor(number) => duplicate(*number)?,
        };
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        match sockopt::socket_type(&fd) {
            // Frames with their lengths, as on QEMU's -netdev stream.
            Ok(SocketType::STREAM) => Ok(Line::stream(UnixStream::from(fd))),
            Ok(_) => Ok(Line::Packets(fd)),
            Err(Errno::NOTSOCK) => Ok(Line::Device(fd)),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Another descriptor of the same open file. It takes a number and not a borrowed descriptor, so
/// the kernel checks whether there is one.
fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(&own, number, PidfdGetfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_told_as_they_are_given() {
        for text in ["tap:tap0", "fd:3"] {
            assert_eq!(text.parse::<Link>().unwrap().to_string(), text);
        }
        for wrong in [
            "tap:",
            "tap:a/b",
            "tap:sixteen-letters-",
            "fd:-1",
            "fd:x",
            "eth0",
            "tun:a",
        ] {
            assert!(wrong.parse::<Link>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_descriptor_is_taken_by_what_it_is_and_a_closed_one_refused() {
        let (stream, _other) = UnixStream::pair().unwrap();
        let line = Link::Descriptor(stream.as_raw_fd()).open().unwrap();
        assert!(matches!(line, Line::Stream { .. }));
        let packets = crate::network::config::packet_socket().unwrap();
        let line = Link::Descriptor(packets.as_raw_fd()).open().unwrap();
        assert!(matches!(line, Line::Packets(_)));
        let closed = Link::Descriptor(RawFd::MAX).open().unwrap_err();
        assert_eq!(closed.raw_os_error(), Some(libc::EBADF));
    }
}
