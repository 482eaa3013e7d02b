//! What the tests share: guests, the daemon under test, a driver without a guest, a played hypervisor.

pub mod bao;
pub mod cache;
pub mod daemon;
pub mod debian_tree;
pub mod disk;
pub mod driver;
pub mod dvk;
pub mod dvk_device;
pub mod dvk_peer;
pub mod dvk_scene;
pub mod faulty_fs;
pub mod git;
pub mod guest;
pub mod mapping;
pub mod network;
pub mod packages;
pub mod process;
pub mod promises;
pub mod relay;
pub mod stage;
pub mod tools;
pub mod trace;
pub mod trials;
