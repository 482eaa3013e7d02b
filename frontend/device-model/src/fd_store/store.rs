//! The descriptors that the fd store keeps, and the clients that have claimed them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::message::{Answer, Request, Slot};

/// Most devices: more than any driver has.
const MAX_DEVICES: usize = 256;

/// One connection to the fd store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Client {
    /// Never used again as long as the fd store lives.
    pub(super) number: u64,
    /// The client's process.
    pub(super) process: u32,
}

/// All descriptors.
#[derive(Debug, Default)]
pub(super) struct Store {
    devices: BTreeMap<u32, Device>,
}

#[derive(Debug, Default)]
struct Device {
    claimed: Option<Client>,
    kept: BTreeMap<Slot, OwnedFd>,
}

impl Store {
    /// Carries out `client`'s request. Returns the answer, and the descriptor to send with it.
    pub(super) fn answer(
        &mut self,
        client: Client,
        request: Request,
        descriptor: Option<OwnedFd>,
    ) -> (Answer, Option<BorrowedFd<'_>>) {
        const DONE: Answer = Answer::Done { process: 0 };
        let answer = match request {
            Request::Hello => Answer::Done {
                process: std::process::id(),
            },
            Request::Claim { device } => self.claim(client, device),
            Request::Get { device, slot } => match self.claimed_by(client, device) {
                None => Answer::Unclaimed,
                Some(device) => match device.kept.get(&slot) {
                    None => Answer::Empty,
                    Some(kept) => return (DONE, Some(kept.as_fd())),
                },
            },
            Request::Put { device, slot } => match (self.claimed_by(client, device), descriptor) {
                (None, _) => Answer::Unclaimed,
                (Some(_), None) => Answer::Refused,
                (Some(device), Some(descriptor)) => {
                    if device.kept.contains_key(&slot) && !slot.is_replaceable() {
                        Answer::Occupied
                    } else {
                        device.kept.insert(slot, descriptor);
                        DONE
                    }
                }
            },
            Request::Drop { device, slot } => match self.claimed_by(client, device) {
                None => Answer::Unclaimed,
                Some(_) if !slot.is_replaceable() => Answer::Occupied,
                Some(device) => match device.kept.remove(&slot) {
                    None => Answer::Empty,
                    Some(_) => DONE,
                },
            },
        };
        (answer, None)
    }

    /// Releases the claims of `client`, whose connection has ended. Its descriptors stay.
    pub(super) fn leave(&mut self, client: Client) {
        for device in self.devices.values_mut() {
            device.claimed = device.claimed.filter(|owner| *owner != client);
        }
        self.devices
            .retain(|_, device| device.claimed.is_some() || !device.kept.is_empty());
    }

    /// Whether nothing is kept or claimed.
    pub(super) fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    fn claim(&mut self, client: Client, device: u32) -> Answer {
        if self.devices.len() >= MAX_DEVICES && !self.devices.contains_key(&device) {
            return Answer::Refused;
        }
        let claimed = &mut self.devices.entry(device).or_default().claimed;
        match claimed {
            Some(owner) if *owner != client => Answer::Busy {
                process: owner.process,
            },
            _ => {
                *claimed = Some(client);
                Answer::Done { process: 0 }
            }
        }
    }

    fn claimed_by(&mut self, client: Client, device: u32) -> Option<&mut Device> {
        let device = self.devices.get_mut(&device)?;
        (device.claimed == Some(client)).then_some(device)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    const FIRST: Client = Client {
        number: 1,
        process: 100,
    };
    const SECOND: Client = Client {
        number: 2,
        process: 200,
    };
    const DONE: Answer = Answer::Done { process: 0 };

    fn something() -> Option<OwnedFd> {
        Some(File::open("/dev/null").unwrap().into())
    }

    fn claimed() -> Store {
        let mut store = Store::default();
        let (answer, _) = store.answer(FIRST, Request::Claim { device: 3 }, None);
        assert_eq!(answer, DONE);
        store
    }

    fn put(store: &mut Store, client: Client, slot: Slot) -> Answer {
        let request = Request::Put { device: 3, slot };
        store.answer(client, request, something()).0
    }

    #[test]
    fn second_client_is_refused_until_the_first_has_gone() {
        let mut store = claimed();
        let claim = Request::Claim { device: 3 };
        assert_eq!(store.answer(FIRST, claim, None).0, DONE);
        assert_eq!(
            store.answer(SECOND, claim, None).0,
            Answer::Busy { process: 100 }
        );
        let other = Request::Claim { device: 4 };
        assert_eq!(store.answer(SECOND, other, None).0, DONE);
        store.leave(FIRST);
        assert_eq!(store.answer(SECOND, claim, None).0, DONE);
        assert_eq!(
            store.answer(FIRST, claim, None).0,
            Answer::Busy { process: 200 }
        );
    }

    #[test]
    fn what_was_kept_outlives_its_client() {
        let mut store = claimed();
        assert_eq!(put(&mut store, FIRST, Slot::Device), DONE);
        store.leave(FIRST);
        assert!(!store.is_empty());
        store.answer(SECOND, Request::Claim { device: 3 }, None);
        let get = |slot| Request::Get { device: 3, slot };
        let (answer, descriptor) = store.answer(SECOND, get(Slot::Device), None);
        assert!(answer == DONE && descriptor.is_some());
        let (answer, descriptor) = store.answer(SECOND, get(Slot::Kick(0)), None);
        assert!(answer == Answer::Empty && descriptor.is_none());
    }

    #[test]
    fn nothing_is_done_for_whom_has_not_claimed() {
        let mut store = claimed();
        let (device, slot) = (3, Slot::Backend);
        assert_eq!(put(&mut store, SECOND, slot), Answer::Unclaimed);
        for request in [
            Request::Get { device, slot },
            Request::Drop { device, slot },
        ] {
            assert_eq!(store.answer(SECOND, request, None).0, Answer::Unclaimed);
        }
    }

    #[test]
    fn what_the_kernel_goes_by_is_neither_replaced_nor_let_go_of() {
        let mut store = claimed();
        for slot in [Slot::Device, Slot::Interrupt, Slot::Kick(7)] {
            assert_eq!(put(&mut store, FIRST, slot), DONE);
            assert_eq!(put(&mut store, FIRST, slot), Answer::Occupied);
            let drop = Request::Drop { device: 3, slot };
            assert_eq!(store.answer(FIRST, drop, None).0, Answer::Occupied);
        }
        for slot in [Slot::Backend, Slot::Journal] {
            assert_eq!(put(&mut store, FIRST, slot), DONE);
            assert_eq!(put(&mut store, FIRST, slot), DONE);
            let drop = Request::Drop { device: 3, slot };
            assert_eq!(store.answer(FIRST, drop, None).0, DONE);
            assert_eq!(store.answer(FIRST, drop, None).0, Answer::Empty);
        }
    }

    #[test]
    fn promise_without_a_descriptor_and_devices_without_end_are_refused() {
        let mut store = claimed();
        let request = Request::Put {
            device: 3,
            slot: Slot::Device,
        };
        assert_eq!(store.answer(FIRST, request, None).0, Answer::Refused);
        let last = (0..)
            .map(|device| store.answer(FIRST, Request::Claim { device }, None).0)
            .position(|answer| answer == Answer::Refused);
        assert_eq!(last, Some(MAX_DEVICES));
        store.leave(FIRST);
        assert!(store.is_empty());
    }
}
