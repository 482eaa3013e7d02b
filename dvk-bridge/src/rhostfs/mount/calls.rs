//! The calls of rhostfs as functions. They send names and handles, and check what the server
//! answers.

use log::debug;
use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::call_error::CallError;
use super::dialect::Dialect;
use super::message_fields::{Name, data_arm, put_stamp, stamp_of, text_length};
use super::rpc::RpcClient;
use super::syscall_nr;
use crate::abi::rhostfs::{Statfs64, Timeval, UsrDirent, UsrStat, Utimes};
use crate::abi::{Arm, M1, M2, M7, Message};
use crate::endpoint::SharedBuffers;

/// Limit of a root path with its NUL in bytes: the size of the original server's buffer.
const ROOT_PATH_SIZE: usize = 4097;
/// Limit of a link's target with its NUL in bytes.
const LINK_TARGET_SIZE: usize = 4096;

type Result<T> = std::result::Result<T, CallError>;

/// A file by its path, without NUL, or by the server's handle.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// A path from the server's root.
    Path(&'a [u8]),
    /// A handle.
    Handle(i32),
}

/// The server's calls. One is made at a time.
pub(crate) struct Calls {
    rpc: RpcClient,
    dialect: Dialect,
    /// Number of the last request. It marks each request, to detect an answer to an earlier one.
    stamp: i32,
}

impl Calls {
    /// The calls of the server behind `rpc`, which speaks `dialect`.
    pub(crate) const fn new(rpc: RpcClient, dialect: Dialect) -> Self {
        Self {
            rpc,
            dialect,
            stamp: 0,
        }
    }

    /// The server's dialect.
    pub(crate) const fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// How often the server was lost. A loss makes earlier handles invalid.
    pub(crate) fn losses(&self) -> u64 {
        self.rpc.losses()
    }

    /// Tells the server that a client starts, and asks for the name of the directory that it
    /// serves.
    pub(crate) fn root_path(&mut self) -> Result<Vec<u8>> {
        let mut buffer = vec![0; ROOT_PATH_SIZE];
        let mut buffers = SharedBuffers::new();
        let arm = M1 {
            p1: buffers.writable(&mut buffer),
            ..M1::default()
        };
        self.ask(syscall_nr::GET_ROOTPATH, &arm, buffers)?;
        buffer.truncate(text_length(&buffer));
        Ok(buffer)
    }

    /// A file's attributes. A symbolic link is not followed.
    pub(crate) fn stat(&mut self, target: Target<'_>) -> Result<UsrStat> {
        let mut stat = UsrStat::new_zeroed();
        let call = match target {
            Target::Path(path) => {
                let name = Name::new(path);
                let mut buffers = SharedBuffers::new();
                let arm = M1 {
                    i1: name.length,
                    i2: self.dialect.sizes(),
                    p1: buffers.read_only(&name.bytes),
                    p2: buffers.writable(stat.as_mut_bytes()),
                    ..M1::default()
                };
                self.ask(syscall_nr::LSTAT64, &arm, buffers)?;
                "lstat64"
            }
            Target::Handle(handle) => {
                let mut buffers = SharedBuffers::new();
                let arm = M1 {
                    i1: handle,
                    i2: self.dialect.sizes(),
                    p1: buffers.writable(stat.as_mut_bytes()),
                    ..M1::default()
                };
                self.ask(syscall_nr::FSTAT64, &arm, buffers)?;
                "fstat64"
            }
        };
        if self.dialect == Dialect::Original {
            // The original's compiler leaves arbitrary data there.
            stat.pad0 = 0;
            // The original puts a device there, which does not tell files apart.
            stat.dev = 0;
        }
        if stat.mode == 0 {
            return Err(CallError::Garbled {
                call,
                what: "it has no attributes",
            });
        }
        Ok(stat)
    }

    /// Opens a file with i386's flags and returns the server's handle. `mode` applies to a file
    /// that the call creates.
    pub(crate) fn open(&mut self, path: &[u8], flags: i32, mode: u32) -> Result<i32> {
        let name = Name::new(path);
        let mut buffers = SharedBuffers::new();
        let arm = M1 {
            i1: name.length,
            i2: flags,
            i3: self.dialect.open_mode(flags, mode),
            p1: buffers.read_only(&name.bytes),
            ..M1::default()
        };
        Ok(self.ask(syscall_nr::OPEN, &arm, buffers)?.kind)
    }

