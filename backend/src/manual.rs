//! What gangplankd's manual says beside its options.

use gangplank_service::manual::Manual;

/// The manuals of gangplankd and its command.
pub const MANUALS: &[(&str, Manual)] = &[("", MANUAL), ("status", STATUS)];

/// The manual of `gangplankd status`.
pub const STATUS: Manual = Manual {
    description: &[
        "Shows what a running gangplankd's guests do.",
        "The daemon must have been started with --control. It answers the user who runs it, and \
         root. For each guest it tells the FUSE version, requests, errors and bytes by operation, \
         how long they took, requests in flight, the oldest of them, inodes, descriptors, and \
         deaths of its process with the pauses that followed. Durations are measured of one \
         request in 64 of each operation and thread.",
    ],
    exit_status: &[
        ("0", "The status was shown."),
        (
            "1",
            "The daemon does not answer, or there is no terminal for --watch.",
        ),
        ("2", "The command line is wrong."),
    ],
    files: &[],
    environment: &[],
    signals: &[],
    examples: &[
        (
            "Show it once:",
            "gangplankd status --control=/run/fs.control",
        ),
        (
            "Watch it:",
            "gangplankd status --control=/run/fs.control --watch",
        ),
    ],
    see_also: &["gangplankd(8)"],
};

/// The manual of gangplankd.
pub const MANUAL: Manual = Manual {
    description: &[
        "Shares one host directory with every guest: a vhost-user virtio-fs daemon.",
        "A guest mounts the share with `mount -t virtiofs TAG DIRECTORY`. Its frontend (QEMU, User \
         Mode Linux, Cloud Hypervisor, a relay or a device model) connects to the socket and gives \
         the guest's memory to the daemon, so that memory must be shared. Any number of guests use \
         the same socket, at the same time or one after another. Each is served by processes of \
         its own, so a guest that crashes or misbehaves does not affect the others.",
        "The options have virtiofsd's names, meanings and defaults, unless their description says \
         otherwise. An option that is given twice has its last value.",
    ],
    exit_status: &[
        (
            "0",
            "A signal ended it, or its last guest left and --exit-on-disconnect or --fd was given.",
        ),
        (
            "1",
            "The share, the socket or the confinement failed. Standard error or the log names it.",
        ),
        ("2", "The command line is wrong. Nothing was started."),
        (
            "128 and more",
            "A signal of this number, plus 128, ended the process that accepts guests, before it \
             served them, or as often as --max-crashes says.",
        ),
    ],
    files: &[
        (
            "SOCKET.pid",
            "Beside --socket-path: the process id, locked while the daemon runs.",
        ),
        (
            "/etc/default/gangplankd-NAME",
            "OPTIONS= of the systemd unit gangplankd@NAME.",
        ),
        (
            "/usr/share/qemu/vhost-user/50-gangplankd.json",
            "By this file libvirt finds the program, if it is installed.",
        ),
    ],
    environment: &[
        (
            "LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES",
            "Without --socket-path and --fd: the listening socket that a socket unit of systemd \
             passes.",
        ),
        (
            "WATCHDOG_USEC, NOTIFY_SOCKET",
            "As systemd sets them: where the daemon reports that it serves, and how often that it \
             is alive.",
        ),
        (
            "JOURNAL_STREAM",
            "Where standard error is systemd's journal, messages go there with their fields.",
        ),
        (
            "RUST_LOG",
            "What to log, by module, such as gangplank_backend::session=trace. --log-level \
         overrides it.",
        ),
    ],
    signals: &[
        (
            "SIGTERM, SIGINT",
            "Requests in flight are finished, guests lose their connections, the socket is \
             removed, and the daemon ends. If systemd holds descriptors \
             (FileDescriptorStoreMax=), the daemon ends at once, and the next one goes on with \
             the guests.",
        ),
        (
            "SIGHUP",
            "The program that is at the daemon's path now takes over all guests, as with --reload.",
        ),
    ],
    examples: &[
        (
            "Share /srv with guests that mount it by the name myfs:",
            "gangplankd --socket-path=/run/fs.sock --shared-dir=/srv --tag=myfs",
        ),
        (
            "Share it read-only, with guests that may cache everything:",
            "gangplankd --socket-path=/run/fs.sock --shared-dir=/srv --readonly --cache=always",
        ),
        (
            "Share it and permit a look inside:",
            "gangplankd --socket-path=/run/fs.sock --shared-dir=/srv --control=/run/fs.control",
        ),
        ("Mount it in a guest:", "mount -t virtiofs myfs /mnt"),
    ],
    see_also: &[
        "gangplank-frontend(1)",
        "gangplank-dvk(1)",
        "mount(8)",
        "systemd.service(5)",
    ],
};
