//! The device model's command line, without a hypervisor.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use gangplank_tests::{cache, tools};
use tempfile::TempDir;

/// A directory with a configuration.
struct Fixture {
    directory: TempDir,
}

impl Fixture {
    fn new(configuration: &str) -> Result<Self> {
        let fixture = Self {
            directory: tempfile::tempdir()?,
        };
        fs::write(fixture.path("config.yaml"), configuration)?;
        Ok(fixture)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs the program with the configuration until it ends.
    fn run(&self, options: &[&str]) -> Result<Output> {
        Command::new(tools::frontend()?)
            .env_remove("RUST_LOG")
            .args(["--config", "config.yaml"])
            .args(options)
            .current_dir(self.directory.path())
            .output()
            .context("the program does not start")
    }
}

fn device(more: &str) -> String {
    format!(
        "devices:\n  - id: 0\n    type: fs\n    data_plane: vhost_user\n    mmio_addr: \
         0xa003e00\n    socket: fs.sock\n{more}"
    )
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn check_shows_the_plan_of_every_example_and_touches_no_device() -> Result<()> {
    let examples = cache::workspace().join("configs/bao");
    let mut seen = 0;
    for entry in fs::read_dir(examples)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let fixture = Fixture::new(&fs::read_to_string(&path)?)?;
        let ended = fixture.run(&["--check"])?;
        ensure!(ended.status.code() == Some(0), "{path:?}: {ended:?}");
        let plan = String::from_utf8(ended.stdout)?;
        ensure!(plan.contains("device 0: file system"), "{path:?}: {plan}");
        seen += 1;
    }
    ensure!(seen >= 3, "{seen} examples");
    Ok(())
}

#[test]
fn faults_of_a_configuration_are_told_by_file_and_line_with_status_2() -> Result<()> {
    let ended = Fixture::new(&device("    queue_size: 100\n    tag: \"\"\n"))?.run(&[])?;
    assert_eq!(ended.status.code(), Some(2));
    let errors = errors(&ended);
    for line in ["config.yaml:7: queue_size: ", "config.yaml:8: tag: "] {
        assert!(errors.contains(line), "{line}: {errors}");
    }
    Ok(())
}

#[test]
fn configuration_that_is_not_there_is_named_with_status_2() -> Result<()> {
    let fixture = Fixture::new("")?;
    fs::remove_file(fixture.path("config.yaml"))?;
    let ended = fixture.run(&["--check"])?;
    assert_eq!(ended.status.code(), Some(2));
    assert!(errors(&ended).contains("config.yaml"), "{ended:?}");
    Ok(())
}

#[test]
fn missing_driver_is_named_with_status_1() -> Result<()> {
    let ended = Fixture::new(&format!("nodes: [here]\n{}", device("")))?.run(&[])?;
    assert_eq!(ended.status.code(), Some(1));
    let errors = errors(&ended);
    assert!(errors.contains("cannot open here"), "{errors}");
    assert!(errors.contains("remote I/O driver"), "{errors}");
    Ok(())
}

#[test]
fn node_of_something_else_is_told_from_the_drivers_with_status_1() -> Result<()> {
    let ended = Fixture::new(&format!("nodes: [/dev/null]\n{}", device("")))?.run(&[])?;
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        errors(&ended).contains("knows none of its calls"),
        "{ended:?}"
    );
    Ok(())
}

#[test]
fn status_socket_that_cannot_be_had_is_named_with_status_1() -> Result<()> {
    let fixture = Fixture::new(&format!("nodes: [/dev/null]\n{}", device("")))?;
    fs::write(fixture.path("status"), "notes")?;
    let ended = fixture.run(&["--status-socket", "status"])?;
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        errors(&ended).contains("cannot listen on status"),
        "{ended:?}"
    );
    assert_eq!(fs::read_to_string(fixture.path("status"))?, "notes");
    Ok(())
}
