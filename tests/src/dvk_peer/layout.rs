//! Offsets of a header's fields by the published tables, independent of the library under test.

/// A binary layout of the protocol between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Headers of 92 bytes, messages of 36.
    Early,
    /// Headers of 132 bytes, messages of 76.
    Legacy,
    /// Headers of 120 bytes, messages of 36.
    Current,
}

/// A field of four bytes that every layout has in the same place.
#[derive(Clone, Copy, Debug)]
pub enum Field {
    /// `c_cmd`.
    Command = 0,
    /// `c_dcid`.
    Dc = 4,
    /// `c_src`.
    Source = 8,
    /// `c_dst`.
    Destination = 12,
    /// `c_snode`.
    SourceNode = 16,
    /// `c_dnode`.
    DestinationNode = 20,
    /// `c_rcode`.
    Result = 24,
    /// `c_len`.
    Length = 28,
}

impl Layout {
    /// All layouts.
    pub const ALL: [Self; 3] = [Self::Early, Self::Legacy, Self::Current];

    /// Length of a header in bytes.
    pub fn header(self) -> usize {
        match self {
            Self::Early => 92,
            Self::Legacy => 132,
            Self::Current => 120,
        }
    }

    /// Length of a message in bytes.
    pub fn message(self) -> usize {
        if self == Self::Legacy { 76 } else { 36 }
    }

    /// Offset of the message.
    pub fn message_at(self) -> usize {
        if self == Self::Current { 60 } else { 56 }
    }

    /// Offset of the copy block.
    pub fn copy_at(self) -> usize {
        if self == Self::Current { 96 } else { 56 }
    }

    /// Offset of `c_batch_nr`; `c_flags` is behind it.
    pub fn batch_at(self) -> usize {
        if self == Self::Current { 36 } else { 32 }
    }

    /// Offsets of informative bytes, whose values are arbitrary: process ID, sequence numbers,
    /// time.
    pub fn free(self) -> [std::ops::Range<usize>; 2] {
        match self {
            Self::Current => [32..36, 44..60],
            // This layout has no process ID, and the other two together.
            _ => [40..48, 48..56],
        }
    }
}

/// A header and its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The layout of the header.
    pub layout: Layout,
    /// The header's bytes.
    pub header: Vec<u8>,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A header of zeros.
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            header: vec![0; layout.header()],
            payload: Vec::new(),
        }
    }

    /// The four bytes at `at`.
    pub fn word(&self, at: usize) -> i32 {
        i32::from_le_bytes(self.header[at..at + 4].try_into().expect("four bytes"))
    }

    /// Puts four bytes at `at`.
    pub fn set_word(&mut self, at: usize, value: i32) {
        self.header[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// One field.
    pub fn get(&self, field: Field) -> i32 {
        self.word(field as usize)
    }

    /// Sets `field` to `value`.
    #[must_use]
    pub fn with(mut self, field: Field, value: i32) -> Self {
        self.set_word(field as usize, value);
        self
    }

    /// The message's bytes.
    pub fn message(&self) -> &[u8] {
        let at = self.layout.message_at();
        &self.header[at..at + self.layout.message()]
    }

    /// Sets the message.
    #[must_use]
    pub fn with_message(mut self, message: &[u8]) -> Self {
        let at = self.layout.message_at();
        self.header[at..at + message.len()].copy_from_slice(message);
        self
    }

    /// The six words of the copy block: source, destination, requester, source address, destination
    /// address, bytes.
    pub fn copy(&self) -> [i32; 6] {
        std::array::from_fn(|index| self.word(self.layout.copy_at() + 4 * index))
    }

    /// Sets the copy block.
    #[must_use]
    pub fn with_copy(mut self, copy: [i32; 6]) -> Self {
        for (index, word) in copy.into_iter().enumerate() {
            self.set_word(self.layout.copy_at() + 4 * index, word);
        }
        self
    }

    /// Sets the payload and its length.
    #[must_use]
    pub fn with_payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        let length = i32::try_from(payload.len()).expect("a payload is short");
        self.with(Field::Length, length)
    }

    /// The header with zeros for arbitrary bytes.
    pub fn essential(&self) -> Vec<u8> {
        let mut header = self.header.clone();
        for range in self.layout.free() {
            header[range].fill(0);
        }
        header
    }
}
