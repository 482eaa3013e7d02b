//! The virtual switch as a network device of smoltcp.

use std::sync::Arc;

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::super::switch::Switch;

/// The switch as smoltcp's network device.
pub(super) struct Port {
    pub(super) switch: Switch,
    /// Bytes of the largest packet.
    pub(super) mtu: usize,
}

/// A frame of the switch.
pub(super) struct Received(Arc<[u8]>);

/// Sends a frame to the switch.
pub(super) struct Sending<'a>(&'a mut Switch);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(frame.into());
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.switch.next_frame()?;
        Some((Received(frame), Sending(&mut self.switch)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.switch))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        // With Ethernet's header.
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}
