//! Turns the bytes from one node to another into lines.

use super::describe::describe;
use super::error::DumpError;
use crate::abi::{Generation, Header, HeaderError, MAX_BATCH, NodeId};

/// Decodes bytes into lines.
pub(super) struct Decoder {
    generation: Option<Generation>,
    /// Bytes that were not shown yet.
    bytes: Vec<u8>,
    /// Number of bytes before those.
    at: u64,
    /// Bytes are missing. Input is skipped until it starts with a command.
    lost: bool,
}

/// Bytes that suffice to tell the layouts apart: two of the longest headers.
const GUESS_SIZE: usize = 2 * 132;

impl Decoder {
    /// Decodes `generation`, or the generation that it guesses.
    pub(super) fn new(generation: Option<Generation>) -> Self {
        Self {
            generation,
            bytes: Vec::new(),
            at: 0,
            lost: false,
        }
    }

    /// Notes that bytes are missing here.
    pub(super) fn skip(&mut self, bytes: u64) {
        let unshown = u64::try_from(self.bytes.len()).unwrap_or(u64::MAX);
        self.at = self.at.saturating_add(unshown).saturating_add(bytes);
        self.bytes.clear();
        self.lost = true;
    }

    /// Decodes the next bytes and passes the lines of complete commands to `line`.
    pub(super) fn take(
        &mut self,
        new: &[u8],
        line: impl FnMut(&str) -> Result<(), DumpError>,
    ) -> Result<(), DumpError> {
        if self.lost {
            let begins =
                guess(new).is_some_and(|it| self.generation.is_none_or(|known| known == it));
            if !begins {
                self.at = self
                    .at
                    .saturating_add(u64::try_from(new.len()).unwrap_or(0));
                return Ok(());
            }
            self.lost = false;
        }
        self.bytes.extend_from_slice(new);
        if self.generation.is_none() && self.bytes.len() >= GUESS_SIZE {
            self.detect_layout()?;
        }
        self.show(line)
    }

    /// Ends the input and passes the remaining lines to `line`.
    pub(super) fn end(
        &mut self,
        mut line: impl FnMut(&str) -> Result<(), DumpError>,
    ) -> Result<(), DumpError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        if self.generation.is_none() {
            self.detect_layout()?;
        }
        self.show(&mut line)?;
        if self.bytes.is_empty() {
            return Ok(());
        }
        let left = format!("{} bytes of an incomplete command", self.bytes.len());
        line(&left)
    }

    fn detect_layout(&mut self) -> Result<(), DumpError> {
        self.generation = Some(guess(&self.bytes).ok_or(DumpError::Layout)?);
        Ok(())
    }

    /// Shows the complete commands.
    fn show(
        &mut self,
        mut line: impl FnMut(&str) -> Result<(), DumpError>,
    ) -> Result<(), DumpError> {
        let Some(generation) = self.generation else {
            return Ok(());
        };
        let size = generation.header_size();
        let mut done = 0;
        while let Some(rest) = self.bytes.get(done..)
            && rest.len() >= size
        {
            let no_command = |source| DumpError::NoCommand {
                at: self.at.saturating_add(u64::try_from(done).unwrap_or(0)),
                generation,
                source,
            };
            let header = Header::decode(rest, generation).map_err(no_command)?;
            if header.command.name().is_none() {
                return Err(no_command(HeaderError::Command(header.command.raw())));
            }
            let length = header.payload(generation).map_err(no_command)?;
            let Some(payload) = rest.get(size..size + length) else {
                break;
            };
            line(&describe(&header, payload))?;
            if header.is_batch() {
                for inner in payload.chunks_exact(size).take(MAX_BATCH) {
                    let inner = Header::decode(inner, generation).map_err(no_command)?;
                    line(&format!("  {}", describe(&inner, &[])))?;
                }
            }
            done += size + length;
        }
        self.bytes.drain(..done);
        self.at = self.at.saturating_add(u64::try_from(done).unwrap_or(0));
        Ok(())
    }
}

/// The most likely layout of `bytes`, by the node ids, which every layout has in the same place.
pub(super) fn guess(bytes: &[u8]) -> Option<Generation> {
    let word = |at: usize| {
        let word = bytes.get(at..at.checked_add(4)?)?;
        word.try_into().ok().map(i32::from_le_bytes)
    };
    let (sender, receiver) = (NodeId::new(word(16)?)?, NodeId::new(word(20)?)?);
    let candidates = Generation::guess(bytes, sender, receiver);
    candidates.first().copied()
}
