//! The frontend's driver and file client against daemons as they are released: ours, and virtiofsd.

mod client;
mod driver;
mod place;