    /// Closes a handle.
    pub(crate) fn close(&mut self, handle: i32) -> Result<()> {
        self.by_handle(syscall_nr::CLOSE, handle, 0, 0)
    }

    /// Reads at `position`, at most one piece of the dialect. The result is shorter at the end of
    /// the file.
    pub(crate) fn read_piece(
        &mut self,
        handle: i32,
        position: u64,
        into: &mut [u8],
    ) -> Result<usize> {
        let asked = into.len();
        let mut buffers = SharedBuffers::new();
        let arm = M2 {
            p1: buffers.writable(into),
            ..data_arm(handle, position, asked)
        };
        let told = self.ask(syscall_nr::PREAD64, &arm, buffers)?.kind;
        self.dialect.read_result(told, asked)
    }

    /// Writes at `position`, at most one piece of the dialect.
    pub(crate) fn write_piece(&mut self, handle: i32, position: u64, from: &[u8]) -> Result<usize> {
        let mut buffers = SharedBuffers::new();
        let arm = M2 {
            p1: buffers.read_only(from),
            ..data_arm(handle, position, from.len())
        };
        let told = self.ask(syscall_nr::PWRITE64, &arm, buffers)?.kind;
        self.dialect.write_result(told, from.len())
    }

    /// Asks for the error of earlier writes through the handle. The call is `dup2` of the handle to
    /// itself.
    pub(crate) fn flush(&mut self, handle: i32) -> Result<()> {
        self.by_handle(syscall_nr::DUP2, handle, handle, 0)
    }

    /// Makes `new` another name of `old`.
    pub(crate) fn link(&mut self, old: &[u8], new: &[u8]) -> Result<()> {
        self.by_names(syscall_nr::LINK, old, new)
    }

    /// Creates the symbolic link `path` with the text `target`.
    pub(crate) fn symlink(&mut self, target: &[u8], path: &[u8]) -> Result<()> {
        self.by_names(syscall_nr::S_IFLNK, target, path)
    }

    /// Renames `old` to `new` with Linux's rename flags.
    pub(crate) fn rename(&mut self, old: &[u8], new: &[u8], flags: u32) -> Result<()> {
        if flags == 0 && !self.dialect.needs_rename_flags() {
            return self.by_names(syscall_nr::RENAME, old, new);
        }
        let (old, new) = (Name::new(old), Name::new(new));
        let mut buffers = SharedBuffers::new();
        let arm = M7 {
            i1: old.length,
            i2: new.length,
            i4: flags.cast_signed(),
            p1: buffers.read_only(&old.bytes),
            p2: buffers.read_only(&new.bytes),
            ..M7::default()
        };
        self.ask(syscall_nr::RENAMEAT2, &arm, buffers).map(drop)
    }

    /// Removes a name that is not a directory's.
    pub(crate) fn unlink(&mut self, path: &[u8]) -> Result<()> {
        self.by_name(syscall_nr::UNLINK, path, 0, 0)
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&mut self, path: &[u8]) -> Result<()> {
        self.by_name(syscall_nr::RMDIR, path, 0, 0)
    }

    /// Creates a directory.
    pub(crate) fn mkdir(&mut self, path: &[u8], mode: u32) -> Result<()> {
        self.by_name(syscall_nr::MKDIR, path, mode.cast_signed(), 0)
    }

    /// Creates a file of any kind except a directory or a link. `mode` includes the kind. `dev` is
    /// encoded as by Linux's `new_encode_dev`.
    pub(crate) fn mknod(&mut self, path: &[u8], mode: u32, dev: u32) -> Result<()> {
        self.by_name(
            syscall_nr::MKNOD,
            path,
            mode.cast_signed(),
            dev.cast_signed(),
        )
    }

    /// Sets permission bits.
    pub(crate) fn chmod(&mut self, target: Target<'_>, mode: u32) -> Result<()> {
        match target {
            Target::Path(path) => self.by_name(syscall_nr::CHMOD, path, mode.cast_signed(), 0),
            Target::Handle(handle) => {
                self.by_handle(syscall_nr::FCHMOD, handle, mode.cast_signed(), 0)
            }
        }
    }

    /// Sets owner and group. `None` keeps the old one.
    pub(crate) fn chown(
        &mut self,
        target: Target<'_>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<()> {
        let uid = uid.map_or(-1, u32::cast_signed);
        let gid = gid.map_or(-1, u32::cast_signed);
        match target {
            Target::Path(path) => self.by_name(syscall_nr::CHOWN, path, uid, gid),
            Target::Handle(handle) => self.by_handle(syscall_nr::FCHOWN, handle, uid, gid),
        }
    }

