//! What a confined daemon can still see and do, looked at from outside through /proc.

mod launch;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use gangplank_tests::process::User;
use launch::{Place, root_or_skip};
use rustix::process::Signal;

/// chown, dac_override, fowner, fsetid, setgid, setuid, mknod, setfcap.
const NEEDED: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 27 | 1 << 31;
const DAC_READ_SEARCH: u64 = 1 << 2;
const CHOWN: u64 = 1;
const SYS_NICE: u64 = 1 << 23;

#[test]
fn namespace_holds_the_share_and_nothing_else() -> Result<()> {
    if !root_or_skip("namespace_holds_the_share_and_nothing_else") {
        return Ok(());
    }
    let place = Place::new()?;
    let daemon = place.serve(&["--sandbox=namespace"])?;
    let confined = Process(daemon.serving_pid()?);
    assert_ne!(confined.0, daemon.pid());
    assert!(confined.has_root(&place.file("share"))?);
    assert_eq!(confined.mounts()?, ["/"]);
    for namespace in ["mnt", "pid", "net"] {
        assert_ne!(
            confined.namespace(namespace)?,
            Process(daemon.pid()).namespace(namespace)?,
            "{namespace}"
        );
    }
    assert_eq!(
        confined.status("NSpid")?.split_whitespace().last(),
        Some("1")
    );
    assert_eq!(confined.status("Seccomp")?, "2");
    assert_eq!(confined.status("NoNewPrivs")?, "1");
    assert_eq!(confined.capabilities("CapEff")?, NEEDED | DAC_READ_SEARCH);
    assert_eq!(confined.capabilities("CapPrm")?, NEEDED | DAC_READ_SEARCH);
    assert_eq!(confined.capabilities("CapBnd")?, NEEDED | DAC_READ_SEARCH);
    assert_eq!(confined.capabilities("CapInh")?, 0);
    assert_eq!(confined.capabilities("CapAmb")?, 0);
    assert_eq!(confined.status("Groups")?, "");
    assert_nothing_leads_out(&place, &confined)?;
    assert!(daemon.signal(Signal::TERM)?.status.success());
    Ok(())
}

#[test]
fn chroot_has_the_share_as_root() -> Result<()> {
    if !root_or_skip("chroot_has_the_share_as_root") {
        return Ok(());
    }
    let place = Place::new()?;
    let daemon = place.serve(&["--sandbox=chroot", "--inode-file-handles=never"])?;
    let confined = Process(daemon.serving_pid()?);
    assert_ne!(confined.0, daemon.pid());
    assert!(confined.has_root(&place.file("share"))?);
    assert_ne!(
        confined.namespace("net")?,
        Process(daemon.pid()).namespace("net")?
    );
    assert_eq!(confined.status("Seccomp")?, "2");
    assert_eq!(confined.capabilities("CapEff")?, NEEDED);
    assert_nothing_leads_out(&place, &confined)?;
    assert!(daemon.signal(Signal::TERM)?.status.success());
    Ok(())
}

#[test]
fn without_sandbox_one_process_still_gives_up_what_it_can() -> Result<()> {
    let place = Place::new()?;
    let daemon = place.serve(&["--sandbox=none"])?;
    let process = Process(daemon.serving_pid()?);
    assert_eq!(process.0, daemon.pid());
    assert_eq!(process.status("Seccomp")?, "2");
    assert_eq!(process.status("NoNewPrivs")?, "1");
    assert_eq!(
        process.capabilities("CapEff")? & !(NEEDED | DAC_READ_SEARCH),
        0
    );
    assert!(daemon.signal(Signal::TERM)?.status.success());
    Ok(())
}

#[test]
fn whole_host_can_be_shared() -> Result<()> {
    if !root_or_skip("whole_host_can_be_shared") {
        return Ok(());
    }
    let place = Place::new()?;
    for sandbox in ["--sandbox=namespace", "--sandbox=chroot"] {
        let daemon = place.start(&["--socket-path=fs.sock", "--shared-dir=/", sandbox])?;
        let confined = Process(daemon.serving_pid()?);
        assert_eq!(confined.status("Seccomp")?, "2");
        assert!(daemon.signal(Signal::TERM)?.status.success());
    }
    Ok(())
}

#[test]
fn seccomp_and_capabilities_follow_the_operator() -> Result<()> {
    if !root_or_skip("seccomp_and_capabilities_follow_the_operator") {
        return Ok(());
    }
    let place = Place::new()?;
    for (action, mode) in [("kill", "2"), ("trap", "2"), ("log", "2"), ("none", "0")] {
        let daemon =
            place.serve(&[&format!("--seccomp={action}"), "--modcaps=+sys_nice:-chown"])?;
        let confined = Process(daemon.serving_pid()?);
        assert_eq!(confined.status("Seccomp")?, mode, "{action}");
        let effective = confined.capabilities("CapEff")?;
        assert_eq!(effective, (NEEDED | DAC_READ_SEARCH | SYS_NICE) & !CHOWN);
        assert!(daemon.signal(Signal::TERM)?.status.success());
    }
    Ok(())
}

