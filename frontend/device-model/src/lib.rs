//! The device model: it gives the guests of a hypervisor virtio-mmio file systems that a virtio-fs
//! daemon serves.
//!
//! A hypervisor port ([`hypervisor`]; [`bao`] is one) brings a guest's accesses, [`mmio`] has the
//! registers, [`model`] ties them to a daemon. [`fd_store`] is the process that keeps the devices while
//! the device model is restarted, and [`journal`] is what it is left with. [`daemon`] runs all of it
//! from a [`config`]uration.

pub mod args;
pub mod bao;
pub mod config;
pub mod daemon;
pub mod fake;
pub mod fd_store;
pub mod hypervisor;
pub mod hypervisor_driver;
pub mod hypervisors;
pub mod journal;
pub mod mmio;
pub mod model;
