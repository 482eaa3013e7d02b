//! Per-thread kernel state: credentials, capabilities, umask, working directory.
//!
//! Unlike the C library's functions, these change the calling thread only.
#![allow(unsafe_code)] // unshare is sound only if descriptors stay shared; getrusage

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::fs::Mode;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, UnshareFlags};

use super::ids::{HostGid, HostUid};

thread_local! {
    /// Whether the thread has its own umask and working directory, and what they are.
    static THREAD_FS: Cell<ThreadFs> = const { Cell::new(ThreadFs::Shared) };
}

#[derive(Clone, Copy)]
enum ThreadFs {
    Shared,
    UnshareFailed(i32),
    Private {
        umask: Option<u32>,
        in_proc_self_fd: bool,
    },
}

/// Gives the calling thread its own umask and working directory, once.
fn unshare_fs() -> io::Result<(Option<u32>, bool)> {
    THREAD_FS.with(|own| match own.get() {
        ThreadFs::Private {
            umask,
            in_proc_self_fd,
        } => Ok((umask, in_proc_self_fd)),
        ThreadFs::UnshareFailed(errno) => Err(io::Error::from_raw_os_error(errno)),
        ThreadFs::Shared => {
            // SAFETY: CLONE_FS stops sharing umask, root and working directory; descriptors stay
            // shared.
            match unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) } {
                Ok(()) => {
                    own.set(ThreadFs::Private {
                        umask: None,
                        in_proc_self_fd: false,
                    });
                    Ok((None, false))
                }
                Err(errno) => {
                    own.set(ThreadFs::UnshareFailed(errno.raw_os_error()));
                    Err(errno.into())
                }
            }
        }
    })
}

/// Sets the calling thread's umask. Makes a system call only if it differs from the last one.
///
/// # Errors
/// Those of `unshare(2)` if the thread cannot have its own umask.
pub fn set_umask(umask: u32) -> io::Result<()> {
    let umask = umask & 0o777;
    let (current, in_proc_self_fd) = unshare_fs()?;
    if current != Some(umask) {
        rustix::process::umask(Mode::from_raw_mode(umask));
        THREAD_FS.set(ThreadFs::Private {
            umask: Some(umask),
            in_proc_self_fd,
        });
    }
    Ok(())
}

/// Makes `/proc/self/fd` the calling thread's working directory, once, so that system calls that
/// take only paths reach a file by its descriptor's number.
///
/// # Errors
/// Those of `unshare(2)` and `fchdir(2)`.
pub fn chdir_to_proc_self_fd(proc_self_fd: BorrowedFd<'_>) -> io::Result<()> {
    let (umask, in_proc_self_fd) = unshare_fs()?;
    if !in_proc_self_fd {
        rustix::process::fchdir(proc_self_fd)?;
        THREAD_FS.set(ThreadFs::Private {
            umask,
            in_proc_self_fd: true,
        });
    }
    Ok(())
}

/// The thread's own effective user and group id. Read from the kernel once per thread, so the first
/// call must come before the thread changes its ids.
pub fn initial_ids() -> (HostUid, HostGid) {
    thread_local! {
        static OWN: (HostUid, HostGid) = (
            HostUid::new(rustix::process::geteuid().as_raw()),
            HostGid::new(rustix::process::getegid().as_raw()),
        );
    }
    OWN.with(|ids| *ids)
}

/// Sets the calling thread's effective user id and thereby its file system user id. Leaving 0
/// clears the effective capabilities; returning to 0 restores them.
///
/// # Errors
/// Those of `setresuid(2)`: EINVAL for an id that the user namespace does not map, EPERM.
pub fn set_effective_uid(uid: HostUid) -> io::Result<()> {
    check_id(uid.get())?;
    Ok(rustix::thread::set_thread_res_uid(
        None::<Uid>,
        Uid::from_raw(uid.get()),
        None::<Uid>,
    )?)
}

/// From now on, `fs.suid_dumpable` says whether the kernel writes a core file of the process, and
/// where to: as of every process that has changed its user (proc_sys_fs(5)). The kernel applies
/// it at such a change (`commit_creds`, kernel/cred.c), so this makes one and takes it back.
///
/// # Errors
/// Those of `setresuid(2)`; EINVAL if the user namespace does not map a second user.
pub fn apply_suid_dumpable() -> io::Result<()> {
    /// The kernel's user for ids that have no other (`fs.overflowuid`).
    const NOBODY: HostUid = HostUid::new(65_534);
    let (own, _) = initial_ids();
    set_effective_uid(NOBODY)?;
    set_effective_uid(own)
}

/// Sets the calling thread's effective group id and thereby its file system group id.
///
/// # Errors
/// Those of `setresgid(2)`.
pub fn set_effective_gid(gid: HostGid) -> io::Result<()> {
    check_id(gid.get())?;
    Ok(rustix::thread::set_thread_res_gid(
        None::<Gid>,
        Gid::from_raw(gid.get()),
        None::<Gid>,
    )?)
}

/// Sets the calling thread's supplementary groups.
///
/// # Errors
/// Those of `setgroups(2)`.
pub fn set_groups(groups: &[HostGid]) -> io::Result<()> {
    let mut ids = [Gid::ROOT; MAX_GROUPS];
    let ids = ids
        .get_mut(..groups.len())
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    for (id, group) in ids.iter_mut().zip(groups) {
        check_id(group.get())?;
        *id = Gid::from_raw(group.get());
    }
    Ok(rustix::thread::set_thread_groups(ids)?)
}

/// Rejects the id that means "none" or "unchanged" in system calls (-1).
fn check_id(id: u32) -> io::Result<()> {
    if id == u32::MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(())
}

/// Limit of groups for [`set_groups`]. FUSE sends one (`FUSE_CREATE_SUPP_GROUP`).
pub const MAX_GROUPS: usize = 32;

/// Number of involuntary context switches of the calling thread (`getrusage(2)`, `ru_nivcsw`).
pub fn preemptions() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is writable.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    // SAFETY: plain integers, zero if the call failed.
    let usage = unsafe { usage.assume_init() };
    u64::try_from(usage.ru_nivcsw).unwrap_or_default()
}

/// The capabilities that the daemon changes for single calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// Keeps set-user-ID and set-group-ID bits on a write (`CAP_FSETID`).
    Fsetid,
    /// Ignores permission bits (`CAP_DAC_OVERRIDE`).
    DacOverride,
}

/// Sets or clears a permitted capability in the calling thread's effective set and returns its
/// previous state.
///
/// # Errors
/// Those of `capset(2)`: EPERM if it is not permitted.
pub fn set_capability(capability: Capability, effective: bool) -> io::Result<bool> {
    let bit = match capability {
        Capability::Fsetid => CapabilitySet::FSETID,
        Capability::DacOverride => CapabilitySet::DAC_OVERRIDE,
    };
    let mut sets = rustix::thread::capabilities(None)?;
    let before = sets.effective.contains(bit);
    if before != effective {
        sets.effective.set(bit, effective);
        rustix::thread::set_capabilities(None, sets)?;
    }
    Ok(before)
}
