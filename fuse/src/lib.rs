//! The FUSE wire protocol.
#![forbid(unsafe_code)]
