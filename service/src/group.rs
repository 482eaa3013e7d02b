//! Groups of the host by name.
#![allow(unsafe_code)] // getgrnam_r(3), which has no safe wrapper that tells "none" from an error

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;

use nix::libc;
use rustix::process::Gid;

/// Why a name is no group's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none of this name.
    #[error("there is no group {0:?}")]
    Unknown(String),
    /// The host's groups cannot be read.
    #[error("cannot look up the group {group:?}")]
    Lookup {
        /// The name.
        group: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// The id of the group `name`.
///
/// # Errors
/// [`enum@Error`], worded for the operator.
pub fn id(name: &str) -> Result<Gid, Error> {
    let unknown = || Error::Unknown(name.to_owned());
    let c_name = CString::new(name).map_err(|_| unknown())?;
    let found = group_id(&c_name).map_err(|source| Error::Lookup {
        group: name.to_owned(),
        source,
    })?;
    found.map(Gid::from_raw).ok_or_else(unknown)
}

/// The id of the group `name`; `None` if it does not exist.
///
/// # Errors
/// Those of getgrnam_r(3).
fn group_id(name: &CStr) -> io::Result<Option<u32>> {
    // Some groups have thousands of members, and the call returns them all.
    let mut buffer = vec![0; 1 << 20];
    let mut group = MaybeUninit::<libc::group>::uninit();
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers refer to live, writable values; the length is the buffer's.
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
        // POSIX allows several codes for a group that does not exist.
        return match code {
            0 | libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM => Ok(None),
            code => Err(io::Error::from_raw_os_error(code)),
        };
    }
    // SAFETY: a non-null result means that `group` is initialised.
    let group = unsafe { group.assume_init() };
    Ok(Some(group.gr_gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_unknown_groups() {
        assert_eq!(id("root").unwrap(), Gid::ROOT);
        for name in ["no such group here", "root\0"] {
            assert!(matches!(id(name), Err(Error::Unknown(_))), "{name:?}");
        }
    }
}