#[test]
fn ordinary_user_gets_a_user_namespace() -> Result<()> {
    let Some(place) = ordinary_users_place("ordinary_user_gets_a_user_namespace")? else {
        return Ok(());
    };
    let daemon = place.serve(&["--sandbox=namespace"])?;
    let confined = Process(daemon.serving_pid()?);
    assert!(confined.has_root(&place.file("share"))?);
    assert_eq!(confined.mounts()?, ["/"]);
    assert_eq!(confined.status("Seccomp")?, "2");
    let map = confined.read("uid_map")?;
    let user = confined.status("Uid")?;
    let user = user.split_whitespace().next().unwrap_or_default();
    assert_eq!(
        map.split_whitespace().collect::<Vec<_>>(),
        [user, user, "1"]
    );
    assert_nothing_leads_out(&place, &confined)?;
    let ended = daemon.signal(Signal::TERM)?;
    assert!(ended.status.success());
    assert!(
        ended.errors.contains("owns the files they create"),
        "{ended:?}"
    );
    assert!(!place.file("fs.sock").exists());
    Ok(())
}

#[test]
fn ordinary_user_without_sandbox_serves_with_no_capability() -> Result<()> {
    let test = "ordinary_user_without_sandbox_serves_with_no_capability";
    let Some(place) = ordinary_users_place(test)? else {
        return Ok(());
    };
    let daemon = place.serve(&["--sandbox=none"])?;
    let process = Process(daemon.serving_pid()?);
    assert_eq!(process.capabilities("CapEff")?, 0);
    assert_eq!(process.status("Seccomp")?, "2");
    assert!(daemon.signal(Signal::TERM)?.status.success());
    Ok(())
}

#[test]
fn ordinary_user_is_told_what_takes_root() -> Result<()> {
    let Some(place) = ordinary_users_place("ordinary_user_is_told_what_takes_root")? else {
        return Ok(());
    };
    for (arguments, hint) in [
        (
            &["--sandbox=chroot"][..],
            "--sandbox=namespace or --sandbox=none",
        ),
        (
            &["--sandbox=none", "--inode-file-handles=mandatory"],
            "Pass prefer or never",
        ),
        (&["--sandbox=none", "--modcaps=+sys_admin"], "CAP_SYS_ADMIN"),
    ] {
        let all = [&["--socket-path=fs.sock", "--shared-dir=share"], arguments].concat();
        let ended = place.run(&all)?;
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.errors.contains(hint), "{ended:?}");
        assert!(!place.file("fs.sock").exists(), "{arguments:?}");
    }
    Ok(())
}

#[test]
fn user_namespace_that_cannot_be_had_is_named() -> Result<()> {
    let test = "user_namespace_that_cannot_be_had_is_named";
    let Some(place) = ordinary_users_place(test)? else {
        return Ok(());
    };
    // In a user namespace of the user's own, the number of further ones can be set to none.
    let daemon = place.command(&["--socket-path=fs.sock", "--shared-dir=share"]);
    let mut command = Command::new(daemon.get_program());
    let mut arguments: Vec<_> = daemon.get_args().map(ToOwned::to_owned).collect();
    let program = arguments
        .iter()
        .position(|argument| argument == "--")
        .context("setpriv's arguments end")?;
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    let before = [
        "unshare",
        "--user",
        "--map-current-user",
        "--keep-caps",
        "sh",
        "-c",
        script,
        "sh",
    ];
    arguments.splice(program + 1..program + 1, before.map(Into::into));
    command.args(arguments).current_dir(place.path());
    let ended = place.finish(command)?;
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.errors.contains("user namespace"), "{ended:?}");
    assert!(ended.errors.contains("--sandbox=none"), "{ended:?}");
    assert!(!place.file("fs.sock").exists());
    Ok(())
}

#[test]
fn root_without_the_privilege_for_namespaces_is_told_so() -> Result<()> {
    if !root_or_skip("root_without_the_privilege_for_namespaces_is_told_so") {
        return Ok(());
    }
    let place = Place::new()?;
    let weak = |sandbox: &str| {
        let mut command = Command::new("setpriv");
        command
            .args(["--bounding-set=-sys_admin", "--"])
            .arg(place.program())
            .args(["--socket-path=fs.sock", "--shared-dir=share", sandbox])
            .current_dir(place.path());
        command
    };
    let ended = place.finish(weak("--sandbox=namespace"))?;
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.errors.contains("CAP_SYS_ADMIN"), "{ended:?}");
    assert!(ended.errors.contains("--sandbox=chroot"), "{ended:?}");
    assert!(!place.file("fs.sock").exists());

    // What the message says to pass instead works.
    let daemon = place.start_command(weak("--sandbox=chroot"))?;
    assert!(daemon.signal(Signal::TERM)?.status.success());
    Ok(())
}

