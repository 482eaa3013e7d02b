//! A guest's virtqueues over DVK endpoints: a guest on one machine uses the virtio-fs daemon of
//! another.
//!
//! ```text
//!   node B                                        node A
//!   guest ── vhost-user ── tunnel                 serve ── driver, vhost-user ── daemon
//!                          client endpoints  ───> endpoints N, N+1 .. N+K
//!                            request: lengths, address
//!                          guest's memory    <─── copies: request, then reply
//!                            answer: bytes written
//! ```
//!
//! `gangplank-dvk tunnel` (`guest`) offers a guest a device and takes chains of descriptors off
//! its rings. It asks an endpoint of `gangplank-dvk serve` (`server`, a block `virtqueue` of the
//! configuration) to carry each out. That copies the bytes of the request from the guest's memory,
//! puts them on a queue of its driver as they are, copies the daemon's reply back, and answers.
//! `wire` is the form of these messages.
//!
//! An endpoint has one exchange at a time with a node. So there are several pairs of a client
//! endpoint and a server endpoint, and a request takes a pair that is free. FORGET and INTERRUPT,
//! which come on the guest's high-priority ring, have the first pair for themselves.
//!
//! Each request has a slot and a number in it, as in sessions of NFSv4.1. A request that is sent
//! again after a broken connection is recognised by them: the daemon carries it out once, and the
//! reply is kept until the slot's next request. (A READ's reply of more than a megabyte is not kept:
//! the read is done again.) In the same way the tunnel asks again for a request that takes long,
//! such as one that waits for a lock, and its endpoints are free meanwhile. If the next request in a
//! slot comes before the last one has a reply, the tunnel has given that up, and the server
//! interrupts it.
//!
//! Neither side reads more of a request than its lengths and its number, except for INIT: its reply
//! is cut so that later requests fit a tunnel, and INIT begins a new session after one was lost.

pub mod guest;
pub mod server;
pub mod wire;
