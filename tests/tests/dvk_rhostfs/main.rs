//! The rhostfs server on a real daemon, driven by a client that does as the original does.

mod board;
mod carriers;
mod client;
mod discrepancies;
mod faults;
mod faulty;
mod losses;
mod program;
mod restarts;
mod scene;
