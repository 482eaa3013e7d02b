//! Which connection gives way when there is no place for another.
//!
//! A client may connect and say nothing, for ever. Connections are limited, so each of these would
//! keep a place from others. NFS clients connect again by themselves when they have something to
//! say, and the duplicate request cache answers what they repeat. So a connection can be closed
//! without harm, and an idle one without being noticed.

use std::net::IpAddr;
use std::time::Duration;

use super::MAX_CONNECTIONS;

/// Most connections of one address: half of all. Less would harm clients behind a router or QEMU's
/// user network, who all have the address of one machine.
pub(super) const MAX_PER_CLIENT: usize = MAX_CONNECTIONS / 2;

/// How long a connection has had nothing to do before it gives way to any other client.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(10);

/// How long a client may take to send a record that it has begun: 18 KiB/s for the largest.
pub(super) const RECORD_TIME: Duration = Duration::from_secs(60);

/// How long a client may take none of the bytes of a reply.
pub(super) const REPLY_TIME: Duration = Duration::from_secs(30);

/// A connection, as it competes for its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    /// The client's address.
    pub(super) client: IpAddr,
    /// Whether it has calls without a reply, replies that are not sent, or a part of a record.
    pub(super) is_busy: bool,
    /// Time since the last byte of a record or reply.
    pub(super) quiet: Duration,
}

/// What becomes of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// There is a place for it.
    Free,
    /// It gets the place of the connection with this index.
    Replaces(usize),
    /// It is closed.
    Refused,
}

/// Decides about a new connection of `client`, beside the connections `all`.
///
/// An address that has its share already replaces an idle connection of its own, if any. Otherwise,
/// if all places are taken, the connection that has been idle longest gives way. If none is idle,
/// it is one of the address with the most connections, as long as the new client has fewer.
pub(super) fn admit(all: &[Standing], client: IpAddr) -> Admission {
    let client = client.to_canonical();
    let count = |address: IpAddr| of(all, address).count();
    let own = count(client);
    if own >= MAX_PER_CLIENT {
        return replaced(quietest(
            of(all, client).filter(|(_, other)| is_idle(other)),
        ));
    }
    if all.len() < MAX_CONNECTIONS {
        return Admission::Free;
    }
    let idle = all.iter().enumerate().filter(|(_, other)| is_idle(other));
    if let Some(idle) = quietest(idle) {
        return Admission::Replaces(idle);
    }
    let largest = all.iter().map(|other| other.client.to_canonical());
    match largest.max_by_key(|address| count(*address)) {
        // With one more each, they would be equal.
        Some(largest) if count(largest) > own + 1 => {
            let unused = of(all, largest).filter(|(_, other)| !other.is_busy);
            replaced(quietest(unused).or_else(|| quietest(of(all, largest))))
        }
        _ => Admission::Refused,
    }
}

/// The connections of an address, and their indices.
fn of(all: &[Standing], client: IpAddr) -> impl Iterator<Item = (usize, &Standing)> {
    let all = all.iter().enumerate();
    all.filter(move |(_, other)| other.client.to_canonical() == client)
}

fn is_idle(standing: &Standing) -> bool {
    !standing.is_busy && standing.quiet >= IDLE_TIME
}

fn quietest<'a>(some: impl Iterator<Item = (usize, &'a Standing)>) -> Option<usize> {
    let quietest = some.max_by_key(|(_, standing)| standing.quiet);
    quietest.map(|(index, _)| index)
}

fn replaced(index: Option<usize>) -> Admission {
    index.map_or(Admission::Refused, Admission::Replaces)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 15));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 16));

    fn standing(client: IpAddr, is_busy: bool, seconds: u64) -> Standing {
        Standing {
            client,
            is_busy,
            quiet: Duration::from_secs(seconds),
        }
    }

    /// All places, half of them by each of two addresses.
    fn full(is_busy: bool, seconds: u64) -> Vec<Standing> {
        let clients = [ONE, OTHER].repeat(MAX_CONNECTIONS / 2);
        let clients = clients.into_iter();
        clients
            .map(|client| standing(client, is_busy, seconds))
            .collect()
    }

    #[test]
    fn the_longest_idle_connection_gives_way_when_places_are_short_and_not_before() {
        let mut all = full(true, 100);
        all[5] = standing(ONE, false, 50);
        all[7] = standing(OTHER, false, 60);
        let third = "10.0.2.17".parse().unwrap();
        assert_eq!(admit(&all, third), Admission::Replaces(7));
        all.pop();
        assert_eq!(admit(&all, third), Admission::Free);
    }

    #[test]
    fn an_address_with_its_share_replaces_its_own_idle_connections_alone() {
        let mut all = vec![standing(ONE, true, 100); MAX_PER_CLIENT];
        all.push(standing(OTHER, false, 1000));
        assert_eq!(admit(&all, ONE), Admission::Refused);
        let mapped = "::ffff:10.0.2.15".parse().unwrap();
        assert_eq!(admit(&all, mapped), Admission::Refused);
        all[3].is_busy = false;
        assert_eq!(admit(&all, ONE), Admission::Replaces(3));
        assert_eq!(admit(&all, OTHER), Admission::Free);
    }

    #[test]
    fn busy_connections_give_way_to_a_client_with_far_fewer_and_to_no_other() {
        let third: IpAddr = "10.0.2.17".parse().unwrap();
        let mut all = full(true, 1);
        all[8].quiet = Duration::from_secs(5);
        all[9] = standing(OTHER, false, 2);
        // Neither is idle for long enough. Of the address with the most, it is the idle one.
        all[10].client = OTHER;
        assert_eq!(admit(&all, third), Admission::Replaces(9));
        all[9].is_busy = true;
        all[11].quiet = Duration::from_secs(3);
        assert_eq!(admit(&all, third), Admission::Replaces(11));
        let clients = 0..MAX_CONNECTIONS;
        let each: Vec<_> = clients
            .map(|number| {
                let [.., host] = number.to_be_bytes();
                standing(IpAddr::from([10, 0, 3, host]), true, 1)
            })
            .collect();
        assert_eq!(admit(&each, third), Admission::Refused);
    }
}
