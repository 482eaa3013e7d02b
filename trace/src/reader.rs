//! Reads a trace, and goes on behind what is damaged.

use std::io::{self, Read};

use crate::block::{
    BYTE_ORDER, EPB_DROPCOUNT, FRAME, IF_TSRESOL, INTERFACE, PACKET, PACKET_HEAD, SECTION,
};
use crate::record::Record;
use crate::{LINK_TYPE, VERSION};

/// Bytes of a block at most: no program writes larger ones into a trace.
const MAX_BLOCK: usize = 1 << 20;

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file.
    #[error("cannot read it")]
    Read(#[from] io::Error),
    /// No trace at all.
    #[error("it is no trace: it does not begin with a pcapng section")]
    NotATrace,
    /// A section in the other byte order, which gangplankd does not write.
    #[error("it is big-endian pcapng, which gangplankd does not write")]
    ByteOrder,
    /// Packets of another kind.
    #[error("it is a pcapng file of link type {0}, not a trace of gangplankd")]
    LinkType(u16),
    /// Records of another version.
    #[error("its records have version {0}, and this program knows version {VERSION}")]
    Version(u8),
}

/// What a trace has next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Item {
    /// A record, and how many were lost before it.
    Record {
        /// The record.
        record: Box<Record>,
        /// Records lost between the one before and this one.
        lost: u64,
    },
    /// Bytes that are no block. What follows is whole again.
    Damaged {
        /// Where they begin in the file.
        offset: u64,
        /// Their number.
        len: u64,
    },
    /// The file ends within a block.
    Truncated {
        /// Where the block begins.
        offset: u64,
        /// Bytes that are there of it.
        len: u64,
    },
}

/// Reads a trace from `R`.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    bytes: Vec<u8>,
    /// Bytes of `bytes` that are done.
    done: usize,
    /// Offset in the file of `bytes`.
    offset: u64,
    /// Nanoseconds of a unit of each interface's times: numerator and denominator.
    interfaces: Vec<(u64, u64)>,
    has_section: bool,
}

/// What is at a place in the bytes that were read.
enum Found {
    /// A whole block of this length.
    Block(usize),
    /// No block.
    Nothing,
    /// Perhaps the beginning of a block.
    Beginning,
}

impl<R: Read> Reader<R> {
    /// Reads from the beginning of a trace.
    pub fn new(input: R) -> Self {
        Self {
            input,
            bytes: Vec::new(),
            done: 0,
            offset: 0,
            interfaces: Vec::new(),
            has_section: false,
        }
    }

    /// The next item; `None` at the end of the file. With `is_growing`, a block that is not whole
    /// yet is left for the next call.
    ///
    /// # Errors
    /// The file cannot be read, or is no trace.
    pub fn next(&mut self, is_growing: bool) -> Result<Option<Item>, ReadError> {
        let mut skipped = 0;
        let mut is_at_end = false;
        loop {
            match self.find(skipped) {
                Found::Block(_) if skipped > 0 => return Ok(Some(self.damaged(skipped))),
                Found::Block(len) => {
                    if let Some(item) = self.take(len)? {
                        return Ok(Some(item));
                    }
                }
                Found::Beginning if !is_at_end => is_at_end = self.fill()? == 0,
                // What claims to go on behind the end may be damaged, with whole blocks in it.
                Found::Nothing | Found::Beginning if self.left() > skipped + FRAME => {
                    if skipped >= MAX_BLOCK {
                        if !self.has_section {
                            return Err(ReadError::NotATrace);
                        }
                        return Ok(Some(self.damaged(skipped)));
                    }
                    skipped += 4;
                }
                Found::Nothing if !is_at_end => is_at_end = self.fill()? == 0,
                Found::Nothing | Found::Beginning => return self.end(is_growing),
            }
        }
    }

    /// The end of what was read, behind the last whole block.
    fn end(&mut self, is_growing: bool) -> Result<Option<Item>, ReadError> {
        let len = self.left();
        if is_growing {
            return Ok(None);
        }
        if !self.has_section {
            return Err(ReadError::NotATrace);
        }
        let offset = self.offset;
        self.skip(len);
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        Ok((len > 0).then_some(Item::Truncated { offset, len }))
    }

    fn damaged(&mut self, len: usize) -> Item {
        let offset = self.offset;
        self.skip(len);
        Item::Damaged {
            offset,
            len: u64::try_from(len).unwrap_or(u64::MAX),
        }
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.done
    }

    fn skip(&mut self, len: usize) {
        self.done += len;
        self.offset += u64::try_from(len).unwrap_or(u64::MAX);
    }

