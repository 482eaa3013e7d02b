//! Messages to the service manager that started this program (`sd_notify(3)`).

use std::io;

use log::warn;
use sd_notify::NotifyState;

/// Tells the service manager, if there is one, that the program serves now; `status` is for people.
pub fn ready(status: &str) {
    report(sd_notify::notify(&[
        NotifyState::Ready,
        NotifyState::Status(status),
    ]));
}

/// Tells the service manager, if there is one, that the program reloads. [`ready`] follows, whether
/// that succeeds or not.
pub fn reloading() {
    let told = NotifyState::monotonic_usec_now()
        .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now]));
    report(told);
}

/// Tells the service manager, if there is one, that the program is about to end.
pub fn stopping() {
    report(sd_notify::notify(&[NotifyState::Stopping]));
}

/// Tells the service manager, if there is one, why the program ends.
pub fn failed(reason: &str) {
    // A message is a line.
    let reason = reason.replace('\n', " ");
    // The reason is logged as well.
    let _ = sd_notify::notify(&[NotifyState::Status(&reason)]);
}

pub(crate) fn report(result: io::Result<()>) {
    if let Err(error) = result {
        warn!("cannot notify the service manager: {error}");
    }
}
