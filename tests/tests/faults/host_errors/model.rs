//! The replies that a daemon may give to a transfer on a failing host.

use anyhow::{Result, bail, ensure};
use gangplank_tests::faulty_fs::rules::{Call, Fault, Lasting, Rule};
use rustix::io::Errno;

use crate::fixture::{Kind, Range, Reply};

/// The faults of the host during one request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// A byte that cannot be transferred, and the errno.
    pub(crate) at_byte: Option<(u64, Errno)>,
    /// Limit of the bytes that the host moves at a time.
    pub(crate) at_most: Option<u64>,
    /// One call of the host that fails: the number of calls before it, and the errno.
    pub(crate) one_call: Option<(u64, Errno)>,
}

impl Faults {
    /// The faults as rules for transfers of `file`.
    pub(crate) fn rules(&self, kind: Kind, file: &str) -> Vec<Rule> {
        let call = if kind.is_read() {
            Call::Read
        } else {
            Call::Write
        };
        let at_byte = self
            .at_byte
            .map(|(byte, errno)| Fault::AtByte { byte, errno });
        let at_most = self.at_most.map(|bytes| Fault::AtMost { bytes });
        let one_call = self.one_call.map(|(after, errno)| Fault::Call {
            after,
            errno,
            lasting: Lasting::Once,
        });
        [at_byte, at_most, one_call]
            .into_iter()
            .flatten()
            .map(|fault| Rule::new(call, fault).of(file))
            .collect()
    }

    /// The number of bytes of a range that the host can move before the faulty one.
    fn movable(&self, offset: u64, length: usize) -> usize {
        let byte = self.at_byte.and_then(|(byte, _)| byte.checked_sub(offset));
        let before = byte.and_then(|before| usize::try_from(before).ok());
        before.map_or(length, |before| before.min(length))
    }

    /// Whether a request may fail with `errno` when the host can move `movable` of `length` bytes.
    fn explain(&self, kind: Kind, errno: Errno, movable: usize, length: usize) -> bool {
        // The daemon repeats an interrupted call.
        let one_call = self
            .one_call
            .is_some_and(|(_, found)| found == errno && errno != Errno::INTR);
        let reached = movable < length && (movable == 0 || !kind.may_be_short());
        let at_byte = self
            .at_byte
            .is_some_and(|(_, found)| found == errno && reached);
        one_call || at_byte
    }

    /// Checks a count of a transfer that could have moved `length` bytes.
    fn check_count(&self, kind: Kind, count: usize, movable: usize, length: usize) -> Result<()> {
        ensure!(
            count <= movable,
            "the reply counts {count} bytes, and the host can move only {movable}"
        );
        if count == length {
            return Ok(());
        }
        ensure!(
            kind.may_be_short(),
            "the reply counts {count} of {length} bytes, and that count is not used"
        );
        ensure!(count > 0, "the reply is the end of the file, which is not");
        let at_most = self.at_most.unwrap_or(u64::MAX);
        let least = movable.min(usize::try_from(at_most).unwrap_or(usize::MAX));
        ensure!(
            count >= least || self.one_call.is_some(),
            "the reply counts {count} bytes, and the host moves {least} at once"
        );
        Ok(())
    }
}

/// Bytes that are compared at once.
const PAGE: usize = 4096;

/// The known content of a file, and its permitted content.
pub(crate) struct FileModel {
    pub(crate) content: Vec<u8>,
}

impl FileModel {
    /// Checks the reply to a read.
    pub(crate) fn check_read(
        &self,
        kind: Kind,
        range: Range,
        faults: &Faults,
        reply: &Reply,
    ) -> Result<()> {
        let start = usize::try_from(range.offset)?.min(self.content.len());
        let end = (start + usize::try_from(range.size)?).min(self.content.len());
        let expected = &self.content[start..end];
        let movable = faults.movable(range.offset, expected.len());
        match reply {
            Reply::Read(bytes) => {
                ensure!(
                    expected.starts_with(bytes),
                    "the {} bytes read are not the file's",
                    bytes.len()
                );
                faults.check_count(kind, bytes.len(), movable, expected.len())
            }
            Reply::Failed(errno) => {
                ensure!(
                    faults.explain(kind, *errno, movable, expected.len()),
                    "the read fails with {errno}, and the host moves {movable} bytes"
                );
                Ok(())
            }
            Reply::Written(_) => bail!("a read was answered as a write"),
        }
    }

    /// Checks the reply to a write of `data`, and updates the known content.
    pub(crate) fn check_write(
        &mut self,
        kind: Kind,
        range: Range,
        data: &[u8],
        faults: &Faults,
        reply: &Reply,
        found: Vec<u8>,
    ) -> Result<()> {
        let movable = faults.movable(range.offset, data.len());
        let acknowledged = match reply {
            Reply::Written(count) => {
                faults.check_count(kind, *count, movable, data.len())?;
                *count
            }
            Reply::Failed(errno) => {
                ensure!(
                    faults.explain(kind, *errno, movable, data.len()),
                    "the write fails with {errno}, and the host moves {movable} bytes"
                );
                0
            }
            Reply::Read(_) => bail!("a write was answered as a read"),
        };
        self.take_over(range.offset, data, acknowledged, found)
    }

    /// Checks that the file has the acknowledged part of `data`, and nothing else that is new but
    /// the rest of it.
    pub(crate) fn take_over(
        &mut self,
        offset: u64,
        data: &[u8],
        acknowledged: usize,
        found: Vec<u8>,
    ) -> Result<()> {
        let start = usize::try_from(offset)?;
        let end = start + data.len();
        let part = |from: usize, to: usize| found.get(from..to).unwrap_or_default();
        ensure!(
            part(start, start + acknowledged) == &data[..acknowledged],
            "{acknowledged} bytes at {offset} were acknowledged, and are not in the file"
        );
        ensure!(
            found.len() == self.content.len()
                && part(0, start) == &self.content[..start]
                && part(end, found.len()) == &self.content[end..],
            "the write of {} bytes at {offset} has changed what lies outside of it",
            data.len()
        );
        // Page by page, because single bytes are slow.
        for at in (acknowledged..data.len()).step_by(PAGE) {
            let to = (at + PAGE).min(data.len());
            let (old, new) = (&self.content[start + at..start + to], &data[at..to]);
            let now = part(start + at, start + to);
            let known = now == old
                || now == new
                || (0..now.len()).all(|byte| now[byte] == old[byte] || now[byte] == new[byte]);
            ensure!(known, "what is at {} is neither old nor new", start + at);
        }
        self.content = found;
        Ok(())
    }
}