    /// Reads on. Returns how many bytes there were.
    fn fill(&mut self) -> io::Result<usize> {
        self.bytes.drain(..self.done);
        self.done = 0;
        let begin = self.bytes.len();
        self.bytes.resize(begin + CHUNK, 0);
        loop {
            let read = self
                .input
                .read(self.bytes.get_mut(begin..).unwrap_or_default());
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => {
                    let read = read.inspect_err(|_| self.bytes.truncate(begin))?;
                    self.bytes.truncate(begin + read);
                    return Ok(read);
                }
            }
        }
    }

    /// Looks for a block `skipped` bytes from here. Behind damage, and behind a beginning that was
    /// cut off, only blocks that gangplankd writes count.
    fn find(&self, skipped: usize) -> Found {
        let bytes = self.bytes.get(self.done + skipped..).unwrap_or_default();
        let (Some(kind), Some(len)) = (word(bytes, 0), word(bytes, 4)) else {
            return Found::Beginning;
        };
        let Ok(len) = usize::try_from(len) else {
            return Found::Nothing;
        };
        if !(FRAME..=MAX_BLOCK).contains(&len) || !len.is_multiple_of(4) {
            return Found::Nothing;
        }
        let is_known = match kind {
            SECTION => true,
            _ if self.has_section && skipped == 0 => true,
            PACKET => bytes
                .get(8 + PACKET_HEAD)
                .is_none_or(|version| *version == VERSION),
            _ => false,
        };
        if !is_known {
            return Found::Nothing;
        }
        match word(bytes, len - 4) {
            None => Found::Beginning,
            Some(end) if usize::try_from(end) != Ok(len) => Found::Nothing,
            // Not its own length at its end, but that of a packet behind a block cut off there.
            Some(_) if word(bytes, len - 8) == Some(PACKET) && word(bytes, len) == Some(0) => {
                Found::Nothing
            }
            Some(_) => Found::Block(len),
        }
    }

    /// Takes the block that is next.
    fn take(&mut self, len: usize) -> Result<Option<Item>, ReadError> {
        let block = self.bytes.get(self.done..self.done + len);
        let block = block.unwrap_or_default().to_vec();
        self.skip(len);
        self.has_section = true;
        let body = block.get(8..len - 4).unwrap_or_default();
        match word(&block, 0) {
            Some(SECTION) => {
                if word(body, 0) != Some(BYTE_ORDER) {
                    return Err(ReadError::ByteOrder);
                }
                self.interfaces.clear();
                Ok(None)
            }
            Some(INTERFACE) => {
                let link_type = u16::try_from(word(body, 0).unwrap_or(0) & 0xffff).unwrap_or(0);
                if link_type != LINK_TYPE {
                    return Err(ReadError::LinkType(link_type));
                }
                let options = body.get(8..).unwrap_or_default();
                let resolution = option(options, IF_TSRESOL).and_then(|value| value.first());
                self.interfaces.push(unit(resolution.copied()));
                Ok(None)
            }
            Some(PACKET) => self.packet(body),
            _ => Ok(None),
        }
    }

    fn packet(&self, body: &[u8]) -> Result<Option<Item>, ReadError> {
        let [interface, high, low, len] = [0, 4, 8, 12].map(|at| word(body, at).unwrap_or(0));
        let interface = usize::try_from(interface).unwrap_or(usize::MAX);
        let (factor, divisor) = self.interfaces.get(interface).copied().unwrap_or((1, 1));
        let time = u64::from(high) << 32 | u64::from(low);
        let time = time.saturating_mul(factor) / divisor;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let rest = body.get(PACKET_HEAD..).unwrap_or_default();
        let packet = rest.get(..len).unwrap_or_default();
        let options = rest.get(len.saturating_add(3) & !3..).unwrap_or_default();
        let lost = option(options, EPB_DROPCOUNT).and_then(|value| value.try_into().ok());
        match (Record::decode(time, packet), packet.first()) {
            (Some(record), _) => Ok(Some(Item::Record {
                record: Box::new(record),
                lost: lost.map_or(0, u64::from_le_bytes),
            })),
            (None, Some(&version)) if version != VERSION => Err(ReadError::Version(version)),
            // A kind of record that came with a later program.
            (None, _) => Ok(None),
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

/// The value of the first option `code`.
fn option(mut options: &[u8], code: u16) -> Option<&[u8]> {
    loop {
        let head = word(options, 0)?;
        let (found, len) = (head & 0xffff, usize::try_from(head >> 16).ok()?);
        let value = options.get(4..4 + len)?;
        if found == 0 {
            return None;
        }
        if found == u32::from(code) {
            return Some(value);
        }
        options = options.get(4 + len.next_multiple_of(4)..)?;
    }
}

/// Nanoseconds of a unit of an interface's times, as a fraction (`if_tsresol`).
fn unit(resolution: Option<u8>) -> (u64, u64) {
    const NANOSECONDS: u64 = 1_000_000_000;
    match resolution.unwrap_or(6) {
        power @ 0..=9 => (NANOSECONDS / 10u64.pow(power.into()), 1),
        power @ 10..=19 => (1, 10u64.pow(u32::from(power) - 9)),
        _ => (1, 1),
    }
}

#[cfg(test)]
mod tests;
