//! The line that the daemon logs when it begins to serve: what it shares, where, and within which
//! limits.

use std::fmt;

use crate::config::Config;
use crate::device::Rate;
use crate::socket::Source;

/// The line, as text.
#[derive(Debug)]
pub(crate) struct StartLine<'a> {
    /// The options.
    pub(crate) config: &'a Config,
    /// Most guests at a time.
    pub(crate) max_guests: usize,
}

impl fmt::Display for StartLine<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { config, max_guests } = self;
        let device = &config.device;
        write!(
            out,
            "sharing {:?} as {:?} on ",
            config.shared_dir, device.tag
        )?;
        match &config.socket {
            Source::Path { path, group: None } => write!(out, "{path:?}, for the socket's owner")?,
            Source::Path {
                path,
                group: Some(group),
            } => write!(out, "{path:?}, for the socket's owner and group {group:?}")?,
            Source::Fd(fd) => write!(out, "descriptor {fd}")?,
        }
        write!(
            out,
            "; waiting for guests, at most {max_guests} at a time; sandbox {}; each guest has at \
             most {} of memory, {} threads",
            config.sandbox.mode,
            Bytes(device.max_guest_memory),
            device.max_threads
        )?;
        if let Some(open_files) = config.open_files {
            write!(out, ", {open_files} descriptors")?;
        }
        if let Some(Rate { per_second, burst }) = device.limits.operations {
            write!(out, ", {per_second} operations a second ({burst} at once)")?;
        }
        if let Some(Rate { per_second, burst }) = device.limits.bytes {
            let (per_second, burst) = (Bytes(per_second), Bytes(burst));
            write!(out, ", {per_second} a second ({burst} at once)")?;
        }
        Ok(())
    }
}

/// A number of bytes in the largest unit that divides it.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0.trailing_zeros() >= shift {
                return write!(out, "{} {unit}", self.0 >> shift);
            }
        }
        write!(out, "{} bytes", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Args;

    fn line(arguments: &str) -> String {
        let words = std::iter::once("gangplankd").chain(arguments.split_whitespace());
        let config = Config::from_args(Args::from_command_line(words).unwrap()).unwrap();
        StartLine {
            config: &config,
            max_guests: 7,
        }
        .to_string()
    }

    #[test]
    fn it_says_what_is_shared_where_and_within_which_limits() {
        assert_eq!(
            line("--shared-dir /srv --socket-path /run/s"),
            "sharing \"/srv\" as \"myfs\" on \"/run/s\", for the socket's owner; waiting for \
             guests, at most 7 at a time; sandbox namespace; each guest has at most 8 TiB of \
             memory, 64 threads"
        );
        assert_eq!(
            line(
                "--shared-dir /srv --socket-path /run/s --socket-group kvm --tag t \
                 --sandbox=chroot --max-guest-memory=1500 --limit-iops=500 --limit-bps=10M \
                 --limit-bps-burst=64K"
            ),
            "sharing \"/srv\" as \"t\" on \"/run/s\", for the socket's owner and group \"kvm\"; \
             waiting for guests, at most 7 at a time; sandbox chroot; each guest has at most 1500 \
             bytes of memory, 64 threads, 500 operations a second (50 at once), 10 MiB a second \
             (64 KiB at once)"
        );
        assert!(line("--shared-dir /srv --fd 3").contains("on descriptor 3;"));
    }
}
