//! Calls on a path.

use gangplank_dvk::abi::rhostfs::{Statfs64, UsrStat};
use gangplank_dvk::abi::{M1, M2, M7, Message};
use gangplank_dvk::endpoint::SharedBuffers;
use zerocopy::{FromZeros, IntoBytes};

use super::{Answer, Client, STACK_1, STACK_2, done, length, low, nothing, result, text, timevals};

impl Client {
    pub(crate) fn lstat64(&self, name: &str) -> Answer<UsrStat> {
        self.stat_by(196, name)
    }

    pub(crate) fn stat_by(&self, kind: i32, name: &str) -> Answer<UsrStat> {
        let name = text(name);
        let mut stat = UsrStat::new_zeroed();
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            i1: length(&name),
            p1: lent.read_only(&name),
            p2: lent.writable(stat.as_mut_bytes()),
            ..STACK_1
        };
        done(&self.ask(&Message::new(kind, &arm), &mut lent))?;
        Ok(stat)
    }

    pub(crate) fn unlink(&self, name: &str) -> Answer<()> {
        nothing(self.named(10, &text(name), STACK_1))
    }

    pub(crate) fn rmdir(&self, name: &str) -> Answer<()> {
        nothing(self.named(40, &text(name), STACK_1))
    }

    pub(crate) fn mkdir(&self, name: &str, mode: i32) -> Answer<()> {
        nothing(self.named(
            39,
            &text(name),
            M1 {
                i2: mode,
                ..STACK_1
            },
        ))
    }

    pub(crate) fn mknod(&self, name: &str, mode: i32, device: i32) -> Answer<()> {
        let arm = M1 {
            i2: mode,
            i3: device,
            ..STACK_1
        };
        nothing(self.named(14, &text(name), arm))
    }

    pub(crate) fn access(&self, name: &str, mask: i32) -> Answer<()> {
        nothing(self.named(
            33,
            &text(name),
            M1 {
                i2: mask,
                ..STACK_1
            },
        ))
    }

    pub(crate) fn chmod(&self, name: &str, mode: i32) -> Answer<()> {
        nothing(self.named(
            15,
            &text(name),
            M1 {
                i2: mode,
                ..STACK_1
            },
        ))
    }

    pub(crate) fn chown(&self, name: &str, uid: i32, gid: i32) -> Answer<()> {
        let arm = M1 {
            i2: uid,
            i3: gid,
            ..STACK_1
        };
        nothing(self.named(182, &text(name), arm))
    }

    pub(crate) fn link(&self, old: &str, new: &str) -> Answer<()> {
        self.named_twice(9, old, new)
    }

    pub(crate) fn symlink(&self, target: &str, link: &str) -> Answer<()> {
        self.named_twice(83, target, link)
    }

    pub(crate) fn rename(&self, old: &str, new: &str) -> Answer<()> {
        self.named_twice(38, old, new)
    }

    /// renameat2 by one of its two numbers. The directory fields are uninitialised.
    pub(crate) fn renameat2(&self, kind: i32, old: &str, new: &str, flags: i32) -> Answer<()> {
        let (old, new) = (text(old), text(new));
        let mut lent = SharedBuffers::new();
        let arm = M7 {
            i1: length(&old),
            i2: length(&new),
            i3: 0x7fbd_4948,
            i4: flags,
            p1: lent.read_only(&old),
            p2: lent.read_only(&new),
        };
        done(&self.ask(&Message::new(kind, &arm), &mut lent))
    }

    /// Truncates to a length, of which the client sends 32 bits.
    pub(crate) fn truncate(&self, name: &str, length_wanted: u64) -> Answer<()> {
        let name = text(name);
        let mut lent = SharedBuffers::new();
        let arm = M2 {
            i1: length(&name),
            l1: low(length_wanted),
            p1: lent.read_only(&name),
            ..STACK_2
        };
        done(&self.ask(&Message::new(92, &arm), &mut lent))
    }

    pub(crate) fn utimes(&self, name: &str, times: [(i32, i32); 2]) -> Answer<()> {
        let (name, times) = (text(name), timevals(times));
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            i1: length(&name),
            p1: lent.read_only(&name),
            p2: lent.read_only(times.as_bytes()),
            ..STACK_1
        };
        done(&self.ask(&Message::new(271, &arm), &mut lent))
    }

    pub(crate) fn statfs64(&self, name: &str) -> Answer<Statfs64> {
        let name = text(name);
        let mut figures = Statfs64::new_zeroed();
        figures.as_mut_bytes().fill(0xee);
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            i1: length(&name),
            p1: lent.read_only(&name),
            p2: lent.writable(figures.as_mut_bytes()),
            ..STACK_1
        };
        done(&self.ask(&Message::new(268, &arm), &mut lent))?;
        Ok(figures)
    }

    pub(crate) fn root_path(&self) -> Answer<String> {
        let mut buffer = vec![0xee; 4097];
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            p1: lent.writable(&mut buffer),
            ..STACK_1
        };
        done(&self.ask(&Message::new(0x1004, &arm), &mut lent))?;
        let end = buffer.iter().position(|byte| *byte == 0).unwrap();
        buffer.truncate(end);
        Ok(String::from_utf8(buffer).unwrap())
    }

    /// Reads a link into a buffer of `size` bytes, as a patched client does. Returns the result and
    /// the buffer.
    pub(crate) fn readlink(&self, name: &str, size: usize) -> Answer<(i32, Vec<u8>)> {
        let name = text(name);
        let mut buffer = vec![0xee; size];
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            i1: length(&name),
            i2: i32::try_from(size).unwrap(),
            p1: lent.read_only(&name),
            p2: lent.writable(&mut buffer),
            ..STACK_1
        };
        let length = result(&self.ask(&Message::new(85, &arm), &mut lent))?;
        Ok((length, buffer))
    }
}
