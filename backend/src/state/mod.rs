//! The state of one guest in a form that outlives the process that serves it.
//!
//! A guest's keeper maps an [`arena`] before it starts the first worker. What the worker needs to
//! know of its guest is there: when the worker dies, the next one finds it at the same address, and
//! the descriptors under the same numbers.

pub mod arena;
pub mod change;
pub mod counters;
pub mod descriptors;
pub mod device;
pub mod files;
pub mod foreign_ids;
pub mod heap;
pub mod index;
pub mod inflight;
pub mod inodes;
pub mod migration;
pub mod mounts;
pub mod recovery;
pub mod requests;
pub mod session;
pub mod slab;
pub mod table;
