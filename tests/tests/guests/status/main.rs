//! What a running daemon tells of its guests: `gangplankd status` and the metrics.

mod fixture;
mod guest;
mod metrics;
mod terminal;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fixture::{Fixture, operation, sized};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::{Driver, NodeAndFile, Setup};
use gangplank_tests::tools;
use rustix::process::{Pid, Signal, kill_process};

/// Bytes of the headers of a request and of a reply.
const IN_HEADER: u64 = 40;
const OUT_HEADER: u64 = 16;

/// Requests of known kinds: a file with ten pages, each written and read twice, and three names
/// that are not there to be removed.
fn work(driver: &mut Driver) -> Result<NodeAndFile> {
    let file = driver.create(NodeId::ROOT, c"file", 0o600)?;
    for page in 0..10 {
        driver.write(file, page * 4096, &[7; 4096])?;
        for _ in 0..2 {
            ensure!(driver.read(file, page * 4096, 4096)?.len() == 4096);
        }
    }
    for _ in 0..3 {
        ensure!(driver.unlink(NodeId::ROOT, c"nothing").is_err());
    }
    Ok(file)
}

/// Checks what [`work`] must have been counted as, `times` times.
fn check(guest: &serde_json::Value, times: u64) -> Result<()> {
    let written = (IN_HEADER + 40 + 4096, OUT_HEADER + 8);
    let read = (IN_HEADER + 40, OUT_HEADER + 4096);
    let removed = (IN_HEADER + 8, OUT_HEADER);
    for (opcode, requests, errors, (request, reply)) in [
        ("WRITE", 10 * times, 0, written),
        ("READ", 20 * times, 0, read),
        ("UNLINK", 3 * times, 3 * times, removed),
    ] {
        let found = sized(operation(guest, opcode)?)?;
        let expected = (requests, errors, requests * request, requests * reply);
        ensure!(found == expected, "{opcode}: {found:?}, not {expected:?}");
        let latency = &operation(guest, opcode)?["latency"];
        let measured = latency["measured"].as_u64().context("a number")?;
        ensure!((1..=requests).contains(&measured), "{opcode}: {latency}");
    }
    Ok(())
}

#[test]
fn the_status_says_exactly_what_a_guest_has_asked_for() -> Result<()> {
    let fixture = Fixture::start(&[])?;
    let mut driver = fixture.driver()?;
    let file = work(&mut driver)?;
    let status = fixture.status()?;
    ensure!(
        status["tag"] == "myfs" && status["connections"] == 1,
        "{status}"
    );
    let guest = &status["guests"][0];
    check(guest, 1)?;
    ensure!(sized(operation(guest, "INIT")?)?.0 == 1);
    ensure!(
        guest["session"]["offered"] == serde_json::json!([7, 45]),
        "{guest}"
    );
    ensure!(guest["open_files"] == 1, "{guest}");
    // The file.
    ensure!(
        guest["inodes"] == 1 && guest["restarts"]["count"] == 0,
        "{guest}"
    );
    ensure!(guest["rings"][1]["in_flight"] == 0, "{guest}");
    driver.release(file)?;
    let guest = &fixture.status()?["guests"][0];
    ensure!(guest["open_files"] == 0, "{guest}");
    // For people.
    let output = fixture.command(&[]).output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(
        text.contains("guest 1: FUSE 7.45, Linux 6.18 or later"),
        "{text}"
    );
    ensure!(text.contains("READ"), "{text}");
    Ok(())
}

#[test]
fn a_malformed_request_is_counted_as_invalid() -> Result<()> {
    let fixture = Fixture::start(&[])?;
    let mut driver = fixture.driver()?;
    let ticket = driver.submit_bytes(1, gangplank_fuse::Unique::new(9), &[1; 20], 64)?;
    let _ = driver.finish(ticket);
    let guest = &fixture.status()?["guests"][0];
    ensure!(sized(operation(guest, "INVALID")?)?.1 == 1, "{guest}");
    Ok(())
}

#[test]
fn deaths_and_pauses_are_told_and_counts_go_on() -> Result<()> {
    let fixture = Fixture::start(&[])?;
    let mut driver = fixture.driver()?;
    work(&mut driver)?;
    let worker = Pid::from_raw(fixture.daemon.last_worker()?.try_into()?).context("a process")?;
    kill_process(worker, Signal::KILL)?;
    driver.unlink(NodeId::ROOT, c"file")?;
    work(&mut driver)?;
    let guest = fixture.status()?["guests"][0].clone();
    let restarts = &guest["restarts"];
    ensure!(
        restarts["count"] == 1 && restarts["last_reason"] == "signal 9",
        "{restarts}"
    );
    let pause = restarts["last_pause_ns"].as_u64().context("a pause")?;
    ensure!(
        pause > 0 && restarts["longest_pause_ns"] == pause,
        "{restarts}"
    );
    ensure!(restarts["is_paused"] == false, "{restarts}");
    let unlinks = sized(operation(&guest, "UNLINK")?)?;
    ensure!((unlinks.0, unlinks.1) == (7, 6), "{guest}");
    ensure!(sized(operation(&guest, "WRITE")?)?.0 == 20, "{guest}");
    let metrics = fixture.metrics()?;
    let labels = "guest=\"1\",tag=\"myfs\"";
    for told in [
        format!("gangplank_guest_worker_deaths_total{{{labels}}} 1"),
        format!("gangplank_guest_last_restart_info{{reason=\"signal 9\",{labels}}} 1"),
    ] {
        ensure!(metrics.contains(&told), "{told}: {metrics}");
    }
    Ok(())
}

