//! A server for the tests: it serves a directory of the host through a carrier in memory, with or
//! without the original's faults.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{
    FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown, lchown, symlink,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, Timespec, Timestamps};
use zerocopy::{FromZeros, IntoBytes};

use super::dialect::Dialect;
use super::rpc::{RpcClient, RpcEndpoints};
use super::syscall_nr as call;
use crate::abi::rhostfs::{Statfs64, UsrDirent, UsrStat, Utimes, WHOLE_SIZES};
use crate::abi::{Code, DcId, DcLimits, Endpoint, M1, M2, M7, Message};
use crate::endpoint::{
    BoundEndpoint, Carrier, Delivery, EndpointError, Operation, RequestId, SharedBuffers,
};

/// The state that tests and server share.
#[derive(Default)]
pub(super) struct State {
    /// The numbers of the calls, in order.
    pub(super) asked: Vec<i32>,
    /// How many of the next calls get no answer.
    pub(super) silent: u32,
    /// The longest read or write in bytes.
    pub(super) longest: usize,
    /// Whether each call gets the answer to the one before, if there is one.
    pub(super) late: bool,
    /// The mark in the attributes of open files. The original reports a device there.
    pub(super) mark: u32,
    /// How often a connection was lost.
    pub(super) losses: u64,
    /// How often a client's endpoint was bound, and released.
    pub(super) bound: u32,
    pub(super) given_up: u32,
    /// Limit of bytes that a read or write transfers.
    pub(super) most: Option<usize>,
    /// By call, how many more times it succeeds, and the error after that.
    pub(super) failing: HashMap<i32, (u32, i32)>,
    /// The target to report for every symbolic link, instead of the real one.
    pub(super) target: Option<Vec<u8>>,
    held: Option<Message>,
    files: HashMap<i32, (File, PathBuf)>,
    directories: HashMap<u32, (Vec<UsrDirent>, usize)>,
    next: i32,
}

impl State {
    /// Drops all handles, as a restart of the server does.
    pub(super) fn restart(&mut self) {
        self.files.clear();
        self.directories.clear();
        self.next = 0;
    }

    /// Closes all directories, as the server does when a client has too many open.
    pub(super) fn close_directories(&mut self) {
        self.directories.clear();
    }

    /// The error that a call must fail with now.
    fn fault(&mut self, call: i32) -> Option<i32> {
        let (succeed, errno) = self.failing.get_mut(&call)?;
        match succeed.checked_sub(1) {
            Some(left) => {
                *succeed = left;
                None
            }
            None => Some(*errno),
        }
    }

    /// How many of the `count` bytes of a read or write to transfer.
    fn part(&self, count: usize) -> usize {
        self.most.map_or(count, |most| most.min(count))
    }

    /// The number of handles of both kinds.
    pub(super) fn handles(&self) -> usize {
        self.files.len() + self.directories.len()
    }
}

/// The server, as carrier and as endpoint.
#[derive(Clone)]
pub(super) struct FakeServer {
    root: PathBuf,
    dialect: Dialect,
    pub(super) state: Arc<Mutex<State>>,
}

impl FakeServer {
    /// A server of the kind `dialect` that serves `root`.
    pub(super) fn new(root: PathBuf, dialect: Dialect) -> Self {
        Self {
            root,
            dialect,
            state: Arc::default(),
        }
    }

    /// A connection to it.
    pub(super) fn rpc(&self) -> RpcClient {
        let endpoints = RpcEndpoints {
            dc: DcId::new(0).unwrap(),
            client: Endpoint::from_raw(10),
            server: Endpoint::from_raw(1),
            limit: Duration::from_secs(1),
        };
        RpcClient::new(Arc::new(self.clone()), endpoints)
    }

    fn is_original(&self) -> bool {
        self.dialect == Dialect::Original
    }

    /// The host's path for the name of `length` bytes at `address`.
    fn path(&self, buffers: &SharedBuffers<'_>, address: u32, length: i32) -> PathBuf {
        let name = text(buffers, address, length);
        let relative = name.strip_prefix(b"/").expect("names are absolute");
        self.root.join(OsStr::from_bytes(relative))
    }