#[test]
fn confined_process_dies_with_the_one_outside() -> Result<()> {
    for (place, sandbox) in two_process_setups()? {
        let mut daemon = place.serve(&[sandbox])?;
        let confined = daemon.serving_pid()?;
        kill(daemon.pid())?;
        daemon.end()?;
        gone(confined)?;
    }
    Ok(())
}

#[test]
fn end_of_the_confined_process_is_told_and_cleaned_up_after() -> Result<()> {
    for (place, sandbox) in two_process_setups()? {
        let mut daemon = place.serve(&[sandbox])?;
        kill(daemon.serving_pid()?)?;
        let ended = daemon.end()?;
        assert_eq!(ended.status.code(), Some(128 + 9), "{ended:?}");
        assert!(ended.errors.contains("ended by signal 9"), "{ended:?}");
        assert!(!place.file("fs.sock").exists());
        assert!(!place.file("fs.sock.pid").exists());
    }
    Ok(())
}

/// Places and sandboxes in which a process stays outside.
fn two_process_setups() -> Result<Vec<(Place, &'static str)>> {
    let mut setups = vec![(Place::new()?, "--sandbox=namespace")];
    if root_or_skip("--sandbox=chroot") {
        setups.push((Place::new()?, "--sandbox=chroot"));
        setups.push((Place::of(Some(User::NOBODY))?, "--sandbox=namespace"));
    }
    Ok(setups)
}

/// A place where the daemon runs as an ordinary user: the one who runs the tests, or nobody.
fn ordinary_users_place(test: &str) -> Result<Option<Place>> {
    if !User::is_root() {
        return Place::new().map(Some);
    }
    let allowed = fs::read_to_string("/proc/sys/user/max_user_namespaces")
        .is_ok_and(|number| number.trim() != "0");
    if !allowed {
        eprintln!("SKIPPED {test}: this host has no user namespaces");
        return Ok(None);
    }
    Place::of(Some(User::NOBODY)).map(Some)
}

/// No descriptor of the process is a file or directory outside the share, its log aside.
fn assert_nothing_leads_out(place: &Place, process: &Process) -> Result<()> {
    for entry in fs::read_dir(format!("/proc/{}/fd", process.0))? {
        let entry = entry?;
        let number: u32 = entry.file_name().to_string_lossy().parse()?;
        let Ok(target) = fs::metadata(entry.path()) else {
            continue;
        };
        let share = fs::metadata(place.file("share"))?;
        let in_share =
            target.is_dir() && (target.dev(), target.ino()) == (share.dev(), share.ino());
        let own_descriptors = target.dev() == fs::metadata("/proc")?.dev();
        assert!(
            number <= 2 || in_share || own_descriptors || !(target.is_dir() || target.is_file()),
            "descriptor {number} leads to {:?}",
            fs::read_link(entry.path())
        );
    }
    Ok(())
}

/// A process, looked at through /proc.
struct Process(u32);

impl Process {
    fn read(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.0);
        fs::read_to_string(&path).with_context(|| format!("reading {path}"))
    }

    /// A field of its status, without the space around it.
    fn status(&self, field: &str) -> Result<String> {
        let status = self.read("status")?;
        status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .map(|value| value.trim().to_owned())
            .with_context(|| format!("no {field} in {status}"))
    }

    fn capabilities(&self, set: &str) -> Result<u64> {
        Ok(u64::from_str_radix(&self.status(set)?, 16)?)
    }

    fn namespace(&self, kind: &str) -> Result<PathBuf> {
        Ok(fs::read_link(format!("/proc/{}/ns/{kind}", self.0))?)
    }

    /// Where its mounts are, as it sees them.
    fn mounts(&self) -> Result<Vec<String>> {
        let mounts = self.read("mountinfo")?;
        Ok(mounts
            .lines()
            .filter_map(|line| line.split_whitespace().nth(4))
            .map(str::to_owned)
            .collect())
    }

    /// Whether this directory is its root.
    fn has_root(&self, directory: &std::path::Path) -> Result<bool> {
        let root = fs::metadata(format!("/proc/{}/root/.", self.0))?;
        let directory = fs::metadata(directory)?;
        Ok((root.dev(), root.ino()) == (directory.dev(), directory.ino()))
    }
}

fn kill(pid: u32) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(pid.try_into()?).context("a process's number")?;
    Ok(rustix::process::kill_process(pid, Signal::KILL)?)
}

/// Waits until the process is no more, or a corpse that only waits for its parent.
fn gone(pid: u32) -> Result<()> {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let alive = || {
        Process(pid)
            .status("State")
            .is_ok_and(|state| !state.starts_with('Z'))
    };
    while alive() {
        anyhow::ensure!(
            std::time::Instant::now() < deadline,
            "process {pid} lives on"
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(())
}
