//! `gangplankd`: parse, confine, serve.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use gangplank_backend::args::{Args, EarlyExit, ShareArgs, StatusArgs};
use gangplank_backend::config::Config;
use gangplank_backend::handover::{self, report};
use gangplank_backend::shares::{self, member};
use gangplank_backend::{run, status};
use gangplank_service::{activation, error_chain};

/// The output of `--print-capabilities` for management software (`VHostUserBackendCapabilities` in
/// QEMU's `docs/interop/vhost-user.json`), with virtiofsd's features. The negotiation modes:
/// `--posix-acl=auto` and `--security-label=auto` exist. `separate-options`: options stand by
/// themselves, not in `-o`. `configs/qemu/50-gangplankd.json` has the same list.
const CAPABILITIES: &str = r#"{
  "type": "fs",
  "features": [
    "migrate-precopy",
    "posix-acl-negotiation-mode",
    "security-label-negotiation-mode",
    "separate-options"
  ]
}
"#;

fn main() -> ExitCode {
    match StatusArgs::from_command_line(std::env::args_os()) {
        Ok(None) => {}
        Ok(Some(args)) => {
            return match status::client::run(&args) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error),
            };
        }
        Err(exit) => return print_and_exit(&exit),
    }
    match ShareArgs::from_command_line(std::env::args_os()) {
        Ok(None) => {}
        Ok(Some(args)) => {
            return match shares::run_command(&args) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error),
            };
        }
        Err(exit) => return print_and_exit(&exit),
    }
    let mut args = match Args::from_command_line(std::env::args_os()) {
        Ok(args) => args,
        Err(exit) => return print_and_exit(&exit),
    };
    if args.print_capabilities {
        return match io::stdout().write_all(CAPABILITIES.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    if args.reload {
        return reload(&args);
    }
    if args.shares.are_given() {
        return serve_shares(&args);
    }
    if let Err(error) = take_socket_of_service_manager(&mut args) {
        return print_and_exit(&Args::refuse(error_chain(&error)));
    }
    let mut config = match Config::from_args(args) {
        Ok(config) => config,
        Err(error) => return print_and_exit(&Args::refuse(&error)),
    };
    // The command line wins.
    if !config.is_log_level_given {
        config.logging.filter = std::env::var("RUST_LOG").ok();
    }
    if member::is_member() {
        // The daemon ends the share, also where the service manager has passed its socket.
        config.exit_on_disconnect = false;
        config.logging.instance = Some(config.device.tag.clone());
    }
    match run::run(config) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            member::tell_failure(&error_chain(&error));
            fail(&error)
        }
    }
}

/// Serves several shares.
fn serve_shares(args: &Args) -> ExitCode {
    let plan = shares::Plan::new(args, std::env::args_os().collect());
    let result = plan.and_then(|mut plan| {
        if args.log_level.is_none() {
            plan.filter_log(std::env::var("RUST_LOG").ok());
        }
        shares::run(plan)
    });
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) if error.is_of_options() => print_and_exit(&shares::refuse(&error)),
        Err(error) => fail(&error),
    }
}

/// Without `--socket-path` and `--fd`, guests connect to the socket that the service manager
/// passes, as if it was named by `--fd`.
fn take_socket_of_service_manager(args: &mut Args) -> Result<(), activation::Error> {
    if args.socket_path.is_some() || args.socket.is_some() || args.fd.is_some() {
        return Ok(());
    }
    // A program that is started to take guests over has the options of its parent.
    let process = match handover::is_successor() {
        true => std::os::unix::process::parent_id(),
        false => std::process::id(),
    };
    args.fd = activation::number(process)?;
    Ok(())
}

/// Has the running daemon reload.
fn reload(args: &Args) -> ExitCode {
    let Some(socket) = args.socket_path.as_ref().or(args.socket.as_ref()) else {
        return print_and_exit(&Args::refuse("--reload needs the daemon's --socket-path"));
    };
    match report::request(socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn Error) -> ExitCode {
    // There is nowhere left to complain to if this fails.
    let _ = writeln!(io::stderr(), "gangplankd: error: {}", error_chain(error));
    ExitCode::FAILURE
}

fn print_and_exit(exit: &EarlyExit) -> ExitCode {
    match exit.print() {
        Ok(()) => ExitCode::from(exit.status()),
        Err(_) => ExitCode::FAILURE,
    }
}
