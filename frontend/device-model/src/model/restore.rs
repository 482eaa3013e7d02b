//! Continues as the successor of another device model.
//!
//! The guest gets one interrupt, because the predecessor may have taken an interrupt off its
//! eventfd without passing it on.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use gangplank_service::error_chain;
use gangplank_vhost_user::client as vhost_user;
use log::{info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
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
    let mut is_gone = connection.as_ref().is_some_and(is_hung_up);
    let resumed = match connection.zip(facts) {
        Some((connection, facts)) if !is_gone => {
            let resumed = connector.resume(connection, &facts);
            resumed.map_err(|error| {
                is_gone |= matches!(error, vhost_user::Error::Gone { .. });
                error_chain(&error)
            })
        }
        _ => Err("it had gone, or a message to it was on its way".to_owned()),
    };
    let backend = resumed.and_then(|(session, connection)| {
        let connection = Arc::new(connection);
        let device = transport.device_mut();
        match device.resume_backend(session, Arc::clone(&connection)) {
            Ok(()) => Ok(connection),
            Err(error) => {
                is_gone |= error.is_loss();
                Err(error_chain(&error))
            }
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
            let device = transport.device_mut();
            let change = match is_gone {
                true => {
                    device.wait_until_stable();
                    device.on_backend_lost()
                }
                false => device.leave_to_backend(),
            };
            match change {
                Change::NeedsReset | Change::Lost => {
                    warn!("cannot continue with its daemon: {why}")
                }
                _ => info!("waits for another daemon: {why}"),
            }
            notify_guest(transport, change);
            None
        }
    }
}

/// Whether the other end has closed the connection.
fn is_hung_up(connection: &OwnedFd) -> bool {
    let mut awaited = [PollFd::new(connection, PollFlags::RDHUP)];
    poll(&mut awaited, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}
