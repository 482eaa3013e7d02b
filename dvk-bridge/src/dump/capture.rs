//! Reads capture files of tcpdump and Wireshark (pcap and pcapng) and extracts TCP segments.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use pcap_parser::data::{PacketData, get_packetdata};
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError, create_reader};

use super::error::DumpError;

/// The longest block that is read. Longer than any captured packet.
const MAX_BLOCK_SIZE: usize = 1 << 20;

/// The interfaces of a capture that are recorded. Packets of others are skipped.
const MAX_INTERFACES: usize = 1024;

/// The first bytes of capture files: pcap in both byte orders with microseconds and nanoseconds,
/// and pcapng.
const MAGIC: [[u8; 4]; 5] = [
    0xa1b2_c3d4u32.to_le_bytes(),
    0xa1b2_c3d4u32.to_be_bytes(),
    0xa1b2_3c4du32.to_le_bytes(),
    0xa1b2_3c4du32.to_be_bytes(),
    0x0a0d_0d0au32.to_le_bytes(),
];

/// Whether a file that starts with `begin` is a capture.
pub(super) fn is_capture(begin: &[u8]) -> bool {
    MAGIC.iter().any(|magic| begin.starts_with(magic))
}

/// A TCP segment.
#[derive(Debug)]
pub(super) struct Segment<'a> {
    /// Time of capture since an arbitrary start.
    pub(super) time: Duration,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) sequence: u32,
    /// It opens the connection.
    pub(super) begins: bool,
    pub(super) data: &'a [u8],
}

/// An interface that packets were captured on.
#[derive(Clone, Copy)]
struct Interface {
    link: Linktype,
    /// Units of its clock in a second.
    resolution: u64,
}

/// Passes the TCP segments in `file` to `take` and skips other packets. Returns whether the file is
/// complete.
pub(super) fn read(
    file: impl Read + Send,
    what: &str,
    take: impl FnMut(&Segment<'_>) -> Result<(), DumpError>,
) -> Result<bool, DumpError> {
    read_within(MAX_BLOCK_SIZE, file, what, take)
}

/// As [`read`], with `buffer` as the longest block.
pub(super) fn read_within(
    buffer: usize,
    file: impl Read + Send,
    what: &str,
    mut take: impl FnMut(&Segment<'_>) -> Result<(), DumpError>,
) -> Result<bool, DumpError> {
    let no_capture = |error: PcapError<&[u8]>| DumpError::Capture {
        what: what.to_owned(),
        why: error.to_string(),
    };
    let mut reader = create_reader(buffer, file).map_err(no_capture)?;
    let mut interfaces = Vec::new();
    loop {
        let length = match reader.next() {
            Ok((length, block)) => {
                if let Some((time, packet)) = packet(&block, &mut interfaces)
                    && let Some(segment) = segment(time, packet)
                {
                    take(&segment)?;
                }
                length
            }
            Err(PcapError::Eof) => return Ok(true),
            // The writing program was stopped.
            Err(PcapError::UnexpectedEof) => return Ok(false),
            Err(PcapError::Incomplete(_)) => {
                reader.refill().map_err(no_capture)?;
                continue;
            }
            Err(error) => return Err(no_capture(error)),
        };
        reader.consume(length);
    }
}

/// The packet in `block` with its time, if there is one.
fn packet<'a>(
    block: &'a PcapBlockOwned<'_>,
    interfaces: &mut Vec<Interface>,
) -> Option<(Duration, PacketData<'a>)> {
    match block {
        PcapBlockOwned::LegacyHeader(header) => {
            let nanoseconds = matches!(header.magic_number, 0xa1b2_3c4d | 0x4d3c_b2a1);
            *interfaces = vec![Interface {
                link: header.network,
                resolution: if nanoseconds {
                    1_000_000_000
                } else {
                    1_000_000
                },
            }];
            None
        }
        PcapBlockOwned::Legacy(packet) => {
            let interface = interfaces.first()?;
            let time = time(
                packet.ts_sec.into(),
                packet.ts_usec.into(),
                interface.resolution,
            );
            Some((time, payload(packet.data, packet.caplen, *interface)?))
        }
        PcapBlockOwned::NG(Block::SectionHeader(_)) => {
            interfaces.clear();
            None
        }
        PcapBlockOwned::NG(Block::InterfaceDescription(it)) => {
            if interfaces.len() < MAX_INTERFACES {
                interfaces.push(Interface {
                    link: it.linktype,
                    resolution: it.ts_resolution().unwrap_or(1_000_000),
                });
            }
            None
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
            let interface = interfaces.get(usize::try_from(packet.if_id).ok()?)?;
            let clock = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
            let (seconds, rest) = (
                clock.checked_div(interface.resolution)?,
                clock.checked_rem(interface.resolution)?,
            );
            let time = time(seconds, rest, interface.resolution);
            Some((time, payload(packet.data, packet.caplen, *interface)?))
        }
        PcapBlockOwned::NG(_) => None,
    }
}

/// Converts a time of `seconds` and `units` of a clock with `resolution` units per second.
fn time(seconds: u64, units: u64, resolution: u64) -> Duration {
    let nanoseconds = u128::from(units) * 1_000_000_000 / u128::from(resolution.max(1));
    let nanoseconds = u32::try_from(nanoseconds).unwrap_or(0);
    Duration::new(seconds, nanoseconds.min(999_999_999))
}

/// The packet behind the header of the interface.
fn payload(data: &[u8], captured: u32, interface: Interface) -> Option<PacketData<'_>> {
    let captured = usize::try_from(captured).ok()?;
    let data = data.get(..captured)?;
    get_packetdata(data, interface.link, captured)
}

/// The TCP segment of a packet, if it has one.
fn segment<'a>(time: Duration, packet: PacketData<'a>) -> Option<Segment<'a>> {
    let sliced = match packet {
        PacketData::L2(data) => LaxSlicedPacket::from_ethernet(data).ok()?,
        PacketData::L3(_, data) => LaxSlicedPacket::from_ip(data).ok()?,
        PacketData::L4(..) | PacketData::Unsupported(_) => return None,
    };
    let (from, to): (IpAddr, IpAddr) = match &sliced.net {
        Some(LaxNetSlice::Ipv4(ip)) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        Some(LaxNetSlice::Ipv6(ip)) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        _ => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else {
        return None;
    };
    Some(Segment {
        time,
        from: SocketAddr::new(from, tcp.source_port()),
        to: SocketAddr::new(to, tcp.destination_port()),
        sequence: tcp.sequence_number(),
        begins: tcp.syn(),
        data: tcp.payload(),
    })
}
