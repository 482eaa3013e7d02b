//! The connections between nodes in a capture. Each command is shown as soon as it is complete.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use gangplank_service::error_chain;

use super::capture::Segment;
use super::decode::Decoder;
use super::error::DumpError;
use super::reassembly::{Part, Reassembly};
use crate::abi::Generation;

/// Connections at most. A node has two with each of 31 others.
const MAX_CONVERSATIONS: usize = 4096;

/// All connections of a capture.
pub(super) struct Conversations<'a, W> {
    generation: Option<Generation>,
    ports: RangeInclusive<u16>,
    output: Output<'a, W>,
    known: BTreeMap<(SocketAddr, SocketAddr), Conversation>,
    /// Segments of connections beyond the limit.
    passed_over: u64,
}

/// The output, and the time of the captured segment.
struct Output<'a, W> {
    to: &'a mut W,
    first: Option<Duration>,
    now: Duration,
}

/// One direction of a connection, which carries commands.
struct Conversation {
    from: SocketAddr,
    to: SocketAddr,
    reassembly: Reassembly,
    /// `None` once the commands could not be decoded.
    decoder: Option<Decoder>,
}

impl<'a, W: Write> Conversations<'a, W> {
    /// Connections to a port in `ports`, shown on `to`.
    pub(super) fn new(
        generation: Option<Generation>,
        ports: RangeInclusive<u16>,
        to: &'a mut W,
    ) -> Self {
        Self {
            generation,
            ports,
            output: Output {
                to,
                first: None,
                now: Duration::ZERO,
            },
            known: BTreeMap::new(),
            passed_over: 0,
        }
    }

    /// Handles the next captured segment.
    pub(super) fn take(&mut self, segment: &Segment<'_>) -> Result<(), DumpError> {
        if !self.ports.contains(&segment.to.port()) {
            return Ok(());
        }
        self.output.first.get_or_insert(segment.time);
        self.output.now = segment.time;
        let key = (segment.from, segment.to);
        if !self.known.contains_key(&key) && self.known.len() >= MAX_CONVERSATIONS {
            self.passed_over += 1;
            return Ok(());
        }
        let generation = self.generation;
        let known = self.known.entry(key);
        let it = known.or_insert_with(|| Conversation::joined(segment, generation));
        if segment.begins {
            // An earlier connection with the same ports has ended.
            it.end(&mut self.output)?;
            *it = Conversation::new(segment, generation);
        }
        it.take(segment, &mut self.output)?;
        self.output.flush()
    }

    /// Ends the capture.
    pub(super) fn end(mut self) -> Result<(), DumpError> {
        if self.known.is_empty() {
            let (first, last) = (self.ports.start(), self.ports.end());
            log::warn!("the capture has no connection to a port from {first} to {last}");
        }
        for it in self.known.values_mut() {
            it.end(&mut self.output)?;
        }
        if self.passed_over > 0 {
            self.output.note(&format!(
                "{} segments are not shown: they are of more than {MAX_CONVERSATIONS} connections",
                self.passed_over
            ))?;
        }
        self.output.flush()
    }
}

impl Conversation {
    /// A connection whose start was captured.
    fn new(segment: &Segment<'_>, generation: Option<Generation>) -> Self {
        Self {
            from: segment.from,
            to: segment.to,
            reassembly: Reassembly::default(),
            decoder: Some(Decoder::new(generation)),
        }
    }

    /// A connection that existed before the capture.
    fn joined(segment: &Segment<'_>, generation: Option<Generation>) -> Self {
        let mut it = Self::new(segment, generation);
        if let Some(decoder) = &mut it.decoder {
            decoder.skip(0);
        }
        it
    }

    fn take(
        &mut self,
        segment: &Segment<'_>,
        output: &mut Output<'_, impl Write>,
    ) -> Result<(), DumpError> {
        let Self {
            from,
            to,
            reassembly,
            decoder,
        } = self;
        reassembly.take(segment.sequence, segment.begins, segment.data, |part| {
            show(decoder, &part, |line| output.put(*from, *to, line))
        })
    }

    fn end(&mut self, output: &mut Output<'_, impl Write>) -> Result<(), DumpError> {
        let Self {
            from,
            to,
            reassembly,
            decoder,
        } = self;
        let mut line = |line: &str| output.put(*from, *to, line);
        reassembly.end(|part| show(decoder, &part, &mut line))?;
        match decoder.take() {
            Some(mut it) => understood(it.end(&mut line), line).map(|_| ()),
            None => Ok(()),
        }
    }
}

/// Shows a part of a connection while its commands can be decoded.
fn show(
    decoder: &mut Option<Decoder>,
    part: &Part<'_>,
    mut line: impl FnMut(&str) -> Result<(), DumpError>,
) -> Result<(), DumpError> {
    let Some(mut it) = decoder.take() else {
        return Ok(());
    };
    let shown = match part {
        Part::Bytes(bytes) => it.take(bytes, &mut line),
        Part::Missing(bytes) => {
            it.skip(*bytes);
            line(&format!("{bytes} bytes were not captured"))
        }
    };
    if understood(shown, line)? {
        *decoder = Some(it);
    }
    Ok(())
}

/// Returns whether commands could be decoded, and writes a line if not.
fn understood(
    shown: Result<(), DumpError>,
    mut line: impl FnMut(&str) -> Result<(), DumpError>,
) -> Result<bool, DumpError> {
    match shown {
        Ok(()) => Ok(true),
        Err(error @ DumpError::Write(_)) => Err(error),
        Err(error) => {
            line(&format!("{}; the rest is not shown", error_chain(&error)))?;
            Ok(false)
        }
    }
}

impl<W: Write> Output<'_, W> {
    fn put(&mut self, from: SocketAddr, to: SocketAddr, line: &str) -> Result<(), DumpError> {
        let since = self.now.saturating_sub(self.first.unwrap_or_default());
        let (seconds, micros) = (since.as_secs(), since.subsec_micros());
        writeln!(self.to, "{seconds}.{micros:06} {from} > {to}: {line}").map_err(DumpError::Write)
    }

    /// Writes a line that belongs to no connection.
    fn note(&mut self, line: &str) -> Result<(), DumpError> {
        writeln!(self.to, "{line}").map_err(DumpError::Write)
    }

    fn flush(&mut self) -> Result<(), DumpError> {
        self.to.flush().map_err(DumpError::Write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps the promise that segments which are not shown are reported.
    #[test]
    fn segments_of_too_many_connections_are_counted() {
        let mut shown = Vec::new();
        let mut conversations = Conversations::new(None, 3000..=3031, &mut shown);
        for number in 0..MAX_CONVERSATIONS + 2 {
            let port = u16::try_from(number).unwrap();
            let segment = Segment {
                time: Duration::ZERO,
                from: SocketAddr::from(([10, 0, 0, 1], port)),
                to: SocketAddr::from(([10, 0, 0, 2], 3000)),
                sequence: 0,
                begins: true,
                data: &[],
            };
            conversations.take(&segment).unwrap();
        }
        conversations.end().unwrap();
        let shown = String::from_utf8(shown).unwrap();
        let last = shown.lines().last();
        let expected = "2 segments are not shown: they are of more than 4096 connections";
        assert_eq!(last, Some(expected), "{shown}");
    }
}
