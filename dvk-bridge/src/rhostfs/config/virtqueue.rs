//! Checks a block `virtqueue`: a server of tunnels.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use super::check::{CARRIER_KINDS, daemon_socket, dc_id, last_server_endpoint, limits_of};
use super::entries::Entries;
use super::fault::{Fault, Location};
use super::{CarrierKind, VirtqueueBlock};
use crate::abi::{DcId, DcLimits, Endpoint};
use crate::tunnel::server::Options;

pub(super) const KEYS: &[&str] = &[
    "vq_dcid",
    "vq_ep",
    "vq_queues",
    "vq_socket",
    "vq_carrier",
    "vq_guests",
    "vq_idle_s",
];

/// Guests at most: each takes a thread for each endpoint.
const MAX_GUESTS: u32 = 64;

pub(super) fn check(
    entries: &Entries<'_>,
    dcs: &HashMap<DcId, DcLimits>,
    socket: Option<&Path>,
    faults: &mut Vec<Fault>,
) -> Option<(VirtqueueBlock, Location)> {
    let dc = dc_id(entries, "vq_dcid", faults);
    if !entries.has("vq_ep") {
        entries.missing("vq_ep", faults);
    }
    let last = last_server_endpoint(limits_of(dc, dcs));
    let first = entries.number("vq_ep", 0, last, faults);
    let socket = daemon_socket(entries, "vq_socket", socket, faults);
    let carrier_kind = entries.choice("vq_carrier", CARRIER_KINDS, faults);
    let mut options = Options::new(socket.clone().unwrap_or_default());
    let queues = entries.number("vq_queues", 1, last.max(1), faults);
    if let Some(queues) = queues.and_then(|queues| u16::try_from(queues).ok()) {
        options.queues = queues;
    }
    let guests = entries.number("vq_guests", 1, MAX_GUESTS, faults);
    if let Some(guests) = guests.and_then(|guests| usize::try_from(guests).ok()) {
        options.guests = guests;
    }
    if let Some(seconds) = entries.number("vq_idle_s", 1, 86_400, faults) {
        options.idle = Duration::from_secs(seconds.into());
    }
    let first = first?;
    let end = first + u32::from(options.queues);
    if end > last {
        let what =
            format!("its endpoints {first} to {end} go beyond {last}, the last possible one");
        entries.wrong("vq_ep", what, faults);
        return None;
    }
    let endpoints = (first..=end).filter_map(|slot| i32::try_from(slot).ok());
    let block = VirtqueueBlock {
        name: entries.name.clone(),
        dc: dc?,
        endpoints: endpoints.map(Endpoint::from_raw).collect(),
        // As for the other servers.
        carrier_kind: carrier_kind.unwrap_or(CarrierKind::Device),
        options,
    };
    socket.map(|_| (block, entries.at.clone()))
}
