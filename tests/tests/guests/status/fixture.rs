//! A daemon that tells its status, and what it tells.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gangplank_tests::driver::{Driver, fixture};
use gangplank_tests::tools;
use serde_json::Value;
use tempfile::TempDir;

/// The daemon and its sockets.
pub(crate) struct Fixture {
    pub(crate) daemon: fixture::Fixture,
    pub(crate) control: PathBuf,
    pub(crate) metrics: PathBuf,
    _directory: TempDir,
}

impl Fixture {
    pub(crate) fn start(arguments: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let (control, metrics) = (
            directory.path().join("control"),
            directory.path().join("metrics"),
        );
        let sockets = [
            format!("--control={}", control.display()),
            format!("--metrics={}", metrics.display()),
        ];
        let mut all: Vec<&str> = sockets.iter().map(String::as_str).collect();
        all.extend(arguments);
        Ok(Self {
            daemon: fixture::Fixture::quiet(&all)?,
            control,
            metrics,
            _directory: directory,
        })
    }

    /// A guest with an open session.
    pub(crate) fn driver(&self) -> Result<Driver> {
        Ok(Driver::mount(self.daemon.socket(), &super::setup())?)
    }

    /// `gangplankd status` with more arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(tools::gangplankd().unwrap_or_default());
        command.arg("status").arg("--control").arg(&self.control);
        command.args(arguments);
        command
    }

    /// The status as JSON.
    pub(crate) fn status(&self) -> Result<Value> {
        let output = self.command(&["--json"]).output()?;
        ensure!(output.status.success(), "{output:?}\n{}", self.daemon.log());
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The metrics, without HTTP's headers.
    pub(crate) fn metrics(&self) -> Result<String> {
        let mut client = UnixStream::connect(&self.metrics)?;
        client.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut reply = String::new();
        client.read_to_string(&mut reply)?;
        let (head, body) = reply.split_once("\r\n\r\n").context("headers")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        ensure!(head.contains("application/openmetrics-text"), "{head}");
        Ok(body.to_owned())
    }
}

/// The numbers of an operation.
pub(crate) fn operation<'a>(guest: &'a Value, opcode: &str) -> Result<&'a Value> {
    let operations = guest["operations"].as_array().context("operations")?;
    let found = operations.iter().find(|one| one["opcode"] == opcode);
    found.with_context(|| format!("no {opcode} in {guest}"))
}

/// Requests, errors, bytes of requests and of replies.
pub(crate) fn sized(operation: &Value) -> Result<(u64, u64, u64, u64)> {
    let number = |name: &str| operation[name].as_u64().context("a number");
    Ok((
        number("requests")?,
        number("errors")?,
        number("bytes_in")?,
        number("bytes_out")?,
    ))
}
