//! A minimal backend: it answers, records what it was told, goes away and comes back.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use gangplank_vhost_user::client::{
    Backend, Error, EventFd, Facts, Messages, Region, Result, RingAddresses, TAG_LEN,
};
use gangplank_vhost_user::feature;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use crate::model::Connector;

/// The backend, present or not.
#[derive(Clone, Debug, Default)]
pub(super) struct Daemon(Arc<Mutex<State>>);

/// How it behaves, and what it was told.
#[derive(Debug)]
pub(super) struct State {
    pub(super) present: bool,
    pub(super) features: u64,
    pub(super) protocol: Protocol,
    pub(super) queues: u64,
    pub(super) tag: &'static [u8],
    /// The message that it refuses.
    pub(super) refuses: Option<&'static str>,
    pub(super) said: VecDeque<String>,
    pub(super) connections: usize,
    /// How long the guest waits for it.
    pub(super) absence_limit: Duration,
    /// Its ends of the connections. Dropping them hangs up.
    ends: Vec<UnixStream>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            present: true,
            features: feature::VERSION_1
                | feature::PROTOCOL_FEATURES
                | feature::LOG_ALL
                | feature::INDIRECT_DESC
                | feature::EVENT_IDX,
            protocol: Protocol::all(),
            queues: 8,
            tag: b"myfs",
            refuses: None,
            said: VecDeque::new(),
            connections: 0,
            absence_limit: Duration::from_secs(30),
            ends: Vec::new(),
        }
    }
}

impl Daemon {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// What it was told since the last call, without the messages of every negotiation.
    pub(super) fn told(&self) -> Vec<String> {
        self.state().said.drain(..).collect()
    }

    /// Goes away: hangs up every connection.
    pub(super) fn die(&self) {
        let mut state = self.state();
        state.present = false;
        state.ends.clear();
    }

    pub(super) fn come_back(&self) {
        self.state().present = true;
    }

    /// Whether the other end has shut the last connection down.
    pub(super) fn is_cut(&self) -> bool {
        use std::io::Read;
        let mut state = self.state();
        let end = state.ends.last_mut().unwrap();
        end.set_nonblocking(true).unwrap();
        matches!(end.read(&mut [0]), Ok(0))
    }
}

impl Connector for Daemon {
    type Messages = Connection;

    fn connect(&self) -> Result<(Backend<Connection>, OwnedFd)> {
        let line = {
            let mut state = self.state();
            if !state.present {
                return Err(Error::Connect {
                    daemon: PathBuf::from("daemon"),
                    source: io::ErrorKind::ConnectionRefused.into(),
                });
            }
            let (ours, theirs) = UnixStream::pair().unwrap();
            state.ends.push(theirs);
            state.connections += 1;
            ours.into()
        };
        let session = Backend::negotiate(Connection(self.clone()))?;
        self.told();
        Ok((session, line))
    }

    fn absence_limit(&self) -> Duration {
        self.state().absence_limit
    }

    fn resume(&self, connection: OwnedFd, facts: &Facts) -> Result<(Backend<Connection>, OwnedFd)> {
        let session = Backend::resume(Connection(self.clone()), facts)?;
        Ok((session, connection))
    }
}

/// One connection to it.
#[derive(Debug)]
pub(super) struct Connection(Daemon);

impl Connection {
    fn say(&self, what: String) -> Result<()> {
        let mut state = self.0.state();
        if !state.present {
            return Err(Error::Gone {
                message: "a message",
                daemon: self.daemon().to_owned(),
            });
        }
        let refused = state.refuses.filter(|message| what.starts_with(message));
        state.said.push_back(what);
        match refused {
            Some(message) => Err(Error::Refused {
                message,
                daemon: self.daemon().to_owned(),
            }),
            None => Ok(()),
        }
    }
}

impl Messages for Connection {
    fn daemon(&self) -> &Path {
        Path::new("daemon")
    }

    fn resume(&mut self, _: Protocol, _: Option<u64>) {}

    fn set_owner(&mut self) -> Result<()> {
        self.say("SET_OWNER".into())
    }

    fn features(&mut self) -> Result<u64> {
        self.say("GET_FEATURES".into())?;
        Ok(self.0.state().features)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.say(format!("SET_FEATURES {features:#x}"))
    }

    fn protocol_features(&mut self) -> Result<Protocol> {
        self.say("GET_PROTOCOL_FEATURES".into())?;
        Ok(self.0.state().protocol)
    }

    fn set_protocol_features(&mut self, _: Protocol) -> Result<()> {
        self.say("SET_PROTOCOL_FEATURES".into())
    }

    fn queue_count(&mut self) -> Result<u64> {
        self.say("GET_QUEUE_NUM".into())?;
        Ok(self.0.state().queues)
    }

    fn config(&mut self, config: &mut [u8]) -> Result<()> {
        self.say("GET_CONFIG".into())?;
        let tag = self.0.state().tag;
        config[..tag.len()].copy_from_slice(tag);
        config[TAG_LEN] = 7;
        Ok(())
    }

    fn set_memory(&mut self, regions: &[Region<'_>]) -> Result<()> {
        let region = regions[0];
        assert_eq!((regions.len(), region.mmap_offset), (1, 0));
        self.say(format!(
            "SET_MEM_TABLE {:#x} {:#x}",
            region.guest_address, region.len
        ))
    }

    fn set_ring_size(&mut self, ring: usize, size: u16) -> Result<()> {
        self.say(format!("SET_VRING_NUM {ring} {size}"))
    }

    fn set_ring_addresses(&mut self, ring: usize, addresses: &RingAddresses) -> Result<()> {
        self.say(format!(
            "SET_VRING_ADDR {ring} {:#x}",
            addresses.descriptors
        ))
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
        self.say(format!("GET_VRING_BASE {ring}"))?;
        Ok(40 + u32::try_from(ring).unwrap())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.say("RESET_DEVICE".into())
    }
}