    /// Sets a file's size, which must not exceed the dialect's largest.
    pub(crate) fn truncate(&mut self, target: Target<'_>, size: u64) -> Result<()> {
        let [a, b, c, d, e, f, g, h] = size.to_le_bytes();
        let arm = M2 {
            i2: self.dialect.sizes(),
            l1: i32::from_le_bytes([a, b, c, d]),
            l2: i32::from_le_bytes([e, f, g, h]),
            ..M2::default()
        };
        match target {
            Target::Path(path) => {
                let name = Name::new(path);
                let mut buffers = SharedBuffers::new();
                let arm = M2 {
                    i1: name.length,
                    p1: buffers.read_only(&name.bytes),
                    ..arm
                };
                self.ask(syscall_nr::TRUNCATE, &arm, buffers)?;
            }
            Target::Handle(handle) => {
                let arm = M2 { i1: handle, ..arm };
                self.ask(syscall_nr::FTRUNCATE, &arm, SharedBuffers::new())?;
            }
        }
        Ok(())
    }

    /// Sets the times of last access and modification.
    pub(crate) fn utimes(
        &mut self,
        target: Target<'_>,
        atime: Timeval,
        mtime: Timeval,
    ) -> Result<()> {
        if !self.dialect.sets_times() {
            return Err(CallError::Impossible {
                what: "the original server cannot set times",
                errno: Errno::OPNOTSUPP,
            });
        }
        let times = Utimes { atime, mtime };
        let mut buffers = SharedBuffers::new();
        match target {
            Target::Path(path) => {
                let name = Name::new(path);
                let arm = M1 {
                    i1: name.length,
                    p1: buffers.read_only(&name.bytes),
                    p2: buffers.read_only(times.as_bytes()),
                    ..M1::default()
                };
                self.ask(syscall_nr::UTIMES, &arm, buffers)?;
            }
            Target::Handle(handle) => {
                let arm = M1 {
                    i1: handle,
                    p1: buffers.read_only(times.as_bytes()),
                    ..M1::default()
                };
                self.ask(syscall_nr::FUTIMES, &arm, buffers)?;
            }
        }
        Ok(())
    }

    /// Asks whether the server may read (4), write (2) or execute (1) the file.
    pub(crate) fn access(&mut self, path: &[u8], mask: i32) -> Result<()> {
        self.by_name(syscall_nr::ACCESS, path, mask, 0)
    }

    /// A symbolic link's text.
    pub(crate) fn read_link(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        let name = Name::new(path);
        let mut buffer = vec![0; LINK_TARGET_SIZE];
        let mut buffers = SharedBuffers::new();
        let arm = M1 {
            i1: name.length,
            i2: i32::try_from(LINK_TARGET_SIZE).unwrap_or(i32::MAX),
            p1: buffers.read_only(&name.bytes),
            p2: buffers.writable(&mut buffer),
            ..M1::default()
        };
        self.ask(syscall_nr::READLINK, &arm, buffers)?;
        // Only the copied text counts, because the original answers its copy's result.
        if !buffer.contains(&0) {
            return Err(CallError::Impossible {
                what: "the link's text exceeds Linux's limit",
                errno: Errno::NAMETOOLONG,
            });
        }
        buffer.truncate(text_length(&buffer));
        if buffer.is_empty() {
            return Err(CallError::Garbled {
                call: "readlink",
                what: "it has no text",
            });
        }
        Ok(buffer)
    }

    /// The state of the file system of `path`.
    pub(crate) fn statfs(&mut self, path: &[u8]) -> Result<Statfs64> {
        let name = Name::new(path);
        let mut state = Statfs64::new_zeroed();
        let mut buffers = SharedBuffers::new();
        let arm = M1 {
            i1: name.length,
            p1: buffers.read_only(&name.bytes),
            p2: buffers.writable(state.as_mut_bytes()),
            ..M1::default()
        };
        self.ask(syscall_nr::STATFS64, &arm, buffers)?;
        Ok(state)
    }

    /// Puts a file's data on stable storage. With `data_only`, only metadata that reading the data
    /// needs is stored too.
    pub(crate) fn sync(&mut self, handle: i32, data_only: bool) -> Result<()> {
        let syscall_nr = if data_only {
            syscall_nr::FDATASYNC
        } else {
            syscall_nr::FSYNC
        };
        self.by_handle(syscall_nr, handle, 0, 0)
    }

