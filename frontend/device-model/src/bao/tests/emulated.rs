//! An emulation of the driver: what each of its calls does by its source, bugs included.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use vm_memory::VolatileSlice;
use zerocopy::{FromBytes, IntoBytes};

use crate::bao::fd::Driver;
use crate::bao::sys::{Abi, CREATE, Call, Family, GET_INFO, Info, Ioeventfd, Irqfd};
use crate::journal::Request;

/// The driver of one generation, or one that lacks some calls.
#[derive(Clone, Debug)]
pub(super) struct EmulatedDriver {
    abi: &'static Abi,
    /// The name of its devices' files, and of no others.
    pub(super) name: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// What the driver has got, and what it answers.
#[derive(Debug, Default)]
pub(super) struct State {
    /// What ATTACH returns, in turn. It blocks while there is nothing.
    pub(super) requests: VecDeque<Result<Request, Errno>>,
    /// Threads in ATTACH.
    pub(super) attached: usize,
    /// What COMPLETE has got, shortened to its structure.
    pub(super) completed: Vec<Vec<u8>>,
    /// What COMPLETE answers.
    pub(super) complete_error: Option<Errno>,
    /// The eventfd, address and data of each entry.
    pub(super) ioeventfds: Vec<(u32, u64, u64)>,
    pub(super) irqfds: Vec<RawFd>,
    /// Whether DEASSIGN works, unlike in all known drivers.
    pub(super) mended: bool,
    /// Calls that this driver does not have.
    pub(super) missing: Vec<Call>,
    /// The shared memory that it reports.
    pub(super) memory: (u64, u64),
    /// The number of every call with an argument.
    pub(super) made: Vec<u32>,
    /// Every device by its descriptor's number; the descriptor until its caller owns it.
    devices: HashMap<RawFd, Option<OwnedFd>>,
}

impl EmulatedDriver {
    pub(super) fn new(abi: &'static Abi) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let emulated = Self {
            abi,
            name: format!("device of emulated driver {number};"),
            shared: Arc::default(),
        };
        emulated.state().memory = (0x1000_0000, 0x100_0000);
        emulated
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    /// Gives ATTACH something to return.
    pub(super) fn ask(&self, found: Result<Request, Errno>) {
        self.state().requests.push_back(found);
        self.shared.changed.notify_all();
    }

    /// Waits until a thread is in ATTACH.
    pub(super) fn until_attached(&self) {
        let waiting = |state: &mut State| state.attached == 0;
        let state = self.shared.changed.wait_while(self.state(), waiting);
        assert_eq!(state.unwrap().attached, 1);
    }

    /// Waits until COMPLETE has got a request, and returns that.
    pub(super) fn until_completed(&self) -> Vec<u8> {
        let none = |state: &mut State| state.completed.is_empty();
        let state = self.shared.changed.wait_while(self.state(), none);
        state.unwrap().completed[0].clone()
    }

    /// The number of a new device's descriptor, which the caller does not own yet.
    fn device(&self) -> RawFd {
        let device = rustix::fs::memfd_create(&self.name, MemfdFlags::CLOEXEC).unwrap();
        let number = device.as_raw_fd();
        self.state().devices.insert(number, Some(device));
        number
    }

    fn knows(&self, on_device: bool, call: Call) -> bool {
        let abi = self.abi;
        let here = match (on_device, abi.family) {
            (false, Family::Created) => call == CREATE,
            (false, Family::Described) => call == GET_INFO,
            (true, _) => [abi.attach, abi.complete, abi.ioeventfd, abi.irqfd].contains(&call),
        };
        here && !self.state().missing.contains(&call)
    }

