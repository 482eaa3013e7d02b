//! Decodes the calls: numbers, blocks in the program's memory, and copies from and to it.

use std::time::Duration;

use gangplank_dvk::abi::ioctl::{
    Bind, Call, DcUsr, DvsUsr, GetDcInfo, GetProcInfo, Ipc, Notify, ProcUsr, SELF_BIND, SLOT_FREE,
    Unbind,
};
use gangplank_dvk::abi::{Code, CopyBlock, DcLimits, Endpoint, Message};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::EmulatedDevice;
use super::emulated::{Bytes, Copy};
use crate::bao::seccomp::{self, LONGEST, Notification};

/// Bytes of the CPU mask that a kernel appends to information on containers and processes.
const CPU_MASK: usize = 4;

/// Executes the call in `note`.
pub(super) fn answer(emulated: &EmulatedDevice, note: Notification) -> Result<i32, Code> {
    let seccomp::Call::Ioctl {
        number, argument, ..
    } = note.call
    else {
        return Err(Code::ENOTTY);
    };
    let known = [
        Call::GETDVSINFO,
        Call::GETDCINFO,
        Call::GETPROCINFO,
        Call::BIND,
        Call::UNBIND,
        Call::RECEIVE,
        Call::REPLY,
        Call::NOTIFY,
        Call::VCOPY,
    ];
    let call = known.into_iter().find(|call| call.code() == number);
    let call = call.ok_or(Code::ENOTTY)?;
    emulated.count(call.name().unwrap_or_default());
    let caller = Caller {
        emulated,
        thread: note.thread,
    };
    match call {
        Call::GETDVSINFO => caller.put(argument, &DvsUsr::default()),
        Call::GETDCINFO => caller.container(&caller.block(argument)?),
        Call::GETPROCINFO => caller.process(&caller.block(argument)?),
        Call::BIND => caller.bind(&caller.block(argument)?),
        Call::UNBIND => caller.unbind(&caller.block(argument)?),
        Call::RECEIVE => caller.receive(&caller.block(argument)?),
        Call::REPLY => caller.reply(&caller.block(argument)?),
        Call::NOTIFY => caller.notify(&caller.block(argument)?),
        _ => caller.copy(&caller.block(argument)?),
    }
}

/// A calling thread of the program.
struct Caller<'a> {
    emulated: &'a EmulatedDevice,
    thread: u32,
}

impl Caller<'_> {
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Code> {
        let mut at = address;
        for piece in bytes.chunks_mut(LONGEST) {
            seccomp::read(self.thread, at, piece).map_err(|_| Code::EFAULT)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Code> {
        let mut at = address;
        for piece in bytes.chunks(LONGEST) {
            seccomp::write(self.thread, at, piece).map_err(|_| Code::EFAULT)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn block<T: FromBytes + IntoBytes>(&self, address: u64) -> Result<T, Code> {
        let mut block = T::new_zeroed();
        let read = self.read(address, block.as_mut_bytes());
        read.map_err(|_| Code::E2BIG)?;
        Ok(block)
    }

    fn put(&self, address: u64, told: &(impl IntoBytes + Immutable)) -> Result<i32, Code> {
        self.write(address, told.as_bytes())?;
        Ok(0)
    }

    /// The slot that this thread has bound, or an error.
    fn slot(&self) -> Result<i32, Code> {
        self.emulated.lock().caller(self.thread)
    }

    fn container(&self, block: &GetDcInfo) -> Result<i32, Code> {
        if block.dcid != 0 {
            return Err(Code::EDVSBADDCID);
        }
        let usual = DcLimits::USUAL;
        let told = DcUsr {
            nr_procs: usual.procs,
            nr_tasks: usual.tasks,
            nr_sysprocs: usual.sysprocs,
            nr_nodes: 32,
            ..DcUsr::default()
        };
        self.put(block.info.into(), &told)?;
        self.write(
            u64::from(block.info) + size_of::<DcUsr>() as u64,
            &[0xff; CPU_MASK],
        )?;
        Ok(0)
    }

    fn process(&self, block: &GetProcInfo) -> Result<i32, Code> {
        let mut told = ProcUsr {
            nr: block.p_nr,
            endpoint: block.p_nr,
            rts_flags: SLOT_FREE,
            nodeid: -1,
            ..ProcUsr::default()
        };
        if let Some(process) = self.emulated.lock().processes.get(&block.p_nr) {
            told.rts_flags = 0;
            told.nodeid = 0;
            told.lpid = process.pid;
        }
        self.put(block.info.into(), &told)?;
        self.write(
            u64::from(block.info) + size_of::<ProcUsr>() as u64,
            &[0xff; CPU_MASK],
        )?;
        Ok(0)
    }

    fn bind(&self, block: &Bind) -> Result<i32, Code> {
        if (block.cmd, block.pid, block.nodeid) != (SELF_BIND, -1, -1) {
            return Err(Code::EDVSBINDTYPE);
        }
        let mut state = self.emulated.lock();
        if state.caller(self.thread).is_ok() {
            return Err(Code::EDVSGRPLEADER);
        }
        state.bind(block.ep, Some(self.thread))?;
        Ok(block.ep)
    }

    fn unbind(&self, block: &Unbind) -> Result<i32, Code> {
        self.emulated.lock().remove(block.ep);
        self.emulated.changed.notify_all();
        Ok(0)
    }

    fn receive(&self, block: &Ipc) -> Result<i32, Code> {
        if block.ep != Endpoint::ANY.raw() {
            return Err(Code::ENOSYS);
        }
        let limit = u64::try_from(block.timeout).map_err(|_| Code::EDVSBADVALUE)?;
        let slot = self.slot()?;
        let message = self.emulated.receive(slot, Duration::from_millis(limit))?;
        let mut bytes = vec![0; self.emulated.size];
        message.encode(&mut bytes);
        self.write(block.message.into(), &bytes)?;
        Ok(0)
    }

    fn reply(&self, block: &Ipc) -> Result<i32, Code> {
        let mut bytes = vec![0; self.emulated.size];
        self.read(block.message.into(), &mut bytes)?;
        let message = Message::decode(&bytes).ok_or(Code::EIO)?;
        let to = Endpoint::from_raw(block.ep);
        self.emulated.reply(self.slot()?, to, message)
    }

    fn notify(&self, block: &Notify) -> Result<i32, Code> {
        // Any thread may call this in the hardware's name. It then names the container.
        if block.src != Endpoint::HARDWARE.raw() || block.value != 0 {
            return Err(Code::ENOSYS);
        }
        self.emulated.notify(Endpoint::from_raw(block.dst))
    }

    fn copy(&self, block: &CopyBlock) -> Result<i32, Code> {
        let own = [Endpoint::SELF.raw(), self.slot()?];
        let bytes = usize::try_from(block.bytes).map_err(|_| Code::EDVSBADRANGE)?;
        if own.contains(&block.dst) {
            let copy = Copy {
                address: block.src_address,
                bytes: Bytes::Out(bytes),
            };
            let data = self.emulated.copy(Endpoint::from_raw(block.src), copy)?;
            self.write(block.dst_address.into(), &data)?;
        } else if own.contains(&block.src) {
            let mut data = vec![0; bytes];
            self.read(block.src_address.into(), &mut data)?;
            let copy = Copy {
                address: block.dst_address,
                bytes: Bytes::In(data),
            };
            self.emulated.copy(Endpoint::from_raw(block.dst), copy)?;
        } else {
            return Err(Code::ENOSYS);
        }
        Ok(block.bytes)
    }
}
