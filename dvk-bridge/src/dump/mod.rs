//! Shows the commands between nodes as text: from a capture file, or from a connection that it
//! relays.

mod capture;
mod conversations;
mod decode;
mod describe;
mod error;
mod reassembly;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::abi::Generation;
use crate::carrier::node::PORT_BASE;
use crate::cli_types::GenerationName;
use crate::sandbox::{self, Needs};
pub use error::DumpError;

use conversations::Conversations;
use decode::Decoder;
use gangplank_sandbox::seccomp::Seccomp;
use gangplank_service::error_chain;

/// Time limit for the connection to the receiver of a relayed connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// `dump`: shows the commands between nodes.
#[derive(Clone, Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "A capture is a file of tcpdump or Wireshark (pcap or pcapng), or the bytes of \
                  one of the two connections of a pair, without packet headers, as tcpflow \
                  writes them. With --listen and --connect, a proxy that connects to the first \
                  address is forwarded to the second, one connection at a time.\n\n\
                  tcpdump -U -w - tcp portrange 3000-3031 | gangplank-dvk dump -"
)]
pub struct DumpArgs {
    /// The layout of the commands; guessed if not given
    #[arg(long, value_name = "NAME")]
    pub generation: Option<GenerationName>,

    /// Where to wait for the sender
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        requires = "connect",
        conflicts_with = "file"
    )]
    pub listen: Option<SocketAddr>,

    /// Where to relay its connection to
    #[arg(long, value_name = "ADDRESS:PORT", requires = "listen")]
    pub connect: Option<SocketAddr>,

    /// The first of the 32 ports that nodes listen on, for a capture of packets
    #[arg(long, value_name = "PORT", default_value_t = PORT_BASE)]
    pub port_base: u16,

    /// The capture file, or - for standard input
    #[arg(value_name = "FILE", required_unless_present = "listen")]
    pub file: Option<PathBuf>,
}

/// Shows the input until its end.
pub fn run(args: &DumpArgs, seccomp: Seccomp, to: &mut impl Write) -> Result<(), DumpError> {
    let generation = args.generation.map(Generation::from);
    if let (Some(listen), Some(connect)) = (args.listen, args.connect) {
        return relay((listen, connect), seccomp, generation, to);
    }
    let path = args.file.clone().unwrap_or_else(|| "-".into());
    let what = path.display().to_string();
    let failed = |source| DumpError::Read {
        what: what.clone(),
        source,
    };
    let mut input: Box<dyn Read + Send> = if what == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(&path).map_err(failed)?)
    };
    sandbox::confine(seccomp, &Needs::default())?;
    let mut begin = Vec::new();
    fill(&mut input, &mut begin, MAGIC_SIZE).map_err(failed)?;
    if !capture::is_capture(&begin) {
        return show(&mut begin.chain(input), generation, to, failed);
    }
    fill(&mut input, &mut begin, FIRST_BLOCK_SIZE).map_err(failed)?;
    let ports = args.port_base..=args.port_base.saturating_add(31);
    let mut conversations = Conversations::new(generation, ports, to);
    let whole = capture::read(begin.chain(input), &what, |segment| {
        conversations.take(segment)
    })?;
    conversations.end()?;
    if !whole {
        log::warn!("{what} ends in the middle of a packet");
    }
    Ok(())
}

/// Bytes that identify a capture file.
const MAGIC_SIZE: usize = 4;

/// Bytes of the first block of a capture file, which the reader needs at once.
const FIRST_BLOCK_SIZE: usize = 24;

/// Reads until `bytes` has `least` bytes or the input ends.
fn fill(from: &mut impl Read, bytes: &mut Vec<u8>, least: usize) -> io::Result<()> {
    let missing = least.saturating_sub(bytes.len());
    let missing = u64::try_from(missing).unwrap_or(u64::MAX);
    from.by_ref().take(missing).read_to_end(bytes).map(|_| ())
}

