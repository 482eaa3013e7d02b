//! The driver's ioctls, each as a safe function.
#![allow(unsafe_code)] // the ioctls themselves, and the descriptors that two of them return

use std::ffi::c_void;
use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;
use zerocopy::IntoBytes;

use super::sys::{
    CREATE, Call, GET_INFO, IOEVENTFD_DATAMATCH, IOEVENTFD_DEASSIGN, IRQFD_DEASSIGN, Info,
    Ioeventfd, Irqfd,
};

/// Carries out ioctls: the kernel, or an emulation in a test.
pub trait Driver: Debug + Send + Sync {
    /// Makes `call` on `file`. Without `argument` its address is null. The driver then fails before
    /// it does anything, because it copies the argument first.
    fn call(
        &self,
        file: BorrowedFd<'_>,
        call: Call,
        argument: Option<VolatileSlice<'_>>,
    ) -> Result<i32, Errno>;

    /// Takes ownership of the descriptor that a call returned.
    fn adopt(&self, descriptor: i32) -> Option<OwnedFd>;
}

/// The driver in the kernel.
#[derive(Clone, Debug)]
pub struct Kernel;

struct Argument {
    call: Call,
    address: *mut c_void,
}

// SAFETY: the calls read and write no more bytes at `address` than the size in their number, which
// `Kernel::call` has compared with the argument's.
unsafe impl Ioctl for Argument {
    type Output = i32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.call.code()
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.address
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(output)
    }
}

impl Driver for Kernel {
    fn call(
        &self,
        file: BorrowedFd<'_>,
        call: Call,
        argument: Option<VolatileSlice<'_>>,
    ) -> Result<i32, Errno> {
        // The guard keeps the memory mapped until the call has returned.
        let memory = match argument {
            Some(bytes) if bytes.len() < call.size() => return Err(Errno::INVAL),
            Some(bytes) => Some(bytes.ptr_guard_mut()),
            None => None,
        };
        let address = memory
            .as_ref()
            .map_or(std::ptr::null_mut(), |memory| memory.as_ptr().cast());
        let argument = Argument { call, address };
        // SAFETY: `address` is null, or the address of memory that stays mapped during the call and
        // is long enough for it. Any process may write to that memory at any time.
        unsafe { ioctl(file, argument) }
    }

    fn adopt(&self, descriptor: i32) -> Option<OwnedFd> {
        (descriptor >= 0).then(|| {
            // SAFETY: the driver has just made the descriptor for this process; nothing else owns
            // it.
            unsafe { OwnedFd::from_raw_fd(descriptor) }
        })
    }
}

/// Whether the driver behind `file` knows `call`. Has no effect on the driver.
pub(super) fn knows(driver: &impl Driver, file: impl AsFd, call: Call) -> io::Result<bool> {
    match driver.call(file.as_fd(), call, None) {
        Ok(_) | Err(Errno::FAULT) => Ok(true),
        Err(Errno::NOTTY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Creates device model `id` and returns its descriptor.
pub(super) fn create(driver: &impl Driver, node: impl AsFd, id: u32) -> io::Result<OwnedFd> {
    let mut argument = id;
    let descriptor = driver.call(node.as_fd(), CREATE, Some(argument.as_mut_bytes().into()))?;
    driver.adopt(descriptor).ok_or_else(|| Errno::BADF.into())
}

/// The driver's description of device model `id`, and a descriptor of it.
pub(super) fn info(driver: &impl Driver, node: impl AsFd, id: u32) -> io::Result<(Info, OwnedFd)> {
    let mut info = Info {
        id,
        fd: -1,
        ..Info::default()
    };
    driver.call(node.as_fd(), GET_INFO, Some(info.as_mut_bytes().into()))?;
    let descriptor = driver.adopt(info.fd);
    Ok((info, descriptor.ok_or(Errno::BADF)?))
}

/// Waits for a request, or gives one back: ATTACH and COMPLETE of any generation. The shorter
/// structures do not use the end of `memory`.
pub(super) fn exchange(
    driver: &impl Driver,
    device: impl AsFd,
    call: Call,
    memory: VolatileSlice<'_>,
) -> Result<(), Errno> {
    driver.call(device.as_fd(), call, Some(memory)).map(|_| ())
}

/// Makes stores of `data`, 32 bits wide, at `addr` signal `eventfd`.
pub(super) fn assign_ioeventfd(
    driver: &impl Driver,
    device: impl AsFd,
    call: Call,
    eventfd: &EventFd,
    addr: u64,
    data: u64,
) -> io::Result<()> {
    let mut argument = Ioeventfd {
        fd: number(eventfd)?,
        flags: IOEVENTFD_DATAMATCH,
        addr,
        len: 4,
        reserved: 0,
        data,
    };
    match driver.call(device.as_fd(), call, Some(argument.as_mut_bytes().into())) {
        // The same eventfd with the same address and data: a predecessor has assigned it.
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Undoes [`assign_ioeventfd`]. All known drivers remove the entry and then assign it again, unless
/// they refuse its length. They refuse 0, and the removal does not look at the length.
pub(super) fn deassign_ioeventfd(
    driver: &impl Driver,
    device: impl AsFd,
    call: Call,
    eventfd: &EventFd,
    addr: u64,
    data: u64,
) -> io::Result<()> {
    let mut argument = Ioeventfd {
        fd: number(eventfd)?,
        flags: IOEVENTFD_DATAMATCH | IOEVENTFD_DEASSIGN,
        addr,
        len: 0,
        reserved: 0,
        data,
    };
    match driver.call(device.as_fd(), call, Some(argument.as_mut_bytes().into())) {
        Ok(_) | Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes `eventfd` raise the device's interrupt line, or stops that.
pub(super) fn connect_irqfd(
    driver: &impl Driver,
    device: impl AsFd,
    call: Call,
    eventfd: &EventFd,
    connected: bool,
) -> io::Result<()> {
    let mut argument = Irqfd {
        fd: eventfd.as_raw_fd(),
        flags: if connected { 0 } else { IRQFD_DEASSIGN },
    };
    match driver.call(device.as_fd(), call, Some(argument.as_mut_bytes().into())) {
        // The same eventfd: a predecessor has connected it.
        Err(Errno::BUSY) if connected => Ok(()),
        done => Ok(done.map(|_| ())?),
    }
}

fn number(eventfd: &EventFd) -> io::Result<u32> {
    u32::try_from(eventfd.as_raw_fd()).map_err(|_| Errno::BADF.into())
}
