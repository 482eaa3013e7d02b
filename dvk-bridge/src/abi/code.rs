//! Error codes: Linux's up to 40, MINIX's network codes from 50 to 75, DVS's own beyond.

use std::fmt;

/// Why DVK, or a peer that acts for one, failed. The number may be unknown.
///
/// The number is positive here. Results and replies carry it negated: see [`Self::from_result`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Code(i32);

/// Declares the codes: number, constant, spelling in DVK's headers, meaning.
macro_rules! codes {
    ($( $number:literal $name:ident $meaning:literal, )*) => {
        impl Code {
            $(
                #[doc = concat!("`", stringify!($name), "`: ", $meaning, ".")]
                pub const $name: Self = Self($number);
            )*

            /// All named codes.
            #[cfg(test)]
            const KNOWN: &[Self] = &[ $( Self::$name, )* ];

            /// The spelling in DVK's headers. Returns `None` for a number that they do not have.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $( $number => Some(stringify!($name)), )*
                    _ => None,
                }
            }

            /// The meaning, in words that can follow a colon.
            pub fn meaning(self) -> &'static str {
                match self.0 {
                    $( $number => $meaning, )*
                    _ => "a code that DVK does not have",
                }
            }
        }
    };
}

codes! {
    1 EPERM "operation not permitted",
    2 ENOENT "no such file or process",
    3 ESRCH "no such process",
    4 EINTR "interrupted",
    5 EIO "input/output error",
    6 ENXIO "no such device or address",
    7 E2BIG "argument too long, or not to be read",
    8 ENOEXEC "not executable",
    9 EBADF "bad handle",
    10 ECHILD "no child",
    11 EAGAIN "not now",
    12 ENOMEM "out of memory",
    13 EACCES "permission denied",
    14 EFAULT "bad address",
    15 ENOTBLK "not a block device",
    16 EBUSY "busy",
    17 EEXIST "exists already",
    18 EXDEV "across file systems",
    19 ENODEV "no such device",
    20 ENOTDIR "not a directory",
    21 EISDIR "a directory",
    22 EINVAL "invalid argument",
    23 ENFILE "too many open files in the system",
    24 EMFILE "too many open files",
    25 ENOTTY "call not known",
    26 ETXTBSY "program is running",
    27 EFBIG "file too large",
    28 ENOSPC "no space left",
    29 ESPIPE "cannot seek",
    30 EROFS "read-only file system",
    31 EMLINK "too many links",
    32 EPIPE "broken pipe",
    33 EDOM "argument out of domain",
    34 ERANGE "result out of range",
    35 EDEADLK "deadlock avoided",
    36 ENAMETOOLONG "name too long",
    37 ENOLCK "no locks available",
    38 ENOSYS "not implemented",
    39 ENOTEMPTY "directory not empty",
    40 ELOOP "too many symbolic links",
    99 EDVSGENERIC "generic error",
    50 EDVSPACKSIZE "packet size wrong",
    51 EDVSOUTOFBUFS "out of buffers",
    52 EDVSBADIOCTL "call not known",
    53 EDVSBADMODE "bad mode",
    54 EDVSWOULDBLOCK "would block",
    55 EDVSBADDEST "bad destination",
    56 EDVSDSTNOTRCH "destination not reachable",
    57 EDVSISCONN "connected already",
    58 EDVSADDRINUSE "address in use",
    59 EDVSCONNREFUSED "connection refused",
    60 EDVSCONNRESET "connection reset",
    61 EDVSTIMEDOUT "timed out",
    62 EDVSURG "urgent data",
    63 EDVSNOURG "no urgent data",
    64 EDVSNOTCONN "node not connected",
    65 EDVSSHUTDOWN "shut down",
    66 EDVSNOCONN "no such connection",
    67 EDVSAFNOSUPPORT "address family not supported",
    68 EDVSPROTONOSUPPORT "protocol not supported",
    69 EDVSPROTOTYPE "wrong kind of protocol",
    70 EDVSINPROGRESS "in progress",
    71 EDVSADDRNOTAVAIL "address not available",
    72 EDVSALREADY "already in progress",
    73 EDVSMSGSIZE "message of wrong size",
    74 EDVSNOTSOCK "not a socket",
    75 EDVSNOPROTOOPT "no such protocol option",
    101 EDVSLOCKED "deadlock",
    102 EDVSBADCALL "call not allowed for the caller",
    103 EDVSBADSRCDST "bad source or destination",
    104 EDVSCALLDENIED "no permission for the call",
    105 EDVSDEADSRCDST "partner is not alive",
    106 EDVSNOTREADY "partner is not ready",
    107 EDVSBADREQUEST "request not understood",
    108 EDVSSRCDIED "source has died",
    109 EDVSDSTDIED "destination has died",
    110 EDVSTRAPDENIED "not allowed to address it",
    201 EDVSDONTREPLY "no reply is to be sent",
    300 EDVSERRCODE "border of DVS's own codes",
    301 EDVSBADNODEID "bad node id",
    302 EDVSBADDCID "bad container id",
    303 EDVSDCNOTRUN "container is not running",
    304 EDVSBADPROC "bad process number",
    305 EDVSBADPID "bad process id",
    306 EDVSENDPOINT "endpoint is of another generation",
    307 EDVSNOPROXY "no proxy for the node",
    308 EDVSRMTPROC "process is remote",
    309 EDVSLCLPROC "process is local",
    310 EDVSNOTBIND "not bound",
    311 EDVSPROXYRUN "proxy is running already",
    312 EDVSACKDST "acknowledgement for one that does not wait so",
    313 EDVSACKSRC "acknowledgement from the wrong partner",
    314 EDVSACKWAIT "acknowledgement not awaited",
    315 EDVSNODEBUSY "node is busy",
    316 EDVSNONODE "process is on another node",
    317 EDVSDVSBUSY "DVS is initialised already",
    318 EDVSDVSINIT "DVS is not initialised",
    319 EDVSNODCNODE "node is not in the container",
    320 EDVSPROCRUN "process is busy",
    321 EDVSNOMSG "queue is empty",
    323 EDVSDCRUN "container is running already",
    324 EDVSPROCSTS "process is in the wrong state",
    325 EDVSNODEFREE "slot of the node is free",
    326 EDVSDCNODE "node is in the container already, or not",
    327 EDVSBADPROXY "caller is not that proxy",
    328 EDVSONCOPY "process is in a copy",
    329 EDVSENQUEUED "process is on a queue",
    330 EDVSOVERRUN "notification is pending already",
    331 EDVSBADOWNER "slot has another owner",
    332 EDVSMIGRATE "partner is migrating",
    333 EDVSPROXYFREE "proxy pair is free",
    334 EDVSGRPLEADER "not the group leader",
    335 EDVSPRIVILEGES "CAP_SYS_ADMIN is needed",
    336 EDVSBINDTYPE "bad type of binding",
    337 EDVSSLOTUSED "slot is in use",
    338 EDVSBADRANGE "value out of range",
    339 EDVSBADVALUE "bad value",
    340 EDVSBADDIR "problem with a directory of /proc",
    341 EDVSBADFILE "problem with a file of /proc",
    342 EDVSRSCBUSY "resource is busy",
    343 EDVSNAMESIZE "name too long",
    344 EDVSALLOCMEM "out of kernel memory",
    345 EDVSPROXYID "bad id of a proxy pair",
    346 EDVSREPLPROC "process is replicated",
    347 EDVSALIGN "bad alignment",
    348 EDVSWOKENUP "woken up",
    349 EDVSBADTRAMP "internal step of a copy failed",
    350 EDVSUSR2USR "internal step of a copy failed, user to user",
    351 EDVSKRN2USR "internal step of a copy failed, kernel to user",
    352 EDVSUSR2KRN "internal step of a copy failed, user to kernel",
    401 EDVSPRIMARY "there is no primary",
    402 EDVSNOREPLICA "there is no replica",
    512 EDVSRESTARTSYS "interrupted, to be restarted",
}

