//! One device of Bao's remote I/O driver, as a port.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::fd::{self, Driver, Kernel, Request};
use super::signals;
use super::sys::{Abi, Family, op, word};
use crate::hypervisor::{Access, GuestMemory, GuestRange, Operation, Port, PortError, Token};
use crate::mmio::Register;

/// One device of the driver. See [`super::Node::device`].
#[derive(Debug)]
pub struct BaoPort<D = Kernel> {
    driver: D,
    abi: &'static Abi,
    /// Never closed: the driver frees what its own lists still point at.
    device: ManuallyDrop<OwnedFd>,
    window: GuestRange,
    memory: GuestMemory,
    /// Whether a thread is in ATTACH: two may get the same request, which the driver then frees twice.
    attached: AtomicBool,
}

impl<D: Driver> BaoPort<D> {
    pub(super) fn new(
        driver: D,
        abi: &'static Abi,
        device: ManuallyDrop<OwnedFd>,
        window: GuestRange,
        memory: GuestMemory,
    ) -> Self {
        Self {
            driver,
            abi,
            device,
            window,
            memory,
            attached: AtomicBool::new(false),
        }
    }

    /// The driver's generation, for people.
    pub fn generation(&self) -> &'static str {
        self.abi.name
    }

    fn attach(&self) -> Result<Access, PortError> {
        let mut request: Request = [0; 8];
        request[word::OP] = op::ASK;
        match fd::exchange(&self.driver, &*self.device, self.abi.attach, &mut request) {
            Ok(()) => Ok(to_access(request)),
            Err(error) => Err(self.no_access(error)),
        }
    }

    /// What an ATTACH that brought no request means.
    fn no_access(&self, error: Errno) -> PortError {
        match (error, self.abi.family) {
            // The driver throws the result of its wait away and finds nothing to copy.
            (Errno::FAULT, Family::Described) | (Errno::EXIST, Family::Created) => {
                PortError::Interrupted
            }
            // What a wait would give that is not thrown away.
            (Errno::INTR, _) => PortError::Interrupted,
            // The device is being destroyed; or has no client to take requests any more.
            (Errno::PERM, Family::Described) | (Errno::INVAL | Errno::NODEV, _) => PortError::Gone,
            _ => failed("wait for the guest's next access")(error.into()),
        }
    }

    fn notify_address(&self) -> u64 {
        // A window is longer than that: `new` is given one of at least 0x200 bytes that does not wrap.
        self.window
            .start()
            .wrapping_add(Register::QueueNotify.offset())
    }
}

impl<D: Driver> Port for BaoPort<D> {
    fn window(&self) -> GuestRange {
        self.window
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn next_access(&self) -> Result<Access, PortError> {
        if self.attached.swap(true, Ordering::Acquire) {
            return Err(PortError::Busy);
        }
        signals::block_all();
        let access = self.attach();
        self.attached.store(false, Ordering::Release);
        access
    }

    fn complete(&self, access: Access, answer: u64) -> Result<(), PortError> {
        // As it was received, and only a read's value changed: by its op the hypervisor decides whether the guest's
        // register is written.
        let Token(mut request) = access.token;
        if access.operation == Operation::Read {
            request[word::VALUE] = answer;
        }
        fd::exchange(&self.driver, &*self.device, self.abi.complete, &mut request).map_err(
            |error| {
                let doing = match error {
                    Errno::PERM => "complete an access: the hypervisor is not waiting for it",
                    Errno::NOENT => "complete an access: this hypervisor has no remote I/O",
                    Errno::SRCH => "complete an access: the hypervisor knows no such device",
                    _ => "complete an access",
                };
                failed(doing)(error.into())
            },
        )
    }

    fn connect_kick(&self, queue: u16, kick: &EventFd) -> Result<(), PortError> {
        let address = self.notify_address();
        let call = self.abi.ioeventfd;
        fd::assign_ioeventfd(
            &self.driver,
            &*self.device,
            call,
            kick,
            address,
            queue.into(),
        )
        .map_err(failed("connect a queue's kicks"))
    }

    fn disconnect_kick(&self, queue: u16, kick: &EventFd) -> Result<(), PortError> {
        let address = self.notify_address();
        let call = self.abi.ioeventfd;
        fd::deassign_ioeventfd(
            &self.driver,
            &*self.device,
            call,
            kick,
            address,
            queue.into(),
        )
        .map_err(failed("disconnect a queue's kicks"))
    }

    fn connect_interrupt(&self, interrupt: &EventFd) -> Result<(), PortError> {
        fd::connect_irqfd(&self.driver, &*self.device, self.abi.irqfd, interrupt, true)
            .map_err(failed("connect the interrupt line"))
    }

    fn disconnect_interrupt(&self, interrupt: &EventFd) -> Result<(), PortError> {
        fd::connect_irqfd(
            &self.driver,
            &*self.device,
            self.abi.irqfd,
            interrupt,
            false,
        )
        .map_err(failed("disconnect the interrupt line"))
    }
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> PortError {
    move |source| PortError::Failed { doing, source }
}

fn to_access(request: Request) -> Access {
    Access {
        address: request[word::ADDR],
        width: request[word::ACCESS_WIDTH],
        operation: match request[word::OP] {
            op::READ => Operation::Read,
            op::WRITE => Operation::Write(request[word::VALUE]),
            other => Operation::Unknown(other),
        },
        token: Token(request),
    }
}
