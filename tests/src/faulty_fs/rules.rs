//! Rules for which requests of the kernel fail, and where.

use std::collections::HashMap;

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// LOOKUP.
    Lookup,
    /// GETATTR.
    Getattr,
    /// SETATTR: chmod, chown, truncate, times.
    Setattr,
    /// CREATE.
    Create,
    /// OPEN.
    Open,
    /// READ.
    Read,
    /// WRITE.
    Write,
    /// FLUSH: close.
    Flush,
    /// FSYNC.
    Fsync,
    /// OPENDIR.
    Opendir,
    /// READDIR.
    Readdir,
    /// MKDIR.
    Mkdir,
    /// UNLINK.
    Unlink,
    /// RMDIR.
    Rmdir,
    /// RENAME2.
    Rename,
    /// GETXATTR.
    Getxattr,
    /// SETXATTR.
    Setxattr,
    /// LISTXATTR.
    Listxattr,
    /// REMOVEXATTR.
    Removexattr,
    /// STATFS.
    Statfs,
    /// FALLOCATE.
    Fallocate,
    /// LSEEK.
    Lseek,
    /// COPY_FILE_RANGE. Rules for reading the source and writing the target hold as well.
    CopyFileRange,
}

/// How long a fault lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// One request fails.
    Once,
    /// All requests from then on fail.
    Always,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A transfer that begins at this byte fails, and one that covers it moves only the bytes
    /// before. A transfer of the kernel's page cache that covers it fails as a whole, because a
    /// short count would mean the end of the file.
    AtByte {
        /// Offset in the file.
        byte: u64,
        /// The errno of the transfer.
        errno: Errno,
    },
    /// The request after `after` successful ones fails.
    Call {
        /// Number of requests that succeed first.
        after: u64,
        /// The errno of the request.
        errno: Errno,
        /// Whether later requests fail too.
        lasting: Lasting,
    },
    /// The request is not answered while the rule holds.
    Unanswered,
    /// A transfer moves no more bytes than this, except one of the kernel's page cache.
    AtMost {
        /// At least 1.
        bytes: u64,
    },
    /// A directory lists this many entries, including `.` and `..`, and then fails.
    AfterEntries {
        /// Entries that are listed.
        entries: u64,
        /// The errno of the next request.
        errno: Errno,
    },
}

/// A fault and the requests that it applies to.
#[derive(Clone, Debug)]
pub struct Rule {
    call: Call,
    file: Option<String>,
    fault: Fault,
}

impl Rule {
    /// A fault of each request of this kind.
    #[must_use]
    pub const fn new(call: Call, fault: Fault) -> Self {
        Self {
            call,
            file: None,
            fault,
        }
    }

    /// The same for files of this name alone.
    #[must_use]
    pub fn of(mut self, file: &str) -> Self {
        self.file = Some(file.to_owned());
        self
    }

    fn concerns(&self, call: Call, file: &str) -> bool {
        self.call == call && self.file.as_deref().is_none_or(|wanted| wanted == file)
    }
}

/// Whether a transfer may be short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Short {
    /// The caller handles short counts.
    Allowed,
    /// The kernel's page cache takes a short count for the end of the file.
    Refused,
}

/// All rules, and the number of requests by kind.
#[derive(Debug, Default)]
pub(super) struct Rules {
    state: Mutex<State>,
    cleared: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Each rule with the number of requests that matched it.
    rules: Vec<(Rule, u64)>,
    calls: HashMap<Call, u64>,
}

impl State {
    fn is_unanswered(&self, call: Call, file: &str) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|(rule, _)| rule.fault == Fault::Unanswered && rule.concerns(call, file))
    }
}

impl Rules {
    pub(super) fn add(&self, rule: Rule) {
        self.state.lock().rules.push((rule, 0));
    }

    pub(super) fn clear(&self) {
        self.state.lock().rules.clear();
        self.cleared.notify_all();
    }

    pub(super) fn replace(&self, rule: Rule) {
        self.state.lock().rules = vec![(rule, 0)];
        self.cleared.notify_all();
    }

