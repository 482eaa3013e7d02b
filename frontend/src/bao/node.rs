//! The driver's node: which generation it is of, and the devices it has.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use log::info;

use super::device::BaoPort;
use super::error::BaoError;
use super::fd::{self, Driver, Kernel};
use super::sys::{Abi, CREATE, Family, GENERATIONS, GET_INFO, Info};
use crate::hypervisor::{GuestMemory, GuestRange};

/// The nodes of the driver, in the order in which they are looked for: of B, B' and A', and of A.
pub const NODES: [&str; 2] = ["/dev/bao-io-dispatcher", "/dev/bao"];

/// The driver, open.
#[derive(Debug)]
pub struct Node<D = Kernel> {
    driver: D,
    path: PathBuf,
    file: File,
    family: Family,
}

/// What one device is to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The device model's id: its index in the `remio_devs` of this VM's configuration.
    pub id: u32,
    /// Where the guest has its registers.
    pub window: GuestRange,
    /// The memory that it shares with the guest, where that is configured: its range and the node it is mapped from.
    /// Needed where the driver does not tell, and otherwise compared.
    pub memory: Option<(GuestRange, PathBuf)>,
}

impl Node {
    /// Opens the first of `nodes` that is there.
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
                        break; // it is there, and that it cannot be had is what matters
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

    /// Gets one device, to be asked once for each: the driver does not survive that its descriptor is closed, so it is
    /// kept open as long as this process lives, whatever else goes wrong.
    pub fn device(&self, wanted: &Wanted) -> Result<BaoPort<D>, BaoError>
    where
        D: Clone,
    {
        let id = wanted.id;
        let (info, descriptor) = match self.family {
            Family::Created => fd::create(&self.driver, &self.file, id).map(|fd| (None, fd)),
            Family::Described => {
                fd::info(&self.driver, &self.file, id).map(|(info, fd)| (Some(info), fd))
            }
        }
        .map_err(|source| BaoError::Device {
            id,
            node: self.path.clone(),
            source,
        })?;
        let descriptor = ManuallyDrop::new(descriptor);
        let abi = self.generation(&descriptor)?;
        let memory = memory(wanted, info, &descriptor)?;
        info!("device {id}: Bao's generation {}", abi.name);
        Ok(BaoPort::new(
            self.driver.clone(),
            abi,
            descriptor,
            wanted.window,
            memory,
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

/// The shared memory, by the driver's word or the configuration's, and from the node of its own where one is configured:
/// whoever holds the device's descriptor could answer for it.
fn memory(wanted: &Wanted, info: Option<Info>, device: &OwnedFd) -> Result<GuestMemory, BaoError> {
    let id = wanted.id;
    let driver = match info {
        None => None,
        Some(info) => Some(GuestRange::new(info.shmem_addr, info.shmem_size).ok_or(
            BaoError::BadMemory {
                id,
                addr: info.shmem_addr,
                len: info.shmem_size,
            },
        )?),
    };
    let (descriptor, range) = match (&wanted.memory, driver) {
        (None, None) => return Err(BaoError::NoMemory { id }),
        (Some((configured, _)), Some(driver)) if *configured != driver => {
            return Err(BaoError::OtherMemory {
                id,
                configured: *configured,
                driver,
            });
        }
        (Some((configured, path)), _) => {
            let opened = OpenOptions::new().read(true).write(true).open(path);
            let file = opened.map_err(|source| BaoError::MemoryNode {
                id,
                path: path.clone(),
                source,
            })?;
            (file.into(), *configured)
        }
        (None, Some(driver)) => {
            let duplicate = device.try_clone();
            let duplicate = duplicate.map_err(|source| BaoError::Memory { id, source })?;
            (duplicate, driver)
        }
    };
    Ok(GuestMemory { descriptor, range })
}
