//! What `--json` writes: the names that programs may rely on, as `docs/json.md` lists them.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::driver::{Driver, Setup};
use gangplank_tests::process;
use gangplank_tests::relay::Relay;
use gangplank_tests::tools;
use serde_json::{Value, json};

/// Limit for a program to serve its status.
const LIMIT: Duration = Duration::from_secs(20);

/// Fails unless `docs/json.md` has each name of the object and of those in it.
fn is_documented(object: &Value) -> Result<()> {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md");
    let document = fs::read_to_string(document)?;
    let mut left = vec![object];
    while let Some(value) = left.pop() {
        if let Some(fields) = value.as_object() {
            for name in fields.keys() {
                ensure!(
                    document.contains(&format!("`{name}`")),
                    "{name} in {object:#}"
                );
            }
            left.extend(fields.values());
        }
        left.extend(value.as_array().into_iter().flatten());
    }
    Ok(())
}

#[test]
fn relay_tells_its_guests_and_the_daemon_of_new_ones() -> Result<()> {
    let share = tempfile::tempdir()?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let relay = Relay::start(daemon.socket(), &[])?;
    let status =
        || -> Result<Value> { Ok(serde_json::from_str(&relay.tell(&["status", "--json"])?)?) };
    let socket = daemon.socket().to_string_lossy();
    let object = status()?;
    is_documented(&object)?;
    assert_eq!(
        object,
        json!({"guests": [], "complete": true, "backend": socket, "backend_listens": true,
               "backend_error": null, "holder_limit": null, "held": null})
    );
    let mut guest = Driver::mount(&relay.socket(), &Setup::default())?;
    guest.getattr(NodeId::ROOT, None)?;
    let object = status()?;
    is_documented(&object)?;
    let guest_1 = json!({
        "guest": 1, "phase": "served", "daemon": socket, "backend": socket,
        "saved_state_bytes": null, "rings": 2, "daemons": 1, "losses": 0, "requests_refused": 0,
    });
    assert_eq!(object["guests"], json!([guest_1]));
    drop(guest);
    relay.stop()?;
    Ok(())
}

#[test]
fn device_model_tells_its_plan_or_each_fault() -> Result<()> {
    let configuration = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/bao/config-fs.yaml");
    let check = |configuration: &Path| -> Result<(Option<i32>, Value)> {
        let mut command = Command::new(tools::frontend()?);
        command
            .arg("--config")
            .arg(configuration)
            .args(["--check", "--json"]);
        let output = command.output()?;
        let object: Value = serde_json::from_slice(&output.stdout)?;
        is_documented(&object)?;
        Ok((output.status.code(), object))
    };
    let (status, plan) = check(&configuration)?;
    ensure!(status == Some(0) && plan["valid"] == true, "{plan:#}");
    let device = &plan["devices"][0];
    assert_eq!(
        device["registers"],
        json!({"address": 0xa00_3e00, "size": 0x200})
    );
    assert_eq!(device["memory"]["size"], 0x100_0000);
    assert_eq!(device["socket"], "/root/Fs.sock");

    let directory = tempfile::tempdir()?;
    let wrong = directory.path().join("wrong.yaml");
    let text = fs::read_to_string(&configuration)?;
    fs::write(&wrong, text.replace("mmio_addr:", "mmio_adr:"))?;
    let (status, faults) = check(&wrong)?;
    ensure!(status == Some(2) && faults["valid"] == false, "{faults:#}");
    let faults = faults["faults"].as_array().context("a list")?;
    ensure!(
        faults
            .iter()
            .any(|fault| fault["line"].is_u64() && fault["what"].is_string()),
        "{faults:#?}"
    );
    Ok(())
}

/// A program that is killed at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        process::kill_group(&mut self.0);
    }
}

#[test]
fn switch_and_server_tell_their_parts() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let start = |arguments: &[&str], status: &str| -> Result<Running> {
        let mut command = process::tied(tools::dvk()?, None);
        command.args(arguments).arg("--status").arg(path(status));
        command.current_dir(directory.path()).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Running(process::spawn(command)?))
    };
    let status = |socket: &str| -> Result<Value> {
        let mut command = Command::new(tools::dvk()?);
        command.args(["status", "--json"]).arg(path(socket));
        let output = command.output()?;
        ensure!(output.status.success(), "{output:?}");
        let object = serde_json::from_slice(&output.stdout)?;
        is_documented(&object)?;
        Ok(object)
    };
    let configuration = format!(
        "rhs SHARE {{\n rhs_dcid 0;\n rhs_ep 1;\n rhs_dir \"/\";\n rhs_socket \"/nonexistent\";\n \
         rhs_carrier local;\n }};\nlocal SWITCH {{\n local_socket \"{}\";\n }};\n",
        path("switch").display()
    );
    fs::write(path("serve.cfg"), &configuration)?;
    let check = || -> Result<(Option<i32>, Value)> {
        let mut command = Command::new(tools::dvk()?);
        command.args(["serve", "--check", "--json", "--config"]);
        let output = command.arg(path("serve.cfg")).output()?;
        let object = serde_json::from_slice(&output.stdout)?;
        is_documented(&object)?;
        Ok((output.status.code(), object))
    };
    let (code, plan) = check()?;
    ensure!(code == Some(0) && plan["valid"] == true, "{plan:#}");
    assert_eq!(plan["servers"][0]["carrier"], "local");
    fs::write(
        path("serve.cfg"),
        configuration.replace("rhs_ep 1", "rhs_ep many"),
    )?;
    let (code, faults) = check()?;
    ensure!(code == Some(2) && faults["valid"] == false, "{faults:#}");
    assert_eq!(faults["faults"][0]["line"], 3);
    assert_eq!(faults["faults"][0]["token"], "rhs_ep many");
    fs::write(path("serve.cfg"), &configuration)?;
    let _switch = start(&["switch", "--socket", "switch"], "switch-status")?;
    let _server = start(&["serve", "--config", "serve.cfg"], "server-status")?;
    let deadline = Instant::now() + LIMIT;
    let (switch, server) = loop {
        let both = (status("switch-status"), status("server-status"));
        if let (Ok(switch), Ok(server)) = &both
            && switch["parts"][0]["programs"][0]["endpoints"][0]["endpoint"] == 1
            && server["parts"][1]["server"].is_object()
        {
            break both;
        }
        ensure!(Instant::now() < deadline, "{both:#?}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(switch?["parts"][0]["kind"], "switch");
    let server = server?;
    let (local, rhostfs) = (&server["parts"][0], &server["parts"][1]);
    assert_eq!(local["kind"], "switch_connection");
    assert_eq!(local["connected"], true);
    assert_eq!(local["endpoints"][0]["endpoint"], 1);
    assert_eq!(rhostfs["kind"], "rhostfs_server");
    assert_eq!(rhostfs["name"], "SHARE");
    assert_eq!(rhostfs["server"]["clients"], json!([]));
    ensure!(rhostfs["server"]["daemon_error"].is_string(), "{rhostfs:#}");
    Ok(())
}
