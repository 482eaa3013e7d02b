//! One device of Bao's remote I/O driver, as a port.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use gangplank_service::rate_limited;
use log::{debug, info};
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::fd::{self, Driver, Kernel};
use super::signals;
use super::sys::{Abi, Family, op, word};
use crate::hypervisor::{Access, GuestMemory, GuestRange, Operation, Port, PortError, Token};
use crate::journal::{Journal, Request, Unfinished};
use crate::mmio::Register;

/// How long the guest must leave the device alone before an uncertain request is completed: a CPU
/// that could go on would have made another access in this time.
const QUIET_TIME: Duration = Duration::from_millis(50);

/// How long to wait for such a pause before completing the request anyway.
const MAX_QUIET_WAIT: Duration = Duration::from_secs(2);

/// Time between two looks at the device.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// One device of the driver. See [`super::Node::device`].
#[derive(Debug)]
pub struct BaoPort<D = Kernel> {
    driver: D,
    abi: &'static Abi,
    /// Never closed: the driver frees what its own lists still point at.
    device: ManuallyDrop<OwnedFd>,
    window: GuestRange,
    memory: GuestMemory,
    /// Since when a thread is in ATTACH. Two threads in ATTACH may get the same request, which the
    /// driver then frees twice.
    attached: Mutex<Option<Instant>>,
    journal: Arc<Journal>,
    /// The request that a predecessor took and did not complete.
    unfinished: Mutex<Option<Request>>,
    /// Whether the journal has requests of which it is uncertain whether a predecessor completed
    /// them.
    has_uncertain: AtomicBool,
}

impl<D: Driver> BaoPort<D> {
    pub(super) fn new(
        driver: D,
        abi: &'static Abi,
        device: ManuallyDrop<OwnedFd>,
        window: GuestRange,
        memory: GuestMemory,
        journal: Arc<Journal>,
    ) -> Self {
        let mut unfinished = None;
        match journal.unfinished() {
            None => {}
            Some(Unfinished::Taken(request)) => {
                info!("continues with the access that a predecessor had taken");
                unfinished = Some(request);
            }
            Some(Unfinished::Uncertain(request)) => {
                journal.set_aside(request);
                journal.end_request();
            }
        }
        let has_uncertain = AtomicBool::new(!journal.uncertain().is_empty());
        Self {
            driver,
            abi,
            device,
            window,
            memory,
            attached: Mutex::new(None),
            journal,
            unfinished: Mutex::new(unfinished),
            has_uncertain,
        }
    }

    /// The driver's generation, for people.
    pub fn generation(&self) -> &'static str {
        self.abi.name
    }

    fn attach(&self) -> Result<Access, PortError> {
        let memory = self.journal.prepare_attach();
        if let Err(error) = fd::exchange(&self.driver, &*self.device, self.abi.attach, memory) {
            self.journal.end_request();
            return Err(self.no_access(error));
        }
        let request = self.journal.request();
        if self.has_uncertain.load(Ordering::Relaxed) {
            self.drop_superseded(&request);
        }
        Ok(to_access(request))
    }

    /// Drops the uncertain request of the CPU that has made this one: a CPU makes an access only
    /// after its previous one was completed.
    fn drop_superseded(&self, request: &Request) {
        self.journal
            .drop_uncertain(|doubt| doubt[word::SLOT] == request[word::SLOT]);
        let left = !self.journal.uncertain().is_empty();
        self.has_uncertain.store(left, Ordering::Relaxed);
    }

    /// Gives a request back to the driver, from the journal's memory.
    fn give_back(&self, request: Request) -> Result<(), Errno> {
        let memory = self.journal.begin_complete(request);
        let given = fd::exchange(&self.driver, &*self.device, self.abi.complete, memory);
        self.journal.end_request();
        given
    }

    fn attached(&self) -> MutexGuard<'_, Option<Instant>> {
        self.attached.lock()
    }

    /// The meaning of an ATTACH that brought no request.
    fn no_access(&self, error: Errno) -> PortError {
        match (error, self.abi.family) {
            // The driver ignores the result of its wait, and finds nothing to copy.
            (Errno::FAULT, Family::Described) | (Errno::EXIST, Family::Created) => {
                PortError::Interrupted
            }
            // The result of the wait, in a driver that does not ignore it.
            (Errno::INTR, _) => PortError::Interrupted,
            // The device is being destroyed, or has no client to take requests any more.
            (Errno::PERM, Family::Described) | (Errno::INVAL | Errno::NODEV, _) => PortError::Gone,
            _ => failed("wait for the guest's next access")(error.into()),
        }
    }

    fn notify_address(&self) -> u64 {
        // The window is longer than that: `new` gets one of at least 0x200 bytes that does not
        // wrap.
        self.window
            .start()
            .wrapping_add(Register::QueueNotify.offset())
    }
}

