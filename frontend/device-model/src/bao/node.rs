//! The driver's device node: the driver's generation, and the devices that it gives out.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::info;

use super::device::BaoPort;
use super::error::BaoError;
use super::fd::{self, Driver, Kernel};
use super::sys::{Abi, CREATE, Family, GENERATIONS, GET_INFO};
use crate::hypervisor::{GuestMemory, GuestRange, Port};
use crate::hypervisor_driver::{
    DeviceDescriptor, DeviceParams, Hypervisor, HypervisorDriver, HypervisorError,
};
use crate::journal::Journal;

/// The driver's device nodes, in the order in which they are tried: of B, B' and A', and of A.
const NODES: [&str; 2] = ["/dev/bao-io-dispatcher", "/dev/bao"];

/// Bao, for [`crate::hypervisors`].
#[derive(Clone, Copy, Debug)]
pub struct Bao;

impl Hypervisor for Bao {
    fn name(&self) -> &'static str {
        "Bao"
    }

    fn default_nodes(&self) -> &'static [&'static str] {
        &NODES
    }

    fn open(&self, nodes: &[PathBuf]) -> Result<Box<dyn HypervisorDriver>, HypervisorError> {
        Ok(Box::new(Node::open(nodes)?))
    }
}

impl HypervisorDriver for Node {
    fn node(&self) -> &Path {
        &self.path
    }

    fn take(&self, id: u32) -> Result<DeviceDescriptor, HypervisorError> {
        Ok(self.take_device(id)?)
    }

    fn port(
        &self,
        descriptor: DeviceDescriptor,
        params: &DeviceParams,
        journal: Arc<Journal>,
    ) -> Result<Arc<dyn Port>, HypervisorError> {
        Ok(Arc::new(self.device(descriptor, params, journal)?))
    }
}

/// The driver, open.
#[derive(Debug)]
pub struct Node<D = Kernel> {
    driver: D,
    path: PathBuf,
    file: File,
    family: Family,
}

impl Node {
    /// Opens the first of `nodes` that exists.
    pub fn open(nodes: &[PathBuf]) -> Result<Self, BaoError> {
        let mut missing = BaoError::Node {
            node: PathBuf::new(),
            source: io::ErrorKind::NotFound.into(),
        };
        for node in nodes {
            match OpenOptions::new().read(true).write(true).open(node) {
                Ok(file) => return Self::new(Kernel, node, file),
                Err(source) => {
                    let absent = source.kind() == io::ErrorKind::NotFound;
                    missing = BaoError::Node {
                        node: node.clone(),
                        source,
                    };
                    if !absent {
                        break; // the node exists: this error matters, not those of later nodes
                    }
                }
            }
        }
        Err(missing)
    }
}

impl<D: Driver> Node<D> {
    pub(super) fn new(driver: D, path: &Path, file: File) -> Result<Self, BaoError> {
        let knows = |call| {
            fd::knows(&driver, &file, call).map_err(|source| BaoError::Probe {
                node: path.to_owned(),
                source,
            })
        };
        let family = if knows(GET_INFO)? {
            Family::Described
        } else if knows(CREATE)? {
            Family::Created
        } else {
            return Err(BaoError::NotBao {
                node: path.to_owned(),
            });
        };
        Ok(Self {
            driver,
            path: path.to_owned(),
            file,
            family,
        })
    }

    /// Takes a device from the driver, once as long as the machine runs. The driver does not
    /// survive the close of its descriptor, which therefore stays open as long as this process
    /// lives, whatever else goes wrong. The caller gives it to the fd store.
    pub fn take_device(&self, id: u32) -> Result<DeviceDescriptor, BaoError> {
        let taken = match self.family {
            Family::Created => fd::create(&self.driver, &self.file, id).map(|fd| (fd, None)),
            Family::Described => fd::info(&self.driver, &self.file, id)
                .map(|(info, fd)| (fd, Some((info.shmem_addr, info.shmem_size)))),
        };
        let (descriptor, memory) = taken.map_err(|source| BaoError::Device {
            id,
            node: self.path.clone(),
            source,
        })?;
        Ok(DeviceDescriptor::taken(descriptor, memory))
    }

    /// The port of a device that this process or a predecessor has taken; `journal` is the device's
    /// own.
    pub fn device(
        &self,
        taken: DeviceDescriptor,
        params: &DeviceParams,
        journal: Arc<Journal>,
    ) -> Result<BaoPort<D>, BaoError>
    where
        D: Clone,
    {
        let (descriptor, reported) = taken.into_parts();
        let abi = self.generation(&descriptor)?;
        let memory = memory(params, reported, &descriptor)?;
        info!("device {}: Bao's generation {}", params.id, abi.name);
        Ok(BaoPort::new(
            self.driver.clone(),
            abi,
            descriptor,
            params.window,
            memory,
            journal,
        ))
    }

    fn generation(&self, device: &OwnedFd) -> Result<&'static Abi, BaoError> {
        for abi in GENERATIONS.iter().filter(|abi| abi.family == self.family) {
            let knows = |call| {
                fd::knows(&self.driver, device, call).map_err(|source| BaoError::Probe {
                    node: self.path.clone(),
                    source,
                })
            };
            if knows(abi.attach)? && knows(abi.ioeventfd)? {
                return Ok(abi);
            }
        }
        Err(BaoError::Generation {
            node: self.path.clone(),
            known: GENERATIONS.each_ref().map(|abi| abi.name).join(", "),
        })
    }
}

/// The shared memory, as the driver or the configuration describes it. It is mapped from a node of
/// its own if one is configured: a process with the device's descriptor could complete requests.
fn memory(
    params: &DeviceParams,
    reported: Option<(u64, u64)>,
    device: &OwnedFd,
) -> Result<GuestMemory, BaoError> {
    let id = params.id;
    let driver = match reported {
        None => None,
        Some((addr, len)) => {
            let range = GuestRange::new(addr, len);
            Some(range.ok_or(BaoError::BadMemory { id, addr, len })?)
        }
    };
    let (descriptor, range) = match (&params.memory, driver) {
        (None, None) => return Err(BaoError::NoMemory { id }),
        (Some(configured), Some(driver)) if configured.range != driver => {
            return Err(BaoError::OtherMemory {
                id,
                configured: configured.range,
                driver,
            });
        }
        (Some(configured), _) => {
            let file = configured.file().map_err(|source| BaoError::MemoryNode {
                id,
                path: configured.path.clone(),
                source,
            })?;
            (file, configured.range)
        }
        (None, Some(driver)) => {
            let duplicate = device.try_clone();
            let duplicate = duplicate.map_err(|source| BaoError::Memory { id, source })?;
            (duplicate, driver)
        }
    };
    Ok(GuestMemory { descriptor, range })
}
