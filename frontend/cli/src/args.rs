//! The command line, as typed.

use clap::{Parser, Subcommand};
use gangplank_device_model::args::ModelArgs;
use gangplank_driver::file_client::args::FsArgs;
use gangplank_sandbox::seccomp::Seccomp;
use gangplank_trace_viewer::TraceArgs;

use crate::manual::{FS, MODEL, RELAY, TRACE};

/// The whole command line.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "gangplank-frontend",
    about = "The driver's side of virtio-fs over vhost-user: a device model for hypervisors \
             without one, a relay, and a file client.\n\n\
             With --config, serves the devices of a configuration to their guests.",
    long_about = MODEL.long_about(),
    after_long_help = MODEL.after_help(),
    version,
    propagate_version = true,
    arg_required_else_help = true,
    args_conflicts_with_subcommands = true,
    after_help = "Exit status: 0 done, or told to end by SIGTERM or SIGINT; \
                  1 a device could not be served, or ended early; \
                  2 wrong command line or configuration. SIGUSR1 and SIGHUP write the status to \
                  the log."
)]
pub struct Args {
    /// What to do instead of serving devices.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The device model's options.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// The subcommands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Look at a daemon's share, and change it, without a guest
    #[command(long_about = FS.long_about())]
    Fs(FsArgs),
    /// Stand between a guest and a daemon that may come late, be replaced, or go
    #[command(long_about = RELAY.long_about())]
    Relay(gangplank_relay::RelayArgs),
    /// Print what gangplankd --trace recorded: the guests' requests, their results and times
    #[command(long_about = TRACE.long_about())]
    Trace(TraceArgs),
    /// Keep devices over a restart of the device model, which starts this by itself
    #[command(hide = true)]
    Hold {
        /// What happens when the process makes a system call that it does not need
        #[arg(long, value_name = "ACTION", default_value = "kill")]
        seccomp: Seccomp,
        /// Distinguishes this process in a list of processes
        #[arg(value_name = "NAME")]
        name: String,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use gangplank_driver::file_client::actions::FsAction;
    use gangplank_driver::file_client::args::Owner;

    use log::LevelFilter;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        let words = line.split_whitespace();
        Args::try_parse_from(["gangplank-frontend"].into_iter().chain(words))
    }

    #[test]
    fn command_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn wrong_values_say_what_would_be_right() {
        for (line, right) in [
            ("fs -s s --as root ls", "such as 1000:1000"),
            ("fs -s s --as 1:x ls", "such as 1000:1000"),
            ("fs -s s --limit 0 ls", "more than zero"),
            ("fs -s s --limit soon ls", "not a number"),
        ] {
            let text = parse(line).unwrap_err().to_string();
            assert!(text.contains(right), "{line}: {text}");
        }
        assert_eq!(parse("fs ls").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_root_is_listed_by_default() {
        let parsed = parse("fs --socket s --as 1:2 ls").unwrap();
        let Some(Command::Fs(args)) = parsed.command else {
            panic!("another command: {parsed:?}");
        };
        assert_eq!(args.owner, Some(Owner { uid: 1, gid: 2 }));
        assert!(matches!(args.action, FsAction::Ls { paths, .. } if paths == ["."]));
    }

    #[test]
    fn device_model_takes_its_configuration_and_no_subcommand() {
        let parsed = parse("--config c.yaml --check --log-level debug").unwrap();
        assert_eq!(parsed.model.config, Some("c.yaml".into()));
        assert_eq!(parsed.model.log_level, Some(LevelFilter::Debug));
        assert!(parsed.model.check && parsed.command.is_none());
        for line in [
            "--check",
            "--status-socket s",
            "--config c.yaml --log-level loud",
            "--config c.yaml fs -s s ls",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
