//! What the tests share: guests, the daemon under test, a driver without a guest, and emulated
//! peers: Bao's driver, DVK's module, DVK nodes, a faulty file system.

pub mod bao;
pub mod cache;
pub mod cgroup;
pub mod confinement;
pub mod daemon;
pub mod debian_tree;
pub mod disk;
pub mod driver;
pub mod dvk;
pub mod dvk_device;
pub mod dvk_peer;
pub mod dvk_tunnel;
pub mod faulty_fs;
pub mod git;
pub mod guest;
pub mod guest_fixture;
pub mod guest_suite;
pub mod guest_work;
pub mod harmless_signals;
pub mod hosts;
pub mod mapping;
pub mod moosefs;
pub mod network;
pub mod nfs;
pub mod nfs_client;
pub mod packages;
pub mod process;
pub mod promises;
pub mod relay;
pub mod runner;
pub mod service_manager;
pub mod systemd_host;
pub mod three_guests;
pub mod tools;
pub mod trace;
