//! What gangplank-nfs's manual says beside its options.

use gangplank_service::manual::Manual;

/// The manual of the program and of its command.
pub const PROGRAM: Manual = Manual {
    description: &[
        "Serves a share to NFS clients: NFS version 3, MOUNT version 3 and the port mapper, \
         version 2, over TCP; the port mapper over UDP as well; and locks: NLM version 4 and NSM \
         version 1. It opens no file of the share itself, and \
         sends requests to a virtio-fs daemon. Daemon, server and clients may start and end in any \
         order: without its daemon the server tells clients to try again.",
        "Clients reach it at addresses of the host (--listen), or at an address of its own \
         (--address) on a virtual switch of Unix sockets, which needs no root, and of TAP devices.",
        "A client says itself who its users are (AUTH_SYS), and nothing is encrypted. Export to \
         networks that you trust, and leave root_squash on where you can.",
    ],
    exit_status: &[
        ("0", "Told to end by SIGTERM or SIGINT."),
        ("1", "It failed; standard error says why."),
        ("2", "The command line or the configuration is wrong."),
    ],
    files: &[(
        "/etc/gangplank/nfs.toml",
        "The configuration that the systemd unit gangplank-nfs uses.",
    )],
    environment: &[(
        "RUST_LOG",
        "What to log, by module, such as gangplank_nfs::nfs3=debug. --log-level overrides it.",
    )],
    signals: &[
        ("SIGTERM, SIGINT", "The server ends at once."),
        (
            "SIGUSR1, SIGHUP",
            "Writes to the log whether the daemon is connected, and how many connections and locks \
             clients have.",
        ),
    ],
    examples: &[
        (
            "Serve what a configuration says:",
            "gangplank-nfs serve --config /etc/gangplank/nfs.toml",
        ),
        (
            "Mount the share on a machine that reaches port 2049 alone:",
            "mount -t nfs -o vers=3,proto=tcp,port=2049,mountport=2049,nolock 192.168.7.1:/ /mnt",
        ),
        (
            "Mount it in a guest at the virtual switch, where the server is 10.0.2.1:",
            "mount -t nfs -o vers=3,proto=tcp 10.0.2.1:/ /mnt",
        ),
    ],
    see_also: &["gangplankd(8)", "mount(8)"],
};

/// The manuals by command.
pub const MANUALS: &[(&str, Manual)] = &[("", PROGRAM), ("serve", PROGRAM)];
