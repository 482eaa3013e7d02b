//! The registers in use and under abuse by a driver.

mod linux;
mod properties;
mod recorder;
mod rules;
