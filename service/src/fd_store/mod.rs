//! A store of descriptors outside of the program, which outlives it: the service manager's
//! (`sd_notify(3)`, `FileDescriptorStoreMax=` of `systemd.service(5)`), or that of a [`holder`].

pub mod holder;
pub mod packet;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use parking_lot::Mutex;
use sd_notify::NotifyState;

use self::holder::Client;

/// Where descriptors are held, if anywhere. Clones are of the same store.
#[derive(Clone, Debug, Default)]
pub enum FdStore {
    /// Nowhere.
    #[default]
    None,
    /// The service manager's.
    ServiceManager {
        /// How many descriptors it holds at most.
        capacity: usize,
    },
    /// A holder's, which says itself when it holds no more.
    Holder(Arc<Mutex<Client>>),
}

impl FdStore {
    /// The service manager's, if it has one.
    #[must_use]
    pub fn of_service_manager() -> Self {
        capacity().map_or(Self::None, |capacity| Self::ServiceManager { capacity })
    }

    /// A holder's.
    #[must_use]
    pub fn of_holder(client: Client) -> Self {
        Self::Holder(Arc::new(Mutex::new(client)))
    }

    /// How many descriptors may be asked to be held; `None` if there is no store.
    #[must_use]
    pub const fn capacity(&self) -> Option<usize> {
        match self {
            Self::None => None,
            Self::ServiceManager { capacity } => Some(*capacity),
            Self::Holder(_) => Some(usize::MAX),
        }
    }

    /// Has a duplicate of a descriptor held until it is removed by this name, also if its other end
    /// hangs up. A name has up to 255 characters and no colon.
    ///
    /// The service manager refuses a second duplicate of the same open file, by whatever name.
    ///
    /// # Errors
    /// It cannot be reached; `QuotaExceeded` if it holds no more; `Unsupported` if there is none.
    pub fn store(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::None => Err(io::ErrorKind::Unsupported.into()),
            Self::ServiceManager { .. } => {
                let state = [
                    NotifyState::FdStore,
                    NotifyState::FdName(name),
                    NotifyState::Custom("FDPOLL=0"),
                ];
                sd_notify::notify_with_fds(&state, &[descriptor])
            }
            Self::Holder(client) => client.lock().store(name, descriptor),
        }
    }

    /// Has what is held by this name closed.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match self {
            Self::None => Ok(()),
            Self::ServiceManager { .. } => {
                sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
            }
            Self::Holder(client) => client.lock().remove(name),
        }
    }

    /// Connects to a holder again that was lost. Returns whether that was done: then it holds
    /// nothing that the caller knows of.
    #[must_use]
    pub fn reconnect(&self) -> bool {
        match self {
            Self::Holder(client) => client.lock().reconnect(),
            Self::None | Self::ServiceManager { .. } => false,
        }
    }

    /// A copy of the connection to the holder, for [`Client::resumed`]. `None` without one.
    #[must_use]
    pub fn connection(&self) -> Option<OwnedFd> {
        match self {
            Self::Holder(client) => {
                let client = client.lock();
                client.socket()?.as_fd().try_clone_to_owned().ok()
            }
            Self::None | Self::ServiceManager { .. } => None,
        }
    }
}

/// The variables with the most descriptors that the service manager holds. The first that is set
/// counts. systemd sets `FDSTORE` since version 254. A unit sets the other one for older versions,
/// which have a store and do not tell of it.
const CAPACITIES: [&str; 2] = ["FDSTORE", "GANGPLANK_FDSTORE"];

/// How many descriptors the service manager holds. `None` if it holds none.
#[must_use]
pub fn capacity() -> Option<usize> {
    std::env::var_os("NOTIFY_SOCKET")?;
    let mut told = CAPACITIES.iter().map(std::env::var);
    let capacity = told.find_map(Result::ok)?.parse().ok()?;
    (capacity > 0).then_some(capacity)
}

/// The numbers and names of the descriptors that the program was started with.
///
/// # Errors
/// The environment does not fit them.
pub fn inherited() -> io::Result<Vec<(RawFd, String)>> {
    Ok(sd_notify::listen_fds_with_names()?.collect())
}
