//! The emulated driver: it dispatches calls by file and number.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::io::Errno;

use super::abi::{Abi, argument_len};
use super::device::{Device, Inode, inode_of};
use super::eventfds::IoEventFdArgument;
use super::faults::Faults;
use super::seccomp::{self, Answer, Call, Listener, Notification};

/// Guest physical address of the shared memory.
pub(super) use crate::driver::memory::GUEST_BASE;

/// The driver of one generation, with its devices.
pub struct Kernel {
    /// Its generation.
    pub abi: Abi,
    /// Bytes of memory that each guest shares.
    pub memory: u64,
    /// The devices by ID.
    pub devices: Vec<Arc<Device>>,
    /// Recorded actions that the driver would not survive.
    pub faults: Faults,
    node: PathBuf,
}

/// The argument of get info. Its last field is the descriptor.
fn info(id: u32, memory: u64, file: i32) -> [u8; 32] {
    let mut bytes = [0; 32];
    let words = [
        u64::from(id),
        GUEST_BASE,
        memory,
        u64::from(file.cast_unsigned()) << 32 | 40,
    ];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

impl Kernel {
    /// A driver with `devices` devices of `memory` bytes. It creates the file `node` as its node.
    ///
    /// # Errors
    /// The host has no room for it.
    pub fn new(abi: Abi, node: &Path, devices: u32, memory: u64) -> Result<Self> {
        fs::write(node, "").with_context(|| format!("making {}", node.display()))?;
        let faults = Faults::default();
        let device = |id| {
            let file = rustix::fs::memfd_create("bao-memory", rustix::fs::MemfdFlags::CLOEXEC)?;
            rustix::fs::ftruncate(&file, memory)?;
            Ok(Arc::new(Device::new(id, abi, file.into(), faults.clone())?))
        };
        Ok(Self {
            abi,
            memory,
            devices: (0..devices).map(device).collect::<Result<_>>()?,
            faults,
            node: node.to_owned(),
        })
    }

    /// Its node.
    #[must_use]
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// Blocks all devices until the guard is dropped.
    #[must_use]
    pub fn freeze(&self) -> impl Sized + '_ {
        self.devices
            .iter()
            .map(|device| device.freeze())
            .collect::<Vec<_>>()
    }

    /// Fails if a process broke a rule or closed a device.
    ///
    /// # Errors
    /// With everything that was done.
    pub fn check(&self) -> Result<()> {
        for device in &self.devices {
            device.check_openings()?;
        }
        self.faults.none()
    }

    /// Answers one call of a process under `listener`.
    pub fn answer(&self, listener: &Arc<Listener>, note: Notification) {
        match note.call {
            Call::Mapping { file, offset } => {
                if let Ok(inode) = inode(note.thread, file)
                    && self.devices.iter().any(|device| device.is_at(inode))
                {
                    self.faults.add(format!(
                        "a device's memory is mapped from {offset:#x} on: the driver gives it \
                         from 0 on all the same"
                    ));
                }
                // This fails only if the caller was killed.
                let _ = listener.answer(note.id, Answer::GoesOn);
            }
            Call::Ioctl {
                file,
                number,
                argument,
            } => {
                let Ok(inode) = inode(note.thread, file) else {
                    let _ = listener.answer(note.id, Answer::Fails(Errno::BADF));
                    return;
                };
                let device = self.devices.iter().find(|device| device.opens(inode));
                let answer = if let Some(device) = device {
                    self.on_device(listener, note, device, number, argument)
                } else if fs::metadata(&self.node).is_ok_and(|node| inode_of(&node) == inode) {
                    Some(self.on_node(listener, note, number, argument))
                } else {
                    Some(Answer::GoesOn)
                };
                if let Some(answer) = answer {
                    let _ = listener.answer(note.id, answer);
                }
            }
        }
    }

    fn unknown(&self, number: u32, argument: u64, file: &str) -> Answer {
        if argument != 0 && argument_len(number) > 0 {
            self.faults.add(format!(
                "unknown call {number:#x} on {file}, with an argument"
            ));
        }
        Answer::Fails(Errno::NOTTY)
    }

    fn on_node(
        &self,
        listener: &Listener,
        note: Notification,
        number: u32,
        argument: u64,
    ) -> Answer {
        if Some(number) == self.abi.destroy && argument != 0 {
            self.faults
                .add("destroy, which frees the device that is still in use");
            return Answer::Fails(Errno::PERM);
        }
        if number != self.abi.open && Some(number) != self.abi.destroy {
            return self.unknown(number, argument, "the node");
        }
        let mut id = [0; 4];
        if seccomp::read(note.thread, argument, &mut id).is_err() {
            return Answer::Fails(Errno::FAULT);
        }
        let id = u32::from_le_bytes(id);
        let Some(device) = usize::try_from(id).ok().and_then(|id| self.devices.get(id)) else {
            return Answer::Fails(Errno::INVAL);
        };
        if self.abi.creates && device.is_created() {
            return Answer::Fails(Errno::EXIST);
        }
        match self.open(listener, note, device, argument) {
            Ok(value) => Answer::Returns(value),
            Err(error) => {
                let errno = error.downcast_ref().and_then(Errno::from_io_error);
                Answer::Fails(errno.unwrap_or(Errno::NOMEM))
            }
        }
    }

    fn open(
        &self,
        listener: &Listener,
        note: Notification,
        device: &Device,
        argument: u64,
    ) -> Result<i32> {
        let opening = device.open()?;
        let file = listener.give(note.id, opening.as_fd())?;
        if self.abi.creates {
            return Ok(file);
        }
        seccomp::write(note.thread, argument, &info(device.id, self.memory, file))?;
        Ok(1)
    }

    /// Returns `None` if the call is answered later or has been answered.
    fn on_device(
        &self,
        listener: &Arc<Listener>,
        note: Notification,
        device: &Device,
        number: u32,
        argument: u64,
    ) -> Option<Answer> {
        let abi = &self.abi;
        if Some(number) == abi.notify {
            device.eventfds.raise();
            return Some(Answer::Returns(0));
        }
        if ![abi.attach, abi.complete, abi.ioeventfd, abi.irqfd].contains(&number) {
            return Some(self.unknown(number, argument, "a device"));
        }
        let mut bytes = [0; 64];
        let len = argument_len(number);
        let read = bytes
            .get_mut(..len)
            .map(|bytes| seccomp::read(note.thread, argument, bytes));
        if !matches!(read, Some(Ok(()))) {
            return Some(Answer::Fails(Errno::FAULT));
        }
        if number == abi.attach {
            device.attach(listener, note, argument);
            return None;
        }
        if number == abi.complete {
            device.complete(listener, note, argument);
            return None;
        }
        let done = self.eventfd(note, device, number, &bytes);
        Some(done.map_or_else(Answer::Fails, |()| Answer::Returns(0)))
    }

    fn eventfd(
        &self,
        note: Notification,
        device: &Device,
        number: u32,
        bytes: &[u8; 64],
    ) -> Result<(), Errno> {
        let take = |file| {
            let taken = seccomp::take(note.thread, file);
            taken.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::BADF))
        };
        if number == self.abi.ioeventfd {
            let argument = bytes.first_chunk().ok_or(Errno::FAULT)?;
            let argument = IoEventFdArgument::decode(argument);
            return device.eventfds.ioeventfd(&argument, take(argument.file)?);
        }
        let (words, _) = bytes.as_chunks();
        let [file, flags] = [0, 1].map(|at: usize| words.get(at).copied().unwrap_or_default());
        device
            .eventfds
            .irqfd(u32::from_le_bytes(flags), take(i32::from_le_bytes(file))?)
    }

    /// The path of the shared memory of device `id`, for generations whose driver does not map it.
    #[must_use]
    pub fn memory_path(&self, id: usize) -> PathBuf {
        let own = std::process::id();
        let file = self
            .devices
            .get(id)
            .map_or(-1, |device| device.memory().as_raw_fd());
        PathBuf::from(format!("/proc/{own}/fd/{file}"))
    }
}

/// The inode of a descriptor of `thread`.
fn inode(thread: u32, file: u32) -> io::Result<Inode> {
    Ok(inode_of(&fs::metadata(format!(
        "/proc/{thread}/fd/{file}"
    ))?))
}