/// Relays one connection after another and shows it.
fn relay(
    (listen, connect): (SocketAddr, SocketAddr),
    seccomp: Seccomp,
    generation: Option<Generation>,
    to: &mut impl Write,
) -> Result<(), DumpError> {
    let listener =
        TcpListener::bind(listen).map_err(|source| DumpError::Listen { listen, source })?;
    let needs = Needs {
        tcp: true,
        ..Needs::default()
    };
    sandbox::confine(seccomp, &needs)?;
    // The time of the first connection is 0, as that of the first packet of a capture.
    let mut first = None;
    loop {
        let accepted = listener.accept();
        let (mut sender, address) =
            accepted.map_err(|source| DumpError::Listen { listen, source })?;
        let mut receiver = match TcpStream::connect_timeout(&connect, CONNECT_TIMEOUT) {
            Ok(receiver) => receiver,
            Err(error) => {
                log::error!("refused {address}: cannot connect to {connect}: {error}");
                continue;
            }
        };
        log::info!("forwarding {address} to {connect}");
        let begun = *first.get_or_insert_with(Instant::now);
        let mut to = Timed {
            to: &mut *to,
            begun,
        };
        match forward(&mut sender, &mut receiver, generation, &mut to) {
            Err(RelayError::Write(error)) => return Err(DumpError::Write(error)),
            Err(RelayError::Connection(error)) => {
                log::error!("closed the connection from {address}: {error}");
            }
            Ok(()) => log::info!("{address} closed the connection"),
        }
    }
}

/// An output whose lines begin with the time since `begun`, in seconds.
struct Timed<'a, W> {
    to: &'a mut W,
    begun: Instant,
}

impl<W: Write> Timed<'_, W> {
    fn line(&mut self, line: &str) -> io::Result<()> {
        let since = self.begun.elapsed();
        let (seconds, micros) = (since.as_secs(), since.subsec_micros());
        writeln!(self.to, "{seconds}.{micros:06} {line}")
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Why a relayed connection ended.
enum RelayError {
    Connection(io::Error),
    Write(io::Error),
}

/// Relays bytes and shows the commands in them. Bytes that cannot be decoded are relayed as well.
fn forward(
    from: &mut impl Read,
    through: &mut impl Write,
    generation: Option<Generation>,
    to: &mut Timed<'_, impl Write>,
) -> Result<(), RelayError> {
    let mut decoder = Some(Decoder::new(generation));
    let mut room = vec![0; READ_SIZE];
    loop {
        let read = read_some(from, &mut room).map_err(RelayError::Connection)?;
        let new = room.get(..read).unwrap_or_default();
        through.write_all(new).map_err(RelayError::Connection)?;
        if let Some(mut it) = decoder.take() {
            let write = |line: &str| to.line(line).map_err(DumpError::Write);
            let shown = if new.is_empty() {
                it.end(write)
            } else {
                it.take(new, write)
            };
            match shown {
                Ok(()) => decoder = Some(it),
                Err(DumpError::Write(error)) => return Err(RelayError::Write(error)),
                Err(error) => {
                    log::error!(
                        "the rest is forwarded and not shown: {}",
                        error_chain(&error)
                    );
                }
            }
            to.flush().map_err(RelayError::Write)?;
        }
        if new.is_empty() {
            return Ok(());
        }
    }
}

/// Reads once, and again after a signal.
fn read_some(from: &mut impl Read, room: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(room) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Bytes that are read at once.
const READ_SIZE: usize = 64 << 10;

/// Shows the commands in `from`, one direction of a connection.
fn show(
    from: &mut impl Read,
    generation: Option<Generation>,
    to: &mut impl Write,
    failed: impl Fn(io::Error) -> DumpError,
) -> Result<(), DumpError> {
    let mut decoder = Decoder::new(generation);
    let mut room = vec![0; READ_SIZE];
    loop {
        let read = read_some(from, &mut room).map_err(&failed)?;
        let new = room.get(..read).unwrap_or_default();
        let write = |line: &str| writeln!(to, "{line}").map_err(DumpError::Write);
        if new.is_empty() {
            return decoder.end(write);
        }
        decoder.take(new, write)?;
        to.flush().map_err(DumpError::Write)?;
    }
}

#[cfg(test)]
mod tests;
