//! Continues as the successor of another device model.
//!
//! The guest gets one interrupt, because the predecessor may have taken an interrupt off its
//! eventfd without passing it on.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use gangplank_service::error_chain;
use log::{info, warn};
use rustix::net::Shutdown;

use super::backend_link::{Connector, notify_guest};
use super::fs_device::{Change, FsDevice};
use super::handover::Handover;
use crate::journal::SavedRegisters;
use crate::mmio::Transport;

/// Restores `transport` from `handover`, and takes over the backend if it is there. Returns the
/// backend's connection. If something cannot be restored, the device's status tells the guest.
pub(super) fn restore<C: Connector>(
    transport: &mut Transport<FsDevice<C::Messages>>,
    handover: &Arc<Handover>,
    connector: &C,
) -> Option<Arc<OwnedFd>> {
    let saved = handover.saved_registers().clone();
    transport.device_mut().set_handover(Arc::clone(handover));
    match saved {
        SavedRegisters::None => {}
        SavedRegisters::Valid(registers) => match transport.restore(*registers) {
            Ok(()) => info!("continues with status {:#x}", transport.status().bits()),
            Err(error) => warn!("the guest must reset the device: {error}"),
        },
        SavedRegisters::Unreadable => {
            warn!("the guest must reset the device: the saved registers cannot be read");
            transport.restore_broken();
        }
    }
    let connection = resume_backend(transport, handover, connector);
    transport.set_register_log(handover.register_log());
    connection
}

fn resume_backend<C: Connector>(
    transport: &mut Transport<FsDevice<C::Messages>>,
    handover: &Handover,
    connector: &C,
) -> Option<Arc<OwnedFd>> {
    let (connection, facts) = match handover.backend_connection() {
        Ok(None) => return None,
        Ok(Some((connection, facts))) => (Some(connection), facts),
        Err(error) => {
            warn!("{}", error_chain(&error));
            (None, None)
        }
    };
    let duplicate = connection.as_ref().map(OwnedFd::try_clone);
    let resumed = match connection.zip(facts) {
        Some((connection, facts)) => {
            let resumed = connector.resume(connection, &facts);
            resumed.map_err(|error| error_chain(&error))
        }
        None => Err("it had gone, or a message to it was on its way".to_owned()),
    };
    let backend = resumed.and_then(|(session, connection)| {
        let connection = Arc::new(connection);
        let device = transport.device_mut();
        match device.resume_backend(session, Arc::clone(&connection)) {
            Ok(()) => Ok(connection),
            Err(error) => Err(error_chain(&error)),
        }
    });
    match backend {
        Ok(connection) => {
            info!("continues with its daemon");
            Some(connection)
        }
        Err(why) => {
            handover.on_backend_gone();
            if let Some(Ok(connection)) = duplicate {
                // The connection cannot be used: shutting it down tells the backend. Fails if the
                // backend has gone.
                let _ = rustix::net::shutdown(&connection, Shutdown::Both);
            }
            let change = transport.device_mut().on_backend_lost();
            match change {
                Change::NeedsReset => warn!("cannot continue with its daemon: {why}"),
                _ => info!("waits for another daemon: {why}"),
            }
            notify_guest(transport, change);
            None
        }
    }
}
