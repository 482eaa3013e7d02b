//! The container image: built by the script that users call, loaded and run by podman, and a guest
//! with the share that the container has.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::process::{self, User};
use gangplank_tests::runner::Runner;
use gangplank_tests::{cache, packages, tools};
use rustix::process::{Resource, getrlimit};

use crate::wait_for_socket;

/// How long a container may take to start or to end.
const LIMIT: Duration = Duration::from_secs(60);

/// The name of the test.
const NAME: &str = "podman::image_is_built_loaded_and_serves_a_guest";

/// Runs its arguments where the unified cgroup tree is the only one: crun takes no other.
const ONE_CGROUP_TREE: &str = "mount --make-rprivate / && umount --recursive /sys/fs/cgroup && \
    mount -t cgroup2 none /sys/fs/cgroup && exec \"$0\" \"$@\"";

/// Runs the test, with `GANGPLANK_LONG=1` alone: it needs podman and buildah, which nothing else
/// does.
pub(crate) fn run(runner: &mut Runner) {
    if std::env::var_os("GANGPLANK_LONG").is_none() {
        return;
    }
    let is_there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !User::is_root() {
        runner.skip(NAME, "needs root");
    } else if !["podman", "buildah"].into_iter().all(is_there) {
        runner.skip(NAME, "needs podman and buildah");
    } else {
        runner.run(NAME, image_is_built_loaded_and_serves_a_guest);
    }
}

/// podman and buildah with a storage of their own.
struct Storage<'a>(&'a Path);

impl Storage<'_> {
    fn options(&self) -> [String; 3] {
        let directory = self.0.display();
        [
            format!("--root={directory}/storage"),
            format!("--runroot={directory}/run"),
            "--storage-driver=vfs".to_owned(),
        ]
    }

    fn podman(&self, arguments: &[&str]) -> Command {
        let mut command = process::tied("podman", None);
        command.args(self.options()).args(arguments);
        command
    }
}

fn image_is_built_loaded_and_serves_a_guest() -> Result<()> {
    let parent = tempfile::Builder::new()
        .prefix("gangplank-image-")
        .tempdir()?;
    let storage = Storage(parent.path());
    let archive = parent.path().join("gangplankd.tar");
    packages::run(
        Command::new(cache::workspace().join("packaging/build-image"))
            .arg(&archive)
            .env("GANGPLANK_PROFILE", tools::profile())
            .env("BUILDAH", storage.options().join(" ")),
    )?;
    // What is run is what was loaded.
    packages::run(&mut storage.podman(&["rmi", "--all", "--force"]))?;
    let loading = ["load", "--input"];
    packages::run(storage.podman(&loading).arg(&archive))?;

    let (share, run) = (parent.path().join("share"), parent.path().join("sockets"));
    for directory in [&share, &run] {
        fs::create_dir(directory)?;
    }
    fs::write(share.join("from-host"), "written on the host\n")?;
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20);
    let running = storage.podman(&["run", "--rm", "--name=gangplankd", "--pull=never"]);
    let mut starting = process::tied("unshare", None);
    starting
        .args(["--mount", "sh", "-c", ONE_CGROUP_TREE])
        .args(running.get_args().skip_while(|word| *word != "podman"))
        // What a machine for tests may lack or refuse.
        .args(["--network=none", "--cgroups=disabled"])
        .arg(format!("--ulimit=nofile={limit}:{limit}"))
        .arg("--ulimit=nproc=4096:4096")
        .arg(format!("--volume={}:/srv", share.display()))
        .arg(format!("--volume={}:/run/gangplank", run.display()))
        .args(["localhost/gangplankd", "--tag=home"])
        .stdin(Stdio::null());
    let mut container = process::spawn(starting)?;
    let socket = run.join("fs.sock");
    wait_for_socket(&socket, &mut container, LIMIT).context("the container")?;
    let mut guest = Guest::boot(&Options::new(Machine::Uml).share(&socket, "home"))?;
    guest.mount("home", "/mnt")?;
    let read = guest.sh("cat /mnt/from-host && echo written in the guest >/mnt/from-guest")?;
    ensure!(read == "written on the host\n", "the guest reads {read}");
    guest.sh("chown 5:60 /mnt/from-guest && umount /mnt")?;
    guest.power_off()?;
    let written = fs::read_to_string(share.join("from-guest"))?;
    ensure!(written == "written in the guest\n", "{written}");

    packages::run(&mut storage.podman(&["stop", "--time=30", "gangplankd"]))?;
    let ended = process::wait_within(&mut container, LIMIT).context("stopping the container")?;
    ensure!(ended.success(), "the container ended with {ended}");
    ensure!(!socket.exists(), "the socket is left");
    Ok(())
}