impl Code {
    /// The code `number`, known or not.
    pub const fn new(number: i32) -> Self {
        Self(number)
    }

    /// The code in a result. Returns `None` if the result is not negative, and so no failure.
    pub fn from_result(result: i32) -> Option<Self> {
        (result < 0).then(|| Self(result.saturating_neg()))
    }

    /// The positive number.
    pub const fn number(self) -> i32 {
        self.0
    }

    /// The negative result for this code.
    pub const fn result(self) -> i32 {
        self.0.saturating_neg()
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{} ({name})", self.meaning()),
            None => write!(f, "{} ({})", self.meaning(), self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_code_has_a_name_and_goes_through_a_result() {
        for &code in Code::KNOWN {
            assert!(code.name().is_some_and(|name| name.starts_with('E')));
            assert_eq!(Code::from_result(code.result()), Some(code));
        }
    }

    #[test]
    fn every_code_has_a_text() {
        for number in [0, 41, 322, 4711, i32::MAX, i32::MIN] {
            let text = Code::new(number).to_string();
            assert!(text.contains(&number.to_string()), "{text}");
        }
        assert_eq!(Code::EDVSTIMEDOUT.to_string(), "timed out (EDVSTIMEDOUT)");
        assert_eq!(Code::from_result(i32::MIN), Some(Code::new(i32::MAX)));
        assert_eq!(Code::from_result(0), None);
    }
}
