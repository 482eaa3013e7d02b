//! The registers as a driver uses them, and as one abuses them.

mod linux;
mod properties;
mod recorder;
mod rules;
