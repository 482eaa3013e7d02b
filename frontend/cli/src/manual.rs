//! What gangplank-frontend's manual says beside its options.

use gangplank_service::manual::{Entry, Manual};

const RUST_LOG: Entry = (
    "RUST_LOG",
    "What to log, by module, such as gangplank_relay=trace. --log-level overrides it.",
);

const SEE_ALSO: &[&str] = &["gangplankd(8)", "gangplank-dvk(1)"];

/// The manual of the device model, which is the program without a command.
pub const MODEL: Manual = Manual {
    description: &[
        "The driver's side of virtio-fs over vhost-user: a device model for hypervisors without \
         one, a relay, and a file client.",
        "With --config, serves the devices of a configuration to their guests.",
        "Guest, device model and daemon may start and restart in any order. If the device model \
         ends, is killed or is replaced by a newer one, the mounts of its guests remain: a small \
         process that it starts by itself keeps the devices until the next device model continues.",
    ],
    exit_status: &[
        ("0", "Done, or told to end by SIGTERM or SIGINT."),
        ("1", "A device could not be served, or ended early."),
        ("2", "The command line or the configuration is wrong."),
    ],
    files: &[(
        "/etc/gangplank.yaml",
        "The configuration that the systemd unit gangplank-frontend uses.",
    )],
    environment: &[RUST_LOG],
    signals: &[
        (
            "SIGTERM, SIGINT",
            "The device model ends; the guests' devices stay for the next one.",
        ),
        (
            "SIGUSR1, SIGHUP",
            "Writes the status of each device to the log.",
        ),
    ],
    examples: &[
        (
            "Check a configuration and show what would be served:",
            "gangplank-frontend --config /etc/gangplank.yaml --check",
        ),
        (
            "Serve it, and report to programs that connect:",
            "gangplank-frontend --config /etc/gangplank.yaml --status-socket \
             /run/gangplank/status",
        ),
    ],
    see_also: SEE_ALSO,
};

/// The manuals by command.
pub const MANUALS: &[(&str, Manual)] =
    &[("", MODEL), ("relay", RELAY), ("fs", FS), ("trace", TRACE)];

/// The manual of the relay and of the commands to it.
pub const RELAY: Manual = Manual {
    description: &[
        "Stands between a guest and a virtio-fs daemon. The guest keeps its device while the \
         daemon behind it is absent, is replaced or dies. Only vhost-user's messages pass through \
         the relay; requests and data go between guest and daemon directly.",
    ],
    exit_status: &[
        ("0", "Done, or told to end by SIGTERM or SIGINT."),
        ("1", "It failed, or the running relay refused the command."),
        ("2", "The command line is wrong."),
    ],
    files: &[],
    environment: &[RUST_LOG],
    signals: &[
        (
            "SIGTERM, SIGINT",
            "The relay ends, and its guests lose their devices.",
        ),
        (
            "SIGUSR1, SIGHUP",
            "Writes the state of each guest to the log.",
        ),
    ],
    examples: &[
        (
            "Stand between guests and a daemon:",
            "gangplank-frontend relay --listen /run/guest.sock --backend /run/fs.sock --control \
             /run/relay.sock",
        ),
        (
            "Move all guests to another daemon:",
            "gangplank-frontend relay switch --control /run/relay.sock /run/new.sock",
        ),
        (
            "Hold what guests have while no process of gangplankd --holder=/run/holder.sock runs:",
            "gangplank-frontend relay --listen /run/guest.sock --backend /run/fs.sock --holder \
             /run/holder.sock",
        ),
    ],
    see_also: SEE_ALSO,
};

/// The manual of the file client and its commands.
pub const FS: Manual = Manual {
    description: &[
        "Works with the files of a virtio-fs daemon without a guest. It is a driver of its own, \
         and works with any vhost-user virtio-fs daemon.",
    ],
    exit_status: &[
        ("0", "Done."),
        ("1", "A command on a file failed."),
        ("2", "The command line is wrong."),
        ("3", "The daemon cannot be reached, or has gone."),
        (
            "141",
            "SIGPIPE ended it: the reader of its output has gone.",
        ),
    ],
    files: &[
        (
            "$XDG_STATE_HOME/gangplank/fs-history, or the same below ~/.local/state",
            "The history of the shell.",
        ),
        (
            ".NAME.gangplank-partial",
            "What an interrupted cp --resume has copied of the file NAME, in the same directory.",
        ),
    ],
    environment: &[(
        "XDG_STATE_HOME",
        "The directory that has the history of the shell [default: ~/.local/state].",
    )],
    signals: &[],
    examples: &[
        (
            "List the root of the share:",
            "gangplank-frontend fs --socket /run/fs.sock ls",
        ),
        (
            "Copy a file from the share, whose path begins with a colon:",
            "gangplank-frontend fs --socket /run/fs.sock cp :reports/may.pdf .",
        ),
        (
            "Copy a directory into the share with all attributes:",
            "gangplank-frontend fs --socket /run/fs.sock cp -a ./tree :backup",
        ),
        (
            "Show in what a directory of the host differs from it; without --dry-run, mend that:",
            "gangplank-frontend fs --socket /run/fs.sock sync --delete --dry-run :backup ./tree",
        ),
        (
            "Remove files that match a pattern:",
            "gangplank-frontend fs --socket /run/fs.sock rm 'tmp/*.o'",
        ),
    ],
    see_also: SEE_ALSO,
};

/// The manual of the viewer of traces.
pub const TRACE: Manual = Manual {
    description: &[
        "Prints what gangplankd --trace recorded: a line for each request of each guest, in the \
         order in which the requests ended. The line has the time at which the request began (in \
         UTC), guest and ring, the request's number, the operation with its arguments, the result, \
         and the duration in seconds. Filters pick requests; a request is shown if all of them \
         hold.",
        "Records that the daemon had to drop, and places in the file that are damaged, are told \
         where they would be.",
    ],
    exit_status: &[
        ("0", "Done."),
        (
            "1",
            "The file cannot be read or is no trace, or a part of it is damaged. Whatever is \
             readable was printed.",
        ),
        ("2", "The command line is wrong."),
        (
            "141",
            "SIGPIPE ended it: the reader of its output has gone.",
        ),
    ],
    files: &[],
    environment: &[],
    signals: &[],
    examples: &[
        (
            "Watch the requests that fail:",
            "gangplank-frontend trace --follow --errors /run/fs.trace",
        ),
        (
            "See which operations take the time:",
            "gangplank-frontend trace --summary --since 10m /run/fs.trace",
        ),
    ],
    see_also: SEE_ALSO,
};
