//! Endpoints, nodes and distributed containers by number, and the arithmetic of endpoints.

use std::fmt;

use gangplank_service::rate_limit;

/// Slots below zero that an endpoint can name, as compiled into every DVK (`NR_TASKS`).
const TASKS: i64 = 35;
/// Distance of a slot's endpoints in successive generations (`_ENDPOINT_GENERATION_SIZE`).
const GENERATION_SIZE: i64 = 35_570;
/// Highest generation (`_ENDPOINT_MAX_GENERATION`).
const LAST_GENERATION: i64 = i32::MAX as i64 / GENERATION_SIZE - 1;

/// An address within a distributed container: a slot of its process table, and how often that slot
/// was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Endpoint(i32);

impl Endpoint {
    /// The caller.
    pub const SELF: Self = Self(0x8ace);
    /// Any sender.
    pub const ANY: Self = Self(0x7ace);
    /// No endpoint.
    pub const NONE: Self = Self(0x6ace);
    /// The source of notifications that no process sent.
    pub const HARDWARE: Self = Self(-1);

    /// The endpoint with the number `raw`, unchecked.
    pub const fn from_raw(raw: i32) -> Self {
        Self(raw)
    }

    /// Slot `slot` in generation `generation` (`_ENDPOINT`). Returns `None` if there is no such
    /// endpoint.
    pub fn new(generation: i32, slot: i32) -> Option<Self> {
        let (generation, slot) = (i64::from(generation), i64::from(slot));
        let fits = (0..=LAST_GENERATION).contains(&generation)
            && (-TASKS..GENERATION_SIZE - TASKS).contains(&slot);
        let raw = i32::try_from(generation * GENERATION_SIZE + slot).ok()?;
        fits.then_some(Self(raw))
    }

    /// The number in messages and headers.
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// The peer whose messages a rate limit counts.
    pub fn log_key(self) -> rate_limit::Peer {
        self.0.cast_unsigned().into()
    }

    /// Index in the container's process table (`_ENDPOINT_P`), negative for tasks.
    pub fn slot(self) -> i32 {
        let slot = (i64::from(self.0) + TASKS) % GENERATION_SIZE - TASKS;
        // The remainder fits, because the divisor does.
        i32::try_from(slot).unwrap_or(self.0)
    }

    /// How often the slot was used before (`_ENDPOINT_G`).
    pub fn generation(self) -> i32 {
        // The quotient fits.
        i32::try_from((i64::from(self.0) + TASKS) / GENERATION_SIZE).unwrap_or(0)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::SELF => f.write_str("SELF"),
            Self::ANY => f.write_str("ANY"),
            Self::NONE => f.write_str("NONE"),
            _ if self.generation() == 0 => write!(f, "{}", self.0),
            _ => write!(f, "{}.{}", self.slot(), self.generation()),
        }
    }
}

/// Declares a number in 0..32, as both nodes and containers have.
macro_rules! index {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(u8);

        impl $name {
            /// Number 0.
            pub const FIRST: Self = Self(0);

            /// The number of values: the compile-time limit of every DVK.
            pub const COUNT: u8 = 32;

            /// Number `raw`. Returns `None` if it is out of range.
            pub fn new(raw: i32) -> Option<Self> {
                u8::try_from(raw).ok().filter(|&index| index < Self::COUNT).map(Self)
            }

            /// The number in headers.
            pub fn raw(self) -> i32 {
                i32::from(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

index! {
    /// A node of a DVS: one machine's DVK, or a program that acts as one.
    NodeId
}

index! {
    /// A distributed container (DC): a process table that nodes share.
    DcId
}

/// The dimensions of a container's process table (`dc_usr_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DcLimits {
    /// Slots from zero on.
    pub procs: i32,
    /// Slots below zero.
    pub tasks: i32,
    /// Slots that belong to system processes, the tasks' slots included. Only system processes may
    /// serve.
    pub sysprocs: i32,
}

impl DcLimits {
    /// The dimensions of the usual container.
    pub const USUAL: Self = Self {
        procs: 221,
        tasks: 34,
        sysprocs: 64,
    };

    /// Whether the container has the slot of `endpoint`.
    pub fn contains(&self, endpoint: Endpoint) -> bool {
        let slot = endpoint.slot();
        slot >= self.tasks.saturating_neg() && slot < self.procs
    }

    /// Whether the slot belongs to a system process. Only system processes may receive requests and
    /// copy.
    pub fn is_system(&self, endpoint: Endpoint) -> bool {
        self.contains(endpoint) && endpoint.slot().saturating_add(self.tasks) < self.sysprocs
    }
}

impl Default for DcLimits {
    fn default() -> Self {
        Self::USUAL
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_constants_are_the_published_ones() {
        assert_eq!(LAST_GENERATION, 60_372);
        assert_eq!(Endpoint::SELF.raw(), 35_534);
        assert_eq!(Endpoint::ANY.raw(), 31_438);
        assert_eq!(Endpoint::NONE.raw(), 27_342);
    }

    #[test]
    fn the_log_tells_clients_apart_by_their_endpoints() {
        let keys = [30, 31, -1].map(|raw| Endpoint::from_raw(raw).log_key());
        assert_eq!(keys, [30, 31, u64::from(u32::MAX)]);
    }

    #[test]
    fn a_usual_container_serves_from_slots_below_thirty() {
        let usual = DcLimits::USUAL;
        for (slot, contained, system) in [
            (-35, false, false),
            (-34, true, true),
            (29, true, true),
            (30, true, false),
            (220, true, false),
            (221, false, false),
        ] {
            let endpoint = Endpoint::from_raw(slot);
            assert_eq!(usual.contains(endpoint), contained, "{slot}");
            assert_eq!(usual.is_system(endpoint), system, "{slot}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_not_endpoints() {
        assert_eq!(Endpoint::new(-1, 0), None);
        assert_eq!(Endpoint::new(60_373, 0), None);
        assert_eq!(Endpoint::new(0, -36), None);
        assert_eq!(Endpoint::new(0, 35_535), None);
    }

    #[test]
    fn nodes_and_containers_are_below_thirty_two() {
        assert_eq!(NodeId::new(31).map(NodeId::raw), Some(31));
        for raw in [-1, 32, 256, i32::MAX, i32::MIN] {
            assert_eq!(NodeId::new(raw), None);
            assert_eq!(DcId::new(raw), None);
        }
    }

    proptest! {
        #[test]
        fn slot_and_generation_name_the_endpoint(generation in 0..60_373, slot in -35..35_535) {
            let endpoint = Endpoint::new(generation, slot).unwrap();
            prop_assert_eq!(endpoint.slot(), slot);
            prop_assert_eq!(endpoint.generation(), generation);
        }

        #[test]
        fn any_number_has_a_slot_and_a_generation(raw: i32) {
            let endpoint = Endpoint::from_raw(raw);
            let base = i64::from(endpoint.generation()) * GENERATION_SIZE;
            prop_assert_eq!(base + i64::from(endpoint.slot()), i64::from(raw));
            let _ = (endpoint.to_string(), DcLimits::USUAL.is_system(endpoint));
        }
    }
}
