//! Answers system calls of other processes by seccomp's user notifications, and accesses those
//! processes' memory.
// seccomp(2), its ioctls, and copies from and to the memory of a process that waits for the answer.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::abi::TYPE;

/// Limit of a copy from or to another process, in bytes.
pub(crate) const LONGEST: usize = 64;

/// `ioctl` and `mmap`, by this architecture's numbers.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "they are small"
)]
const IOCTL: u32 = libc::SYS_ioctl as u32;
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "they are small"
)]
const MMAP: u32 = libc::SYS_mmap as u32;

/// A call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub struct Notification {
    /// Its notification ID. It becomes invalid when the caller is killed.
    pub id: u64,
    /// The calling thread.
    pub thread: u32,
    /// The call.
    pub call: Call,
}

/// A diverted call.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    /// An `ioctl`.
    Ioctl {
        /// On this descriptor of the caller's.
        file: u32,
        /// Its number.
        number: u32,
        /// The address of its argument.
        argument: u64,
    },
    /// A shared mapping with an offset.
    Mapping {
        /// Of this descriptor of the caller's.
        file: u32,
        /// The offset.
        offset: u64,
    },
}

/// How a call ends.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// It returns this.
    Returns(i32),
    /// It fails.
    Fails(rustix::io::Errno),
    /// The kernel executes it as usual.
    GoesOn,
}

/// One instruction of a filter. Jumps count the instructions to skip.
pub(crate) const fn line(code: u32, jumps: [u8; 2], operand: u32) -> libc::sock_filter {
    let [jt, jf] = jumps;
    #[allow(clippy::cast_possible_truncation, reason = "codes have 16 bits")]
    let code = code as u16;
    libc::sock_filter {
        code,
        jt,
        jf,
        k: operand,
    }
}

/// Offsets of the call's fields that the filter reads. These architectures have the lower half of a
/// number first.
#[allow(
    clippy::cast_possible_truncation,
    reason = "the structure has 64 bytes"
)]
pub(crate) const fn argument(index: usize) -> u32 {
    (offset_of!(libc::seccomp_data, args) + 8 * index) as u32
}

/// Diverts ioctls of Bao's type, whatever their number, and shared mappings with an offset.
pub(super) fn filter() -> [libc::sock_filter; 15] {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const SET: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
    const END: u32 = libc::BPF_RET | libc::BPF_K;
    const NEXT: [u8; 2] = [0, 0];
    let shared = libc::MAP_SHARED.unsigned_abs();
    [
        line(LOAD, NEXT, 0), // the system call's number
        line(EQUAL, [0, 4], IOCTL),
        line(LOAD, NEXT, argument(1)),
        line(AND, NEXT, 0xff00),
        line(EQUAL, [9, 0], TYPE << 8),
        line(END, NEXT, libc::SECCOMP_RET_ALLOW),
        line(EQUAL, [0, 6], MMAP),
        line(LOAD, NEXT, argument(3)), // flags
        line(SET, [0, 4], shared),
        line(LOAD, NEXT, argument(5)), // offset, lower half
        line(EQUAL, [0, 3], 0),
        line(LOAD, NEXT, argument(5) + 4),
        line(EQUAL, [0, 1], 0),
        line(END, NEXT, libc::SECCOMP_RET_ALLOW),
        line(END, NEXT, libc::SECCOMP_RET_USER_NOTIF),
    ]
}

/// Puts the calling process and its descendants under a listener for the calls that the filter
/// `lines` diverts.
///
/// # Errors
/// The kernel has no seccomp filters.
pub(super) fn install(lines: &mut [libc::sock_filter]) -> io::Result<OwnedFd> {
    rustix::thread::set_no_new_privs(true)?;
    let program = libc::sock_fprog {
        len: u16::try_from(lines.len()).unwrap_or(u16::MAX),
        filter: lines.as_mut_ptr(),
    };
    // SAFETY: the program and its lines outlive the call, which copies them.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    let descriptor = RawFd::try_from(descriptor).unwrap_or(-1);
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// The listener for the calls of all processes under one filter.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Wraps the descriptor that [`install`] returned.
    #[must_use]
    pub const fn new(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// The next call, or `None` when no process is left under the filter.
    ///
    /// # Errors
    /// The descriptor is no listener.
    pub fn next(&self) -> io::Result<Option<Notification>> {
        loop {
            let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut ready, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            let [listener] = ready.map(|descriptor| descriptor.revents());
            if !listener.contains(PollFlags::IN) {
                return Ok(None);
            }
            match self.receive() {
                // The caller was killed before this process read the call.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => return other.map(Some),
            }
        }
    }

    fn receive(&self) -> io::Result<Notification> {
        // SAFETY: it is plain data, and the kernel wants it zero.
        let mut note: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        self.ioctl(libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut note)?;
        let [first, second, third, _, fifth, sixth] = note.data.args;
        let low = |word: u64| u32::try_from(word & 0xffff_ffff).unwrap_or_default();
        let call = if u32::try_from(note.data.nr) == Ok(MMAP) {
            Call::Mapping {
                file: low(fifth),
                offset: sixth,
            }
        } else {
            Call::Ioctl {
                file: low(first),
                number: low(second),
                argument: third,
            }
        };
        Ok(Notification {
            id: note.id,
            thread: note.pid,
            call,
        })
    }

    /// Answers a call.
    ///
    /// # Errors
    /// ENOENT if the caller was killed meanwhile.
    pub fn answer(&self, id: u64, answer: Answer) -> io::Result<()> {
        // SAFETY: it is plain data.
        let mut response: libc::seccomp_notif_resp = unsafe { std::mem::zeroed() };
        response.id = id;
        match answer {
            Answer::Returns(value) => response.val = value.into(),
            Answer::Fails(errno) => response.error = -errno.raw_os_error(),
            Answer::GoesOn => response.flags = CONTINUE,
        }
        self.ioctl(libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response)
    }

    /// Whether the caller still waits.
    #[must_use]
    pub fn is_waiting(&self, id: u64) -> bool {
        let mut id = id;
        self.ioctl(libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw mut id)
            .is_ok()
    }

    /// Gives the caller a close-on-exec descriptor. Returns its number there.
    ///
    /// # Errors
    /// ENOENT if the caller was killed meanwhile; EMFILE if it has no room.
    pub fn give(&self, id: u64, file: BorrowedFd<'_>) -> io::Result<i32> {
        // SAFETY: it is plain data.
        let mut gift: libc::seccomp_notif_addfd = unsafe { std::mem::zeroed() };
        gift.id = id;
        gift.srcfd = file.as_raw_fd().unsigned_abs();
        gift.newfd_flags = libc::O_CLOEXEC.unsigned_abs();
        // SAFETY: the structure is the one that this call takes, and outlives it.
        let number = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_ADDFD,
                &raw mut gift,
            )
        };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(number)
    }

    fn ioctl<T>(&self, number: libc::Ioctl, argument: *mut T) -> io::Result<()> {
        // SAFETY: `argument` points to the structure that goes with the number, in every call
        // above.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), number, argument) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE` (linux/seccomp.h).
const CONTINUE: u32 = 1;

fn pid(thread: u32) -> io::Result<i32> {
    i32::try_from(thread).map_err(io::Error::other)
}

/// Fills `bytes`, at most 64, from the caller's memory.
///
/// # Errors
/// EFAULT if nothing is there, ESRCH if the caller is not.
pub(crate) fn read(thread: u32, address: u64, bytes: &mut [u8]) -> io::Result<()> {
    let len = bytes.len().min(LONGEST);
    let local = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: len,
    };
    let remote = remote(address, len)?;
    // SAFETY: the local part is `bytes`, borrowed for this call; the remote one is checked by the
    // kernel.
    let read = unsafe {
        libc::process_vm_readv(pid(thread)?, &raw const local, 1, &raw const remote, 1, 0)
    };
    whole(read, bytes.len())
}

