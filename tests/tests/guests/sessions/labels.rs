//! Labels of new files (`--security-label`), as a guest with SELinux sends them.

use std::fs;

use anyhow::{Result, ensure};
use gangplank_fuse::{
    Extensions, InitFlags, MkdirIn, NodeId, Operation, Request, SecurityContext, SecurityContexts,
};
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::{Driver, Error, Setup};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Room for a reply to MKDIR.
const ROOM: usize = 256;

fn label(value: &[u8]) -> SecurityContext<'_> {
    SecurityContext {
        name: c"security.selinux",
        value,
    }
}

fn mkdir(
    driver: &mut Driver,
    name: &std::ffi::CStr,
    labels: &[SecurityContext<'_>],
) -> Result<(), Error> {
    let header = driver.next_header(NodeId::ROOT);
    let mut buffer = Vec::new();
    let args = MkdirIn {
        mode: 0o755,
        umask: 0,
    };
    let request = Request {
        operation: Operation::Mkdir { args, name },
        extensions: Extensions {
            security_contexts: Some(SecurityContexts::new(labels, &mut buffer)),
            ..Extensions::default()
        },
    };
    let mut bytes = Vec::new();
    request.encode(&header, driver.dialect(), &mut bytes)?;
    let ticket = driver.submit_bytes(driver.queue, header.unique, &bytes, ROOM)?;
    driver.finish(ticket).map(drop)
}

#[test]
fn new_directory_has_its_label_or_is_not_there() -> Result<()> {
    let arguments = ["--security-label", "--xattrmap=:map:security.:user.vm.:"];
    let fixture = Fixture::quiet(&arguments)?;
    let plain = fixture.share();
    if rustix::fs::setxattr(&plain, c"user.a", b"", XattrFlags::empty()).is_err() {
        eprintln!("SKIPPED: the temporary directory has no extended attributes");
        return Ok(());
    }
    let mut driver = Driver::mount(fixture.daemon.socket(), &Setup::default())?;
    mkdir(&mut driver, c"labelled", &[label(b"tmp_t\0")])?;
    let mut value = [0; 16];
    let name = c"user.vm.security.selinux";
    let length = rustix::fs::getxattr(plain.join("labelled"), name, &mut value)?;
    ensure!(value.get(..length) == Some(b"tmp_t\0".as_slice()));

    // An empty value: the guest has no label for it.
    mkdir(&mut driver, c"unlabelled", &[label(b"")])?;
    ensure!(rustix::fs::getxattr(plain.join("unlabelled"), name, &mut value).is_err());

    let two = mkdir(&mut driver, c"twice", &[label(b"a"), label(b"b")]);
    ensure!(matches!(two, Err(Error::Errno(Errno::INVAL))), "{two:?}");
    let denied = SecurityContext {
        name: c"user.vm.security.other",
        value: b"x",
    };
    let denied = mkdir(&mut driver, c"denied", &[denied]);
    ensure!(
        matches!(denied, Err(Error::Errno(Errno::PERM))),
        "{denied:?}"
    );
    let large = mkdir(&mut driver, c"large", &[label(&[1; 70_000])]);
    ensure!(large.is_err());
    ensure!(fs::read_dir(&plain)?.count() == 2);
    Ok(())
}

#[test]
fn guest_without_labels_cannot_mount_if_it_must_have_them() -> Result<()> {
    for (argument, option, missing) in [
        (
            "--security-label",
            "--security-label=always",
            InitFlags::SECURITY_CTX,
        ),
        ("--posix-acl", "--posix-acl=always", InitFlags::POSIX_ACL),
    ] {
        let fixture = Fixture::quiet(&[argument])?;
        let mut driver = Driver::connect(fixture.daemon.socket(), &Setup::default())?;
        driver.offer -= missing;
        let refused = driver.init();
        ensure!(
            matches!(refused, Err(Error::Errno(Errno::PROTO))),
            "{refused:?}"
        );
        ensure!(
            fixture.daemon.log().contains(option),
            "{}",
            fixture.daemon.log()
        );
        // The same guest with another kernel.
        driver.offer |= missing;
        let agreed = driver.init()?;
        ensure!(agreed.features().contains(missing));
    }
    Ok(())
}
