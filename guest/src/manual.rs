//! What gangplank-guest's manual says beside its options.

use gangplank_service::manual::Manual;

/// The manual of the program and of its command.
pub const PROGRAM: Manual = Manual {
    description: &[
        "Runs in a guest. The guest's kernel does not hear of what the host and other guests do to \
         the files of a share, so inotify and fanotify in the guest are silent. This program reads \
         the changes from the daemon, and makes the kernel read the attributes again and tell the \
         watchers. It changes nothing: the daemon ignores what this process asks for.",
        "The daemon needs --events. The program needs the guest's root, a mount that is not \
         read-only, and Linux 5.8 or later in the guest. It keeps the share mounted: end it before \
         you unmount.",
    ],
    exit_status: &[
        ("1", "It failed; standard error says why."),
        ("2", "The command line is wrong."),
    ],
    files: &[(
        "MOUNTPOINT/.gangplank/events",
        "The changes. Only the guest's root may read it. No directory lists it.",
    )],
    environment: &[],
    signals: &[
        (
            "SIGTERM, SIGINT",
            "The program ends, after two seconds at most: the guest's kernel cannot interrupt the \
             read of a share.",
        ),
        (
            "SIGUSR1, SIGHUP",
            "Writes to standard error how many changes it has heard of.",
        ),
    ],
    examples: &[(
        "Let a development server in the guest see the files that are edited on the host:",
        "gangplank-guest watch /mnt",
    )],
    see_also: &["gangplankd(8)", "mount(8)"],
};

/// The manuals by command.
pub const MANUALS: &[(&str, Manual)] = &[("", PROGRAM), ("watch", PROGRAM)];
