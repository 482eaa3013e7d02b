//! `gangplank-dvk switch` with programs in other PID namespaces.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_dvk::abi::{DcId, Endpoint};
use gangplank_dvk::carrier::local::{Local, LocalConfig};
use gangplank_dvk::endpoint::Carrier;
use gangplank_dvk::status;
use gangplank_tests::process::{self, User};
use gangplank_tests::tools;
use gangplank_tests::wait;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(20);

/// `gangplank-dvk` as the first process of a PID namespace. It is killed on drop.
struct Contained {
    child: Child,
    place: TempDir,
}

impl Contained {
    fn start(place: TempDir, arguments: &[&str]) -> Result<Self> {
        let mut command = process::tied(Path::new("unshare"), None);
        command
            .args(["--pid", "--fork", "--kill-child", "--"])
            .arg(tools::dvk()?)
            .args(arguments)
            .current_dir(place.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(place.path().join("log"))?);
        let child = process::spawn(command).context("starting gangplank-dvk")?;
        Ok(Self { child, place })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}

/// Whether this process may make namespaces. Prints that `test` is skipped otherwise.
fn may_contain(test: &str) -> bool {
    let may = User::is_root();
    if !may {
        eprintln!("SKIPPED {test}: pid namespaces need root");
    }
    may
}

#[test]
fn a_switch_in_a_container_serves_programs_outside() -> Result<()> {
    if !may_contain("a_switch_in_a_container_serves_programs_outside") {
        return Ok(());
    }
    let place = tempfile::tempdir()?;
    let socket = place.path().join("dvk.sock");
    let switch = Contained::start(place, &["switch", "--socket", "dvk.sock"])?;
    let program = Local::start(LocalConfig::new(socket))?;
    let bound = program.bind(DcId::FIRST, Endpoint::from_raw(1), "outside");
    let bound = bound.with_context(|| switch.log())?;
    ensure!(
        switch.log().contains("a container's program of user 0"),
        "{}",
        switch.log()
    );
    drop(bound);
    Ok(())
}

#[test]
fn a_program_in_a_container_is_served_by_a_switch_outside() -> Result<()> {
    if !may_contain("a_program_in_a_container_is_served_by_a_switch_outside") {
        return Ok(());
    }
    let outside = tempfile::tempdir()?;
    let (socket, told) = (outside.path().join("dvk.sock"), outside.path().join("told"));
    let mut command: Command = process::tied(&tools::dvk()?, None);
    command.args(["switch", "--socket"]).arg(&socket);
    command.arg("--status").arg(&told).stderr(Stdio::null());
    let mut switch = process::spawn(command).context("starting the switch")?;
    let place = tempfile::tempdir()?;
    let config = format!(
        "rhs INSIDE {{ rhs_dcid 0; rhs_ep 1; rhs_dir \"/\"; rhs_socket \"/nonexistent/fs.sock\"; \
         rhs_carrier local }};\n\
         local SWITCH {{ local_socket \"{}\" }};\n",
        socket.display()
    );
    fs::write(place.path().join("rhostfs.cfg"), config)?;
    let server = Contained::start(place, &["serve", "--config", "rhostfs.cfg"])?;
    let bound = wait::until("the server has its endpoint", LIMIT, || {
        let endpoint = "endpoint 1 of container 0, \"INSIDE\"";
        Ok(status::ask(&told).is_ok_and(|text| text.contains(endpoint)))
    });
    process::kill_group(&mut switch);
    bound.with_context(|| server.log())
}

/// Clock ticks of processor time that process `pid` has used.
fn ticks(pid: u32) -> Result<u64> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = line.rsplit_once(')').context("there is a name")?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || fields.next().and_then(|it| it.parse().ok());
    let (user, system): (Option<u64>, Option<u64>) = (next(), next());
    Ok(user.context("no time")? + system.context("no time")?)
}

/// A program for which the switch has no descriptor waits in the backlog, and is accepted when
/// others have left. Meanwhile no thread spins, and the log stays short.
#[test]
fn a_switch_without_descriptors_waits_for_some() -> Result<()> {
    let place = tempfile::tempdir()?;
    let (socket, log) = (place.path().join("dvk.sock"), place.path().join("log"));
    let mut command = process::tied("sh", None);
    command
        .args(["-c", "ulimit -n 24; exec \"$0\" switch --socket \"$1\""])
        .arg(tools::dvk()?)
        .arg(&socket)
        .stdin(Stdio::null())
        .stderr(File::create(&log)?);
    let mut switch = process::spawn(command).context("starting the switch")?;
    let told = || fs::read_to_string(&log).unwrap_or_default();
    let mut held = Vec::new();
    let tried = wait::until("descriptors run out", LIMIT, || {
        if held.len() < 40 {
            held.extend(UnixStream::connect(&socket));
        }
        Ok(told().contains("cannot accept a program"))
    })
    .and_then(|()| {
        let before = ticks(switch.id())?;
        std::thread::sleep(Duration::from_secs(1));
        let spent = ticks(switch.id())? - before;
        ensure!(spent < 30, "{spent} of 100 ticks were spent on nothing");
        held.clear();
        let program = Local::start(LocalConfig::new(socket.clone()))?;
        program.bind(DcId::FIRST, Endpoint::from_raw(1), "after")?;
        let lines = told().lines().count();
        ensure!(lines < 100, "{lines} lines were logged");
        Ok(())
    });
    process::kill_group(&mut switch);
    tried.with_context(told)
}
