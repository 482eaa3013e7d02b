//! What gangplank-dvk's manual says beside its options.

use gangplank_service::manual::{Entry, Manual};

const SEE_ALSO: &[&str] = &["gangplankd(8)", "gangplank-frontend(1)"];

/// Of each command that serves.
const STATUS_SIGNALS: Entry = (
    "SIGUSR1, SIGHUP",
    "Writes the state to the log: programs, nodes, endpoints and their counts.",
);

/// The manual of the program, and of commands that have none of their own.
pub const PROGRAM: Manual = Manual {
    description: &[
        "DVK endpoints, and a shared directory as an rhostfs on them.",
        "`serve` serves a share to the machines of a Distributed Virtualization System (DVS), in \
         place of the original rhostfs server. It opens no file of the share itself, and sends \
         requests to a virtio-fs daemon. `mount` is the client as a FUSE mount, for machines \
         without DVK and virtio.",
        "DVK's messages between nodes have no authentication and no encryption. Let nodes listen \
         on trusted networks only.",
    ],
    exit_status: &[
        ("0", "Done, or told to end by SIGTERM or SIGINT."),
        ("1", "It failed; standard error says why."),
        ("2", "The command line is wrong."),
    ],
    files: &[
        (
            "/etc/gangplank/rhostfs.cfg",
            "The configuration that the systemd unit gangplank-dvk uses.",
        ),
        ("/dev/dvk", "The kernel's DVK, where there is one."),
    ],
    environment: &[(
        "RUST_LOG",
        "What to log, by module, such as gangplank_dvk::rhostfs=trace. --log-level overrides it.",
    )],
    signals: &[
        (
            "SIGTERM, SIGINT",
            "The program ends. A second signal ends `serve` at once.",
        ),
        STATUS_SIGNALS,
    ],
    examples: &[
        (
            "Check a configuration and show what would be served:",
            "gangplank-dvk serve --config /etc/gangplank/rhostfs.cfg --check",
        ),
        (
            "Mount the share of another node:",
            "gangplank-dvk mount --background --peer 192.168.7.1:1 --node 2 --address 192.168.7.2 \
             /mnt",
        ),
    ],
    see_also: SEE_ALSO,
};

/// The manuals by command.
pub const MANUALS: &[(&str, Manual)] = &[
    ("", PROGRAM),
    ("forward", FORWARD),
    ("mount", MOUNT),
    ("serve", SERVE),
    ("switch", SWITCH),
    ("tunnel", TUNNEL),
];

/// The manual of `serve`.
pub const SERVE: Manual = Manual {
    description: &[
        "Serves a share to DVS machines, as their rhostfs. Daemon, server and clients may start \
         and end in any order. Without its daemon a server answers EIO.",
    ],
    exit_status: PROGRAM.exit_status,
    files: &[(
        "/etc/gangplank/rhostfs.cfg",
        "The configuration that the systemd unit gangplank-dvk uses.",
    )],
    environment: PROGRAM.environment,
    signals: &[
        (
            "SIGTERM, SIGINT",
            "Requests are finished, and the server ends. A second signal ends it at once.",
        ),
        STATUS_SIGNALS,
    ],
    examples: &[(
        "Check a configuration and show what would be served:",
        "gangplank-dvk serve --config /etc/gangplank/rhostfs.cfg --check",
    )],
    see_also: SEE_ALSO,
};

/// The manual of `forward`.
pub const FORWARD: Manual = Manual {
    description: &["Lets a server elsewhere serve the processes of this machine's DVK."],
    exit_status: PROGRAM.exit_status,
    files: &[("/dev/dvk", "The kernel's DVK.")],
    environment: PROGRAM.environment,
    signals: PROGRAM.signals,
    examples: &[(
        "Forward to the server at node 1:",
        "gangplank-dvk forward --peer 192.168.7.1:1 --node 5 --address 192.168.7.5",
    )],
    see_also: SEE_ALSO,
};

/// The manual of `tunnel`.
pub const TUNNEL: Manual = Manual {
    description: &[
        "Offers a guest of this machine a virtio-fs device, and carries its requests over DVK \
         endpoints to a `gangplank-dvk serve` on another machine, which has a block `virtqueue` in \
         its configuration and the daemon. The guest can be one of QEMU, User Mode Linux, the Bao \
         device model, or the relay.",
        "Guest, tunnel, server and daemon may start in any order. While the server cannot be \
         reached, requests wait. When server or daemon have ended, requests fail with ENOTCONN \
         until the guest mounts anew.",
    ],
    exit_status: &[
        ("0", "Told to end by SIGTERM or SIGINT."),
        ("1", "It failed; standard error says why."),
        ("2", "The command line is wrong."),
    ],
    files: &[],
    environment: PROGRAM.environment,
    signals: &[
        (
            "SIGTERM, SIGINT",
            "The guest's device ends, and the program.",
        ),
        STATUS_SIGNALS,
    ],
    examples: &[(
        "Offer a guest the share of node 1, whose block virtqueue has vq_ep 4:",
        "gangplank-dvk tunnel --listen guest.sock --peer 192.168.7.1:1 --node 2 --address \
         192.168.7.2 --endpoint 4",
    )],
    see_also: SEE_ALSO,
};

/// The manual of `switch`.
pub const SWITCH: Manual = Manual {
    description: &["Connects programs of this host by endpoints, without the kernel's DVK."],
    exit_status: &[
        ("1", "It failed; standard error says why."),
        ("2", "The command line is wrong."),
    ],
    files: &[],
    environment: PROGRAM.environment,
    signals: &[
        ("SIGTERM, SIGINT", "Ends the switch at once."),
        STATUS_SIGNALS,
    ],
    examples: &[(
        "Let user 1000 bind endpoint 1:",
        "gangplank-dvk switch --socket /run/dvk.sock --allow 1000=1",
    )],
    see_also: SEE_ALSO,
};

/// The manual of `mount`.
pub const MOUNT: Manual = Manual {
    description: &[
        "Mounts a remote rhostfs on a directory of this machine. It acts as a DVS node with one \
         client. It needs root and a kernel with FUSE, but no fusermount.",
    ],
    exit_status: &[
        (
            "0",
            "Unmounted. With --background: mounted; another process serves it from then on.",
        ),
        ("1", "Not mounted, or the mount failed later."),
        ("2", "The command line is wrong."),
    ],
    files: &[("/dev/fuse", "The kernel's FUSE.")],
    environment: PROGRAM.environment,
    signals: &[
        ("SIGTERM, SIGINT", "Unmounts the directory."),
        STATUS_SIGNALS,
    ],
    examples: &[(
        "Mount the share of another node:",
        "gangplank-dvk mount --background --peer 192.168.7.1:1 --node 2 --address 192.168.7.2 /mnt",
    )],
    see_also: SEE_ALSO,
};
