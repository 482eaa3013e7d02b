//! `gangplankd`: parse, confine, serve.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use gangplank_backend::args::{Args, EarlyExit, StatusArgs};
use gangplank_backend::config::Config;
use gangplank_backend::handover::report;
use gangplank_backend::{run, status};
use gangplank_service::error_chain;

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
    let args = match Args::from_command_line(std::env::args_os()) {
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
    let mut config = match Config::from_args(args) {
        Ok(config) => config,
        Err(error) => return print_and_exit(&Args::refuse(&error)),
    };
    config.logging.filter = std::env::var("RUST_LOG").ok();
    match run::run(config) {
        Ok(status) => ExitCode::from(status),
        Err(error) => fail(&error),
    }
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
