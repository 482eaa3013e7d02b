//! The rhostfs server on a real daemon, with a client that behaves like the original one.

mod carriers;
mod client;
mod discrepancies;
mod faults;
mod faulty;
mod fixture;
mod loopback_carrier;
mod losses;
mod program;
mod restarts;
