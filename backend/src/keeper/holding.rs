//! What a guest's processes have held outside of the daemon, if anything holds it.

use std::collections::HashSet;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use gangplank_service::error_chain;

use crate::handover::channel::Channel;
use crate::holder::client::Holder;
use crate::sandbox::ConfinedKeeper;
use crate::state::arena::Arena;
use crate::state::device::DeviceState;

/// Has the guest itself held, by the supervisor at the other end of `holder`, from now on.
pub(super) fn hold(
    number: u64,
    connection: &UnixStream,
    holder: Option<Channel>,
    arena: &Arc<Arena>,
    confined: &ConfinedKeeper,
) {
    let Some(holder) = holder.map(Holder::new) else {
        return;
    };
    match hold_guest(&holder, connection, arena, confined) {
        Ok(()) => arena.set_holder(Arc::new(holder)),
        Err(reason) => log::error!(
            "guest {number} is not held outside of the daemon, so it ends with it: {reason}"
        ),
    }
}

/// Has the guest itself held. In words, why it is not.
pub(super) fn hold_guest(
    holder: &Holder,
    connection: &UnixStream,
    arena: &Arena,
    confined: &ConfinedKeeper,
) -> Result<(), String> {
    let state = arena.file().ok_or("its state has no file (RLIMIT_FSIZE)")?;
    let place = confined
        .place()
        .map_err(|error| error_chain(&error).to_string())?;
    let namespace = place.mount_namespace.as_ref().map(AsFd::as_fd);
    let parts = [state, connection.as_fd(), place.root.as_fd()];
    let parts: Vec<_> = parts.into_iter().chain(namespace).collect();
    holder.hold_guest(&parts).map_err(|error| error.to_string())
}

/// Has what a frontend has sent held.
pub(super) fn hold_device(holder: &Holder, state: &DeviceState) {
    let memory: HashSet<RawFd> = state.memory_files().into_iter().collect();
    let (memory, others): (Vec<_>, Vec<_>) =
        (state.descriptors().into_iter()).partition(|number| memory.contains(number));
    holder.hold(&others);
    holder.hold_memory(&memory);
}