    fn attach(&self, argument: &mut [u8]) -> Result<i32, Errno> {
        let mut state = self.state();
        state.attached += 1;
        self.shared.changed.notify_all();
        let empty = |state: &mut State| state.requests.is_empty();
        let mut state = self.shared.changed.wait_while(state, empty).unwrap();
        state.attached -= 1;
        let request = state.requests.pop_front().unwrap()?;
        let (filled, _) = argument.split_at_mut(self.abi.attach.size());
        filled.copy_from_slice(&request.as_bytes()[..filled.len()]);
        Ok(0)
    }

    fn complete(&self, argument: &[u8]) -> Result<i32, Errno> {
        let mut state = self.state();
        let len = self.abi.complete.size();
        state.completed.push(argument[..len].to_vec());
        self.shared.changed.notify_all();
        state.complete_error.map_or(Ok(0), Err)
    }

    fn ioeventfd(&self, argument: &[u8]) -> Result<i32, Errno> {
        let (
            Ioeventfd {
                fd,
                flags,
                addr,
                len,
                data,
                ..
            },
            _,
        ) = Ioeventfd::read_from_prefix(argument).unwrap();
        let mut state = self.state();
        if flags & 4 != 0 {
            let before = state.ioeventfds.len();
            state.ioeventfds.retain(|entry| entry.0 != fd);
            if state.mended {
                let found = state.ioeventfds.len() < before;
                return if found { Ok(0) } else { Err(Errno::NOENT) };
            }
        }
        if !matches!(len, 1 | 2 | 4 | 8) {
            return Err(Errno::INVAL);
        }
        if state.ioeventfds.contains(&(fd, addr, data)) {
            return Err(Errno::EXIST);
        }
        state.ioeventfds.push((fd, addr, data));
        Ok(0)
    }

    fn irqfd(&self, argument: &[u8]) -> Result<i32, Errno> {
        let (Irqfd { fd, flags }, _) = Irqfd::read_from_prefix(argument).unwrap();
        let mut state = self.state();
        let known = state.irqfds.contains(&fd);
        match (flags, known) {
            (0, true) => return Err(Errno::BUSY),
            (0, false) => state.irqfds.push(fd),
            _ => state.irqfds.retain(|known| *known != fd),
        }
        Ok(0)
    }
}

impl Driver for EmulatedDriver {
    fn call(
        &self,
        file: BorrowedFd<'_>,
        call: Call,
        argument: Option<VolatileSlice<'_>>,
    ) -> Result<i32, Errno> {
        let on_device = self.state().devices.contains_key(&file.as_raw_fd());
        if !self.knows(on_device, call) {
            return Err(Errno::NOTTY);
        }
        let place = argument.ok_or(Errno::FAULT)?;
        let mut argument = vec![0; place.len()];
        place.copy_to(&mut argument);
        let answer = self.answer(call, &mut argument);
        place.copy_from(&argument);
        answer
    }

    fn adopt(&self, descriptor: i32) -> Option<OwnedFd> {
        self.state().devices.get_mut(&descriptor)?.take()
    }
}

impl EmulatedDriver {
    fn answer(&self, call: Call, argument: &mut [u8]) -> Result<i32, Errno> {
        assert!(argument.len() >= call.size());
        self.state().made.push(call.code());
        if call == CREATE {
            return Ok(self.device());
        }
        if call == GET_INFO {
            let (mut info, _) = Info::read_from_prefix(argument).unwrap();
            if info.id > 15 {
                return Err(Errno::INVAL);
            }
            (info.shmem_addr, info.shmem_size) = self.state().memory;
            info.fd = self.device();
            argument.copy_from_slice(info.as_bytes());
            return Ok(1);
        }
        let abi = self.abi;
        match call {
            _ if call == abi.attach => self.attach(argument),
            _ if call == abi.complete => self.complete(argument),
            _ if call == abi.ioeventfd => self.ioeventfd(argument),
            _ => self.irqfd(argument),
        }
    }
}

/// A stand-in for the driver's node. It answers no call itself.
pub(super) fn node() -> File {
    File::from(rustix::fs::memfd_create("emulated node", MemfdFlags::CLOEXEC).unwrap())
}
