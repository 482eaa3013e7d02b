//! The cases in which a program in a guest sees another result than on the host, and why.
//!
//! In all other cases the results are equal, line by line.

use gangplank_tests::faulty_fs::HostCache;
use gangplank_tests::faulty_fs::rules::{Call, Fault};
use gangplank_tests::trace::{errno_name, folded};
use rustix::io::Errno;

use super::Mode;
use super::plan::Plan;

/// The expected result of a program in a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// The result on the host with the same fault.
    SameAsHost,
    /// The result on the host without a fault.
    AsWithoutFault,
    /// These calls.
    Lines(Vec<String>),
    /// All bytes are moved, and at most one call fails, with this errno.
    AllWithOneError(Errno),
}

/// One reason for a difference.
pub(super) struct Exception {
    /// Its name in a report.
    pub(super) name: &'static str,
    /// Which program causes the difference, and why it is right.
    pub(super) reason: &'static str,
    /// The expected result, if the exception applies to this plan in this mode.
    expected: fn(Mode, &Plan) -> Option<Expected>,
}

/// All exceptions. The first one that applies to a plan counts.
pub(super) const EXCEPTIONS: &[Exception] = &[
    Exception {
        name: "interrupted",
        reason: "The daemon repeats a call of the host that a signal interrupts, since the signal \
                 was not for the guest's program.",
        expected: |_, plan| {
            let (_, errno) = transfer_call(plan)?;
            (errno == Errno::INTR).then_some(Expected::AsWithoutFault)
        },
    },
    Exception {
        name: "short",
        reason: "The daemon reads and writes on after a short count of the host. It answers with \
                 less only where an error stops it.",
        expected: |_, plan| {
            let is_short = matches!(
                plan.fault,
                Some((Call::Read | Call::Write, Fault::AtMost { .. }))
            );
            (is_short && plan.case.script != "copy-range").then_some(Expected::AsWithoutFault)
        },
    },
    Exception {
        name: "one of several requests",
        reason: "The guest's kernel and the host's cut one call into requests at other places, and \
                 the page cache reads again what readahead could not, so that one failing request \
                 is another part of the file or is not noticed. Nothing is missing.",
        expected: |mode, plan| {
            let (call, errno) = transfer_call(plan)?;
            let is_cut = plan.case.block > 65_536;
            let is_cached = call == Call::Read && mode.cache == HostCache::Pages;
            let is_spliced = matches!(plan.case.script.as_str(), "sendfile" | "splice");
            let is_mapped = plan.case.script == "read-mapped";
            let is_written_back = call == Call::Write && mode.writes_back();
            let applies = (is_cut || is_cached || is_spliced) && !is_mapped && !is_written_back;
            applies.then_some(Expected::AllWithOneError(errno))
        },
    },
    Exception {
        name: "splice past the page cache",
        reason: "Linux 6.1 splices a file that is opened for direct I/O by direct reads, which may \
                 be short at any byte; the host's kernel splices it through pages.",
        expected: |mode, plan| {
            let is_spliced = matches!(plan.case.script.as_str(), "sendfile" | "splice");
            if mode.cache != HostCache::None || !is_spliced {
                return None;
            }
            let (byte, errno) = plan.byte(Call::Read)?;
            Some(Expected::Lines(spliced_up_to(plan, byte, errno)))
        },
    },
    Exception {
        name: "asynchronous direct writes",
        reason: "The guest's kernel sends O_DIRECT writes of a cached file asynchronously, and \
                 would answer the program with EIO where the reply is short (fuse_get_res_by_io). \
                 The daemon answers with the error instead, so that a write that fails in its \
                 middle has no count. Nothing of it was acknowledged.",
        expected: |mode, plan| {
            if mode.cache != HostCache::Pages || plan.case.script != "write-direct" {
                return None;
            }
            if let Some((_, errno)) = transfer_call(plan) {
                return Some(Expected::AllWithOneError(errno));
            }
            let (byte, errno) = plan.byte(Call::Write)?;
            Some(Expected::Lines(direct_writes_up_to(plan, byte, errno)))
        },
    },
    Exception {
        name: "syncfs of an ordinary FUSE mount",
        reason: "The host's kernel does not wait for the writeback of a FUSE file system in \
                 syncfs, and the guest's waits for that of a virtio-fs mount, so that the error is \
                 known.",
        expected: |mode, plan| {
            if plan.case.script != "syncfs" || !mode.writes_back() {
                return None;
            }
            let (_, errno) = plan
                .byte(Call::Write)
                .or(transfer_call(plan).map(|it| (0, it.1)))?;
            let (block, size) = (plan.case.block, plan.case.size);
            let whole = (0..size / block).map(|_| format!("write {block} = {block}"));
            let mut lines: Vec<String> = whole.collect();
            let rest = size % block;
            lines.push(format!("write {rest} = {rest}"));
            lines.push(format!("syncfs = {}", errno_name(errno)));
            lines.push(format!("fsync = {}", errno_name(errno)));
            lines.push("close = 0".to_owned());
            Some(Expected::Lines(folded(&lines)))
        },
    },
    Exception {
        name: "listxattr asks twice",
        reason: "The daemon asks the host for the length of the list before the list, to leave \
                 names out, so that the host's second request is still the guest's first.",
        expected: |_, plan| {
            let (Call::Listxattr, Fault::Call { after, errno, .. }) = plan.fault? else {
                return None;
            };
            let failing = usize::try_from(after / 2).ok()?;
            let mut lines = Vec::new();
            for (index, room) in [0, 256, 256].into_iter().enumerate() {
                let (value, list) = if room == 0 { (0, 0) } else { (5, 12) };
                lines.push(format!("fgetxattr {room} = {value}"));
                lines.push(if index == failing {
                    format!("flistxattr {room} = {}", errno_name(errno))
                } else {
                    format!("flistxattr {room} = {list}")
                });
            }
            lines.push("close = 0".to_owned());
            Some(Expected::Lines(lines))
        },
    },
    Exception {
        name: "truncation with its time",
        reason: "With writeback, the guest's kernel sends the file's time along with its size, \
                 which are two calls of the host, so that the host's second request is still the \
                 guest's first.",
        expected: |mode, plan| {
            let (Call::Setattr, Fault::Call { after, errno, .. }) = plan.fault? else {
                return None;
            };
            if !mode.has_writeback() {
                return None;
            }
            let failing = usize::try_from(after / 2).ok()?;
            let calls = (0..3).map(|index| {
                if index == failing {
                    format!("ftruncate = {}", errno_name(errno))
                } else {
                    "ftruncate = 0".to_owned()
                }
            });
            let rest = ["fsync = 0", "close = 0"].map(str::to_owned);
            Some(Expected::Lines(folded(
                &calls.chain(rest).collect::<Vec<_>>(),
            )))
        },
    },
];

