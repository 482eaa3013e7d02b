//! The command line of `switch`.

use std::path::PathBuf;

use gangplank_sandbox::seccomp::Seccomp;
use gangplank_service::signals::{STATUS, Signals};

use super::bind_permissions::Rule;
use super::config::{SwitchConfig, SwitchError};
use super::event_loop::Switch;
use crate::abi::{DcId, DcLimits};
use crate::cli_types::parse_dc;
use crate::sandbox::{self, Needs};

/// `switch`: connects the programs of one host.
#[derive(Clone, Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Programs of the same user may bind every endpoint. Programs of other users may \
                  bind those of --allow. The switch runs until SIGTERM or SIGINT ends it."
)]
pub struct SwitchArgs {
    /// The socket to listen at
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,

    /// Permission bits of the socket, octal; 600 by default, 666 with --allow, which limits the
    /// users itself
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    pub mode: Option<u32>,

    /// A user whose programs may bind endpoints: all endpoints, or those listed, such as
    /// 1000=1,10..20
    #[arg(long, value_name = "UID[=EP,EP..EP]")]
    pub allow: Vec<Rule>,

    /// A container; container 0 by default
    #[arg(long = "dc", value_name = "ID", value_parser = parse_dc)]
    pub dcs: Vec<DcId>,

    /// Show the state to each program that connects to this socket
    #[arg(long, value_name = "PATH")]
    pub status: Option<PathBuf>,
}

fn parse_mode(text: &str) -> Result<u32, &'static str> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("permission bits are octal, such as 660"),
    }
}

impl From<&SwitchArgs> for SwitchConfig {
    fn from(args: &SwitchArgs) -> Self {
        let mut config = Self::new(args.socket.clone());
        for rule in &args.allow {
            config.admission.add(rule.clone());
        }
        if !args.dcs.is_empty() {
            let given = args.dcs.iter();
            config.dcs = given.map(|&dc| (dc, DcLimits::USUAL)).collect();
        }
        // Other users need write permission on the socket to connect.
        let usual = if args.allow.is_empty() { 0o600 } else { 0o666 };
        config.mode = args.mode.unwrap_or(usual);
        config.status.clone_from(&args.status);
        config
    }
}

/// Runs a switch until the process ends.
pub fn run(args: &SwitchArgs, seccomp: Seccomp) -> Result<(), SwitchError> {
    let mut switch = Switch::new(args.into())?;
    let signals = Signals::block(STATUS).map_err(SwitchError::Wait)?;
    switch.log_state_at(signals);
    let sockets = [Some(&args.socket), args.status.as_ref()];
    let needs = Needs {
        sockets: sockets
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect(),
        ..Needs::default()
    };
    sandbox::confine(seccomp, &needs)?;
    log::info!("switch at {}", args.socket.display());
    switch.run()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rustix::process::geteuid;

    use super::*;
    use crate::switch::Admission;

    #[derive(Parser)]
    struct TestCommand {
        #[command(flatten)]
        args: SwitchArgs,
    }

    fn parse(line: &str) -> Result<SwitchConfig, String> {
        let words = std::iter::once("switch").chain(line.split_whitespace());
        let parsed = TestCommand::try_parse_from(words).map_err(|error| error.to_string())?;
        Ok((&parsed.args).into())
    }

    #[test]
    fn the_own_user_and_container_zero_are_there_by_default() {
        let config = parse("--socket s").unwrap();
        assert_eq!(config.admission, Admission::only(geteuid().as_raw()));
        assert_eq!(config.dcs.keys().collect::<Vec<_>>(), [&DcId::FIRST]);
        assert_eq!(config.mode, 0o600);
    }

    #[test]
    fn every_allowed_user_can_connect() {
        assert_eq!(parse("--socket s --allow 1000=10").unwrap().mode, 0o666);
        let grouped = parse("--socket s --allow 1000 --mode 660").unwrap();
        assert_eq!(grouped.mode, 0o660);
    }

    #[test]
    fn errors_name_the_right_values() {
        for (line, right) in [
            ("--socket s --mode 888", "such as 660"),
            ("--socket s --dc 32", "from 0 to 31"),
            ("--socket s --allow root", "such as 1000"),
        ] {
            let text = parse(line).unwrap_err();
            assert!(text.contains(right), "{line}: {text}");
        }
    }
}
