use std::os::fd::AsFd;
use std::path::Path;

use super::*;

/// Records what it receives, and replies as a daemon with every feature would.
#[derive(Debug)]
struct Recorder {
    said: Vec<String>,
    features: u64,
    protocol: Protocol,
    fails: Option<&'static str>,
    resumed: Option<(Protocol, Option<u64>)>,
}

impl Recorder {
    fn new() -> Self {
        Self {
            said: Vec::new(),
            features: feature::VERSION_1
                | feature::PROTOCOL_FEATURES
                | feature::LOG_ALL
                | feature::EVENT_IDX,
            protocol: Protocol::all(),
            fails: None,
            resumed: None,
        }
    }

    fn say(&mut self, what: String) -> Result<()> {
        let refused = self.fails.filter(|message| what.starts_with(message));
        self.said.push(what);
        match refused {
            Some(message) => Err(Error::Refused {
                message,
                daemon: self.daemon().to_owned(),
            }),
            None => Ok(()),
        }
    }
}

impl Messages for Recorder {
    fn daemon(&self) -> &Path {
        Path::new("recorder")
    }
    fn resume(&mut self, features: Protocol, max_rings: Option<u64>) {
        self.resumed = Some((features, max_rings));
    }
    fn set_owner(&mut self) -> Result<()> {
        self.say("SET_OWNER".into())
    }
    fn features(&mut self) -> Result<u64> {
        self.say("GET_FEATURES".into()).map(|()| self.features)
    }
    fn set_features(&mut self, features: u64) -> Result<()> {
        self.say(format!("SET_FEATURES {features:#x}"))
    }
    fn protocol_features(&mut self) -> Result<Protocol> {
        self.say("GET_PROTOCOL_FEATURES".into())
            .map(|()| self.protocol)
    }
    fn set_protocol_features(&mut self, features: Protocol) -> Result<()> {
        self.say(format!("SET_PROTOCOL_FEATURES {:#x}", features.bits()))
    }
    fn queue_count(&mut self) -> Result<u64> {
        self.say("GET_QUEUE_NUM".into()).map(|()| 3)
    }
    fn config(&mut self, config: &mut [u8]) -> Result<()> {
        config[..4].copy_from_slice(b"myfs");
        config[TAG_LEN] = 2;
        self.say(format!("GET_CONFIG {}", config.len()))
    }
    fn set_memory(&mut self, regions: &[Region<'_>]) -> Result<()> {
        self.say(format!("SET_MEM_TABLE {}", regions.len()))
    }
    fn set_ring_size(&mut self, ring: usize, size: u16) -> Result<()> {
        self.say(format!("SET_VRING_NUM {ring} {size}"))
    }
    fn set_ring_addresses(&mut self, ring: usize, _: &RingAddresses) -> Result<()> {
        self.say(format!("SET_VRING_ADDR {ring}"))
    }
    fn set_ring_base(&mut self, ring: usize, base: u16) -> Result<()> {
        self.say(format!("SET_VRING_BASE {ring} {base}"))
    }
    fn set_ring_call(&mut self, ring: usize, _: &EventFd) -> Result<()> {
        self.say(format!("SET_VRING_CALL {ring}"))
    }
    fn set_ring_error(&mut self, ring: usize, _: &EventFd) -> Result<()> {
        self.say(format!("SET_VRING_ERR {ring}"))
    }
    fn set_ring_kick(&mut self, ring: usize, _: &EventFd) -> Result<()> {
        self.say(format!("SET_VRING_KICK {ring}"))
    }
    fn set_ring_enabled(&mut self, ring: usize, enabled: bool) -> Result<()> {
        self.say(format!("SET_VRING_ENABLE {ring} {enabled}"))
    }
    fn ring_base(&mut self, ring: usize) -> Result<u32> {
        self.say(format!("GET_VRING_BASE {ring}")).map(|()| 7)
    }
    fn reset_device(&mut self) -> Result<()> {
        self.say("RESET_DEVICE".into())
    }
}

/// Starts two rings with `features`. Returns their kick descriptors.
fn start(backend: &mut Backend<Recorder>, features: u64) -> (Result<()>, [EventFd; 2]) {
    let kicks = [EventFd::new(0).unwrap(), EventFd::new(0).unwrap()];
    let call = EventFd::new(0).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let region = Region {
        guest_address: 0x1000,
        len: 0x1000,
        file: file.as_fd(),
        mmap_offset: 0,
    };
    let rings: Vec<_> = kicks
        .iter()
        .enumerate()
        .map(|(index, kick)| RingSetup {
            index,
            size: 64,
            addresses: RingAddresses {
                descriptors: 0x1000,
                available: 0x1400,
                used: 0x1800,
            },
            base: 0,
            call: &call,
            kick,
            error: None,
        })
        .collect();
    (backend.start(features, &[region], &rings), kicks)
}

#[test]
fn negotiation_asks_everything_once_and_in_order() {
    let backend = Backend::negotiate(Recorder::new()).unwrap();
    assert_eq!(
        backend.messages().said,
        [
            "SET_OWNER",
            "GET_FEATURES",
            "GET_PROTOCOL_FEATURES",
            "SET_PROTOCOL_FEATURES 0x2209",
            "GET_QUEUE_NUM",
            "GET_CONFIG 40",
        ]
    );
    assert_eq!(
        backend.offered(),
        feature::VERSION_1 | feature::EVENT_IDX,
        "what is vhost-user's own is no driver's"
    );
    assert_eq!(backend.max_rings(), Some(3));
    let config = backend.config().unwrap();
    assert_eq!(
        (config.tag(), config.num_request_queues()),
        (&b"myfs"[..], 2)
    );
}

#[test]
fn what_a_daemon_does_not_offer_is_not_asked() {
    let recorder = Recorder {
        protocol: Protocol::REPLY_ACK,
        ..Recorder::new()
    };
    let backend = Backend::negotiate(recorder).unwrap();
    assert_eq!(backend.messages().said.len(), 4);
    assert_eq!((backend.config(), backend.max_rings()), (None, None));
    let bare = Recorder {
        features: feature::VERSION_1,
        ..Recorder::new()
    };
    let mut backend = Backend::negotiate(bare).unwrap();
    assert_eq!(backend.messages().said.len(), 2);
    start(&mut backend, feature::VERSION_1).0.unwrap();
    backend.stop().unwrap();
    let enabling = backend
        .messages()
        .said
        .iter()
        .any(|said| said.contains("ENABLE"));
    assert!(
        !enabling,
        "rings cannot be enabled without protocol features"
    );
}

#[test]
fn a_legacy_daemon_is_refused_by_name() {
    let recorder = Recorder {
        features: 0,
        ..Recorder::new()
    };
    let error = Backend::negotiate(recorder).unwrap_err();
    assert!(error.to_string().contains("VERSION_1"), "{error}");
}

#[test]
fn rings_start_after_memory_and_stop_before_their_bases() {
    let mut backend = Backend::negotiate(Recorder::new()).unwrap();
    let before = backend.messages().said.len();
    let wanted = feature::VERSION_1 | feature::ACCESS_PLATFORM;
    let (started, kicks) = start(&mut backend, wanted);
    started.unwrap();
    for kick in &kicks {
        assert_eq!(kick.read().unwrap(), 1);
    }
    assert_eq!(backend.stop().unwrap(), [(0, 7), (1, 7)]);
    assert_eq!(
        backend.messages().said[before..],
        [
            "SET_FEATURES 0x140000000",
            "SET_MEM_TABLE 1",
            "SET_VRING_NUM 0 64",
            "SET_VRING_ADDR 0",
            "SET_VRING_BASE 0 0",
            "SET_VRING_CALL 0",
            "SET_VRING_KICK 0",
            "SET_VRING_NUM 1 64",
            "SET_VRING_ADDR 1",
            "SET_VRING_BASE 1 0",
            "SET_VRING_CALL 1",
            "SET_VRING_KICK 1",
            "SET_VRING_ENABLE 0 true",
            "SET_VRING_ENABLE 1 true",
            "SET_VRING_ENABLE 0 false",
            "SET_VRING_ENABLE 1 false",
            "GET_VRING_BASE 0",
            "GET_VRING_BASE 1",
        ]
    );
    assert!(backend.stop().unwrap().is_empty(), "they are stopped once");
}

#[test]
fn features_that_were_not_offered_never_reach_the_daemon() {
    let mut backend = Backend::negotiate(Recorder::new()).unwrap();
    let before = backend.messages().said.len();
    let error = start(&mut backend, feature::VERSION_1 | 1).0.unwrap_err();
    assert!(error.to_string().contains("0x1"), "{error}");
    assert_eq!(backend.messages().said.len(), before);
}

#[test]
fn a_start_that_failed_half_way_can_be_stopped() {
    let recorder = Recorder {
        fails: Some("SET_VRING_CALL 1"),
        ..Recorder::new()
    };
    let mut backend = Backend::negotiate(recorder).unwrap();
    let error = start(&mut backend, feature::VERSION_1).0.unwrap_err();
    assert!(error.to_string().contains("SET_VRING_CALL"), "{error}");
    assert_eq!(backend.stop().unwrap().len(), 2);
    assert!(!backend.is_running());
}

#[test]
fn reset_stops_the_rings_first() {
    let mut backend = Backend::negotiate(Recorder::new()).unwrap();
    start(&mut backend, feature::VERSION_1).0.unwrap();
    backend.reset().unwrap();
    let said = &backend.messages().said;
    assert_eq!(said.last().unwrap(), "RESET_DEVICE");
    assert_eq!(said[said.len() - 2], "GET_VRING_BASE 1");
}

#[test]
fn connection_that_is_taken_over_goes_on_without_a_word_about_its_rings() {
    let backend = Backend::negotiate(Recorder::new()).unwrap();
    let mut facts = backend.facts();
    facts.acknowledged = Some(feature::VERSION_1 | feature::PROTOCOL_FEATURES);
    facts.running = vec![0, 1];
    let mut taken = Backend::resume(Recorder::new(), &facts).unwrap();
    // A reply that a killed process left unread would be taken for another.
    assert_eq!(taken.messages().said, [""; 0]);
    let agreed = Protocol::from_bits_truncate(facts.protocol.unwrap());
    assert_eq!(taken.messages().resumed, Some((agreed, facts.max_rings)));
    assert_eq!(taken.facts(), facts);
    assert_eq!(taken.config(), backend.config());
    assert_eq!(taken.stop().unwrap().len(), 2);
}

#[test]
fn daemon_on_another_socket_is_not_taken_over() {
    let mut facts = Backend::negotiate(Recorder::new()).unwrap().facts();
    facts.daemon ^= 1;
    let error = Backend::resume(Recorder::new(), &facts).unwrap_err();
    assert!(error.to_string().contains("another socket"), "{error}");
}
