//! A checked file name: a single path component that cannot leave its directory.

use std::ffi::CStr;
use std::io;

/// Longest name a directory entry may have, in bytes (`NAME_MAX`).
const NAME_MAX: usize = 255;

/// One component of a path: not empty, not `.` or `..`, without `/`, at most 255 bytes.
///
/// Resolving one relative to a directory, without following links, stays in that directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'a>(&'a CStr);

/// Why bytes are not a [`Name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The name is empty.
    #[error("a file name is empty")]
    Empty,
    /// The name is longer than a directory entry can be.
    #[error("a file name of {0} bytes is longer than 255")]
    TooLong(usize),
    /// The name is `.` or `..`, which the guest resolves itself.
    #[error("a file name is `.` or `..`")]
    Dots,
    /// The name contains a `/`: it is a path.
    #[error("a file name contains a `/`")]
    Slash,
}

impl InvalidName {
    /// The errno of the reply.
    pub fn errno(self) -> i32 {
        match self {
            Self::TooLong(_) => libc::ENAMETOOLONG,
            Self::Empty | Self::Dots | Self::Slash => libc::EINVAL,
        }
    }
}

impl From<InvalidName> for io::Error {
    fn from(invalid: InvalidName) -> Self {
        Self::from_raw_os_error(invalid.errno())
    }
}

impl<'a> Name<'a> {
    /// Checks the name.
    ///
    /// # Errors
    /// The rule that the name breaks.
    pub fn new(name: &'a CStr) -> Result<Self, InvalidName> {
        let bytes = name.to_bytes();
        match bytes {
            [] => Err(InvalidName::Empty),
            b"." | b".." => Err(InvalidName::Dots),
            _ if bytes.contains(&b'/') => Err(InvalidName::Slash),
            _ if bytes.len() > NAME_MAX => Err(InvalidName::TooLong(bytes.len())),
            _ => Ok(Self(name)),
        }
    }

    /// The name for a system call.
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_pass_whatever_their_bytes() {
        for name in [c"a", c"...", c"..a", c"\xff\x01", c" "] {
            assert_eq!(Name::new(name).map(Name::as_c_str), Ok(name));
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        assert_eq!(Name::new(c""), Err(InvalidName::Empty));
        assert_eq!(Name::new(c"."), Err(InvalidName::Dots));
        assert_eq!(Name::new(c".."), Err(InvalidName::Dots));
        for name in [c"/", c"a/b", c"../x", c"/etc"] {
            assert_eq!(Name::new(name), Err(InvalidName::Slash));
        }
    }

    #[test]
    fn a_name_of_256_bytes_is_too_long() {
        let mut bytes = vec![b'a'; 256];
        bytes.push(0);
        let long = CStr::from_bytes_with_nul(&bytes).expect("one NUL, at the end");
        assert_eq!(Name::new(long), Err(InvalidName::TooLong(256)));
        let longest = CStr::from_bytes_with_nul(&bytes[1..]).expect("one NUL, at the end");
        assert!(Name::new(longest).is_ok());
    }
}