    pub(super) fn calls(&self, call: Call) -> u64 {
        self.state.lock().calls.get(&call).copied().unwrap_or(0)
    }

    pub(super) fn reset_calls(&self) {
        self.state.lock().calls.clear();
    }

    /// Counts a request. Returns the errno if it fails as a whole. Waits as long as it may not be
    /// answered.
    pub(super) fn check(&self, call: Call, file: &str) -> Result<(), Errno> {
        let mut state = self.state.lock();
        *state.calls.entry(call).or_default() += 1;
        while state.is_unanswered(call, file) {
            self.cleared.wait(&mut state);
        }
        let mut result = Ok(());
        for (rule, seen) in &mut state.rules {
            if !rule.concerns(call, file) {
                continue;
            }
            let before = *seen;
            *seen += 1;
            if let Fault::Call {
                after,
                errno,
                lasting,
            } = rule.fault
                && (before == after || (before > after && lasting == Lasting::Always))
            {
                result = Err(errno);
            }
        }
        result
    }

    /// The number of bytes of `length` at `offset` that can be transferred.
    pub(super) fn limit(
        &self,
        call: Call,
        file: &str,
        offset: u64,
        length: u64,
        short: Short,
    ) -> Result<u64, Errno> {
        let state = self.state.lock();
        let mut limit = length;
        for (rule, _) in &state.rules {
            if !rule.concerns(call, file) {
                continue;
            }
            match rule.fault {
                Fault::AtByte { byte, errno } if (offset..offset + length).contains(&byte) => {
                    if byte == offset || short == Short::Refused {
                        return Err(errno);
                    }
                    limit = limit.min(byte - offset);
                }
                Fault::AtMost { bytes } if short == Short::Allowed => limit = limit.min(bytes),
                _ => {}
            }
        }
        Ok(limit)
    }

    /// The number of entries after which a listing of the directory fails, and the errno.
    pub(super) fn last_entry(&self, directory: &str) -> Option<(u64, Errno)> {
        let state = self.state.lock();
        state.rules.iter().find_map(|(rule, _)| match rule.fault {
            Fault::AfterEntries { entries, errno } if rule.concerns(Call::Readdir, directory) => {
                Some((entries, errno))
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTE: Fault = Fault::AtByte {
        byte: 100,
        errno: Errno::IO,
    };

    #[test]
    fn a_transfer_moves_what_lies_before_the_faulty_byte_and_then_fails() {
        let rules = Rules::default();
        rules.add(Rule::new(Call::Read, BYTE).of("a"));
        let limit = |offset, length, short| rules.limit(Call::Read, "a", offset, length, short);
        assert_eq!(limit(0, 100, Short::Refused), Ok(100));
        assert_eq!(limit(0, 101, Short::Allowed), Ok(100));
        assert_eq!(limit(0, 101, Short::Refused), Err(Errno::IO));
        assert_eq!(limit(100, 1, Short::Allowed), Err(Errno::IO));
        assert_eq!(limit(101, 50, Short::Refused), Ok(50));
        assert_eq!(
            rules.limit(Call::Read, "b", 0, 200, Short::Refused),
            Ok(200)
        );
        assert_eq!(
            rules.limit(Call::Write, "a", 0, 200, Short::Refused),
            Ok(200)
        );
    }

    #[test]
    fn the_call_that_was_chosen_fails_once_or_from_then_on() {
        for (lasting, expected) in [
            (Lasting::Once, [true, false, true, true]),
            (Lasting::Always, [true, false, false, false]),
        ] {
            let rules = Rules::default();
            rules.add(Rule::new(
                Call::Fsync,
                Fault::Call {
                    after: 1,
                    errno: Errno::NOSPC,
                    lasting,
                },
            ));
            assert!(rules.check(Call::Flush, "a").is_ok());
            let results = [(); 4].map(|()| rules.check(Call::Fsync, "a").is_ok());
            assert_eq!(results, expected);
            assert_eq!((rules.calls(Call::Fsync), rules.calls(Call::Flush)), (4, 1));
        }
    }
}
