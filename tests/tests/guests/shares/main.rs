//! Several shares in one daemon: `--share`, `--shares-dir` and `gangplankd share`.

mod command_lines;
mod deaths;
mod fixture;
mod guest;
mod many;
mod reloads;
mod sockets;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use fixture::{Fixture, work};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::Error;
use serde_json::Value;

#[test]
fn each_share_has_its_options_and_its_processes_reach_it_alone() -> Result<()> {
    let fixture = Fixture::start(
        &["home", "tools"],
        &[
            "--share=home={}/home",
            "--share=tools={}/tools,readonly",
            "--busy-poll=0",
        ],
    )?;
    let mut home = fixture.driver("home")?;
    let mut tools = fixture.driver("tools")?;
    work(&mut home, c"new")?;
    let refused = tools.create(NodeId::ROOT, c"new", 0o600);
    ensure!(matches!(refused, Err(Error::Errno(_))), "{refused:?}");
    home.lookup(NodeId::ROOT, c"of_home")?;
    tools.lookup(NodeId::ROOT, c"of_tools")?;
    ensure!(home.lookup(NodeId::ROOT, c"of_tools").is_err());
    ensure!(tools.lookup(NodeId::ROOT, c"of_home").is_err());
    if rustix::process::geteuid().is_root() {
        for tag in ["home", "tools"] {
            let root = fs::metadata(format!("/proc/{}/root/", fixture.worker(tag)?))?;
            let share = fs::metadata(fixture.path(tag))?;
            ensure!(
                root.ino() == share.ino(),
                "a worker of {tag} has another root"
            );
        }
    }

    let status: Value = serde_json::from_str(&fixture.status(&["--json"])?)?;
    let shares = status["shares"].as_array().context("shares")?;
    ensure!(shares.len() == 2, "{status}");
    for (share, tag) in shares.iter().zip(["home", "tools"]) {
        ensure!(share["tag"] == tag, "{status}");
        let guests = share["guests"].as_array().context("guests")?;
        ensure!(guests.len() == 1, "{status}");
    }
    let one: Value = serde_json::from_str(&fixture.status(&["--json", "--share=tools"])?)?;
    ensure!(one["tag"] == "tools" && one["shares"].is_null(), "{one}");
    let text = fixture.status(&[])?;
    ensure!(
        text.contains("as \"home\"") && text.contains("as \"tools\""),
        "{text}"
    );

    let mut client = UnixStream::connect(fixture.path("metrics"))?;
    client.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut metrics = String::new();
    client.read_to_string(&mut metrics)?;
    for line in [
        "gangplank_guests{tag=\"home\"} 1.0",
        "gangplank_share_up{tag=\"tools\"} 1.0",
        "gangplank_guest_up{guest=\"1\",tag=\"tools\"} 1.0",
    ] {
        ensure!(metrics.lines().any(|found| found == line), "{metrics}");
    }
    let log = fixture.log();
    ensure!(log.contains("] tools: "), "{log}");
    drop((home, tools));
    fixture.end()
}

#[test]
fn shares_come_and_go_while_another_shares_guest_works() -> Result<()> {
    let fixture = Fixture::start(&["home", "tools"], &["--share=home={}/home"])?;
    let mut home = fixture.driver("home")?;
    fixture.share_done(&["add", "tools={}/tools,cache=never"])?;
    let mut tools = fixture.driver("tools")?;
    work(&mut tools, c"new")?;
    work(&mut home, c"new")?;

    for (words, hint) in [
        (&["add", "tools={}/home"][..], "two shares \"tools\""),
        (
            &["add", "more={}/home,socket={}/sockets/home.sock"],
            "have one socket",
        ),
        (
            &["add", "more={}/home,socket={}/control"],
            "--control or --metrics",
        ),
        (&["add", "more={}/none"], "No such file or directory"),
        (&["add", "more={}/home/of_home"], "not a directory"),
        (
            &["add", "more={}/home,socket={}/none/more.sock"],
            "where the socket is to be",
        ),
        (&["add", "more={}/home,cahce=never"], "no option \"cahce\""),
        (
            &["add", "more={}/home,cache=often"],
            "never, metadata, auto or always",
        ),
        (&["remove", "more"], "there is no share \"more\""),
        (&["remove", "tools"], "has 1 guests; --force"),
    ] {
        fixture.share_refused(words, hint)?;
    }
    work(&mut tools, c"new")?;

    // Without guests, and with them.
    fs::write(
        fixture.path("files/second.toml"),
        format!(
            "shared-dir = \"{}\"\nsocket = \"{}\"\n",
            fixture.path("tools").display(),
            fixture.socket("other").display()
        ),
    )?;
    fixture.share_done(&["add", "--file={}/files/second.toml"])?;
    ensure!(fixture.listed("second")?.context("it is listed")?["guests"] == 0);
    ensure!(fixture.socket("other").exists());
    fixture.share_done(&["remove", "second"])?;
    ensure!(!fixture.socket("other").exists());
    fixture.share_done(&["remove", "tools", "--force"])?;
    ensure!(fixture.listed("tools")?.is_none());
    ensure!(!fixture.socket("tools").exists());
    ensure!(tools.lookup(NodeId::ROOT, c"of_tools").is_err());
    work(&mut home, c"new")?;

    // By the same name and socket as before.
    fixture.share_done(&["add", "tools={}/tools,readonly"])?;
    let mut tools = fixture.driver("tools")?;
    let refused = tools.create(NodeId::ROOT, c"new", 0o600);
    ensure!(matches!(refused, Err(Error::Errno(_))), "{refused:?}");
    work(&mut home, c"new")?;
    let text = String::from_utf8(fixture.share(&["list"])?.stdout)?;
    ensure!(text.contains("home") && text.contains("serving"), "{text}");
    let text = fixture.log();
    ensure!(!text.contains("please report"), "{text}");
    fixture.end()
}
