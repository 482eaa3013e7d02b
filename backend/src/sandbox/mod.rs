//! What the daemon gives up before it reads the first guest byte.

pub mod options;

pub use options::Options;
