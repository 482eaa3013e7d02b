//! The hypervisors that the device model has a port for. A new port is a folder, and a line in this
//! list.

use std::path::PathBuf;

use crate::bao::Bao;
use crate::hypervisor_driver::{Hypervisor, HypervisorDriver, HypervisorError};

/// Every port, in the order in which [`open`] tries them.
static ALL: [&dyn Hypervisor; 1] = [&Bao];

/// The hypervisors' names, for people.
pub fn names() -> String {
    ALL.map(Hypervisor::name).join(" or ")
}

/// The device nodes at which [`open`] looks for a driver unless the configuration names others.
pub fn default_nodes() -> Vec<PathBuf> {
    let nodes = ALL.into_iter().flat_map(Hypervisor::default_nodes);
    nodes.map(PathBuf::from).collect()
}

/// Opens the driver of the first hypervisor that has one at `nodes`.
///
/// # Errors
/// The error of the last hypervisor that was tried. A driver that is here and does not work ends
/// the search.
pub fn open(nodes: &[PathBuf]) -> Result<Box<dyn HypervisorDriver>, HypervisorError> {
    let [first, others @ ..] = ALL;
    others
        .iter()
        .fold(first.open(nodes), |opened, next| match opened {
            Err(HypervisorError::Absent(_)) => next.open(nodes),
            opened => opened,
        })
}
