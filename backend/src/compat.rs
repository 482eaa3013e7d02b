//! The `-o name=value,...` syntax of the older C daemon, which virtiofsd still accepts.

use log::LevelFilter;
use thiserror::Error;

use crate::args::{Args, LocksArg, parse_seconds};
use crate::passthrough::options::{CachePolicy, Locks, NegotiationMode};
use crate::passthrough::xattr_map::XattrMapError;
use crate::sandbox::options::Mode;

/// An invalid `-o` option.
#[derive(Debug, Error)]
pub enum Error {
    /// An unknown name.
    #[error("unknown option '-o {0}'")]
    Unknown(String),
    /// A name with an invalid value.
    #[error("invalid value '{value}' for '-o {name}': expected {expected}")]
    Value {
        /// The name before the equals sign.
        name: String,
        /// The value after it.
        value: String,
        /// The valid values.
        expected: &'static str,
    },
    /// `-o xattrmap=` with rules that are none.
    #[error("invalid value for '-o xattrmap': {0}")]
    XattrMap(XattrMapError),
    /// `-o modcaps=` with a malformed list.
    #[error("invalid value for '-o modcaps': {0}")]
    Modcaps(String),
}

/// Applies the `-o` options to `args`. They override all other options, wherever they stand on the
/// command line, as with virtiofsd.
///
/// # Errors
/// A name is unknown, or a value is invalid.
pub(crate) fn apply(args: &mut Args) -> Result<(), Error> {
    let mut host_locks = HostLocks::default();
    for line in std::mem::take(&mut args.compat_options) {
        for option in split(&line) {
            match option.split_once('=') {
                Some((name, value)) => apply_value(args, name, value)?,
                None if host_locks.apply(&option) => {}
                None => apply_flag(args, &option)?,
            }
        }
    }
    args.locks = host_locks
        .locks()
        .map_or(args.locks, |locks| LocksArg(Some(locks)));
    Ok(())
}

/// The options of one `-o`. Two commas are one comma of a value, as QEMU and libvirt write it.
fn split(line: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut rest = line.chars().peekable();
    while let Some(character) = rest.next() {
        if character == ',' && rest.next_if_eq(&',').is_none() {
            options.push(String::new());
        } else if let Some(option) = options.last_mut() {
            option.push(character);
        }
    }
    options
}

/// The older daemon's options for locks, one for each kind. `--locks` is for both kinds.
#[derive(Default)]
struct HostLocks {
    flock: Option<bool>,
    posix: Option<bool>,
}

impl HostLocks {
    /// Applies an option. Returns whether it is one for locks.
    fn apply(&mut self, option: &str) -> bool {
        let (kind, is_on) = match option {
            "flock" => (&mut self.flock, true),
            "no_flock" => (&mut self.flock, false),
            "posix_lock" => (&mut self.posix, true),
            "no_posix_lock" => (&mut self.posix, false),
            _ => return false,
        };
        *kind = Some(is_on);
        true
    }

    /// Where locks are kept; `None` if the options leave that open.
    fn locks(&self) -> Option<Locks> {
        match (self.flock, self.posix) {
            (Some(true), _) | (_, Some(true)) => Some(Locks::Host),
            (Some(false), Some(false)) => Some(Locks::Guest),
            _ => None,
        }
    }
}

fn apply_value(args: &mut Args, name: &str, value: &str) -> Result<(), Error> {
    let wrong = |expected: &'static str| Error::Value {
        name: name.to_owned(),
        value: value.to_owned(),
        expected,
    };
    match name {
        "source" => args.shared_dir = Some(value.into()),
        "vhost_user_socket" => args.socket_path = Some(value.into()),
        "timeout" => {
            let timeout = parse_seconds(value);
            args.timeout = Some(timeout.map_err(|_| wrong("seconds, such as 0, 1 or 0.5"))?);
        }
        "cache" => {
            args.cache = match value {
                // The C daemon's spelling of `never`.
                "none" => CachePolicy::Never,
                "auto" => CachePolicy::Auto,
                "always" => CachePolicy::Always,
                "metadata" => CachePolicy::Metadata,
                _ => return Err(wrong("none, metadata, auto or always")),
            }
        }
        // The C daemon's name of it is the second.
        "loglevel" | "log_level" => {
            args.log_level = Some(match value {
                "debug" => LevelFilter::Debug,
                "info" => LevelFilter::Info,
                "warn" => LevelFilter::Warn,
                "err" => LevelFilter::Error,
                _ => return Err(wrong("err, warn, info or debug")),
            })
        }
        "sandbox" => {
            args.sandbox = match value {
                "namespace" => Mode::Namespace,
                "chroot" => Mode::Chroot,
                _ => return Err(wrong("namespace or chroot")),
            }
        }
        "modcaps" => {
            args.modcaps = Some(value.parse().map_err(Error::Modcaps)?);
        }
        "xattrmap" => args.xattrmap = Some(value.parse().map_err(Error::XattrMap)?),
        _ => return Err(Error::Unknown(format!("{name}={value}"))),
    }
    Ok(())
}

