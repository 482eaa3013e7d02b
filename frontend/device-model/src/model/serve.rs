//! The loop that answers a guest's accesses.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gangplank_service::rate_limit::RateLimit;
use gangplank_service::{error_chain, rate_limited};
use log::warn;
use parking_lot::Mutex;

use crate::hypervisor::{Pending, Port, PortError};
use crate::mmio::{Device, Transport};

/// Most waits in a row that may end by an interruption. After that many the port is taken for
/// broken.
const MAX_INTERRUPTED_WAITS: u32 = 1000;

/// Pause after an interrupted wait: a signal's effect is over by then, and a broken port costs
/// little CPU time.
const INTERRUPTED_WAIT_PAUSE: Duration = Duration::from_millis(1);

/// Counts of a port's accesses.
#[derive(Debug)]
pub struct Counters {
    /// Accesses that were handled.
    pub accesses: AtomicU64,
    /// Accesses that could not be completed, or whose handler panicked.
    pub faults: AtomicU64,
    /// The longest time between taking an access from the hypervisor and completing it, in
    /// microseconds.
    pub slowest_us: AtomicU64,
    /// Locked while an access is handled. Limits the log messages about accesses that could not be
    /// completed.
    handling: Mutex<RateLimit>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            accesses: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            slowest_us: AtomicU64::new(0),
            handling: Mutex::new(RateLimit::once()),
        }
    }
}

impl Counters {
    /// Waits until no access is being handled.
    pub(super) fn wait_idle(&self) {
        drop(self.handling.lock());
    }
}

/// Why a device is not served any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port gives no more accesses.
    #[error("cannot take the guest's accesses any more")]
    Port(#[source] PortError),
}

/// Answers every access that comes through `port` with the registers of `transport`, until `stop`
/// is set after a wait.
///
/// An error with one access ends neither the loop nor the guest: the access is completed in any
/// case. Runs on a thread of its own, as [`Port::next_access`] requires.
pub fn serve<P: Port + ?Sized, D: Device>(
    port: &P,
    transport: &Mutex<Transport<D>>,
    counters: &Counters,
    stop: &AtomicBool,
) -> Result<(), ServeError> {
    let mut interrupted = 0;
    while !stop.load(Ordering::Acquire) {
        match Pending::next(port) {
            Ok(pending) => {
                interrupted = 0;
                answer(pending, transport, counters);
            }
            Err(PortError::Interrupted) if interrupted < MAX_INTERRUPTED_WAITS => {
                interrupted += 1;
                std::thread::sleep(INTERRUPTED_WAIT_PAUSE);
            }
            Err(error) => return Err(ServeError::Port(error)),
        }
    }
    Ok(())
}

