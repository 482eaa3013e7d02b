//! The ioctls of the kernel's DVK.
// The arguments of the ioctls are addresses of blocks that contain addresses.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use zerocopy::FromBytes;

use super::driver::{Driver, Sending};
use super::message_buffer::MessageBuffer;
use crate::abi::ioctl::{
    Bind, CPU_MASK, Call, DcUsr, DvsUsr, GetDcInfo, GetProcInfo, Ipc, Notify, ProcUsr, SELF_BIND,
    Unbind,
};
use crate::abi::{Code, CopyBlock, DcId, Endpoint};

/// A notification that sets no update bit.
const NO_UPDATE: i32 = -1;

/// Time limit for the kernel to unbind an endpoint.
const UNBIND_LIMIT: Duration = Duration::from_secs(1);

/// The kernel's DVK.
#[derive(Debug)]
pub(super) struct Kernel {
    device: File,
}

impl Kernel {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        // The device supports ioctls only, in any open mode.
        let device = OpenOptions::new().read(true).open(path)?;
        Ok(Self { device })
    }

    /// Makes `call` with `block`.
    ///
    /// # Safety
    ///
    /// All memory that `block` points to must be valid until this returns, for the kernel to read
    /// and write as `call` does.
    unsafe fn call<T>(&self, call: Call, block: &mut T) -> Result<i32, Code> {
        let argument = Argument { call, block };
        // SAFETY: the block has the type that the call takes, and the caller vouches for the memory
        // that it points to.
        outcome(unsafe { ioctl(&self.device, argument) })
    }

    fn ipc(
        &self,
        call: Call,
        with: Endpoint,
        buffer: &mut MessageBuffer,
        limit: Duration,
    ) -> Result<i32, Code> {
        let mut block = Ipc {
            ep: with.raw(),
            message: address(buffer.bytes_mut().as_mut_ptr())?,
            timeout: millis(limit),
        };
        // SAFETY: the kernel reads and writes one message of its own size, and the buffer has room
        // for the longest.
        unsafe { self.call(call, &mut block) }
    }

    fn copy(&self, mut block: CopyBlock, bytes: usize) -> Result<i32, Code> {
        block.bytes = i32::try_from(bytes).map_err(|_| Code::EDVSBADRANGE)?;
        // SAFETY: the one address of this process is that of a slice with this many bytes, which
        // both callers hold until this returns, mutably where the kernel writes. The other address
        // is another process's.
        unsafe { self.call(Call::VCOPY, &mut block) }
    }
}

struct Argument<'a, T> {
    call: Call,
    block: &'a mut T,
}

// SAFETY: each call is made with the block type of its number, and accesses no more than that
// block.
unsafe impl<T> Ioctl for Argument<'_, T> {
    type Output = i32;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.call.code()
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.block).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(output)
    }
}

/// Converts the kernel's result. A failure is an errno, whose number is the code.
fn outcome(result: Result<i32, Errno>) -> Result<i32, Code> {
    match result {
        Ok(number) => Code::from_result(number).map_or(Ok(number), Err),
        Err(errno) => Err(Code::new(errno.raw_os_error())),
    }
}

/// The 32-bit address of memory that the kernel is to access.
fn address(pointer: *mut u8) -> Result<u32, Code> {
    u32::try_from(pointer.expose_provenance()).map_err(|_| Code::EFAULT)
}

/// A time limit in milliseconds, the kernel's unit. Zero would mean no waiting, and a negative
/// number no limit.
fn millis(limit: Duration) -> i32 {
    i32::try_from(limit.as_millis()).unwrap_or(i32::MAX).max(1)
}

impl Driver for Kernel {
    fn dvs(&self) -> Result<i32, Code> {
        let mut dvs = DvsUsr::default();
        // SAFETY: the kernel writes one of these structures, which holds no addresses.
        unsafe { self.call(Call::GETDVSINFO, &mut dvs) }
    }

    fn container(&self, dc: DcId) -> Result<DcUsr, Code> {
        let mut info = [0; size_of::<DcUsr>() + CPU_MASK];
        let mut block = GetDcInfo {
            dcid: dc.raw(),
            info: address(info.as_mut_ptr())?,
        };
        // SAFETY: `info` has room for the structure with the longest CPU mask of any kernel.
        unsafe { self.call(Call::GETDCINFO, &mut block) }?;
        let read = DcUsr::read_from_prefix(&info);
        read.map(|(info, _)| info).map_err(|_| Code::EIO)
    }

    fn process(&self, dc: DcId, slot: i32) -> Result<ProcUsr, Code> {
        let mut info = [0; size_of::<ProcUsr>() + CPU_MASK];
        let mut block = GetProcInfo {
            dcid: dc.raw(),
            p_nr: slot,
            info: address(info.as_mut_ptr())?,
        };
        // SAFETY: `info` has room for the structure with the longest CPU mask of any kernel.
        unsafe { self.call(Call::GETPROCINFO, &mut block) }?;
        let read = ProcUsr::read_from_prefix(&info);
        read.map(|(info, _)| info).map_err(|_| Code::EIO)
    }