fn apply_flag(args: &mut Args, name: &str) -> Result<(), Error> {
    match name {
        "debug" => args.log_level = Some(LevelFilter::Debug),
        "xattr" => args.xattr = true,
        "no_xattr" => args.xattr = false,
        "readdirplus" => args.no_readdirplus = false,
        "no_readdirplus" => args.no_readdirplus = true,
        "writeback" => args.writeback = true,
        "no_writeback" => args.writeback = false,
        "allow_direct_io" => args.allow_direct_io = true,
        "no_allow_direct_io" => args.allow_direct_io = false,
        "announce_submounts" => args.no_announce_submounts = false,
        "no_announce_submounts" => args.no_announce_submounts = true,
        "killpriv_v2" => args.killpriv_v2 = true,
        "no_killpriv_v2" => args.killpriv_v2 = false,
        "posix_acl" => args.posix_acl = NegotiationMode::Always,
        "no_posix_acl" => args.posix_acl = NegotiationMode::Never,
        "security_label" => args.security_label = NegotiationMode::Always,
        "no_security_label" => args.security_label = NegotiationMode::Never,
        _ => return Err(Error::Unknown(name.to_owned())),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    fn read(options: &str) -> Result<Args, Error> {
        let words = ["gangplankd", "-o", options, "--cache=always", "--xattr"];
        let mut args = Args::from_command_line(words).expect("the command line is well formed");
        apply(&mut args).map(|()| args)
    }

    #[test]
    fn known_options_override_all_others() {
        let args = read(
            "source=/srv,cache=none,loglevel=err,sandbox=chroot,modcaps=-mknod,no_xattr,\
             no_readdirplus,writeback,allow_direct_io,killpriv_v2,announce_submounts,\
             no_posix_lock,no_flock,no_posix_acl,no_security_label",
        )
        .unwrap();
        assert_eq!(args.shared_dir.as_deref(), Some(Path::new("/srv")));
        assert_eq!(args.cache, CachePolicy::Never);
        assert_eq!(args.log_level, Some(LevelFilter::Error));
        assert_eq!(args.sandbox, Mode::Chroot);
        assert_eq!(args.modcaps, Some("-mknod".parse().unwrap()));
        assert!(!args.xattr);
        assert!(args.no_readdirplus && args.writeback && args.allow_direct_io && args.killpriv_v2);
    }

    #[test]
    fn what_the_c_daemon_alone_had_is_known() {
        let args = read("vhost_user_socket=/run/fs.sock,timeout=1.5").unwrap();
        assert_eq!(args.socket_path.as_deref(), Some(Path::new("/run/fs.sock")));
        assert_eq!(args.timeout, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn value_with_an_equals_sign_is_kept_whole() {
        let args = read("source=/srv/a=b").unwrap();
        assert_eq!(args.shared_dir.as_deref(), Some(Path::new("/srv/a=b")));
    }

    #[test]
    fn two_commas_are_one_of_a_value() {
        let args = read("source=/srv/a,,b,,,,c,cache=none").unwrap();
        assert_eq!(args.shared_dir.as_deref(), Some(Path::new("/srv/a,b,,c")));
        assert_eq!(args.cache, CachePolicy::Never);
    }

    #[test]
    fn a_lock_of_either_kind_means_that_the_host_keeps_all() {
        for (given, options, locks) in [
            ("guest", "flock", Locks::Host),
            ("guest", "posix_lock,no_flock", Locks::Host),
            ("guest", "no_posix_lock,flock", Locks::Host),
            ("guest", "flock,no_flock", Locks::Guest),
            ("host", "no_flock", Locks::Host),
            ("host", "no_flock,no_posix_lock", Locks::Guest),
        ] {
            let words = ["gangplankd", "-o", options, "--locks", given];
            let mut args = Args::from_command_line(words).expect("well formed");
            apply(&mut args).expect("known options");
            assert_eq!(args.locks, LocksArg(Some(locks)), "{options} after {given}");
        }
    }

    #[test]
    fn unknown_options_are_refused_by_name() {
        for (options, hint) in [
            ("frob", "'-o frob'"),
            ("time=3", "'-o time=3'"),
            ("timeout=soon", "'soon' for '-o timeout': expected seconds"),
            ("cache=never", "'never' for '-o cache'"),
            ("sandbox=none", "'none' for '-o sandbox'"),
            ("loglevel=loud", "'loud' for '-o loglevel'"),
            ("modcaps=mknod", "'mknod'"),
            ("xattrmap=:map:", "'-o xattrmap': rule 1 is incomplete"),
            ("", "'-o '"),
        ] {
            let message = read(options).unwrap_err().to_string();
            assert!(message.contains(hint), "{options}: {message}");
        }
    }
}