/// Copies `bytes`, at most 64, into the caller's memory.
///
/// # Errors
/// EFAULT if there is none, ESRCH if the caller is not.
pub(crate) fn write(thread: u32, address: u64, bytes: &[u8]) -> io::Result<()> {
    let len = bytes.len().min(LONGEST);
    let local = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: len,
    };
    let remote = remote(address, len)?;
    // SAFETY: the local part is `bytes`, which is only read from; the remote one is checked by the
    // kernel, and belongs to a process that waits for just this.
    let written = unsafe {
        libc::process_vm_writev(pid(thread)?, &raw const local, 1, &raw const remote, 1, 0)
    };
    whole(written, bytes.len())
}

fn remote(address: u64, len: usize) -> io::Result<libc::iovec> {
    let address = usize::try_from(address).map_err(io::Error::other)?;
    Ok(libc::iovec {
        iov_base: std::ptr::with_exposed_provenance_mut(address),
        iov_len: len,
    })
}

fn whole(count: isize, wanted: usize) -> io::Result<()> {
    match usize::try_from(count) {
        Ok(count) if count == wanted => Ok(()),
        Ok(_) => Err(rustix::io::Errno::FAULT.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Duplicates a descriptor of the caller.
///
/// # Errors
/// EBADF if there is none, ESRCH if the caller is not.
pub(super) fn take(thread: u32, file: i32) -> io::Result<OwnedFd> {
    let process = field(thread, "Tgid:")?.parse().ok().and_then(Pid::from_raw);
    let process = pidfd_open(process.ok_or(rustix::io::Errno::SRCH)?, PidfdFlags::empty())?;
    Ok(pidfd_getfd(process, file, PidfdGetfdFlags::empty())?)
}

/// The signals that the caller blocks, one bit each, with bit 0 for signal 1.
///
/// # Errors
/// The caller is not there.
pub(super) fn blocked_signals(thread: u32) -> io::Result<u64> {
    u64::from_str_radix(&field(thread, "SigBlk:")?, 16).map_err(io::Error::other)
}

fn field(thread: u32, name: &str) -> io::Result<String> {
    let status = fs::read_to_string(format!("/proc/{thread}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let line = line.ok_or_else(|| io::Error::other(format!("a status without {name}")))?;
    Ok(line.trim().to_owned())
}

/// Marks byte `number` of `file` with a lock, until the last descriptor of this opening is closed
/// and its last mapping is gone, in all processes.
///
/// # Errors
/// What `fcntl` says.
pub(super) fn mark(file: BorrowedFd<'_>, number: u64) -> io::Result<()> {
    lock(file, libc::F_OFD_SETLK, number).map(|_| ())
}

/// Whether byte `number` of `file` is marked by another opening of it.
///
/// # Errors
/// What `fcntl` says.
pub(super) fn is_marked(file: BorrowedFd<'_>, number: u64) -> io::Result<bool> {
    Ok(i32::from(lock(file, libc::F_OFD_GETLK, number)?.l_type) != libc::F_UNLCK)
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "constants that fit the structure's fields"
)]
fn lock(file: BorrowedFd<'_>, command: i32, number: u64) -> io::Result<libc::flock> {
    // SAFETY: it is plain data.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = i64::try_from(number).map_err(io::Error::other)?;
    lock.l_len = 1;
    // SAFETY: the structure is the one that both commands take, and outlives the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(lock)
}
