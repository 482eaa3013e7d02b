//! The device status field: its transitions, and what each needs and does (virtio 1.2, 2.1 and
//! 3.1).

use bitflags::bitflags;

bitflags! {
    /// `Status`.
    #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
    pub struct Status: u32 {
        /// The guest has seen the device.
        const ACKNOWLEDGE = 1;
        /// The guest has a driver for it.
        const DRIVER = 2;
        /// The driver is set up; the device is live.
        const DRIVER_OK = 4;
        /// Features are negotiated.
        const FEATURES_OK = 8;
        /// The device is broken until it is reset. The device sets this bit, and no other.
        const NEEDS_RESET = 0x40;
        /// The driver has given up.
        const FAILED = 0x80;
    }
}

/// What a transition makes the device do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Action {
    /// Only set the bit.
    Note,
    /// Accept the driver's features, or leave the bit clear.
    Negotiate,
    /// Start the queues that are ready.
    Start,
    /// Stop the queues.
    Stop,
}

/// One bit that a driver may set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// The bit.
    pub(super) sets: Status,
    /// Bits that must be set before.
    pub(super) needs: Status,
    /// What the device does.
    pub(super) action: Action,
}

/// The transitions, in the order in which they are taken if one write asks for several. Writing 0
/// is not among them: it resets the device from any state. A bit that is written as 0 among others
/// is not cleared: a driver must not do that.
const STEPS: [Step; 5] = [
    Step {
        sets: Status::ACKNOWLEDGE,
        needs: Status::empty(),
        action: Action::Note,
    },
    Step {
        sets: Status::DRIVER,
        needs: Status::ACKNOWLEDGE,
        action: Action::Note,
    },
    Step {
        sets: Status::FEATURES_OK,
        needs: Status::DRIVER,
        action: Action::Negotiate,
    },
    Step {
        sets: Status::DRIVER_OK,
        needs: Status::FEATURES_OK,
        action: Action::Start,
    },
    Step {
        sets: Status::FAILED,
        needs: Status::empty(),
        action: Action::Stop,
    },
];

impl Status {
    /// The transitions that writing `written` asks for. Each must be checked by [`Step::possible`]
    /// against the status at its turn.
    pub(super) fn steps(self, written: u32) -> impl Iterator<Item = Step> {
        let new = Self::from_bits_truncate(written).difference(self);
        STEPS
            .into_iter()
            .filter(move |step| new.contains(step.sets))
    }
}

impl Step {
    /// Whether it can be taken from `status`. After FAILED nothing but a reset is possible.
    pub(super) fn possible(self, status: Status) -> bool {
        status.contains(self.needs) && !status.intersects(Status::FAILED | self.sets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(mut status: Status, written: u32) -> Vec<Action> {
        let mut taken = Vec::new();
        for step in status.steps(written) {
            if step.possible(status) {
                status |= step.sets;
                taken.push(step.action);
            }
        }
        taken
    }

    #[test]
    fn steps_one_by_one_are_each_taken() {
        let (ack, driver) = (Status::ACKNOWLEDGE, Status::DRIVER);
        assert_eq!(walk(Status::empty(), 1), [Action::Note]);
        assert_eq!(walk(ack, 3), [Action::Note]);
        assert_eq!(walk(ack | driver, 0xb), [Action::Negotiate]);
        assert_eq!(
            walk(ack | driver | Status::FEATURES_OK, 0xf),
            [Action::Start]
        );
    }

    #[test]
    fn all_steps_at_once_are_taken_in_order() {
        assert_eq!(
            walk(Status::empty(), 0xf),
            [Action::Note, Action::Note, Action::Negotiate, Action::Start]
        );
    }

    #[test]
    fn steps_whose_needs_are_missing_are_not_taken() {
        assert_eq!(walk(Status::empty(), 2), []);
        assert_eq!(walk(Status::ACKNOWLEDGE, 0x9), []);
        assert_eq!(walk(Status::ACKNOWLEDGE | Status::DRIVER, 0x7), []);
    }

    #[test]
    fn nothing_follows_a_driver_that_gave_up() {
        assert_eq!(walk(Status::ACKNOWLEDGE, 0x81), [Action::Stop]);
        assert_eq!(walk(Status::ACKNOWLEDGE | Status::FAILED, 0x8f), []);
    }

    #[test]
    fn drivers_cannot_set_the_devices_own_bit() {
        assert_eq!(walk(Status::ACKNOWLEDGE, 0x41), []);
    }
}
