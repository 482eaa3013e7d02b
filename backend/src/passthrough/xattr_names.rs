//! The names of extended attributes: which a guest may use, and what they are on the host.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsFd;

use gangplank_fuse::InitFlags;

use super::file_type::FileType;
use super::fs::PassthroughFs;
use super::ownership::is_reserved;
use super::xattr_map::{Denied, XattrMap};
use crate::session::not_offered;
use crate::sys::xattr;

/// The attributes of ACLs.
const ACL_NAMES: [&[u8]; 2] = [ACCESS_ACL, b"system.posix_acl_default"];

/// The attribute of the ACL by which access is checked.
pub(super) const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

/// The attribute of a file's capabilities. The kernel removes it when the file changes, but only by
/// this name.
const CAPABILITY: &CStr = c"security.capability";

/// The host's name of the attribute of file capabilities, if the map gives it another.
pub(super) fn mapped_capability(map: Option<&XattrMap>) -> Option<CString> {
    let name = map?.host_name(CAPABILITY).ok()?;
    (*name != *CAPABILITY).then(|| name.into_owned())
}

impl PassthroughFs {
    /// Checks that the share has extended attributes.
    ///
    /// # Errors
    /// [`not_offered`].
    pub(super) fn check_xattrs_enabled(&self) -> io::Result<()> {
        if self.share.options.xattr {
            return Ok(());
        }
        Err(not_offered())
    }

    /// The host's name of an attribute that a guest names in a request.
    ///
    /// # Errors
    /// EOPNOTSUPP for ACLs that the guest must not believe to be in force, and EOPNOTSUPP or EPERM
    /// as the map says.
    pub(super) fn host_xattr_name<'a>(&self, name: &'a CStr) -> io::Result<Cow<'a, CStr>> {
        let mapped = match &self.share.options.xattr_map {
            _ if self.hides_xattr(name.to_bytes()) => Err(Denied::Unsupported),
            None => Ok(Cow::Borrowed(name)),
            Some(map) => map.host_name(name),
        };
        let error = match mapped {
            Ok(name) if !self.reserves_xattr(name.to_bytes()) => return Ok(name),
            Ok(_) | Err(Denied::Bad) => libc::EPERM,
            Err(Denied::Unsupported) => libc::EOPNOTSUPP,
        };
        Err(io::Error::from_raw_os_error(error))
    }

    /// The guest's name of an attribute of the host, if the guest may see it.
    pub(super) fn guest_xattr_name<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        let name = match &self.share.options.xattr_map {
            _ if self.reserves_xattr(name) => None,
            None => Some(name),
            Some(map) => map.guest_name(name),
        };
        name.filter(|name| !self.hides_xattr(name))
    }

    /// Whether the guest must not know of an attribute: without ACLs of its own, its kernel would
    /// not enforce one.
    fn hides_xattr(&self, name: &[u8]) -> bool {
        ACL_NAMES.contains(&name) && !self.state.negotiated.has(InitFlags::POSIX_ACL)
    }

    /// Whether an attribute of the host is the daemon's own.
    fn reserves_xattr(&self, name: &[u8]) -> bool {
        self.maps_ownership() && is_reserved(name)
    }

    /// Removes a regular file's capabilities before a change of the file, if they have another name
    /// on the host than the one that the kernel knows.
    ///
    /// # Errors
    /// Those of `removexattr(2)`, except that the file has none.
    pub(super) fn drop_file_capabilities(
        &self,
        file_type: FileType,
        file: &impl AsFd,
    ) -> io::Result<()> {
        let Some(name) = &self.share.mapped_capability else {
            return Ok(());
        };
        if file_type != FileType::Regular {
            return Ok(());
        }
        let removed = xattr::remove(self.share.proc_self_fd(), file.as_fd(), name);
        match removed {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) =>
            {
                Ok(())
            }
            result => result,
        }
    }
}
