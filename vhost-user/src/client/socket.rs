//! Messages to a daemon over its Unix socket.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gangplank_service::connect_timeout::connect_timeout;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Error as Fault, Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::watchdog::Watchdog;
use super::{Error, Messages, Region, Result, RingAddresses};

/// Rings a daemon may have at most (vhost-user, SET_VRING_KICK: the index has 8 bits).
const MAX_RINGS: u64 = 256;

/// How long a daemon may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// To take the connection.
    pub connect: Duration,
    /// To answer a message.
    pub answer: Duration,
}

impl Default for Deadlines {
    /// Two seconds to take the connection, five to answer: stopping a ring waits for the requests in it.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            answer: Duration::from_secs(5),
        }
    }
}

/// A connection to a daemon.
pub struct Socket {
    daemon: PathBuf,
    frontend: Frontend,
    stream: UnixStream,
    watchdog: Watchdog,
    limit: Duration,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket")
            .field("daemon", &self.daemon)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl Socket {
    /// Connects to the daemon at `path`.
    ///
    /// # Errors
    /// [`Error::Connect`] at once if nobody listens there, [`Error::LateConnect`] if whoever does takes no connection.
    pub fn connect(path: &Path, deadlines: Deadlines) -> Result<Self> {
        let stream = connect(path, deadlines.connect)?;
        Self::from_stream(stream, path, deadlines.answer)
    }

    /// Takes a connection that is there already; `daemon` names it in messages.
    ///
    /// # Errors
    /// [`Error::System`] if the host refuses another descriptor or thread.
    pub fn from_stream(stream: UnixStream, daemon: &Path, limit: Duration) -> Result<Self> {
        let system = |source| Error::System {
            what: "preparing the connection to the daemon",
            source,
        };
        let ours = stream.try_clone().map_err(system)?;
        let watched = stream.try_clone().map_err(system)?;
        let watchdog = Watchdog::start(watched).map_err(system)?;
        Ok(Self {
            daemon: daemon.to_owned(),
            frontend: Frontend::from_stream(stream, MAX_RINGS),
            stream: ours,
            watchdog,
            limit,
        })
    }

    /// A descriptor that polls as `RDHUP` once the daemon has gone. Nothing may be read from it.
    ///
    /// # Errors
    /// [`Error::System`] if the host refuses another descriptor.
    pub fn hang_up(&self) -> Result<OwnedFd> {
        let clone = self.stream.try_clone();
        clone.map(OwnedFd::from).map_err(|source| Error::System {
            what: "watching the connection to the daemon",
            source,
        })
    }

    fn ask<R>(
        &mut self,
        message: &'static str,
        call: impl FnOnce(&mut Frontend) -> vhost::Result<R>,
    ) -> Result<R> {
        let frontend = &mut self.frontend;
        let (answer, late) = self.watchdog.guard(self.limit, || call(frontend));
        answer.map_err(|source| {
            let daemon = self.daemon.clone();
            match source {
                _ if late => Error::Late {
                    message,
                    daemon,
                    limit: self.limit,
                },
                vhost::Error::VhostUserProtocol(Fault::BackendInternalError) => {
                    Error::Refused { message, daemon }
                }
                vhost::Error::VhostUserProtocol(
                    Fault::Disconnected | Fault::PartialMessage | Fault::SocketBroken(_),
                ) => Error::Gone { message, daemon },
                source => Error::Protocol {
                    message,
                    daemon,
                    source,
                },
            }
        })
    }
}

impl Messages for Socket {
    fn daemon(&self) -> &Path {
        &self.daemon
    }

    fn set_owner(&mut self) -> Result<()> {
        self.ask("SET_OWNER", |frontend| frontend.set_owner())
    }

    fn features(&mut self) -> Result<u64> {
        self.ask("GET_FEATURES", |frontend| frontend.get_features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.ask("SET_FEATURES", |frontend| frontend.set_features(features))
    }

    fn protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        self.ask("GET_PROTOCOL_FEATURES", Frontend::get_protocol_features)
    }

    fn set_protocol_features(&mut self, features: VhostUserProtocolFeatures) -> Result<()> {
        self.ask("SET_PROTOCOL_FEATURES", |frontend| {
            frontend.set_protocol_features(features)
        })?;
        if features.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        Ok(())
    }

    fn queue_count(&mut self) -> Result<u64> {
        self.ask("GET_QUEUE_NUM", Frontend::get_queue_num)
    }

    fn config(&mut self, config: &mut [u8]) -> Result<()> {
        let size = u32::try_from(config.len()).unwrap_or(u32::MAX);
        let room = config.to_vec();
        let (_, payload) = self.ask("GET_CONFIG", |frontend| {
            frontend.get_config(0, size, VhostUserConfigFlags::empty(), &room)
        })?;
        // The crate has checked that the answer is as long as the question.
        for (to, from) in config.iter_mut().zip(payload) {
            *to = from;
        }
        Ok(())
    }