#[test]
fn counts_and_sockets_survive_the_acceptor() -> Result<()> {
    let fixture = Fixture::start(&[])?;
    let mut driver = fixture.driver()?;
    for round in 1..=2 {
        work(&mut driver)?;
        driver.unlink(NodeId::ROOT, c"file")?;
        let acceptor = fixture.daemon.acceptor()?;
        let pid = Pid::from_raw(acceptor.try_into()?).context("a process id")?;
        kill_process(pid, Signal::KILL)?;
        let end = Instant::now() + Duration::from_secs(60);
        while fixture.daemon.acceptor()? == acceptor {
            ensure!(Instant::now() < end, "the acceptor lives on");
            std::thread::sleep(Duration::from_millis(1));
        }
        let status = fixture.status()?;
        let guests = status["guests"].as_array().context("guests")?;
        ensure!(guests.len() == 1, "{status}");
        ensure!(
            sized(operation(&guests[0], "READ")?)?.0 == 20 * round,
            "{status}"
        );
        ensure!(fixture.metrics()?.contains("opcode=\"READ\""));
    }
    Ok(())
}

#[test]
fn counts_and_sockets_survive_a_reload_and_the_files_go_at_the_end() -> Result<()> {
    let fixture = Fixture::start(&[])?;
    let mut driver = fixture.driver()?;
    for round in 1..=2 {
        work(&mut driver)?;
        driver.unlink(NodeId::ROOT, c"file")?;
        fixture.daemon.reload()?;
        // The guest is served again.
        driver.getattr(NodeId::ROOT, None)?;
        let guest = fixture.status()?["guests"][0].clone();
        ensure!(
            sized(operation(&guest, "READ")?)?.0 == 20 * round,
            "{guest}"
        );
        ensure!(
            guest["restarts"]["last_reason"] == "stopped for a reload",
            "{guest}"
        );
        ensure!(fixture.metrics()?.contains("opcode=\"READ\""));
    }
    let (control, metrics) = (fixture.control.clone(), fixture.metrics.clone());
    ensure!(control.exists() && metrics.exists());
    drop(driver);
    fixture.daemon.daemon.stop()?;
    ensure!(
        !control.exists() && !metrics.exists(),
        "a socket's file is left"
    );
    Ok(())
}

#[test]
fn each_of_eight_guests_has_its_own_numbers() -> Result<()> {
    let fixture = Fixture::start(&["--num-request-queues=2"])?;
    let mut drivers = Vec::new();
    for _ in 0..8 {
        drivers.push(fixture.driver()?);
    }
    for (index, driver) in drivers.iter_mut().enumerate() {
        for _ in 0..=index {
            driver.getattr(NodeId::ROOT, None)?;
        }
    }
    let status = fixture.status()?;
    let guests = status["guests"].as_array().context("guests")?;
    ensure!(guests.len() == 8, "{status}");
    for (number, guest) in (1..).zip(guests) {
        ensure!(guest["number"] == number, "{guest}");
        ensure!(sized(operation(guest, "GETATTR")?)?.0 == number, "{guest}");
    }
    Ok(())
}

/// Neither guests nor other clients wait for it, and it is given up.
#[test]
fn a_client_that_says_and_reads_nothing_disturbs_nobody() -> Result<()> {
    let fixture = Fixture::start(&[])?;
    let mut driver = fixture.driver()?;
    let mut silent = Vec::new();
    for path in [&fixture.control, &fixture.metrics] {
        for _ in 0..3 {
            silent.push(UnixStream::connect(path)?);
        }
    }
    work(&mut driver)?;
    check(&fixture.status()?["guests"][0], 1)?;
    ensure!(fixture.metrics()?.ends_with("# EOF\n"));
    // A guest connects.
    fixture.driver()?.getattr(NodeId::ROOT, None)?;
    // More than are answered at a time. They are given up after 5 seconds. On a busy machine, the
    // guest may need that long by itself.
    for attempt in 1..=5 {
        for _ in 0..20 {
            silent.push(UnixStream::connect(&fixture.control)?);
        }
        let begun = Instant::now();
        fixture.driver()?.getattr(NodeId::ROOT, None)?;
        if begun.elapsed() < Duration::from_secs(4) {
            break;
        }
        ensure!(attempt < 5, "the guest waits");
    }
    // The first ones are given up in time.
    silent[0].set_read_timeout(Some(Duration::from_secs(20)))?;
    ensure!(
        silent[0].read(&mut [0])? == 0,
        "an answer without a question"
    );
    drop(silent);
    fixture.status()?;
    Ok(())
}

#[test]
fn what_is_no_request_gets_an_error_in_words() -> Result<()> {
    use std::io::Write;

    let fixture = Fixture::start(&[])?;
    let mut client = UnixStream::connect(&fixture.control)?;
    client.write_all(b"reboot\n")?;
    let mut reply = String::new();
    client.read_to_string(&mut reply)?;
    ensure!(
        reply.contains("\"error\"") && reply.contains("status 1"),
        "{reply}"
    );
    let none = Command::new(tools::gangplankd()?)
        .args(["status", "--control=/nowhere/control"])
        .output()?;
    let errors = String::from_utf8(none.stderr)?;
    ensure!(
        none.status.code() == Some(1) && errors.contains("/nowhere/control"),
        "{errors}"
    );
    Ok(())
}

/// Setting up a driver in the default way.
fn setup() -> Setup {
    Setup::default()
}
