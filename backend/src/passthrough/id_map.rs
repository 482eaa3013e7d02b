//! Converting between the ids of guests and those of the host.
//!
//! This is the only module that converts them.

use crate::session::file_system::{GuestGid, GuestUid};
use crate::sys::ids::{HostGid, HostUid};

/// The id map of a share. It maps each id to the same number.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct IdMap;

impl IdMap {
    /// The host's id of a guest's user.
    pub(super) fn host_uid(self, uid: GuestUid) -> HostUid {
        HostUid::new(uid.get())
    }

    /// The host's id of a guest's group.
    pub(super) fn host_gid(self, gid: GuestGid) -> HostGid {
        HostGid::new(gid.get())
    }

    /// The guest's id of a user of the host.
    pub(super) fn guest_uid(self, uid: HostUid) -> GuestUid {
        GuestUid::new(uid.get())
    }

    /// The guest's id of a group of the host.
    pub(super) fn guest_gid(self, gid: HostGid) -> GuestGid {
        GuestGid::new(gid.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_id_maps_to_itself_and_back() {
        for number in [0, 1, 1000, u32::MAX] {
            let (uid, gid) = (GuestUid::new(number), GuestGid::new(number));
            assert_eq!(IdMap.host_uid(uid).get(), number);
            assert_eq!(IdMap.host_gid(gid).get(), number);
            assert_eq!(IdMap.guest_uid(IdMap.host_uid(uid)), uid);
            assert_eq!(IdMap.guest_gid(IdMap.host_gid(gid)), gid);
        }
    }
}