    #[allow(clippy::too_many_lines, reason = "a table of calls")]
    fn serve(
        &self,
        state: &mut State,
        asked: &Message,
        buffers: &mut SharedBuffers<'_>,
    ) -> io::Result<Message> {
        let (m1, m2): (M1, M2) = (asked.arm(), asked.arm());
        let done = asked.answer(0);
        if let Some(errno) = state.fault(asked.kind) {
            return Ok(asked.answer(-errno));
        }
        let named = |buffers: &SharedBuffers<'_>| self.path(buffers, m1.p1, m1.i1);
        match asked.kind {
            call::GET_ROOTPATH => {
                buffers.write(m1.p1, b"/srv\0").unwrap();
            }
            call::LSTAT64 => {
                let stat = usr_stat(&fs::symlink_metadata(named(buffers))?, m1.i2)?;
                let device = if self.is_original() { 0x801 } else { 0 };
                let stat = UsrStat {
                    dev: device,
                    ..stat
                };
                buffers.write(m1.p2, stat.as_bytes()).unwrap();
            }
            call::FSTAT64 if self.is_original() => return Ok(asked.answer(-107)),
            call::FSTAT64 => {
                let mut stat = usr_stat(&file(state, m1.i1)?.metadata()?, m1.i2)?;
                stat.dev = state.mark;
                buffers.write(m1.p1, stat.as_bytes()).unwrap();
            }
            call::OPEN => return self.open(state, asked, named(buffers)),
            call::CLOSE => drop(state.files.remove(&m1.i1).ok_or_else(bad)?),
            call::PREAD64 => {
                let count = usize::try_from(m2.i2).unwrap();
                state.longest = state.longest.max(count);
                let mut data = vec![0xee; state.part(count)];
                let read = file(state, m2.i1)?.read_at(&mut data, position(&m2))?;
                if self.is_original() {
                    buffers.write(m2.p1, &data).unwrap();
                    return Ok(asked.answer(0)); // as its copy to a remote client returns
                }
                buffers.write(m2.p1, &data[..read]).unwrap();
                return Ok(asked.answer(i32::try_from(read).unwrap()));
            }
            call::PWRITE64 if self.is_original() => {}
            call::PWRITE64 => {
                let mut data = vec![0; usize::try_from(m2.i2).unwrap()];
                state.longest = state.longest.max(data.len());
                buffers.read(m2.p1, &mut data).unwrap();
                data.truncate(state.part(data.len()));
                file(state, m2.i1)?.write_all_at(&data, position(&m2))?;
                return Ok(asked.answer(i32::try_from(data.len()).unwrap()));
            }
            call::DUP2 => {
                file(state, m1.i1)?;
                file(state, m1.i2)?;
                return Ok(asked.answer(m1.i2));
            }
            call::LINK => fs::hard_link(named(buffers), self.path(buffers, m1.p2, m1.i2))?,
            call::S_IFLNK => {
                let target = text(buffers, m1.p1, m1.i1);
                symlink(OsStr::from_bytes(&target), self.path(buffers, m1.p2, m1.i2))?;
            }
            call::RENAME => {
                let second = if self.is_original() { m1.p1 } else { m1.p2 };
                fs::rename(named(buffers), self.path(buffers, second, m1.i2))?;
            }
            call::RENAMEAT2 => {
                let m7: M7 = asked.arm();
                let new = self.path(buffers, m7.p2, m7.i2);
                let flags = RenameFlags::from_bits_retain(m7.i4.cast_unsigned());
                rustix::fs::renameat_with(CWD, self.path(buffers, m7.p1, m7.i1), CWD, new, flags)?;
            }
            call::UNLINK => fs::remove_file(named(buffers))?,
            call::RMDIR => fs::remove_dir(named(buffers))?,
            call::MKDIR => {
                fs::create_dir(named(buffers))?;
                fs::set_permissions(
                    named(buffers),
                    fs::Permissions::from_mode(m1.i2.cast_unsigned()),
                )?;
            }
            call::MKNOD => {
                let mode = m1.i2.cast_unsigned();
                let kind = FileType::from_raw_mode(mode);
                rustix::fs::mknodat(CWD, named(buffers), kind, Mode::from_raw_mode(mode), 0)?;
            }
            call::CHMOD => {
                fs::set_permissions(
                    named(buffers),
                    fs::Permissions::from_mode(m1.i2.cast_unsigned()),
                )?;
            }
            call::FCHMOD => file(state, m1.i1)?
                .set_permissions(fs::Permissions::from_mode(m1.i2.cast_unsigned()))?,
            call::CHOWN if self.is_original() => chown(named(buffers), id(m1.i2), id(m1.i3))?,
            call::CHOWN => lchown(named(buffers), id(m1.i2), id(m1.i3))?,
            call::FCHOWN => fchown(file(state, m1.i1)?, id(m1.i2), id(m1.i3))?,
            call::TRUNCATE => File::options()
                .write(true)
                .open(self.path(buffers, m2.p1, m2.i1))?
                .set_len(length(&m2))?,
            call::FTRUNCATE => file(state, m2.i1)?.set_len(length(&m2))?,
            call::FSYNC | call::FDATASYNC => file(state, m1.i1)?.sync_all()?,
            call::UTIMES | call::FUTIMES if self.is_original() => panic!("times for the original"),
            call::UTIMES => {
                let times = timestamps(buffers, m1.p2);
                rustix::fs::utimensat(CWD, named(buffers), &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            call::FUTIMES => {
                rustix::fs::futimens(file(state, m1.i1)?, &timestamps(buffers, m1.p1))?
            }
            call::ACCESS => {
                fs::symlink_metadata(named(buffers))?;
            }
            call::READLINK => {
                let target = fs::read_link(named(buffers))?.into_os_string().into_vec();
                let target = state.target.clone().unwrap_or(target);
                buffers.write(m1.p2, &target).unwrap();
            }
            call::STATFS64 => {
                let state = Statfs64 {
                    bsize: 4096,
                    blocks: 1000.into(),
                    namelen: 255,
                    ..Statfs64::default()
                };
                let length = if self.is_original() { 64 } else { 84 };
                buffers.write(m1.p2, &state.as_bytes()[..length]).unwrap();
            }
            call::OPENDIR => {
                let entries = list(&named(buffers))?;
                state.next += 1;
                let handle = state.next.cast_unsigned();
                state.directories.insert(handle, (entries, 0));
                let mut done = done;
                done.set_arm(&M1 { p2: handle, ..m1 });
                return Ok(done);
            }
            call::SEEKDIR => {
                let cookie = usize::try_from(m2.l1).unwrap();
                state.directories.get_mut(&m2.p1).ok_or_else(bad)?.1 = cookie;
            }
            call::READDIR => {
                let (entries, at) = state.directories.get_mut(&m1.p1).ok_or_else(bad)?;
                let entry = entries.get(*at);
                if let Some(entry) = entry {
                    buffers.write(m1.p2, entry.as_bytes()).unwrap();
                    *at += 1;
                }
                let mut done = done;
                done.set_arm(&M1 {
                    p3: u32::from(entry.is_some()),
                    ..m1
                });
                return Ok(done);
            }
            call::CLOSEDIR => drop(state.directories.remove(&m1.p1).ok_or_else(bad)?),
            other => panic!("call {other} is not one that the client makes"),
        }
        Ok(done)
    }

    fn open(&self, state: &mut State, asked: &Message, path: PathBuf) -> io::Result<Message> {
        let M1 {
            i2: flags,
            i3: mode,
            ..
        } = asked.arm();
        let flags = if flags & 0o100 == 0 && !self.is_original() {
            flags | mode & 0o2003
        } else {
            flags
        };
        let opened = OpenOptions::new()
            .read(flags & 3 != 1)
            .write(flags & 3 != 0)
            .custom_flags(flags & !3 & !0o300)
            .create_new(flags & 0o300 == 0o300)
            .create(flags & 0o100 != 0)
            .mode(mode.cast_unsigned())
            .open(&path)?;
        let handle = state.next;
        state.next += 1;
        state.files.insert(handle, (opened, path));
        Ok(asked.answer(handle))
    }
}

impl Carrier for FakeServer {
    fn bind(&self, _: DcId, _: Endpoint, _: &str) -> Result<Arc<dyn BoundEndpoint>, EndpointError> {
        self.state.lock().bound += 1;
        Ok(Arc::new(self.clone()))
    }
}

impl BoundEndpoint for FakeServer {
    fn dc(&self) -> DcId {
        DcId::new(0).unwrap()
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::from_raw(10)
    }

    fn limits(&self) -> DcLimits {
        DcLimits::USUAL
    }

    fn sendrec(
        &self,
        to: Endpoint,
        message: &Message,
        buffers: &mut SharedBuffers<'_>,
        limit: Duration,
    ) -> Result<Message, EndpointError> {
        let mut state = self.state.lock();
        state.asked.push(message.kind);
        if state.silent > 0 {
            state.silent -= 1;
            let operation = Operation::SendRec { to };
            return Err(EndpointError::TimedOut { operation, limit });
        }
        let answer = self
            .serve(&mut state, message, buffers)
            .unwrap_or_else(|error| message.answer(-error.raw_os_error().expect("an errno")));
        let earlier = state.held.replace(answer);
        Ok(earlier.filter(|_| state.late).unwrap_or(answer))
    }

    fn losses(&self, _: Endpoint) -> u64 {
        self.state.lock().losses
    }

    fn unbind(&self) {
        self.state.lock().given_up += 1;
    }

    fn receive(&self, _: Duration) -> Result<Delivery, EndpointError> {
        Err(refused(Operation::Receive))
    }

    fn reply(&self, request: RequestId, _: &Message) -> Result<(), EndpointError> {
        let client = request.client();
        Err(refused(Operation::Reply { client }))
    }

    fn send(&self, to: Endpoint, _: &Message, _: Duration) -> Result<(), EndpointError> {
        Err(refused(Operation::Send { to }))
    }

    fn notify(&self, to: Endpoint) -> Result<(), EndpointError> {
        Err(refused(Operation::Notify { to }))
    }

    fn copy_from(&self, _: RequestId, _: u32, _: &mut [u8]) -> Result<(), EndpointError> {
        Err(refused(Operation::Receive))
    }

    fn copy_to(&self, _: RequestId, _: u32, _: &[u8]) -> Result<(), EndpointError> {
        Err(refused(Operation::Receive))
    }
}

fn refused(operation: Operation) -> EndpointError {
    let code = Code::EDVSBADCALL;
    EndpointError::Refused { operation, code }
}

fn bad() -> io::Error {
    rustix::io::Errno::BADF.into()
}

fn file(state: &State, handle: i32) -> io::Result<&File> {
    Ok(&state.files.get(&handle).ok_or_else(bad)?.0)
}

fn id(id: i32) -> Option<u32> {
    (id != -1).then_some(id.cast_unsigned())
}

fn position(arm: &M2) -> u64 {
    u64::from(arm.l2.cast_unsigned()) << 32 | u64::from(arm.l1.cast_unsigned())
}

/// The text of `length` bytes at `address`, whose last byte must be its NUL.
fn text(buffers: &SharedBuffers<'_>, address: u32, length: i32) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    buffers
        .read(address, &mut bytes)
        .expect("the name is shared");
    assert_eq!(bytes.pop(), Some(0), "names end in NUL");
    assert!(!bytes.contains(&0), "and have no other");
    bytes
}

/// The length of a truncate: 64 bits if the client says so, else 32.
fn length(arm: &M2) -> u64 {
    match arm.i2 {
        WHOLE_SIZES => position(arm),
        _ => u64::from(arm.l1.cast_unsigned()),
    }
}

fn usr_stat(metadata: &Metadata, sizes: i32) -> io::Result<UsrStat> {
    if sizes != WHOLE_SIZES && u32::try_from(metadata.size()).is_err() {
        return Err(rustix::io::Errno::OVERFLOW.into());
    }
    let mut stat = UsrStat {
        ino: u32::try_from(metadata.ino() & 0xffff_ffff).unwrap(),
        mode: metadata.mode(),
        nlink: u32::try_from(metadata.nlink()).unwrap(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        blksize: 4096,
        blocks: u32::try_from(metadata.blocks()).unwrap(),
        atime: metadata.atime().into(),
        mtime: metadata.mtime().into(),
        ctime: metadata.ctime().into(),
        ..UsrStat::new_zeroed()
    };
    stat.set_whole_size(metadata.size());
    Ok(stat)
}

fn timestamps(buffers: &SharedBuffers<'_>, address: u32) -> Timestamps {
    let mut times = Utimes::new_zeroed();
    buffers.read(address, times.as_mut_bytes()).unwrap();
    let spec = |time: crate::abi::rhostfs::Timeval| Timespec {
        tv_sec: i64::from(time.sec),
        tv_nsec: i64::from(time.usec) * 1000,
    };
    Timestamps {
        last_access: spec(times.atime),
        last_modification: spec(times.mtime),
    }
}

fn list(path: &std::path::Path) -> io::Result<Vec<UsrDirent>> {
    let dots = [Ok((b".".to_vec(), 1, 4)), Ok((b"..".to_vec(), 1, 4))];
    let entries = fs::read_dir(path)?.map(|entry| {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let ino = u32::try_from(metadata.ino() & 0xffff_ffff).unwrap();
        let kind = u8::try_from(metadata.mode() >> 12).unwrap();
        Ok((entry.file_name().as_bytes().to_vec(), ino, kind))
    });
    dots.into_iter()
        .chain(entries)
        .zip(1..)
        .map(|(entry, off): (io::Result<(Vec<u8>, u32, u8)>, i32)| {
            let (text, ino, kind) = entry?;
            let mut name = [0; 256];
            name[..text.len()].copy_from_slice(&text);
            Ok(UsrDirent {
                ino,
                kind,
                off,
                name,
                ..UsrDirent::default()
            })
        })
        .collect()
}
