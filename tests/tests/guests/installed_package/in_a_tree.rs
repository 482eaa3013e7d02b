//! A Debian tree without a service manager: the programs run with the tree as their root directory.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::{debian_tree, packages, process};
use rustix::process::Signal;

use crate::{build, wait_for_socket};

/// How long a daemon may take until its socket is there, or until it has ended.
const LIMIT: Duration = Duration::from_secs(30);

/// Files that the package must have, beside manual pages and completions.
const FILES: [&str; 7] = [
    "usr/bin/gangplankd",
    "usr/bin/gangplank-frontend",
    "usr/bin/gangplank-dvk",
    "usr/bin/gangplank-guest",
    "usr/lib/systemd/system/gangplankd@.service",
    "usr/lib/sysusers.d/gangplank.conf",
    "usr/share/man/man8/gangplankd.8.gz",
];

/// dpkg with the tree as its root. The tree has no other packages in dpkg's view.
fn dpkg(tree: &Path, arguments: &[&str], package: &Path) -> Result<()> {
    packages::run(
        Command::new("dpkg")
            .arg(format!("--root={}", tree.display()))
            .args(arguments)
            .arg(package)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    )
}

/// All files and links of the tree, by path.
fn files(tree: &Path) -> Result<Vec<String>> {
    let found = packages::output(
        Command::new("find")
            .args([
                ".",
                "(",
                "-path",
                "./var/lib/dpkg",
                "-o",
                "-path",
                "./proc",
                ")",
            ])
            .args(["-prune", "-o", "!", "-type", "d", "-print"])
            .current_dir(tree),
    )?;
    let mut found: Vec<String> = found.lines().map(str::to_owned).collect();
    found.sort();
    Ok(found)
}

/// Starts a command line of the tree with the tree as root. The mounts that this needs go with the
/// process.
fn start(tree: &Path, line: &str) -> Result<Child> {
    let script = "set -e; mount --make-rprivate /; mount --bind \"$0\" \"$0\"; \
                  mount -t proc proc \"$0/proc\"; exec chroot \"$0\" $1";
    let mut command = process::tied("unshare", None);
    command
        .args(["--mount", "sh", "-c", script])
        .arg(tree)
        .arg(line)
        .stdin(Stdio::null());
    Ok(process::spawn(command)?)
}

pub(crate) fn package_is_installed_used_and_removed() -> Result<()> {
    let parent = tempfile::Builder::new()
        .prefix("gangplank-deb-")
        .tempdir()?;
    let tree = parent.path().join("tree");
    let package = build(parent.path())?;
    debian_tree::copy_to(&tree, Machine::Uml.arch())?;
    for directory in ["info", "updates", "triggers"] {
        fs::create_dir_all(tree.join("var/lib/dpkg").join(directory))?;
    }
    fs::write(tree.join("var/lib/dpkg/status"), "")?;
    // The tree has no systemd, which makes this group by the package's sysusers.d file.
    let groups = tree.join("etc/group");
    let known = fs::read_to_string(&groups)?;
    if !known.lines().any(|line| line.starts_with("kvm:")) {
        fs::write(&groups, format!("{known}kvm:x:104:\n"))?;
    }
    // Maintainer scripts write to it.
    let null = tree.join("dev/null");
    if !null.exists() {
        let mut mknod = Command::new("mknod");
        packages::run(mknod.arg("--mode=666").arg(&null).args(["c", "1", "3"]))?;
    }
    let before = files(&tree)?;

    dpkg(&tree, &["--install"], &package)?;
    for file in FILES {
        ensure!(tree.join(file).exists(), "{file} is not installed");
    }
    for unit in fs::read_dir(tree.join("usr/lib/systemd/system"))? {
        let text = fs::read_to_string(unit?.path())?;
        for line in text
            .lines()
            .filter_map(|line| line.strip_prefix("ExecStart=/"))
        {
            let program = line.split(' ').next().unwrap_or_default();
            ensure!(tree.join(program).exists(), "a unit starts /{program}");
        }
    }
    let json = fs::read_to_string(tree.join("usr/share/qemu/vhost-user/50-gangplankd.json"))?;
    ensure!(json.contains("\"/usr/bin/gangplankd\""), "{json}");

    fs::create_dir_all(tree.join("srv/home"))?;
    fs::create_dir_all(tree.join("run/gangplank"))?;
    fs::write(tree.join("srv/home/from-host"), "written on the host\n")?;
    serve_a_guest(&tree)?;
    let written = fs::read_to_string(tree.join("srv/home/from-guest"))?;
    ensure!(written == "written in the guest\n", "{written}");
    fs::remove_dir_all(tree.join("srv/home"))?;

    dpkg(&tree, &["--purge"], Path::new("gangplank"))?;
    let after = files(&tree)?;
    let left: Vec<&String> = after.iter().filter(|file| !before.contains(file)).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(after.len() == before.len(), "files of others were removed");
    Ok(())
}

/// The installed programs by the command line of the installed unit, a guest that mounts the share,
/// and the file client beside it.
fn serve_a_guest(tree: &Path) -> Result<()> {
    let unit = fs::read_to_string(tree.join("usr/lib/systemd/system/gangplankd@.service"))?;
    let mut lines = unit.lines();
    let line = lines.find_map(|line| line.strip_prefix("ExecStart="));
    let line = line.context("the unit starts nothing")?;
    let line = line.replace("%i", "home").replace("$OPTIONS", "");
    let socket = tree.join("run/gangplank/home.sock");
    let mut daemon = start(tree, &line)?;
    wait_for_socket(&socket, &mut daemon, LIMIT).context("the daemon")?;

    let mut guest = Guest::boot(&Options::new(Machine::Uml).share(&socket, "home"))?;
    guest.mount("home", "/mnt")?;
    let read = guest.sh("cat /mnt/from-host && echo written in the guest >/mnt/from-guest")?;
    ensure!(read == "written on the host\n", "the guest reads {read}");
    guest.sh("umount /mnt")?;
    guest.power_off()?;

    let client = "/usr/bin/gangplank-frontend fs --socket /run/gangplank/home.sock cat /from-guest";
    let ended = process::wait_within(&mut start(tree, client)?, LIMIT)?;
    ensure!(ended.success(), "the file client ended with {ended}");

    process::signal(&daemon, Signal::TERM)?;
    let ended = process::wait_within(&mut daemon, LIMIT)?;
    ensure!(ended.success(), "the daemon ended with {ended}");
    ensure!(!socket.exists(), "the socket is left");
    Ok(())
}
