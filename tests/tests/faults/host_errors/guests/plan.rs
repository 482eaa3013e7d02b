//! The plans: scripts combined with faults.

use fastrand::Rng;
use gangplank_tests::faulty_fs::rules::{Call, Fault, Lasting, Rule};
use gangplank_tests::trace::Case;
use rustix::io::Errno;

use crate::seed;

const MIB: usize = 1 << 20;

/// Bytes of files that are used in blocks of less than 64 KiB. No multiple of any page size.
const SMALL: usize = 131_072 + 123;

/// Bytes of files that are used byte by byte.
const TINY: usize = 4096 + 600;

/// Bytes of files used in larger blocks.
const LARGE: usize = MIB + 123;

/// Bytes that a file has before a script appends to it.
pub(super) const APPENDED_TO: usize = 1000;

/// Files in the directory that is listed.
pub(super) const FILES: usize = 100;

/// Errnos of the faults, used in turn.
const ERRNOS: [Errno; 5] = [
    Errno::IO,
    Errno::NOSPC,
    Errno::DQUOT,
    Errno::STALE,
    Errno::FBIG,
];

/// A script and its fault.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The script. Its number is the plan's.
    pub(crate) case: Case,
    /// Which requests of the host fail, if any.
    pub(crate) fault: Option<(Call, Fault)>,
}

impl Plan {
    /// The plan with another number.
    pub(super) fn numbered(&self, id: u32) -> Self {
        let mut plan = self.clone();
        plan.case.id = id;
        plan
    }

    /// The rule for the files of `case`, which is this plan's case in some run.
    pub(super) fn rule(&self, case: &Case) -> Option<Rule> {
        let (call, fault) = self.fault?;
        let name = match call {
            Call::Readdir => case.directory(),
            Call::CopyFileRange => case.copy(),
            _ => case.file(),
        };
        // Copied data is written to the copy.
        let name = match (call, case.script.as_str()) {
            (Call::Write, "copy-range") => case.copy(),
            _ => name,
        };
        Some(Rule::new(call, fault).of(&name))
    }

    /// The byte at which reading or writing fails, with its errno.
    pub(crate) const fn byte(&self, wanted: Call) -> Option<(u64, Errno)> {
        match self.fault {
            Some((call, Fault::AtByte { byte, errno })) if call as u8 == wanted as u8 => {
                Some((byte, errno))
            }
            _ => None,
        }
    }

    /// The one call that fails, with its errno.
    pub(crate) const fn one_call(&self) -> Option<(Call, Errno)> {
        match self.fault {
            Some((call, Fault::Call { errno, .. })) => Some((call, errno)),
            _ => None,
        }
    }

    /// Whether the script reads a file to its end.
    pub(crate) fn reads(&self) -> bool {
        matches!(
            self.case.script.as_str(),
            "read" | "pread" | "read-direct" | "read-mapped" | "copy-range" | "sendfile" | "splice"
        )
    }

    /// Whether each write of the script is on stable storage when it returns, or goes past caches.
    pub(crate) fn writes_at_once(&self) -> bool {
        matches!(
            self.case.script.as_str(),
            "write-sync" | "write-dsync" | "write-direct"
        )
    }
}

/// Scripts with the sizes of block and file.
const READS: [(&str, usize, usize); 13] = [
    ("read", 1, TINY),
    ("read", 4095, SMALL),
    ("read", 4096, SMALL),
    ("read", 65_536, LARGE),
    ("read", MIB, LARGE),
    ("pread", 4095, SMALL),
    ("pread", 65_536, SMALL),
    ("read-direct", 4096, SMALL),
    ("read-direct", MIB, LARGE),
    ("read-mapped", 4096, SMALL),
    ("copy-range", 65_536, LARGE),
    ("sendfile", 65_536, SMALL),
    ("splice", 65_536, SMALL),
];

const WRITES: [(&str, usize, usize); 17] = [
    ("write-fsync", 1, TINY),
    ("write-fsync", 4095, SMALL),
    ("write-fsync", 4096, SMALL),
    ("write-fsync", 65_536, LARGE),
    ("write-fsync", MIB, LARGE),
    ("write-close", 65_536, LARGE),
    ("write-close", MIB, LARGE),
    ("write-close-twice", 65_536, SMALL),
    ("append", 4095, SMALL),
    ("write-sync", 65_536, SMALL),
    ("write-dsync", 4095, SMALL),
    ("write-direct", 4096, SMALL & !4095),
    ("write-direct", MIB, MIB),
    ("write-mapped", 4096, SMALL),
    ("two-writers", 65_536, SMALL),
    ("reopen-fsync", 65_536, SMALL),
    ("syncfs", 65_536, SMALL),
];

