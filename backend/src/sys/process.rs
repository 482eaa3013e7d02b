//! The process itself: forking, namespaces, inherited descriptors, groups by name.
#![allow(
    unsafe_code,
    reason = "fork, unshare and descriptors given by number have no safe wrapper"
)]

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The old one, with the number of the new one.
    Parent(Pid),
}

/// Copies the calling process, which must still have only one thread.
///
/// # Errors
/// As fork(2), and `EBUSY` where other threads run: a copy would lack them while holding their
/// locks.
pub fn fork() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() != 1) {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: with a single thread, checked above, no lock is held by somebody whom the copy lacks,
    // so the copy may go on as any program.
    let pid = unsafe { libc::fork() };
    match Pid::from_raw(pid) {
        None => Ok(Forked::Child),
        Some(_) if pid < 0 => Err(io::Error::last_os_error()),
        Some(pid) => Ok(Forked::Parent(pid)),
    }
}

/// Moves the calling thread (for [`UnshareFlags::NEWPID`]: its future children) into new
/// namespaces. [`UnshareFlags::FILES`] is taken out: descriptor tables stay shared.
///
/// # Errors
/// As unshare(2).
pub fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    // SAFETY: without FILES, descriptors mean the same in all threads as before.
    Ok(unsafe { rustix::thread::unshare_unsafe(namespaces - UnshareFlags::FILES) }?)
}

/// Takes a descriptor that the process was started with into ownership.
///
/// To be called for numbers from the command line, before the process has opened descriptors of
/// its own.
///
/// # Errors
/// `EBADF` when there is no such descriptor.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: asking for the flags of a descriptor touches no memory, whatever the number.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and by this function's terms nothing in the program has opened it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Number of the group called `name`, `None` where there is none.
///
/// # Errors
/// As getgrnam_r(3).
pub fn group_id(name: &CStr) -> io::Result<Option<u32>> {
    // Groups with thousands of members exist; the list of members is read although nobody asks.
    let mut buffer = vec![0; 1 << 20];
    let mut group = MaybeUninit::<libc::group>::uninit();
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are to live, writable values, the buffer of the length given.
    let code = unsafe {
        libc::getgrnam_r(
            name.as_ptr(),
            group.as_mut_ptr(),
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        )
    };
    if found.is_null() {
        // POSIX lets "no such group" be told by several codes.
        return match code {
            0 | libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM => Ok(None),
            code => Err(io::Error::from_raw_os_error(code)),
        };
    }
    // SAFETY: a non-null result says that `group` was filled in.
    let group = unsafe { group.assume_init() };
    Ok(Some(group.gr_gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_id_known_and_unknown() {
        assert_eq!(group_id(c"root").unwrap(), Some(0));
        assert_eq!(group_id(c"no such group here").unwrap(), None);
    }

    #[test]
    fn adopt_of_a_closed_number_is_refused() {
        let error = adopt(1_000_000_000).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
