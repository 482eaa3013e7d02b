//! The commands in headers between nodes, and their acknowledgements.

use std::fmt;

/// A command by its number. Numbers without a name exist, and no peer understands them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Command(i32);

/// Declares the commands with their spelling in DVK's headers.
macro_rules! commands {
    ($( $(#[$meta:meta])* $name:ident = $number:literal, )*) => {
        impl Command {
            $( $(#[$meta])* pub const $name: Self = Self($number); )*

            /// The spelling in DVK's headers without `CMD_`. Returns `None` for a number that they
            /// do not have.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $( Self::$name => Some(stringify!($name)), )*
                    _ => None,
                }
            }
        }
    };
}

commands! {
    /// A hello, sometimes with a message for the other proxy.
    NONE = 0,
    /// A message, acknowledged when it is received.
    SEND_MSG = 1,
    /// A notification, not acknowledged.
    NTFY_MSG = 2,
    /// A request, whose sender waits for an answer. Only the answer or an error acknowledges it.
    SNDREC_MSG = 3,
    /// The answer to [`Self::SNDREC_MSG`], acknowledged by [`Self::SEND_ACK`].
    REPLY_MSG = 4,
    /// Data for a process's memory, as payload.
    COPYIN_DATA = 5,
    /// Requests data of a process's memory.
    COPYOUT_RQST = 6,
    /// A copy between two processes of the receiving node.
    COPYLCL_RQST = 7,
    /// A copy between a process of the receiving node and one of a third node.
    COPYRMT_RQST = 8,
    /// The second leg of [`Self::COPYRMT_RQST`].
    COPYIN_RQST = 9,
    /// Defined, never sent.
    HELLO = 10,
    /// Defined, never sent.
    SHUTDOWN = 11,
    /// Defined, not implemented anywhere.
    PROCINFO = 12,
    /// Defined, not implemented anywhere.
    PROCBIND = 13,
    /// Defined, not implemented anywhere.
    PROCUNBIND = 14,
    /// Answers [`Self::SEND_MSG`] and [`Self::REPLY_MSG`].
    SEND_ACK = 0x2001,
    /// Defined, never sent.
    NTFY_ACK = 0x2002,
    /// Reports the failure of a [`Self::SNDREC_MSG`].
    SNDREC_ACK = 0x2003,
    /// Defined, never sent.
    REPLY_ACK = 0x2004,
    /// Answers [`Self::COPYIN_DATA`].
    COPYIN_ACK = 0x2005,
    /// Answers [`Self::COPYOUT_RQST`], with the data as payload.
    COPYOUT_DATA = 0x2006,
    /// Answers [`Self::COPYLCL_RQST`].
    COPYLCL_ACK = 0x2007,
    /// Answers [`Self::COPYRMT_RQST`].
    COPYRMT_ACK = 0x2008,
    /// Defined, not implemented anywhere.
    PROCINFO_ACK = 0x200c,
    /// Defined, not implemented anywhere.
    PROCBIND_ACK = 0x200d,
    /// Defined, not implemented anywhere.
    PROCUNBIND_ACK = 0x200e,
}

impl Command {
    /// The bit that marks acknowledgements.
    const ACK: i32 = 0x2000;

    /// The command with the number `raw`, unchecked.
    pub const fn from_raw(raw: i32) -> Self {
        Self(raw)
    }

    /// The number in a header.
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// Whether it acknowledges another command.
    pub const fn is_ack(self) -> bool {
        self.0 & Self::ACK != 0
    }

    /// The command that reports a failure of this one. Returns `None` if the sender waits for
    /// nothing.
    pub fn failure(self) -> Option<Self> {
        match self {
            Self::SEND_MSG | Self::REPLY_MSG => Some(Self::SEND_ACK),
            Self::SNDREC_MSG => Some(Self::SNDREC_ACK),
            Self::COPYIN_DATA => Some(Self::COPYIN_ACK),
            Self::COPYOUT_RQST => Some(Self::COPYOUT_DATA),
            Self::COPYLCL_RQST => Some(Self::COPYLCL_ACK),
            Self::COPYRMT_RQST | Self::COPYIN_RQST => Some(Self::COPYRMT_ACK),
            _ => None,
        }
    }

    /// Whether it goes from one process to another: every command that a DVK delivers to processes,
    /// and none that proxies exchange or nobody sends.
    pub fn is_between_processes(self) -> bool {
        matches!(
            self,
            Self::SEND_MSG
                | Self::NTFY_MSG
                | Self::SNDREC_MSG
                | Self::REPLY_MSG
                | Self::COPYIN_DATA
                | Self::COPYOUT_RQST
                | Self::COPYLCL_RQST
                | Self::COPYRMT_RQST
                | Self::COPYIN_RQST
                | Self::SEND_ACK
                | Self::SNDREC_ACK
                | Self::COPYIN_ACK
                | Self::COPYOUT_DATA
                | Self::COPYLCL_ACK
                | Self::COPYRMT_ACK
        )
    }

    /// Whether it is about a copy. The headers of two generations have one place for message and
    /// copy, which then holds a copy.
    pub fn is_copy(self) -> bool {
        matches!(
            Self(self.0 & !Self::ACK),
            Self::COPYIN_DATA
                | Self::COPYOUT_RQST
                | Self::COPYLCL_RQST
                | Self::COPYRMT_RQST
                | Self::COPYIN_RQST
        )
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "command {:#x}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_awaited_commands_have_a_failure() {
        assert_eq!(Command::SNDREC_MSG.failure(), Some(Command::SNDREC_ACK));
        assert_eq!(Command::REPLY_MSG.failure(), Some(Command::SEND_ACK));
        assert_eq!(Command::NTFY_MSG.failure(), None);
        assert_eq!(Command::COPYIN_ACK.failure(), None);
    }

    #[test]
    fn copies_and_their_acknowledgements_carry_a_copy() {
        let copies = (0..0x3000)
            .map(Command::from_raw)
            .filter(|command| command.is_copy() && command.name().is_some());
        assert_eq!(
            copies.map(Command::raw).collect::<Vec<_>>(),
            [5, 6, 7, 8, 9, 0x2005, 0x2006, 0x2007, 0x2008]
        );
    }

    #[test]
    fn processes_send_only_commands_that_a_kernel_accepts() {
        let theirs = (0..0x3000)
            .map(Command::from_raw)
            .filter(|command| command.is_between_processes())
            .map(Command::raw);
        let taken = (1..=9).chain([0x2001, 0x2003]).chain(0x2005..=0x2008);
        assert!(theirs.eq(taken));
    }

    #[test]
    fn an_unknown_command_shows_its_number() {
        assert_eq!(Command::from_raw(0x77).to_string(), "command 0x77");
        assert_eq!(Command::SNDREC_MSG.to_string(), "SNDREC_MSG");
    }
}
