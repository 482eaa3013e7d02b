//! The carriers of gangplank-dvk, without a guest and without rhostfs: a node beside an emulated
//! kernel, and the switch.

mod containers;
mod dump;
mod faults;
mod fixture;
mod golden;
mod outgoing_requests;
mod rules;
mod switch;
