//! The options of the network stack, and the sockets of its switch.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use gangplank_service::owned_file::OwnedFile;
use gangplank_service::unix_listener::{BindError, OwnedListener};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::link::Link;
use super::stack::{Outbox, Stack, StackConfig};
use super::switch::{Mac, Switch, SwitchSockets};
use crate::rpc::client::RpcClient;
use crate::rpc::server::Server;

/// Bytes of the largest packet: Ethernet's.
const DEFAULT_MTU: u16 = 1500;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// The first bytes of the Ethernet address that is made of an IP address: a local one.
const MAC_PREFIX: [u8; 2] = [0x02, 0x47];

/// Where the server is reached without the host's network.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "An address of its own")]
pub struct NetworkArgs {
    /// The server's own address, with the bits of its network, such as 10.0.2.1/24; it needs
    /// one of the --switch options or --net
    #[arg(long, value_name = "ADDRESS/BITS")]
    pub address: Option<OwnAddress>,

    /// Let machines connect to this Unix socket: QEMU's -netdev stream; repeatable
    #[arg(long, value_name = "PATH")]
    pub switch_stream: Vec<PathBuf>,

    /// Let machines connect to this Unix socket: UML's vec0:transport=bess; repeatable
    #[arg(long, value_name = "PATH")]
    pub switch_packet: Vec<PathBuf>,

    /// Take frames at this Unix socket: QEMU's -netdev dgram; repeatable
    #[arg(long, value_name = "PATH")]
    pub switch_dgram: Vec<PathBuf>,

    /// Take a TAP device, tap:NAME, or a descriptor of the program that starts this one, fd:NUMBER,
    /// as a link: a socket or device of Ethernet frames; repeatable
    #[arg(long = "net", value_name = "LINK")]
    pub links: Vec<Link>,

    /// The router to other networks
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Option<Ipv4Addr>,

    /// The Ethernet address; without it, one is made of the IP address
    #[arg(long, value_name = "MAC")]
    pub mac: Option<EthernetAddress>,

    /// Bytes of the largest packet; the machines' must be the same [default: 1500]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(576..=9000))]
    pub mtu: Option<u16>,
}

/// An address and the bits of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// The bits of its network.
    pub prefix: u8,
}

impl FromStr for OwnAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "an address of IPv4 and the bits of its network, such as 10.0.2.1/24";
        let (address, prefix) = text.split_once('/').ok_or(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong)?;
        let prefix = prefix.parse().map_err(|_| wrong)?;
        let is_host = !address.is_unspecified()
            && !address.is_multicast()
            && !address.is_broadcast()
            && !address.is_loopback();
        match is_host && prefix <= 32 {
            true => Ok(Self { address, prefix }),
            false => Err(wrong),
        }
    }
}

/// An Ethernet address of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EthernetAddress(pub Mac);

impl FromStr for EthernetAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "six bytes in hexadecimal, such as 02:47:0a:00:02:01, of one machine";
        let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
        let bytes: Vec<u8> = bytes.collect::<Result<_, _>>().map_err(|_| wrong)?;
        let mac: Mac = bytes.try_into().map_err(|_| wrong)?;
        match mac[0] & 1 == 0 && mac != [0; 6] {
            true => Ok(Self(mac)),
            false => Err(wrong),
        }
    }
}

