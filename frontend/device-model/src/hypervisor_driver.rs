//! How a device is taken from a hypervisor: its driver in this kernel gives a descriptor for each
//! device, and the port is made on that descriptor.
//!
//! A hypervisor port is a folder with one implementation of [`Hypervisor`], and a line in
//! [`crate::hypervisors`]. Nothing else of the device model names a hypervisor.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::hypervisor::{GuestRange, Port};
use crate::journal::Journal;

/// A hypervisor that the device model has a port for.
pub trait Hypervisor: Sync {
    /// Its name, for people.
    fn name(&self) -> &'static str;

    /// The device nodes of its driver, in the order in which [`Hypervisor::open`] tries them unless
    /// the configuration names others.
    fn default_nodes(&self) -> &'static [&'static str];

    /// Opens its driver at the first of `nodes` that exists.
    ///
    /// # Errors
    /// [`HypervisorError::Absent`] if none of the nodes is one of this hypervisor's driver.
    fn open(&self, nodes: &[PathBuf]) -> Result<Box<dyn HypervisorDriver>, HypervisorError>;
}

/// A hypervisor's driver, open.
pub trait HypervisorDriver {
    /// The device node that was opened.
    fn node(&self) -> &Path;

    /// Takes device `id` from the driver. A device can be taken once as long as the machine runs.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`] if the driver has no such device, or another process has taken
    /// it.
    fn take(&self, id: u32) -> Result<DeviceDescriptor, HypervisorError>;

    /// Makes the port of a device that this process or a predecessor has taken. `journal` is the
    /// device's own.
    ///
    /// # Errors
    /// [`HypervisorError::Failed`] if the driver and `params` contradict each other.
    fn port(
        &self,
        descriptor: DeviceDescriptor,
        params: &DeviceParams,
        journal: Arc<Journal>,
    ) -> Result<Arc<dyn Port>, HypervisorError>;
}

/// What the configuration says of one device.
#[derive(Debug)]
pub struct DeviceParams {
    /// The device's id at the hypervisor.
    pub id: u32,
    /// Where the guest has the device's registers.
    pub window: GuestRange,
    /// The memory that the device shares with the guest, and the file that it is mapped from.
    /// Needed where the driver does not report the memory; compared with what it reports otherwise.
    pub memory: Option<ConfiguredMemory>,
}

/// Shared memory as the configuration describes it. Its file is opened before the process is
/// confined.
#[derive(Debug)]
pub struct ConfiguredMemory {
    /// Where the guest has it.
    pub range: GuestRange,
    /// The file that it is mapped from.
    pub path: PathBuf,
    file: io::Result<File>,
}

impl ConfiguredMemory {
    /// Opens the file at `path`. A failure is an error of [`Self::file`], so that it concerns one
    /// device alone.
    pub fn open(range: GuestRange, path: &Path) -> Self {
        Self {
            range,
            path: path.to_owned(),
            file: OpenOptions::new().read(true).write(true).open(path),
        }
    }

    /// A descriptor of the file.
    ///
    /// # Errors
    /// `open(2)`'s, or `fcntl(2)`'s.
    pub fn file(&self) -> io::Result<OwnedFd> {
        match &self.file {
            Ok(file) => file.as_fd().try_clone_to_owned(),
            Err(error) => Err(error
                .raw_os_error()
                .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)),
        }
    }
}

/// A device as the driver gave it.
#[derive(Debug)]
pub struct DeviceDescriptor {
    /// Never closed: Bao's driver frees what its own lists still point at.
    descriptor: ManuallyDrop<OwnedFd>,
    /// First byte and length of the shared memory, where the driver reports it.
    memory: Option<(u64, u64)>,
}

impl DeviceDescriptor {
    /// A device that was just taken. `memory` is the shared memory's first byte and length as the
    /// driver reports them, unchecked.
    pub fn taken(descriptor: OwnedFd, memory: Option<(u64, u64)>) -> Self {
        Self {
            descriptor: ManuallyDrop::new(descriptor),
            memory,
        }
    }

    /// A device that a predecessor has taken, with the memory that the driver reported then.
    pub fn restored(descriptor: OwnedFd, memory: Option<GuestRange>) -> Self {
        Self::taken(descriptor, memory.map(|range| (range.start(), range.len())))
    }

    /// The descriptor, for the fd store.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// The shared memory, where the driver reports a valid range.
    pub fn memory(&self) -> Option<GuestRange> {
        self.memory
            .and_then(|(start, len)| GuestRange::new(start, len))
    }

    /// The descriptor, and the memory as the driver reports it.
    pub(crate) fn into_parts(self) -> (ManuallyDrop<OwnedFd>, Option<(u64, u64)>) {
        (self.descriptor, self.memory)
    }
}

/// Why a hypervisor gives no device.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// The hypervisor's driver is not on this machine.
    #[error(transparent)]
    Absent(Box<dyn Error + Send + Sync>),
    /// The hypervisor's driver is here and did not do what it was asked to.
    #[error(transparent)]
    Failed(Box<dyn Error + Send + Sync>),
}
