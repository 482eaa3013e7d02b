//! Calls that list directories.

use gangplank_dvk::abi::rhostfs::UsrDirent;
use gangplank_dvk::abi::{M1, M2, Message};
use gangplank_dvk::endpoint::SharedBuffers;
use zerocopy::{FromZeros, IntoBytes};

use super::{Answer, Client, Entry, STACK_1, STACK_2, done, length, nothing, text};

impl Client {
    /// The handle is in the reply, in a field that the request left uninitialised.
    pub(crate) fn opendir(&self, name: &str) -> Answer<u32> {
        let name = text(name);
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            i1: length(&name),
            p1: lent.read_only(&name),
            ..STACK_1
        };
        let answer = self.ask(&Message::new(0x1000, &arm), &mut lent);
        done(&answer)?;
        Ok(answer.arm::<M1>().p2)
    }

    pub(crate) fn seekdir(&self, directory: u32, cookie: i32) -> Answer<()> {
        let arm = M2 {
            l1: cookie,
            p1: directory,
            ..STACK_2
        };
        nothing(self.call(0x1001, &arm))
    }

    pub(crate) fn readdir(&self, directory: u32) -> Answer<Option<Entry>> {
        let mut entry = UsrDirent::new_zeroed();
        entry.as_mut_bytes().fill(0xee);
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            p1: directory,
            p2: lent.writable(entry.as_mut_bytes()),
            ..STACK_1
        };
        let answer = self.ask(&Message::new(0x1002, &arm), &mut lent);
        done(&answer)?;
        if answer.arm::<M1>().p3 == 0 {
            return Ok(None);
        }
        let end = entry.name.iter().position(|byte| *byte == 0).unwrap();
        let name = String::from_utf8_lossy(&entry.name[..end]).into_owned();
        let cookie = entry.off;
        Ok(Some(Entry {
            name,
            cookie,
            raw: entry,
        }))
    }

    pub(crate) fn closedir(&self, directory: u32) -> Answer<()> {
        nothing(self.call(
            0x1003,
            &M1 {
                p1: directory,
                ..STACK_1
            },
        ))
    }

    /// Calls getdents once from a position, with room for `most` entries.
    pub(crate) fn getdents(&self, name: &str, from: i32, most: usize) -> Answer<Vec<Entry>> {
        let directory = self.opendir(name)?;
        self.seekdir(directory, from)?;
        let mut entries = Vec::new();
        while entries.len() < most {
            match self.readdir(directory)? {
                Some(entry) => entries.push(entry),
                None => break,
            }
        }
        self.closedir(directory)?;
        Ok(entries)
    }

    /// The names in a directory but `.` and `..`, read a few at a time.
    pub(crate) fn names(&self, directory: &str) -> Answer<Vec<String>> {
        let (mut names, mut position) = (Vec::new(), 0);
        loop {
            let entries = self.getdents(directory, position, 7)?;
            let Some(last) = entries.last() else {
                names.retain(|name| name != "." && name != "..");
                names.sort();
                return Ok(names);
            };
            position = last.cookie;
            names.extend(entries.into_iter().map(|entry| entry.name));
        }
    }
}
