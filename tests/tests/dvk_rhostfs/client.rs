//! A client that does as the original does: the same calls, the fields it fills in, and rubbish in all others.

use std::sync::Arc;
use std::time::Duration;

use gangplank_dvk::abi::rhostfs::{Statfs64, Timeval, UsrDirent, UsrStat, Utimes};
use gangplank_dvk::abi::{Arm, Endpoint, M1, M2, M7, Message};
use gangplank_dvk::endpoint::{BoundEndpoint, SharedBuffers};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// How long an answer may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// What lies on the client's stack where it puts nothing: numbers that would do harm if they were believed.
pub(crate) const STACK_1: M1 = M1 {
    i1: 0x7fbd_4948,
    i2: 0x7fbd_4949,
    i3: 3,
    p1: 0x4849_bc90,
    p2: 0x4849_bd60,
    p3: 0x0843_8d60,
};
pub(crate) const STACK_2: M2 = M2 {
    i1: 0x7fbd_4948,
    i2: 0x7fbd_4949,
    i3: 2,
    l1: -1,
    l2: 0x1234,
    p1: 0x4849_bc90,
};

/// A refusal: the errno, positive.
pub(crate) type Answer<T> = Result<T, i32>;

/// A directory's entry as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) cookie: i32,
    pub(crate) raw: UsrDirent,
}

/// An original client.
pub(crate) struct Client {
    endpoint: Arc<dyn BoundEndpoint>,
    server: Endpoint,
}

impl Client {
    pub(crate) fn new(endpoint: Arc<dyn BoundEndpoint>, server: Endpoint) -> Self {
        Self { endpoint, server }
    }

    /// Says goodbye, as a process that ends.
    pub(crate) fn leave(self) {
        self.endpoint.unbind();
    }

    /// Asks: the answer as it came.
    pub(crate) fn ask(&self, message: &Message, lent: &mut SharedBuffers<'_>) -> Message {
        let answer = self.endpoint.sendrec(self.server, message, lent, LIMIT);
        answer.expect("every request is answered")
    }

    /// Asks without lending anything.
    pub(crate) fn call(&self, kind: i32, arm: &impl Arm) -> Answer<i32> {
        result(&self.ask(&Message::new(kind, arm), &mut SharedBuffers::new()))
    }

    /// Asks with one name, in the fields of the first shape.
    pub(crate) fn named(&self, kind: i32, name: &[u8], arm: M1) -> Answer<i32> {
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            i1: length(name),
            p1: lent.read_only(name),
            ..arm
        };
        result(&self.ask(&Message::new(kind, &arm), &mut lent))
    }

    /// Asks with two names.
    pub(crate) fn named_twice(&self, kind: i32, first: &str, second: &str) -> Answer<()> {
        let (first, second) = (text(first), text(second));
        let mut lent = SharedBuffers::new();
        let arm = M1 {
            i1: length(&first),
            i2: length(&second),
            p1: lent.read_only(&first),
            p2: lent.read_only(&second),
            ..STACK_1
        };
        done(&self.ask(&Message::new(kind, &arm), &mut lent))
    }

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

    /// Opens what is there: the access mode goes where a new file's mode belongs.
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

    /// renameat2 by one of its two numbers; what should be directories is rubbish.
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

    /// A length of more than 32 bits is cut, as the client does.
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

    pub(crate) fn ftruncate(&self, handle: i32, length: u64) -> Answer<()> {
        let arm = M2 {
            i1: handle,
            l1: low(length),
            ..STACK_2
        };
        nothing(self.call(93, &arm))
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

    /// The handle is in the answer, in a field that held rubbish before.
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

    /// What one call of getdents does from a position on, with room for `most` entries.
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

    /// Reads a link into a buffer of `size` bytes, as a patched client does: what the answer says, and the buffer.
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

    /// A whole small file.
    pub(crate) fn contents(&self, name: &str) -> Answer<Vec<u8>> {
        let handle = self.open(name, 0)?;
        let data = self.pread(handle, 4096, 0)?;
        self.close(handle)?;
        Ok(data)
    }
}

/// A name with its NUL.
pub(crate) fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

fn length(bytes: &[u8]) -> i32 {
    i32::try_from(bytes.len()).unwrap()
}

fn low(number: u64) -> i32 {
    i32::read_from_prefix(number.as_bytes()).unwrap().0
}

fn timevals(times: [(i32, i32); 2]) -> Utimes {
    let [atime, mtime] = times.map(|(sec, usec)| Timeval { sec, usec });
    Utimes { atime, mtime }
}

fn transfer(handle: i32, count: usize, position: u64, buffer: u32) -> M2 {
    M2 {
        i1: handle,
        i2: i32::try_from(count).unwrap(),
        l1: low(position),
        l2: low(position >> 32),
        p1: buffer,
        ..STACK_2
    }
}

/// What an answer says.
fn result(answer: &Message) -> Answer<i32> {
    if answer.kind < 0 {
        Err(-answer.kind)
    } else {
        Ok(answer.kind)
    }
}

/// That an answer says nothing but success.
fn done(answer: &Message) -> Answer<()> {
    nothing(result(answer))
}

fn nothing(answer: Answer<i32>) -> Answer<()> {
    assert!(
        matches!(answer, Err(_) | Ok(0)),
        "the answer is 0 or an errno, not {answer:?}"
    );
    answer.map(|_| ())
}