    /// Opens a directory for listing and returns its handle. Files have handles of another kind.
    pub(crate) fn open_directory(&mut self, path: &[u8]) -> Result<u32> {
        let name = Name::new(path);
        let mut buffers = SharedBuffers::new();
        let arm = M1 {
            i1: name.length,
            p1: buffers.read_only(&name.bytes),
            ..M1::default()
        };
        match self.ask(syscall_nr::OPENDIR, &arm, buffers)?.arm::<M1>().p2 {
            0 => Err(CallError::Garbled {
                call: "opendir",
                what: "it has no handle",
            }),
            handle => Ok(handle),
        }
    }

    /// Moves to the position `cookie` of a directory. Zero is the start.
    pub(crate) fn seek(&mut self, directory: u32, cookie: i32) -> Result<()> {
        let arm = M2 {
            l1: cookie,
            p1: directory,
            ..M2::default()
        };
        self.ask(syscall_nr::SEEKDIR, &arm, SharedBuffers::new())
            .map(drop)
    }

    /// The next entry. `None` at the end.
    pub(crate) fn next_entry(&mut self, directory: u32) -> Result<Option<UsrDirent>> {
        let mut entry = UsrDirent::new_zeroed();
        let mut buffers = SharedBuffers::new();
        let arm = M1 {
            p1: directory,
            p2: buffers.writable(entry.as_mut_bytes()),
            ..M1::default()
        };
        let answer = self.ask(syscall_nr::READDIR, &arm, buffers)?;
        Ok((answer.arm::<M1>().p3 != 0).then_some(entry))
    }

    /// Closes a directory.
    pub(crate) fn close_directory(&mut self, directory: u32) -> Result<()> {
        let arm = M1 {
            p1: directory,
            ..M1::default()
        };
        self.ask(syscall_nr::CLOSEDIR, &arm, SharedBuffers::new())
            .map(drop)
    }

    /// Makes a call with one name and two numbers.
    fn by_name(&mut self, syscall_nr: i32, path: &[u8], i2: i32, i3: i32) -> Result<()> {
        let name = Name::new(path);
        let mut buffers = SharedBuffers::new();
        let arm = M1 {
            i1: name.length,
            i2,
            i3,
            p1: buffers.read_only(&name.bytes),
            ..M1::default()
        };
        self.ask(syscall_nr, &arm, buffers).map(drop)
    }

    /// Makes a call with two names.
    fn by_names(&mut self, syscall_nr: i32, one: &[u8], two: &[u8]) -> Result<()> {
        let (one, two) = (Name::new(one), Name::new(two));
        let mut buffers = SharedBuffers::new();
        let arm = M1 {
            i1: one.length,
            i2: two.length,
            p1: buffers.read_only(&one.bytes),
            p2: buffers.read_only(&two.bytes),
            ..M1::default()
        };
        self.ask(syscall_nr, &arm, buffers).map(drop)
    }

    /// Makes a call with a handle and two numbers.
    fn by_handle(&mut self, syscall_nr: i32, handle: i32, i2: i32, i3: i32) -> Result<()> {
        let arm = M1 {
            i1: handle,
            i2,
            i3,
            ..M1::default()
        };
        self.ask(syscall_nr, &arm, SharedBuffers::new()).map(drop)
    }

    /// Makes a call and checks the answer. A negative result is an error.
    fn ask(
        &mut self,
        syscall_nr: i32,
        arm: &impl Arm,
        mut buffers: SharedBuffers<'_>,
    ) -> Result<Message> {
        let call = syscall_nr::name(syscall_nr);
        self.stamp = self.stamp.wrapping_add(1);
        let mut request = Message::new(syscall_nr, arm);
        put_stamp(&mut request, self.stamp);
        let answer = self
            .rpc
            .ask(&request, &mut buffers)
            .map_err(|cause| CallError::Rpc { call, cause })?;
        if stamp_of(syscall_nr, &answer) != self.stamp {
            let cause = self.rpc.release_stale();
            return Err(CallError::Rpc { call, cause });
        }
        debug!("{call}: {}", answer.kind);
        match answer.kind {
            0.. => Ok(answer),
            result => Err(CallError::Refused {
                call,
                errno: self.dialect.errno(result),
            }),
        }
    }
}