/// Why the network cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Nothing is connected to the address.
    #[error("--address needs machines: --switch-stream, --switch-packet, --switch-dgram or --net")]
    NoSwitch,
    /// A socket that listens cannot be made.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A socket of packets or datagrams cannot be made.
    #[error("cannot make the socket {}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A link cannot be used.
    #[error("cannot use {link}")]
    Link {
        /// The link.
        link: Link,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The stack cannot be started.
    #[error("cannot start the network stack")]
    Stack(#[source] io::Error),
}

/// The sockets of the switch. Their files are removed when it is dropped.
#[derive(Debug)]
pub struct OwnNetwork {
    config: StackConfig,
    outbox: Arc<Outbox>,
    /// Until the stack is started.
    sockets: SwitchSockets,
    stream_files: Vec<OwnedFile>,
    other_files: Vec<PathBuf>,
}

impl OwnNetwork {
    /// Makes the sockets; `None` if the server has no address of its own. `ports` are those of NFS
    /// and of the port mapper.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn open(args: &NetworkArgs, ports: (u16, u16)) -> Result<Option<Self>, NetworkError> {
        let Some(own) = args.address else {
            return Ok(None);
        };
        if Self::paths(args).is_empty() && args.links.is_empty() {
            return Err(NetworkError::NoSwitch);
        }
        let [a, b, c, d] = own.address.octets();
        let [first, second] = MAC_PREFIX;
        let made = [first, second, a, b, c, d];
        let config = StackConfig {
            address: own.address,
            prefix: own.prefix,
            gateway: args.gateway,
            mac: args.mac.map_or(made, |mac| mac.0),
            mtu: args.mtu.unwrap_or(DEFAULT_MTU),
            nfs_port: ports.0,
            portmap_port: ports.1,
        };
        let mut network = Self {
            config,
            outbox: Arc::new(Outbox::new().map_err(NetworkError::Stack)?),
            sockets: SwitchSockets::default(),
            stream_files: Vec::new(),
            other_files: Vec::new(),
        };
        for path in &args.switch_stream {
            let (listener, file) = OwnedListener::bind(path, None)?.into_parts();
            network.sockets.streams.push(listener);
            network.stream_files.extend(file);
        }
        let failed = |path: &PathBuf| {
            let path = path.clone();
            move |source| NetworkError::Socket { path, source }
        };
        for path in &args.switch_packet {
            let socket = listen_for_packets(path).map_err(failed(path))?;
            network.sockets.packets.push(socket);
            network.other_files.push(path.clone());
        }
        for path in &args.switch_dgram {
            let socket = bind(path).map_err(failed(path))?;
            network.sockets.datagrams.push(socket);
            network.other_files.push(path.clone());
        }
        for link in &args.links {
            let line = link.open().map_err(|source| NetworkError::Link {
                link: link.clone(),
                source,
            })?;
            network.sockets.links.push(line);
        }
        Ok(Some(network))
    }

    /// The files of the sockets.
    #[must_use]
    pub fn paths(args: &NetworkArgs) -> Vec<&Path> {
        let all = args.switch_stream.iter().chain(&args.switch_packet);
        let all = all.chain(&args.switch_dgram);
        all.map(PathBuf::as_path).collect()
    }

    /// The server's address.
    #[must_use]
    pub const fn address(&self) -> Ipv4Addr {
        self.config.address
    }

    /// Sends datagrams from the server's address.
    #[must_use]
    pub fn transport(&self) -> Arc<Outbox> {
        Arc::clone(&self.outbox)
    }

    /// Starts the stack. `client` calls clients by [`OwnNetwork::transport`].
    ///
    /// # Errors
    /// [`NetworkError::Stack`].
    pub fn start(
        &mut self,
        server: Arc<Server>,
        for_datagrams: Arc<Server>,
        client: Arc<RpcClient>,
    ) -> Result<(), NetworkError> {
        let outbox = Arc::clone(&self.outbox);
        let sockets = std::mem::take(&mut self.sockets);
        Switch::new(self.config.mac, sockets)
            .and_then(|switch| {
                Stack::new(self.config, switch, server, for_datagrams, client, outbox)
            })
            .and_then(Stack::start)
            .map_err(NetworkError::Stack)
    }
}

impl Drop for OwnNetwork {
    fn drop(&mut self) {
        for file in self.stream_files.drain(..) {
            file.remove();
        }
        for path in &self.other_files {
            // Otherwise the next start removes it.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Makes a datagram socket. Replaces the file of one that nobody has open any more.
fn bind(path: &Path) -> io::Result<UnixDatagram> {
    match UnixDatagram::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let asked = UnixDatagram::unbound()?.connect(path);
            remove_unused(path, asked, error)?;
            UnixDatagram::bind(path)
        }
        bound => bound,
    }
}

/// Makes a socket that listens for connections of packets. Replaces the file of one that nobody has
/// open any more.
pub(super) fn listen_for_packets(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = packet_socket()?;
    if let Err(error) = net::bind(&socket, &address) {
        if error != Errno::ADDRINUSE {
            return Err(error.into());
        }
        let asked = net::connect(&packet_socket()?, &address);
        remove_unused(path, asked.map_err(io::Error::from), error.into())?;
        net::bind(&socket, &address)?;
    }
    net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A socket for sequenced packets.
pub(super) fn packet_socket() -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?)
}

/// Removes the file of a socket that refuses connections: nobody has it open. Fails with `in_use`
/// otherwise.
fn remove_unused(path: &Path, asked: io::Result<()>, in_use: io::Error) -> io::Result<()> {
    match asked {
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        _ => Err(in_use),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_no_machine_are_refused() {
        let address: OwnAddress = "10.0.2.1/24".parse().unwrap();
        assert_eq!(
            (address.address, address.prefix),
            (Ipv4Addr::new(10, 0, 2, 1), 24)
        );
        for wrong in [
            "10.0.2.1",
            "10.0.2.1/33",
            "224.0.0.1/4",
            "0.0.0.0/0",
            "::1/64",
        ] {
            assert!(wrong.parse::<OwnAddress>().is_err(), "{wrong}");
        }
        assert!("02:47:0a:00:02:01".parse::<EthernetAddress>().is_ok());
        for wrong in [
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "02:47:0a",
            "02-47-0a-00-02-01",
        ] {
            assert!(wrong.parse::<EthernetAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_socket_that_a_killed_server_left_is_replaced_and_one_in_use_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("packets");
        drop(listen_for_packets(&path).unwrap());
        let _in_use = listen_for_packets(&path).unwrap();
        assert!(listen_for_packets(&path).is_err());
        let path = directory.path().join("switch");
        drop(UnixDatagram::bind(&path).unwrap());
        let _in_use = bind(&path).unwrap();
        assert!(bind(&path).is_err());
    }
}