/// The expected result of a plan, and the exception that determines it.
pub(super) fn expected(mode: Mode, plan: &Plan) -> (Expected, Option<&'static Exception>) {
    let found = EXCEPTIONS
        .iter()
        .find_map(|exception| Some(((exception.expected)(mode, plan)?, Some(exception))));
    found.unwrap_or((Expected::SameAsHost, None))
}

/// The one READ or WRITE that fails, with its errno.
fn transfer_call(plan: &Plan) -> Option<(Call, Errno)> {
    plan.one_call()
        .filter(|(call, _)| matches!(call, Call::Read | Call::Write))
        .filter(|_| plan.case.script != "copy-range")
}

/// Calls that move everything before `byte`, and twice the error.
fn spliced_up_to(plan: &Plan, byte: u64, errno: Errno) -> Vec<String> {
    let (call, block) = (&plan.case.script, plan.case.block as u64);
    let mut lines = Vec::new();
    let mut at = 0;
    while at < byte {
        let count = block.min(byte - at);
        lines.push(format!("{call} {block} = {count}"));
        at += count;
    }
    for _ in 0..2 {
        lines.push(format!("{call} {block} = {}", errno_name(errno)));
    }
    lines.push("close = 0".to_owned());
    let total = if call == "sendfile" {
        "sent"
    } else {
        "spliced"
    };
    lines.push(format!("{total} = {byte}"));
    folded(&lines)
}

/// Whole writes before the one that covers `byte`, which fails.
fn direct_writes_up_to(plan: &Plan, byte: u64, errno: Errno) -> Vec<String> {
    let block = plan.case.block as u64;
    let mut lines = Vec::new();
    let mut at = 0;
    while at + block <= byte {
        lines.push(format!("write {block} = {block}"));
        at += block;
    }
    lines.push(format!("write {block} = {}", errno_name(errno)));
    lines.extend(["fsync = 0", "close = 0"].map(str::to_owned));
    folded(&lines)
}