    fn bind(&self, dc: DcId, endpoint: Endpoint) -> Result<i32, Code> {
        let mut block = Bind {
            cmd: SELF_BIND,
            dcid: dc.raw(),
            pid: -1,
            ep: endpoint.raw(),
            nodeid: -1,
        };
        // SAFETY: the block holds no addresses. The pid is an address only when a process of
        // another node is bound.
        unsafe { self.call(Call::BIND, &mut block) }
    }

    fn unbind(&self, dc: DcId, endpoint: Endpoint) -> Result<i32, Code> {
        let mut block = Unbind {
            dcid: dc.raw(),
            ep: endpoint.raw(),
            timeout: millis(UNBIND_LIMIT),
        };
        // SAFETY: the block holds no addresses.
        unsafe { self.call(Call::UNBIND, &mut block) }
    }

    fn receive(&self, buffer: &mut MessageBuffer, limit: Duration) -> Result<i32, Code> {
        self.ipc(Call::RECEIVE, Endpoint::ANY, buffer, limit)
    }

    fn send(
        &self,
        sending: Sending,
        to: Endpoint,
        buffer: &mut MessageBuffer,
        limit: Duration,
    ) -> Result<i32, Code> {
        let call = match sending {
            Sending::Send => Call::SEND,
            Sending::Reply => Call::REPLY,
            Sending::SendRec => Call::SENDREC,
        };
        self.ipc(call, to, buffer, limit)
    }

    fn notify(&self, to: Endpoint) -> Result<i32, Code> {
        let mut block = Notify {
            src: Endpoint::SELF.raw(),
            dst: to.raw(),
            value: NO_UPDATE,
        };
        // SAFETY: the block holds no addresses.
        unsafe { self.call(Call::NOTIFY, &mut block) }
    }

    fn wake(&self, dc: DcId, endpoint: Endpoint) -> Result<i32, Code> {
        let mut block = Notify {
            src: Endpoint::HARDWARE.raw(),
            dst: endpoint.raw(),
            // The hardware is in no container, so the value names the container.
            value: dc.raw(),
        };
        // SAFETY: the block holds no addresses.
        unsafe { self.call(Call::NOTIFY, &mut block) }
    }

    fn copy_from(&self, from: Endpoint, at: u32, into: &mut [u8]) -> Result<i32, Code> {
        let block = CopyBlock {
            src: from.raw(),
            dst: Endpoint::SELF.raw(),
            src_address: at,
            dst_address: address(into.as_mut_ptr())?,
            ..CopyBlock::default()
        };
        self.copy(block, into.len())
    }

    fn copy_to(&self, to: Endpoint, at: u32, from: &[u8]) -> Result<i32, Code> {
        let block = CopyBlock {
            src: Endpoint::SELF.raw(),
            dst: to.raw(),
            // The kernel only reads there.
            src_address: address(from.as_ptr().cast_mut())?,
            dst_address: at,
            ..CopyBlock::default()
        };
        self.copy(block, from.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_is_a_number_or_a_code() {
        assert_eq!(outcome(Ok(36)), Ok(36));
        assert_eq!(outcome(Ok(-61)), Err(Code::EDVSTIMEDOUT));
        for number in 1..4096 {
            let errno = Errno::from_raw_os_error(number);
            assert_eq!(outcome(Err(errno)), Err(Code::new(number)));
        }
    }

    #[test]
    fn a_limit_is_never_zero_and_never_infinite() {
        assert_eq!(millis(Duration::ZERO), 1);
        assert_eq!(millis(Duration::from_micros(1500)), 1);
        assert_eq!(millis(Duration::from_secs(30)), 30_000);
        assert_eq!(millis(Duration::MAX), i32::MAX);
    }

    #[test]
    fn other_devices_refuse_the_calls() {
        let kernel = Kernel::open(Path::new("/dev/null")).unwrap();
        assert_eq!(kernel.dvs(), Err(Code::ENOTTY));
        let dc = DcId::FIRST;
        assert_eq!(kernel.bind(dc, Endpoint::from_raw(1)), Err(Code::ENOTTY));
        let narrow = if cfg!(target_pointer_width = "32") {
            Code::ENOTTY
        } else {
            Code::EFAULT
        };
        // On the heap, whose addresses exceed 32 bits on a 64-bit machine.
        let mut buffer = Box::new(MessageBuffer::blank());
        let received = kernel.receive(&mut buffer, Duration::from_millis(1));
        assert_eq!(received, Err(narrow));
        let copied = kernel.copy_from(Endpoint::from_raw(10), 0, &mut [0; 8]);
        assert_eq!(copied, Err(narrow));
        assert_eq!(kernel.container(dc).unwrap_err(), narrow);
    }
}
