//! How a worker ended, and what the log says of it.

use rustix::process::WaitStatus;

use super::{DISCONNECTED, FAILURE, FAULT};

/// How a worker ended.
pub(super) enum Ended {
    /// It was stopped so that a successor goes on, which did not come to that.
    Stopped,
    /// It has done its work, or logged why it could not: the keeper ends with this status.
    InOrder(u8),
    /// The connection is lost, and the session is to be kept.
    Disconnected,
    /// It died.
    Died(Death),
}

/// How a worker died.
#[derive(Clone, Copy, Debug)]
pub(super) struct Death {
    /// The signal; `None` for a fault that it found itself.
    pub(super) signal: Option<i32>,
    /// Whether the kernel has written a core file, or passed it to a program.
    pub(super) has_core: bool,
}

/// What a status of waitpid(2) says.
pub(super) fn ended(status: WaitStatus) -> Ended {
    let has_core = libc::WCOREDUMP(status.as_raw());
    if let Some(signal) = status.terminating_signal() {
        let signal = Some(signal);
        return Ended::Died(Death { signal, has_core });
    }
    let code = status.exit_status().unwrap_or(FAILURE.into());
    match u8::try_from(code).unwrap_or(FAILURE) {
        FAULT => Ended::Died(Death {
            signal: None,
            has_core: false,
        }),
        DISCONNECTED => Ended::Disconnected,
        status => Ended::InOrder(status),
    }
}

/// A line of the log for a death.
pub(super) fn ended_by(number: u64, death: Death) -> String {
    // As shells say it.
    let core = if death.has_core { " (core dumped)" } else { "" };
    let Some(signal) = death.signal else {
        return format!(
            "the worker of guest {number} found a fault in itself{core}; please report this with \
             the log before it"
        );
    };
    let reason = match signal {
        libc::SIGSYS => {
            ": it made a system call that is not on the permitted list (the kernel's audit log \
             names it; --seccomp=log permits it)"
        }
        libc::SIGABRT => ": it found a fault in itself; please report this with the log before it",
        libc::SIGKILL => ": by the kernel for lack of memory, or by a person",
        libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE => ": please report this",
        _ => "",
    };
    format!("the worker of guest {number} was ended by signal {signal}{core}{reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_worker_names_its_guest_and_the_reason() {
        for (signal, expected) in [
            (Some(libc::SIGSYS), "system call"),
            (Some(libc::SIGABRT), "report this"),
            (Some(libc::SIGKILL), "memory"),
            (Some(libc::SIGTERM), "signal 15"),
            (None, "report this"),
        ] {
            for has_core in [false, true] {
                let text = ended_by(7, Death { signal, has_core });
                assert!(
                    text.contains("guest 7") && text.contains(expected),
                    "{text}"
                );
                assert_eq!(text.contains("(core dumped)"), has_core, "{text}");
            }
        }
    }
}
