//! Why a device cannot be had from Bao.

use std::io;
use std::path::PathBuf;

use crate::hypervisor::GuestRange;
use crate::hypervisor_driver::HypervisorError;

/// What went wrong between this program and Bao's remote I/O driver, before a device was served.
#[derive(Debug, thiserror::Error)]
pub enum BaoError {
    /// There is no node of the driver.
    #[error("cannot open {}, by which Bao's remote I/O driver is reached", node.display())]
    Node {
        /// The one that was tried last.
        node: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The node is something else's.
    #[error("{} is no node of Bao's remote I/O driver: it knows none of its calls", node.display())]
    NotBao {
        /// The node.
        node: PathBuf,
    },
    /// The driver is of a generation that nobody here knows.
    #[error(
        "the driver behind {} is none of the generations that are known: {known}",
        node.display()
    )]
    Generation {
        /// The node.
        node: PathBuf,
        /// Those that are.
        known: String,
    },
    /// The driver does not give the device.
    #[error("cannot have device {id} from {}: is it the index in the VM's remio_devs?", node.display())]
    Device {
        /// The device model's id.
        id: u32,
        /// The node.
        node: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The driver does not say where the memory is and nobody else did.
    #[error(
        "the driver does not tell device {id}'s shared memory: configure shmem_addr, shmem_size and shmem_path"
    )]
    NoMemory {
        /// The device model's id.
        id: u32,
    },
    /// The driver says something about the memory that cannot be.
    #[error(
        "the driver gives device {id} {len:#x} bytes of shared memory at {addr:#x}, which cannot be"
    )]
    BadMemory {
        /// The device model's id.
        id: u32,
        /// First byte.
        addr: u64,
        /// Bytes.
        len: u64,
    },
    /// The configuration and the driver differ.
    #[error(
        "device {id}'s shared memory is configured as {configured}, but the driver has it at {driver}"
    )]
    OtherMemory {
        /// The device model's id.
        id: u32,
        /// By the configuration.
        configured: GuestRange,
        /// By the driver.
        driver: GuestRange,
    },
    /// There is no descriptor left for the memory.
    #[error(
        "cannot duplicate the descriptor of device {id}, by which its shared memory is reached"
    )]
    Memory {
        /// The device model's id.
        id: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The memory's own node cannot be opened.
    #[error("cannot open {}, device {id}'s shared memory", path.display())]
    MemoryNode {
        /// The device model's id.
        id: u32,
        /// The node.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The driver refused to be asked.
    #[error("cannot ask the driver behind {} which calls it knows", node.display())]
    Probe {
        /// The node.
        node: PathBuf,
        /// Why not.
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
