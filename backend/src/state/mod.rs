//! What the daemon knows of one guest, as data that outlives the process that serves it.

pub mod migration;
