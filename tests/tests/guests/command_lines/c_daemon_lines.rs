//! Command lines in the form of the C daemon, which scripts for older hosts still have.

use gangplank_tests::promises;

use crate::launch::As;
use crate::{Line, USUAL};

pub(crate) const LINES: &[Line] = &[
    Line {
        name: "boot_qemu",
        who: As::Root,
        words: &[
            "--socket-group=root",
            "--socket-path=S",
            "-o",
            "source=P",
            "-o",
            "cache=always",
        ],
        promises: &[promises::user_1000_owns_files],
        ..USUAL
    },
    Line {
        name: "c_daemon_direct",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "--socket-group=root",
            "-o",
            "source=P",
            "-o",
            "allow_direct_io",
            "-o",
            "cache=always",
        ],
        promises: &[promises::user_1000_owns_files],
        ..USUAL
    },
    Line {
        name: "c_daemon_debug",
        who: As::Root,
        words: &[
            "--socket-path=S",
            "-o",
            "source=P",
            "-o",
            "cache=always",
            "-o",
            "debug",
        ],
        promises: &[promises::user_1000_owns_files],
        ..USUAL
    },
    Line {
        name: "c_daemon_log_level",
        who: As::Root,
        words: &["--socket-path=S", "-o", "source=P,log_level=err"],
        promises: &[promises::user_1000_owns_files],
        ..USUAL
    },
    // The first form of the C daemon.
    Line {
        name: "kata_1",
        who: As::Root,
        words: &[
            "-f",
            "-o",
            "vhost_user_socket=S",
            "-o",
            "source=P",
            "-o",
            "cache=none",
        ],
        promises: &[promises::shares_files, promises::users_own_files],
        ..USUAL
    },
    Line {
        name: "kata_2",
        who: As::Root,
        words: &[
            "--syslog",
            "-o",
            "cache=auto",
            "-o",
            "no_posix_lock",
            "-o",
            "source=P",
            "--fd=3",
            "-f",
            "--thread-pool-size=1",
            "-o",
            "announce_submounts",
        ],
        promises: &[promises::shares_files, promises::users_own_files],
        ..USUAL
    },
];
