//! Why Bao gives no device.

use std::io;
use std::path::PathBuf;

use crate::hypervisor::GuestRange;
use crate::hypervisor_driver::HypervisorError;

/// An error between this program and Bao's remote I/O driver, before a device is served.
#[derive(Debug, thiserror::Error)]
pub enum BaoError {
    /// The driver has no device node here.
    #[error("cannot open {}, a node of Bao's remote I/O driver", node.display())]
    Node {
        /// The node that was tried last.
        node: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The node belongs to another driver.
    #[error(
        "{} is not a node of Bao's remote I/O driver: it knows none of its calls",
        node.display()
    )]
    NotBao {
        /// The node.
        node: PathBuf,
    },
    /// The driver is of an unknown generation.
    #[error(
        "the driver behind {} is of an unknown generation; known are {known}",
        node.display()
    )]
    Generation {
        /// The node.
        node: PathBuf,
        /// The known ones.
        known: String,
    },
    /// The driver does not give the device out.
    #[error(
        "cannot take device {id} from {}: is {id} its index in the VM's remio_devs?",
        node.display()
    )]
    Device {
        /// The device's id.
        id: u32,
        /// The node.
        node: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Neither the driver nor the configuration says where the shared memory is.
    #[error(
        "the driver does not report device {id}'s shared memory: \
         configure shmem_addr, shmem_size and shmem_path"
    )]
    NoMemory {
        /// The device's id.
        id: u32,
    },
    /// The driver reports an impossible range of shared memory.
    #[error(
        "the driver reports impossible shared memory of device {id}: {len:#x} bytes at {addr:#x}"
    )]
    BadMemory {
        /// The device's id.
        id: u32,
        /// First address.
        addr: u64,
        /// Length, in bytes.
        len: u64,
    },
    /// The configuration and the driver disagree about the shared memory.
    #[error(
        "device {id}'s shared memory is configured as {configured}, \
         but the driver has it at {driver}"
    )]
    OtherMemory {
        /// The device's id.
        id: u32,
        /// By the configuration.
        configured: GuestRange,
        /// By the driver.
        driver: GuestRange,
    },
    /// This process has no descriptor left for the shared memory.
    #[error("cannot duplicate device {id}'s descriptor for its shared memory")]
    Memory {
        /// The device's id.
        id: u32,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The shared memory's own node cannot be opened.
    #[error("cannot open {}, device {id}'s shared memory", path.display())]
    MemoryNode {
        /// The device's id.
        id: u32,
        /// The node.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The driver does not answer which calls it knows.
    #[error("cannot ask the driver behind {} which calls it knows", node.display())]
    Probe {
        /// The node.
        node: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl From<BaoError> for HypervisorError {
    fn from(error: BaoError) -> Self {
        match &error {
            BaoError::Node { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Self::Absent(error.into())
            }
            BaoError::NotBao { .. } => Self::Absent(error.into()),
            _ => Self::Failed(error.into()),
        }
    }
}
