//! Commands between nodes as lines for people: from a file with what was captured, or from a connection passed through.

mod line;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use crate::abi::{Generation, Header, HeaderError, MAX_BATCH, NodeId};

/// How long a connection to what is listened for may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// `dump`: what nodes say to each other.
#[derive(Clone, Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "A capture is the bytes of one of the two connections of a pair, without packets' headers: tcpflow and \
                  Wireshark's \"follow stream\" write such. With --listen and --connect, a proxy that is told to connect to the \
                  first is passed through to the second, one connection at a time."
)]
pub struct DumpArgs {
    /// The layout of the commands; found out if it is not given
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

    /// Where to pass on what it sends
    #[arg(long, value_name = "ADDRESS:PORT", requires = "listen")]
    pub connect: Option<SocketAddr>,

    /// A capture, - for standard input
    #[arg(value_name = "FILE", required_unless_present = "listen")]
    pub file: Option<PathBuf>,
}

/// Layouts by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GenerationName {
    /// Of 2022: messages of 36 bytes, headers of 120
    Current,
    /// Of 2019 to 2022: messages of 76 bytes, headers of 132
    Legacy,
    /// Of early 2019: messages of 36 bytes, headers of 92
    Early,
}

impl From<GenerationName> for Generation {
    fn from(name: GenerationName) -> Self {
        match name {
            GenerationName::Current => Self::Current,
            GenerationName::Legacy => Self::Legacy,
            GenerationName::Early => Self::Early,
        }
    }
}

/// Why nothing more can be shown.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The capture cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// Which.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The sender or receiver cannot be had.
    #[error("cannot pass on from {listen} to {connect}")]
    Relay {
        /// Where the sender would come.
        listen: SocketAddr,
        /// Where the receiver would be.
        connect: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What is read is no command.
    #[error("byte {at}: no command of the {generation} generation")]
    NoCommand {
        /// Where in what was read.
        at: u64,
        /// As which it was read.
        generation: Generation,
        /// Why not.
        #[source]
        source: HeaderError,
    },
    /// The layout cannot be found out.
    #[error("the layout cannot be found out: say it with --generation")]
    Layout,
    /// The lines cannot be written.
    #[error("cannot write")]
    Write(#[source] io::Error),
}

/// Shows what there is, until it ends.
pub fn run(args: &DumpArgs, to: &mut impl Write) -> Result<(), DumpError> {
    let generation = args.generation.map(Generation::from);
    if let (Some(listen), Some(connect)) = (args.listen, args.connect) {
        return relay(listen, connect, generation, to);
    }
    let path = args.file.clone().unwrap_or_else(|| "-".into());
    let what = path.display().to_string();
    let failed = |source| DumpError::Read {
        what: what.clone(),
        source,
    };
    if what == "-" {
        return show(
            &mut io::stdin().lock(),
            &mut io::sink(),
            generation,
            to,
            failed,
        );
    }
    let mut file = File::open(&path).map_err(failed)?;
    show(&mut file, &mut io::sink(), generation, to, failed)
}

/// Shows connection after connection, while they are passed on.
fn relay(
    listen: SocketAddr,
    connect: SocketAddr,
    generation: Option<Generation>,
    to: &mut impl Write,
) -> Result<(), DumpError> {
    let failed = |source| DumpError::Relay {
        listen,
        connect,
        source,
    };
    let listener = TcpListener::bind(listen).map_err(failed)?;
    loop {
        let (mut sender, address) = listener.accept().map_err(failed)?;
        let mut receiver = TcpStream::connect_timeout(&connect, CONNECT).map_err(failed)?;
        log::info!("{address} is passed on to {connect}");
        match show(&mut sender, &mut receiver, generation, to, failed) {
            Err(error @ DumpError::Write(_)) => return Err(error),
            Err(error) => log::error!("the connection from {address} is given up: {error}"),
            Ok(()) => log::info!("{address} has closed the connection"),
        }
    }
}

/// Shows the commands in `from`, and gives its bytes on to `through` before it looks at them.
fn show(
    from: &mut impl Read,
    through: &mut impl Write,
    generation: Option<Generation>,
    to: &mut impl Write,
    failed: impl Fn(io::Error) -> DumpError,
) -> Result<(), DumpError> {
    let mut bytes = Vec::new();
    let mut generation = generation;
    let mut at = 0;
    let mut room = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut room).map_err(&failed)?;
        let new = room.get(..read).unwrap_or_default();
        through.write_all(new).map_err(&failed)?;
        bytes.extend_from_slice(new);
        let ended = read == 0;
        if generation.is_none() && (ended || bytes.len() >= ENOUGH) {
            generation = Some(guess(&bytes).ok_or(DumpError::Layout)?);
        }
        if let Some(generation) = generation {
            let done = show_whole(&bytes, at, generation, to)?;
            bytes.drain(..done);
            at += u64::try_from(done).unwrap_or(0);
        }
        to.flush().map_err(DumpError::Write)?;
        if ended {
            if !bytes.is_empty() {
                writeln!(to, "{} bytes of a command that does not end", bytes.len())
                    .map_err(DumpError::Write)?;
            }
            return Ok(());
        }
    }
}

/// So many bytes tell all layouts apart: two of the longest headers.
const ENOUGH: usize = 2 * 132;

/// The likeliest layout of `bytes`, by the nodes that every layout has in the same place.
fn guess(bytes: &[u8]) -> Option<Generation> {
    let word = |at: usize| {
        let word = bytes.get(at..at.checked_add(4)?)?;
        word.try_into().ok().map(i32::from_le_bytes)
    };
    let (sender, receiver) = (NodeId::new(word(16)?)?, NodeId::new(word(20)?)?);
    let candidates = Generation::guess(bytes, sender, receiver);
    candidates.first().copied()
}

/// Shows the commands that are whole in `bytes`: how many bytes they are.
fn show_whole(
    bytes: &[u8],
    at: u64,
    generation: Generation,
    to: &mut impl Write,
) -> Result<usize, DumpError> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..)
        && rest.len() >= generation.header_size()
    {
        let no_command = |source| DumpError::NoCommand {
            at: at.saturating_add(u64::try_from(done).unwrap_or(0)),
            generation,
            source,
        };
        let header = Header::decode(rest, generation).map_err(no_command)?;
        if header.command.name().is_none() {
            return Err(no_command(HeaderError::Command(header.command.raw())));
        }
        let length = header.payload(generation).map_err(no_command)?;
        let end = generation.header_size() + length;
        let Some(payload) = rest.get(generation.header_size()..end) else {
            break;
        };
        writeln!(to, "{}", line::describe(&header, payload)).map_err(DumpError::Write)?;
        if header.is_batch() {
            let headers = payload
                .chunks_exact(generation.header_size())
                .take(MAX_BATCH);
            for inner in headers {
                let inner = Header::decode(inner, generation).map_err(no_command)?;
                writeln!(to, "  {}", line::describe(&inner, &[])).map_err(DumpError::Write)?;
            }
        }
        done += end;
    }
    Ok(done)
}

#[cfg(test)]
mod tests;
