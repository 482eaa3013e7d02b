//! The three binary layouts that DVK has had.

use std::fmt;

/// A binary layout of messages and headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Generation {
    /// Early 2019: messages of 36 bytes, headers of 92.
    Early,
    /// 2019 to January 2022: messages of 76 bytes, headers of 132.
    Legacy,
    /// From January 2022 on: messages of 36 bytes, headers of 120.
    #[default]
    Current,
}

impl Generation {
    /// All generations, the most common first.
    pub const ALL: [Self; 3] = [Self::Current, Self::Legacy, Self::Early];

    /// Bytes of a message.
    pub const fn message_size(self) -> usize {
        match self {
            Self::Early | Self::Current => 36,
            Self::Legacy => 76,
        }
    }

    /// Bytes of a header.
    pub const fn header_size(self) -> usize {
        match self {
            Self::Early => 92,
            Self::Legacy => 132,
            Self::Current => 120,
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Early => "early",
            Self::Legacy => "legacy",
            Self::Current => "current",
        })
    }
}
