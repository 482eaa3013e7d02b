//! An access that is completed exactly once.

use gangplank_service::rate_limited;

use super::{Access, Port, PortError};

/// An access that the port has handed out. Answering completes it. If its handler returns early or
/// panics, dropping completes it with 0, which is what a missing register reads as.
#[derive(Debug)]
pub struct Pending<'p, P: Port + ?Sized> {
    port: &'p P,
    /// `None` once the port has it back.
    access: Option<Access>,
}

impl<'p, P: Port + ?Sized> Pending<'p, P> {
    /// Waits for the next access on `port`, as [`Port::next_access`].
    pub fn next(port: &'p P) -> Result<Self, PortError> {
        Ok(Self {
            access: Some(port.next_access()?),
            port,
        })
    }

    /// Completes the access with the result of `handler`. Fails as [`Port::complete`]; the access
    /// is over in any case.
    pub fn answer(mut self, handler: impl FnOnce(&Access) -> u64) -> Result<(), PortError> {
        let answer = self.access.as_ref().map_or(0, handler);
        match self.access.take() {
            Some(access) => self.port.complete(access, answer),
            None => Ok(()),
        }
    }
}

impl<P: Port + ?Sized> Drop for Pending<'_, P> {
    fn drop(&mut self) {
        if let Some(access) = self.access.take() {
            let address = access.address;
            rate_limited!(
                warn,
                "the access to {address:#x} was not handled; it is completed with 0"
            );
            if let Err(error) = self.port.complete(access, 0) {
                rate_limited!(
                    warn,
                    "the access to {address:#x} could not be completed: {error}"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::fake::{FakeGuest, FakePort, fake};
    use crate::hypervisor::{GuestRange, Operation};

    fn reading_guest() -> (FakePort, FakeGuest, thread::JoinHandle<u64>) {
        let window = GuestRange::new(0x1000, 0x200).unwrap();
        let memory = GuestRange::new(0x10_0000, 0x1000).unwrap();
        let (port, guest) = fake(window, memory).unwrap();
        let cpu = guest.clone();
        let reading = move || cpu.access(8, 4, Operation::Read, Duration::from_secs(10));
        (port, guest, thread::spawn(move || reading().unwrap()))
    }

    #[test]
    fn answered_access_is_completed_once_with_the_answer() {
        let (port, guest, cpu) = reading_guest();
        let pending = Pending::next(&port).unwrap();
        pending.answer(|access| access.address).unwrap();
        assert_eq!(cpu.join().unwrap(), 0x1008);
        assert_eq!(guest.faults(), [""; 0]);
    }

    #[test]
    fn dropped_access_is_completed_with_zero() {
        let (port, guest, cpu) = reading_guest();
        drop(Pending::next(&port).unwrap());
        assert_eq!(cpu.join().unwrap(), 0);
        assert_eq!(guest.faults(), [""; 0]);
    }

    #[test]
    fn access_whose_handler_panics_is_completed_with_zero() {
        let (port, guest, cpu) = reading_guest();
        let pending = Pending::next(&port).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            pending.answer(|_| panic!("on purpose"))
        }));
        assert!(panicked.is_err());
        assert_eq!(cpu.join().unwrap(), 0);
        assert_eq!(guest.faults(), [""; 0]);
    }
}
