//! The rhostfs server on a real daemon, driven by a client that does as the original does.

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