    fn set_memory(&mut self, regions: &[Region<'_>]) -> Result<()> {
        let table: Vec<_> = regions
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.guest_address,
                memory_size: region.len,
                userspace_addr: region.guest_address,
                mmap_offset: region.mmap_offset,
                mmap_handle: region.file.as_raw_fd(),
            })
            .collect();
        self.ask("SET_MEM_TABLE", |frontend| {
            frontend.set_mem_table(&table).map(|_| ())
        })
    }

    fn set_ring_size(&mut self, ring: usize, size: u16) -> Result<()> {
        self.ask("SET_VRING_NUM", |frontend| {
            frontend.set_vring_num(ring, size)
        })
    }

    fn set_ring_addresses(&mut self, ring: usize, addresses: &RingAddresses) -> Result<()> {
        let config = VringConfigData {
            queue_max_size: 0,
            queue_size: 0,
            flags: 0,
            desc_table_addr: addresses.descriptors,
            used_ring_addr: addresses.used,
            avail_ring_addr: addresses.available,
            log_addr: None,
        };
        self.ask("SET_VRING_ADDR", |frontend| {
            frontend.set_vring_addr(ring, &config)
        })
    }

    fn set_ring_base(&mut self, ring: usize, base: u16) -> Result<()> {
        self.ask("SET_VRING_BASE", |frontend| {
            frontend.set_vring_base(ring, base)
        })
    }

    fn set_ring_call(&mut self, ring: usize, call: &EventFd) -> Result<()> {
        self.ask("SET_VRING_CALL", |frontend| {
            frontend.set_vring_call(ring, call)
        })
    }

    fn set_ring_error(&mut self, ring: usize, error: &EventFd) -> Result<()> {
        self.ask("SET_VRING_ERR", |frontend| {
            frontend.set_vring_err(ring, error)
        })
    }

    fn set_ring_kick(&mut self, ring: usize, kick: &EventFd) -> Result<()> {
        self.ask("SET_VRING_KICK", |frontend| {
            frontend.set_vring_kick(ring, kick)
        })
    }

    fn set_ring_enabled(&mut self, ring: usize, enabled: bool) -> Result<()> {
        self.ask("SET_VRING_ENABLE", |frontend| {
            frontend.set_vring_enable(ring, enabled)
        })
    }

    fn ring_base(&mut self, ring: usize) -> Result<u32> {
        self.ask("GET_VRING_BASE", |frontend| frontend.get_vring_base(ring))
    }

    fn reset_device(&mut self) -> Result<()> {
        self.ask("RESET_DEVICE", Frontend::reset_device)
    }
}

/// The connection, for a crate that waits for answers.
fn connect(path: &Path, limit: Duration) -> Result<UnixStream> {
    let stream = connect_timeout(path, limit).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => Error::LateConnect {
            daemon: path.to_owned(),
            limit,
        },
        _ => Error::Connect {
            daemon: path.to_owned(),
            source,
        },
    })?;
    stream
        .set_nonblocking(false)
        .map_err(|source| Error::System {
            what: "preparing the connection to the daemon",
            source,
        })?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

    use super::*;

    const SHORT: Deadlines = Deadlines {
        connect: Duration::from_millis(50),
        answer: Duration::from_millis(50),
    };

    #[test]
    fn nobody_there_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fs.sock");
        let error = Socket::connect(&path, SHORT).unwrap_err();
        assert!(matches!(error, Error::Connect { .. }) && error.is_absence());
        assert!(error.to_string().contains("fs.sock"));
    }

    #[test]
    fn a_socket_whose_owner_takes_nobody_is_late() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fs.sock");
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match Socket::connect(&path, SHORT) {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error,
            }
            assert!(waiting.len() < 8, "the queue of connections never fills");
        };
        assert!(matches!(error, Error::LateConnect { .. }), "{error}");
    }

    #[test]
    fn a_silent_daemon_is_late_and_named_with_the_message() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fs.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let mut socket = Socket::connect(&path, SHORT).unwrap();
        socket.set_owner().unwrap();
        let error = socket.features().unwrap_err();
        assert!(matches!(error, Error::Late { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("GET_FEATURES") && text.contains("fs.sock"),
            "{text}"
        );
    }

    #[test]
    fn a_daemon_that_hangs_up_is_gone() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut socket =
            Socket::from_stream(ours, Path::new("fs.sock"), Duration::from_secs(20)).unwrap();
        drop(theirs);
        let error = socket.features().unwrap_err();
        assert!(error.is_absence(), "{error}");
    }
}
