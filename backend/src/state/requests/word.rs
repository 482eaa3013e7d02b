//! The state of a request in one word.

/// The states of a slot. Zeroed memory is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    Free = 0,
    Taken = 1,
    Running = 2,
    /// A worker died while the request was running, and it has not been run again since.
    Interrupted = 3,
    Done = 4,
    Publishing = 5,
}

/// A slot's state with what belongs to it, in one word:
/// `reply length << 32 | used index << 16 | blame << 8 | state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) state: State,
    /// See [`super::Blame`].
    pub(super) blame: u8,
    /// Of `Publishing`: index in the used ring.
    pub(super) used: u16,
    /// Of `Done` and `Publishing`: bytes.
    pub(super) reply_len: u32,
}

impl Word {
    pub(super) const fn new(state: State, blame: u8) -> Self {
        Self {
            state,
            blame,
            used: 0,
            reply_len: 0,
        }
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        let [state, blame, used_low, used_high, reply_len @ ..] = bits.to_le_bytes();
        Self {
            state: match state {
                1 => State::Taken,
                2 => State::Running,
                3 => State::Interrupted,
                4 => State::Done,
                5 => State::Publishing,
                _ => State::Free,
            },
            blame,
            used: u16::from_le_bytes([used_low, used_high]),
            reply_len: u32::from_le_bytes(reply_len),
        }
    }

    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.reply_len) << 32
            | u64::from(self.used) << 16
            | u64::from(self.blame) << 8
            | u64::from(self.state as u8)
    }
}