impl<D: Driver + 'static> Port for BaoPort<D> {
    fn window(&self) -> GuestRange {
        self.window
    }

    fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    fn next_access(&self) -> Result<Access, PortError> {
        if self.attached().replace(Instant::now()).is_some() {
            return Err(PortError::Busy);
        }
        signals::block_all();
        let unfinished = self.unfinished.lock().take();
        let access = match unfinished {
            Some(request) => Ok(to_access(request)),
            None => self.attach(),
        };
        *self.attached() = None;
        access
    }

    /// In the older generations, a wait that ends without a request unlocks a lock that it does not
    /// hold.
    fn is_wait_fragile(&self) -> bool {
        self.abi.family == Family::Created
    }

    fn complete(&self, access: Access, answer: u64) -> Result<(), PortError> {
        // The request as received, with only a read's value changed: the hypervisor looks at `op`
        // to decide whether to write the guest's register.
        let Token(mut request) = access.token;
        if access.operation == Operation::Read {
            request[word::VALUE] = answer;
        }
        self.give_back(request).map_err(|error| {
            let doing = match error {
                Errno::PERM => "complete an access: the hypervisor is not waiting for it",
                Errno::NOENT => "complete an access: this hypervisor has no remote I/O",
                Errno::SRCH => "complete an access: the hypervisor knows no such device",
                _ => "complete an access",
            };
            failed(doing)(error.into())
        })
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
    /// If such a request has been completed, its slot may hold another request by now, which must
    /// not be completed in its place. If it has not been completed, a CPU of the guest waits for
    /// ever. So a thread waits until the guest leaves the device alone. A guest's CPU whose request
    /// has been completed has then either made another access, which removes the doubt, or has no
    /// request here at all, and the hypervisor refuses to complete one. An access that is made in
    /// this very moment remains a risk.
    fn complete_uncertain(self: Arc<Self>) -> io::Result<()> {
        if !self.has_uncertain.load(Ordering::Relaxed) {
            return Ok(());
        }
        let thread = Builder::new().name("uncertain".to_owned());
        thread.spawn(move || self.complete_when_quiet()).map(|_| ())
    }
}

impl<D: Driver> BaoPort<D> {
    fn complete_when_quiet(&self) {
        let began = Instant::now();
        loop {
            thread::sleep(POLL_INTERVAL);
            if !self.has_uncertain.load(Ordering::Relaxed) {
                debug!("an uncertain access had been completed");
                return;
            }
            let wanted = match began.elapsed() < MAX_QUIET_WAIT {
                true => QUIET_TIME,
                false => Duration::ZERO,
            };
            let attached = self.attached();
            if attached.is_some_and(|since| since.elapsed() >= wanted) {
                return self.complete_uncertain_now();
            }
        }
    }

    /// A thread may be in ATTACH and use the journal's memory for its request, so each request is
    /// completed from a copy.
    fn complete_uncertain_now(&self) {
        for mut request in self.journal.uncertain() {
            let memory = zerocopy::IntoBytes::as_mut_bytes(&mut request).into();
            let given = fd::exchange(&self.driver, &*self.device, self.abi.complete, memory);
            rate_limited!(
                info,
                "an uncertain access {}",
                match given {
                    Ok(()) => "is completed now".to_owned(),
                    Err(error) => format!("had been completed, it seems: {error}"),
                }
            );
        }
        self.journal.drop_uncertain(|_| true);
        self.has_uncertain.store(false, Ordering::Relaxed);
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