fn answer<P: Port + ?Sized, D: Device>(
    pending: Pending<'_, P>,
    transport: &Mutex<Transport<D>>,
    counters: &Counters,
) {
    let handling = counters.handling.lock();
    let began = Instant::now();
    let completed = pending.answer(|access| {
        counters.accesses.fetch_add(1, Ordering::Relaxed);
        let mut transport = transport.lock();
        catch_unwind(AssertUnwindSafe(|| transport.handle(access))).unwrap_or_else(|_| {
            rate_limited!(
                error,
                "handling a guest's access panicked; the device needs a reset"
            );
            counters.faults.fetch_add(1, Ordering::Relaxed);
            transport.needs_reset();
            0
        })
    });
    if let Err(error) = completed {
        counters.faults.fetch_add(1, Ordering::Relaxed);
        if handling.admit().is_some() {
            warn!("cannot complete a guest's access: {}", error_chain(&error));
        }
    }
    let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    counters.slowest_us.fetch_max(took, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::fake::{FakeGuest, FakePort, fake};
    use crate::hypervisor::{GuestRange, Operation};
    use crate::mmio::{Activation, EventFds, Register};

    const LIMIT: Duration = Duration::from_secs(10);

    /// A device that panics when its configuration space is written.
    struct Brittle;

    impl Device for Brittle {
        type Error = Infallible;

        fn device_id(&self) -> u32 {
            26
        }

        fn features(&self) -> u64 {
            0
        }

        fn queue_sizes(&self) -> &[u16] {
            &[64, 64]
        }

        fn config(&self) -> &[u8] {
            b"brittle"
        }

        fn write_config(&mut self, _: u64, _: &[u8]) {
            panic!("written to");
        }

        fn activate(&mut self, _: Activation) -> Result<(), Infallible> {
            Ok(())
        }

        fn resume(&mut self, _: &[u8], _: Option<Activation>) {}

        fn resume_broken(&mut self, _: Activation) {}

        fn stop_queue(&mut self, _: u16) {}

        fn reset(&mut self) {}
    }

    /// A device that is served until [`Served::end`].
    struct Served {
        guest: FakeGuest,
        counters: Arc<Counters>,
        thread: thread::JoinHandle<Result<(), ServeError>>,
    }

    fn parts() -> (FakePort, FakeGuest, Transport<Brittle>) {
        let window = GuestRange::new(0xa00_3e00, 0x200).unwrap();
        let memory = GuestRange::new(0x1000_0000, 0x10_0000).unwrap();
        let (port, guest) = fake(window, memory).unwrap();
        let eventfds = Arc::new(EventFds::connect(&port, 2).unwrap());
        (
            port,
            guest,
            Transport::new(Brittle, eventfds, window, memory),
        )
    }

    fn served() -> Served {
        let (port, guest, transport) = parts();
        let counters = Arc::new(Counters::default());
        let of_thread = Arc::clone(&counters);
        let thread = thread::spawn(move || {
            serve(
                &port,
                &Mutex::new(transport),
                &of_thread,
                &AtomicBool::new(false),
            )
        });
        Served {
            guest,
            counters,
            thread,
        }
    }

    impl Served {
        fn read(&self, register: Register) -> u64 {
            let read = self
                .guest
                .access(register.offset(), 4, Operation::Read, LIMIT);
            read.unwrap()
        }

        fn write(&self, offset: u64, value: u64) {
            let written = self.guest.access(offset, 4, Operation::Write(value), LIMIT);
            written.unwrap();
        }

        fn end(self) -> u64 {
            self.guest.take_away();
            let ended = self.thread.join().unwrap();
            assert!(matches!(ended, Err(ServeError::Port(PortError::Gone))));
            assert_eq!(self.guest.faults(), [""; 0]);
            assert_eq!(self.guest.unanswered(), (0, 0));
            self.counters.accesses.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn access_whose_handler_panics_is_completed_and_the_device_goes_on() {
        let served = served();
        for status in [1, 3] {
            served.write(Register::Status.offset(), status);
        }
        served.write(0x100, 1);
        assert_eq!(served.read(Register::Status), 0x43);
        served.write(Register::Status.offset(), 0);
        assert_eq!(served.read(Register::Status), 0);
        assert_eq!(served.counters.faults.load(Ordering::Relaxed), 1);
        assert_eq!(served.end(), 6);
    }

    #[test]
    fn interrupted_waits_end_nothing() {
        let served = served();
        for _ in 0..5 {
            served.guest.interrupt_wait();
            assert_eq!(served.read(Register::MagicValue), 0x7472_6976);
        }
        served.end();
    }

    #[test]
    fn kicks_reach_their_eventfd_and_never_the_registers() {
        let served = served();
        for queue in [0, 1, 7, u64::from(u32::MAX)] {
            served.write(Register::QueueNotify.offset(), queue);
        }
        assert_eq!(served.end(), 0);
    }

    #[test]
    fn stopped_loop_takes_no_further_access() {
        let (port, guest, transport) = parts();
        let stopped = AtomicBool::new(true);
        serve(
            &port,
            &Mutex::new(transport),
            &Counters::default(),
            &stopped,
        )
        .unwrap();
        guest.interrupt_wait();
        assert_eq!(guest.unanswered(), (0, 0));
    }

    #[test]
    fn change_that_the_guest_is_told_of_raises_its_interrupt_line() {
        let (port, guest, mut transport) = parts();
        for status in [1, 3] {
            transport.write(Register::Status.offset(), 4, status);
        }
        transport.write(Register::DriverFeaturesSel.offset(), 4, 1);
        transport.write(Register::DriverFeatures.offset(), 4, 3);
        transport.write(Register::Status.offset(), 4, 0xf);
        assert!(!guest.interrupted(Duration::ZERO).unwrap());
        transport.needs_reset();
        assert!(guest.interrupted(LIMIT).unwrap());
        drop(port);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn every_access_of_every_cpu_is_completed_exactly_once(
            per_cpu in prop::collection::vec(
                prop::collection::vec((0u64..0x280, 0u64..10, any::<Option<u64>>()), 1..40),
                1..4,
            ),
        ) {
            let served = served();
            let wanted: usize = per_cpu.iter().map(Vec::len).sum();
            let kicks = per_cpu
                .iter()
                .flatten()
                .filter(|(offset, width, value)| *offset == 0x50 && *width <= 4 && value.is_some())
                .count();
            let cpus: Vec<_> = per_cpu
                .into_iter()
                .map(|accesses| {
                    let guest = served.guest.clone();
                    thread::spawn(move || {
                        for (offset, width, value) in accesses {
                            let operation = value.map_or(Operation::Read, Operation::Write);
                            guest.access(offset, width, operation, LIMIT).unwrap();
                        }
                    })
                })
                .collect();
            for cpu in cpus {
                cpu.join().unwrap();
            }
            prop_assert_eq!(served.end(), u64::try_from(wanted - kicks).unwrap());
        }
    }
}
