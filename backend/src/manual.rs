//! What gangplankd's manual says beside its options.

use gangplank_service::manual::Manual;

/// The manuals of gangplankd and its command.
pub const MANUALS: &[(&str, Manual)] = &[("", MANUAL), ("share", SHARE), ("status", STATUS)];

/// The manual of `gangplankd share`.
pub const SHARE: Manual = Manual {
    description: &[
        "Adds, removes and lists shares of a running gangplankd that serves several shares.",
        "The daemon must have been started with --control. It answers the user who runs it, and \
         root. A share that is added has the daemon's own options, and then those behind the \
         commas or in its file. Its directory must exist, and its tag and socket must be new. A \
         share that guests use is removed with --force alone. Other shares do not notice.",
    ],
    exit_status: &[
        (
            "0",
            "It is done: guests can connect, or the share's processes have ended.",
        ),
        ("1", "It is not done. Standard error says why."),
        ("2", "The command line is wrong."),
    ],
    files: &[],
    environment: &[],
    signals: &[],
    examples: &[
        (
            "Serve another share:",
            "gangplankd share add tools=/srv/tools,readonly,socket=/run/tools.sock \
             --control=/run/fs.control",
        ),
        (
            "Stop serving it, also if guests use it:",
            "gangplankd share remove tools --force --control=/run/fs.control",
        ),
    ],
    see_also: &["gangplankd(8)"],
};

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
        "Several directories are served by --share, once for each, or by files in --shares-dir. \
         Each has a tag, a socket and processes of its own. Options of the command line hold for \
         all shares, and options of a share win. A file of --shares-dir is TOML, with the long \
         names of options as keys: shared-dir, socket-path and others. `gangplankd share` adds and \
         removes shares of a running daemon.",
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
             passes. With several shares: one for each share that FileDescriptorName= names.",
        ),
        (
            "WATCHDOG_USEC, NOTIFY_SOCKET",
            "As systemd sets them: where the daemon reports that it serves, and how often that it \
             is alive.",
        ),
        (
            "FDSTORE, GANGPLANK_FDSTORE",
            "The most descriptors that systemd holds (FileDescriptorStoreMax=). systemd 254 and \
             later sets the first, which wins; the unit gangplankd@NAME sets the second for older \
             ones.",
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
            "The program that is at the daemon's path now takes over all guests, as with --reload. \
             With several shares, those of new files in --shares-dir are served as well.",
        ),
        (
            "SIGUSR1",
            "Writes to the log what gangplankd status shows, of each share.",
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
        (
            "Share two directories:",
            "gangplankd --share=home=/srv/home --share=tools=/srv/tools,readonly \
             --socket-dir=/run/fs --control=/run/fs.control",
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
