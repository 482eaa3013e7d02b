//! A Debian tree on the share is the guest's root file system, from the initramfs on.
//!
//! With root on the host, the tree's files belong to whom Debian gives them. Without, the user who
//! runs daemon and guest has them all.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::debian_tree;
use gangplank_tests::guest::{Guest, Machine, Options, Role};
use gangplank_tests::packages;
use gangplank_tests::process::User;
use gangplank_tests::runner::Runner;

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    for (name, machine) in [
        ("uml::root_file_system", Machine::Uml),
        ("qemu_x86_64::root_file_system", Machine::QemuX86_64),
    ] {
        if User::is_root() {
            runner.run(name, || boots_to_a_shell(machine, None));
        } else {
            runner.skip(name, "needs root");
        }
    }
    let user = User::is_root().then_some(User::NOBODY);
    runner.run("uml::root_file_system_of_an_ordinary_user", || {
        boots_to_a_shell(Machine::Uml, user)
    });
    runner.finish()
}

/// Every program and library of the guest comes over virtio-fs. The guest works as a system and
/// survives a reboot, and its changes are on the host. The daemon and the guest are run by `user`,
/// or by the caller.
fn boots_to_a_shell(machine: Machine, user: Option<User>) -> Result<()> {
    let parent = tempfile::Builder::new()
        .prefix("gangplank-root-")
        .tempdir()?;
    let tree = parent.path().join("tree");
    debian_tree::copy_to(&tree, machine.arch())?;
    let mut daemon = daemon::Options::new(&tree);
    if let Some(user) = user {
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755))?;
        let owner = format!("{}:{}", user.uid, user.gid);
        packages::run(Command::new("chown").args(["-hR", &owner]).arg(&tree))?;
        daemon = daemon.user(user);
    }
    let daemon = Daemon::start(&daemon)?;
    let mut options = Options::new(machine).share(daemon.socket(), TAG);
    options.user = user;
    options.role = Role::Root(TAG.to_owned());
    for boot in 1..=2 {
        let mut guest = Guest::boot(&options).map_err(|error| error.context(daemon.log()))?;
        let mounts = guest.sh("cat /proc/mounts")?;
        ensure!(
            mounts.contains(&format!("{TAG} / virtiofs rw")),
            "mounted: {mounts}"
        );
        let shell = guest.sh("bash -c 'realpath /proc/$$/exe; echo $BASH_VERSION'")?;
        ensure!(shell.starts_with("/usr/bin/bash\n5."), "the shell: {shell}");
        guest.sh(&format!(
            "git --version && ps -e >/dev/null && cat /etc/debian_version && \
             echo boot {boot} >>/root/boots && git init --quiet /root/repository-{boot} && sync"
        ))?;
        guest.power_off()?;
    }
    let boots = fs::read_to_string(tree.join("root/boots"))?;
    ensure!(boots == "boot 1\nboot 2\n", "the host reads: {boots}");
    let (status, log) = daemon.stop()?;
    ensure!(status.success(), "the daemon ended with {status}:\n{log}");
    Ok(())
}
