//! Calls on open files.

use gangplank_dvk::abi::rhostfs::UsrStat;
use gangplank_dvk::abi::{M1, M2, Message};
use gangplank_dvk::endpoint::SharedBuffers;
use zerocopy::{FromZeros, IntoBytes};

use super::{
    Answer, Client, STACK_1, STACK_2, done, low, nothing, result, text, timevals, transfer,
};

impl Client {
    pub(crate) fn fstat_by(&self, kind: i32, handle: i32) -> Answer<UsrStat> {
        let mut stat = UsrStat::new_zeroed();
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            i1: handle,
            p1: lent.writable(stat.as_mut_bytes()),
            ..STACK_1
        };
        done(&self.ask(&Message::new(kind, &arm), &mut lent))?;
        Ok(stat)
    }

    /// Opens an existing file. The access mode is in the field for a new file's mode.
    pub(crate) fn open(&self, name: &str, access: i32) -> Answer<i32> {
        let arm = M1 {
            i2: 0,
            i3: access,
            ..STACK_1
        };
        self.named(5, &text(name), arm)
    }

    /// Makes a file: `O_CREAT|O_RDWR`, never exclusively.
    pub(crate) fn create(&self, name: &str, mode: i32) -> Answer<i32> {
        let arm = M1 {
            i2: 0x42,
            i3: mode,
            ..STACK_1
        };
        self.named(5, &text(name), arm)
    }

    pub(crate) fn close(&self, handle: i32) -> Answer<()> {
        nothing(self.call(
            6,
            &M1 {
                i1: handle,
                ..STACK_1
            },
        ))
    }

    pub(crate) fn dup2(&self, old: i32, new: i32) -> Answer<i32> {
        let arm = M1 {
            i1: old,
            i2: new,
            ..STACK_1
        };
        self.call(63, &arm)
    }

    pub(crate) fn pread(&self, handle: i32, count: usize, position: u64) -> Answer<Vec<u8>> {
        let mut buffer = vec![0xee; count];
        let mut lent = SharedBuffers::new();
        let arm = transfer(handle, count, position, lent.writable(&mut buffer));
        let read = result(&self.ask(&Message::new(180, &arm), &mut lent))?;
        let read = usize::try_from(read).unwrap();
        assert!(
            buffer[read..].iter().all(|byte| *byte == 0xee),
            "no more is copied than read"
        );
        buffer.truncate(read);
        Ok(buffer)
    }

    pub(crate) fn pwrite(&self, handle: i32, data: &[u8], position: u64) -> Answer<usize> {
        let mut lent = SharedBuffers::new();
        let arm = transfer(handle, data.len(), position, lent.read_only(data));
        let written = result(&self.ask(&Message::new(181, &arm), &mut lent))?;
        Ok(usize::try_from(written).unwrap())
    }

    pub(crate) fn ftruncate(&self, handle: i32, length: u64) -> Answer<()> {
        let arm = M2 {
            i1: handle,
            l1: low(length),
            ..STACK_2
        };
        nothing(self.call(93, &arm))
    }

    pub(crate) fn futimes(&self, handle: i32, times: [(i32, i32); 2]) -> Answer<()> {
        let times = timevals(times);
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            i1: handle,
            p1: lent.read_only(times.as_bytes()),
            ..STACK_1
        };
        done(&self.ask(&Message::new(299, &arm), &mut lent))
    }

    /// A whole small file.
    pub(crate) fn contents(&self, name: &str) -> Answer<Vec<u8>> {
        let handle = self.open(name, 0)?;
        let data = self.pread(handle, 4096, 0)?;
        self.close(handle)?;
        Ok(data)
    }
}
