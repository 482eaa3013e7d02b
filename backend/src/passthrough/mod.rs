//! The host directory as a FUSE file system.
