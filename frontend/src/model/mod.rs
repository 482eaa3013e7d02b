//! A device of the model: a hypervisor's port, the registers, and what stands behind them.

mod serve;

pub use serve::{Counters, ServeError, serve};
