//! File handles: persistent names of inodes (`name_to_handle_at(2)`).
#![allow(unsafe_code)] // the two system calls have no safe wrapper

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Maximum length of a handle in bytes (`MAX_HANDLE_SZ`, `linux/exportfs.h`).
pub const MAX_BYTES: usize = 128;

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    data: [u8; MAX_BYTES],
}

/// How often [`FileHandle::open`] asks again after ENOMEM.
///
/// Linux says so, and not ESTALE, while the number of a removed inode is given to a new one at that
/// moment (`iget_locked`, `fs/inode.c`, finds an inode in `I_CREATING`).
const OPEN_ATTEMPTS: usize = 10;

/// Names an inode on its file system, distinct from later inodes with the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHandle {
    kind: i32,
    data: Box<[u8]>,
}

impl FileHandle {
    /// The handle of the file behind a descriptor.
    ///
    /// # Errors
    /// Those of `name_to_handle_at(2)`; EOPNOTSUPP if the file system has no handles.
    pub fn of(file: BorrowedFd<'_>) -> io::Result<Self> {
        Self::name_to_handle_at(file, c"", libc::AT_EMPTY_PATH)
    }

    /// The handle of `name` in `dir`. Does not follow a symbolic link.
    ///
    /// # Errors
    /// Those of `name_to_handle_at(2)`; EOPNOTSUPP if the file system has no handles.
    pub fn at(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<Self> {
        Self::name_to_handle_at(dir, name, 0)
    }

    /// Length in bytes, at most 128.
    #[allow(clippy::len_without_is_empty)] // no handle is empty
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// The handle with this type and these bytes, which another handle had.
    pub fn from_parts(kind: i32, data: &[u8]) -> Self {
        Self {
            kind,
            data: data.into(),
        }
    }

    /// The handle's type, which the file system defines.
    pub fn kind(&self) -> i32 {
        self.kind
    }

    /// The handle's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    fn name_to_handle_at(
        file: BorrowedFd<'_>,
        name: &CStr,
        flags: libc::c_int,
    ) -> io::Result<Self> {
        let mut raw = RawHandle {
            bytes: 128,
            kind: 0,
            data: [0; MAX_BYTES],
        };
        let mut mount = 0i32;
        // SAFETY: `raw` has the capacity in its `bytes` field, the name is NUL-terminated, and all
        // pointers outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                file.as_raw_fd(),
                name.as_ptr(),
                &raw mut raw,
                &raw mut mount,
                flags,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let length = usize::try_from(raw.bytes).unwrap_or(MAX_BYTES);
        let data = raw
            .data
            .get(..length)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
        Ok(Self {
            kind: raw.kind,
            data: data.into(),
        })
    }

    /// Opens the inode. `mount` is any descriptor on its mount that is not `O_PATH`.
    ///
    /// # Errors
    /// Those of `open_by_handle_at(2)`: ESTALE if the inode no longer exists, EPERM without
    /// `CAP_DAC_READ_SEARCH`.
    pub fn open(&self, mount: BorrowedFd<'_>, flags: i32) -> io::Result<OwnedFd> {
        let mut raw = RawHandle {
            bytes: u32::try_from(self.data.len()).unwrap_or(u32::MAX),
            kind: self.kind,
            data: [0; MAX_BYTES],
        };
        let room = raw
            .data
            .get_mut(..self.data.len())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
        room.copy_from_slice(&self.data);
        for _ in 0..OPEN_ATTEMPTS {
            match open_raw(mount, &mut raw, flags) {
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                    std::thread::yield_now();
                }
                result => return result,
            }
        }
        open_raw(mount, &mut raw, flags)
    }
}

fn open_raw(mount: BorrowedFd<'_>, raw: &mut RawHandle, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: `raw` holds the number of bytes in its `bytes` field and outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            std::ptr::from_mut(raw),
            flags | libc::O_CLOEXEC,
        )
    };
    match i32::try_from(result) {
        // SAFETY: the kernel has just created this descriptor; nothing else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
