//! The device model: gives the guests of a hypervisor virtio-mmio file systems that a virtio-fs
//! daemon serves.
//!
//! A port ([`hypervisor`]; [`bao`] is one, [`hypervisors`] lists all) brings a guest's accesses,
//! [`mmio`] has the registers, [`model`] connects them to a backend. [`fd_store`] is the process
//! that keeps the devices while the device model is restarted, and [`journal`] is the state that a
//! successor finds. [`daemon`] runs the devices of a [`config`]uration.

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
pub mod sandbox;