/// All plans, numbered from zero.
pub(crate) fn plans(random_offsets: usize) -> Vec<Plan> {
    let mut rng = Rng::with_seed(seed() ^ 4);
    let mut plans = Plans::default();
    for (call, scripts) in [(Call::Read, &READS[..]), (Call::Write, &WRITES[..])] {
        for &(script, block, size) in scripts {
            plans.add(script, block, size, None);
            for byte in bytes(&mut rng, size, random_offsets) {
                plans.at_byte(script, block, size, call, byte);
            }
            if block >= 4096 {
                let bytes = rng.u64(1000..block as u64);
                let fault = Fault::AtMost { bytes };
                plans.add(script, block, size, Some((call, fault)));
            }
            for errno in [Errno::IO, Errno::INTR] {
                plans.one_call(script, block, size, call, 0, errno);
            }
        }
    }
    // In the third request of a copy of 8 MiB.
    for script in ["read", "read-mapped", "copy-range"] {
        plans.add(script, MIB, 8 * MIB, None);
        plans.at_byte(script, MIB, 8 * MIB, Call::Read, 2_572_288);
    }
    for script in ["write-fsync", "write-close", "write-mapped", "copy-range"] {
        plans.at_byte(script, MIB, 8 * MIB, Call::Write, 2_572_288);
    }
    for errno in [Errno::IO, Errno::NOSPC, Errno::DQUOT] {
        for script in ["write-fsync", "two-writers", "write-sync"] {
            plans.one_call(script, 65_536, SMALL, Call::Fsync, 0, errno);
        }
        for script in ["write-close", "write-close-twice", "write-fsync"] {
            plans.one_call(script, 65_536, SMALL, Call::Flush, 0, errno);
        }
        for call in [Call::Getxattr, Call::Listxattr] {
            for after in 0..3 {
                plans.one_call("xattr", 256, TINY, call, after, errno);
            }
        }
        for after in 0..2 {
            plans.one_call("fallocate", 4096, TINY, Call::Fallocate, after, errno);
            plans.one_call("ftruncate", 4096, TINY, Call::Setattr, after, errno);
        }
        plans.one_call("read", 4096, TINY, Call::Open, 0, errno);
    }
    plans.add("xattr", 256, TINY, None);
    plans.add("fallocate", 4096, TINY, None);
    plans.add("ftruncate", 4096, TINY, None);
    plans.add("readdir", 4096, TINY, None);
    for (index, entries) in [0, 1, 2, 5, 50, 101, 102].into_iter().enumerate() {
        let errno = ERRNOS[index % ERRNOS.len()];
        let fault = Fault::AfterEntries { entries, errno };
        plans.add("readdir", 4096, TINY, Some((Call::Readdir, fault)));
    }
    plans.list
}

/// Chosen and random offsets of faults in a file.
fn bytes(rng: &mut Rng, size: usize, random: usize) -> Vec<u64> {
    let size = size as u64;
    let chosen = [0, 1, 4095, 4096, 4097, 65_535, 65_536, size - 1];
    let mut bytes = chosen.to_vec();
    if size < 65_536 {
        // Single bytes are slow.
        return vec![0, 1, 4096, size - 1];
    }
    bytes.extend((0..random).map(|_| rng.u64(0..size)));
    bytes
}

#[derive(Default)]
struct Plans {
    list: Vec<Plan>,
    errors: usize,
}

impl Plans {
    fn add(&mut self, script: &str, block: usize, size: usize, fault: Option<(Call, Fault)>) {
        let case = Case {
            id: u32::try_from(self.list.len()).unwrap_or(u32::MAX),
            script: script.to_owned(),
            block,
            size,
        };
        self.list.push(Plan { case, fault });
    }

    fn at_byte(&mut self, script: &str, block: usize, size: usize, call: Call, byte: u64) {
        let errno = ERRNOS[self.errors % ERRNOS.len()];
        self.errors += 1;
        let fault = Fault::AtByte { byte, errno };
        self.add(script, block, size, Some((call, fault)));
    }

    fn one_call(
        &mut self,
        script: &str,
        block: usize,
        size: usize,
        call: Call,
        after: u64,
        errno: Errno,
    ) {
        let fault = Fault::Call {
            after,
            errno,
            lasting: Lasting::Once,
        };
        self.add(script, block, size, Some((call, fault)));
    }
}
