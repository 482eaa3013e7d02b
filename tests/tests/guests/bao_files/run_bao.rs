//! `scripts/run-bao`: the command that it starts, and its messages when something is missing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::Result;
use gangplank_tests::cache;
use tempfile::TempDir;

/// A directory of images as from Bao's guide, and a QEMU of any version that prints its arguments.
struct Fixture(TempDir);

impl Fixture {
    fn new(files: &[&str]) -> Result<Self> {
        let fixture = Self(tempfile::tempdir()?);
        fs::create_dir_all(fixture.images())?;
        for file in files {
            fs::write(fixture.0.path().join(file), "image")?;
        }
        fixture.install_qemu("7.2.0")?;
        Ok(fixture)
    }

    fn complete() -> Result<Self> {
        Self::new(&["flash.bin", "gangplank/bao.bin"])
    }

    fn images(&self) -> PathBuf {
        self.0.path().join("gangplank")
    }

    fn install_qemu(&self, version: &str) -> Result<()> {
        let program = self.0.path().join("qemu");
        let text = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'QEMU emulator version {version} \
             (Debian)'; \
             else printf '<%s>\\n' \"$@\"; fi\n"
        );
        fs::write(&program, text)?;
        Ok(fs::set_permissions(
            program,
            fs::Permissions::from_mode(0o755),
        )?)
    }

    fn run(&self, options: &[&str], arguments: &[&str]) -> Result<Output> {
        Ok(Command::new(cache::workspace().join("scripts/run-bao"))
            .args(options)
            .arg(self.images())
            .args(arguments)
            .env("QEMU", self.0.path().join("qemu"))
            .output()?)
    }

    /// Runs the script, which must fail. Returns its message.
    fn refused(&self, options: &[&str]) -> Result<String> {
        let output = self.run(options, &[])?;
        let said = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(output.stdout.is_empty());
        Ok(said)
    }
}

#[test]
fn dry_run_prints_the_line_and_starts_nothing() -> Result<()> {
    let fixture = Fixture::complete()?;
    let output = fixture.run(&["--dry-run", "--ssh-port", "5555"], &["-d", "int"])?;
    assert!(output.status.success(), "{output:?}");
    let line = String::from_utf8(output.stdout)?;
    assert_eq!(line.lines().count(), 1, "{line}");
    for part in [
        "-machine virt,secure=on,virtualization=on,gic-version=3 ",
        "-m 4G ",
        "/gangplank/../flash.bin ",
        "/gangplank/bao.bin,addr=0x50000000,force-raw=on ",
        "-device virtconsole,chardev=backend ",
        "hostfwd=tcp:127.0.0.1:5555-:22 ",
        " -d int ",
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    Ok(())
}

/// The printed line, run by a shell, starts what the script starts.
#[test]
fn printed_line_can_be_typed_as_it_is() -> Result<()> {
    let fixture = Fixture::complete()?;
    let arguments = ["-append", "it's $HOME; a \"b\"", ""];
    let printed = fixture.run(&["--dry-run"], &arguments)?.stdout;
    let typed = Command::new("sh")
        .arg("-c")
        .arg(String::from_utf8(printed)?)
        .output()?;
    let started = fixture.run(&[], &arguments)?;
    let started = String::from_utf8(started.stdout)?;
    let typed = String::from_utf8(typed.stdout)?;
    assert!(typed.contains("<it's $HOME; a \"b\">\n<>"), "{typed}");
    assert!(started.ends_with(&typed), "{started}\n{typed}");
    assert!(started.contains("go 0x50000000"), "{started}");
    Ok(())
}

#[test]
fn every_missing_image_is_named_with_where_it_comes_from() -> Result<()> {
    let said = Fixture::new(&[])?.refused(&["--dry-run"])?;
    for part in [
        "bao.bin",
        "B.4",
        "flash.bin",
        "TF-A and U-Boot",
        "steps 2 and 3",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let said = Fixture::new(&["flash.bin"])?.refused(&[])?;
    assert!(
        said.contains("bao.bin") && !said.contains("U-Boot"),
        "{said}"
    );
    Ok(())
}

#[test]
fn image_that_would_be_overwritten_is_refused() -> Result<()> {
    let fixture = Fixture::complete()?;
    let image = fs::File::create(fixture.images().join("bao.bin"))?;
    image.set_len(0x1000_0000)?;
    assert!(fixture.run(&["--dry-run"], &[])?.status.success());
    image.set_len(0x1000_0001)?;
    let said = fixture.refused(&["--dry-run"])?;
    assert!(said.contains("268435457 bytes"), "{said}");
    Ok(())
}

#[test]
fn qemu_that_is_too_old_or_not_there_is_refused() -> Result<()> {
    let fixture = Fixture::complete()?;
    for (version, enough) in [
        ("7.1.9", false),
        ("6.9", false),
        ("7.2", true),
        ("10.0.2", true),
    ] {
        fixture.install_qemu(version)?;
        let output = fixture.run(&["--dry-run"], &[])?;
        assert_eq!(output.status.success(), enough, "{version}");
    }
    fixture.install_qemu("one")?;
    assert!(fixture.refused(&[])?.contains("does not tell a version"));
    fs::remove_file(fixture.0.path().join("qemu"))?;
    assert!(fixture.refused(&[])?.contains("qemu-system-arm"));
    Ok(())
}

#[test]
fn wrong_command_line_is_refused() -> Result<()> {
    let fixture = Fixture::complete()?;
    for options in [&["--ssh-port", "ssh"][..], &["--unknown"]] {
        fixture.refused(options)?;
    }
    let output = Command::new(cache::workspace().join("scripts/run-bao")).output()?;
    assert_eq!(output.status.code(), Some(2));
    Ok(())
}
