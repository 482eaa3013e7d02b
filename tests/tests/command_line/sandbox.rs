//! What a confined daemon can see and do, read from /proc outside of it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::fixture::{Fixture, root_or_skip};
use crate::process::Process;
use anyhow::{Context, Result};
use gangplank_tests::confinement::{SYS_ADMIN, SYS_RESOURCE};
use gangplank_tests::process::User;
use gangplank_tests::wait;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;

/// chown, dac_override, fowner, fsetid, setgid, setuid, mknod, setfcap.
const NEEDED: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 27 | 1 << 31;
const DAC_READ_SEARCH: u64 = 1 << 2;
const CHOWN: u64 = 1;
const SYS_CHROOT: u64 = 1 << 18;
const SYS_NICE: u64 = 1 << 23;

#[test]
fn namespace_holds_the_share_and_nothing_else() -> Result<()> {
    if !root_or_skip("namespace_holds_the_share_and_nothing_else") {
        return Ok(());
    }
    let fixture = Fixture::new()?;
    let daemon = fixture.serve(&["--sandbox=namespace"])?;
    let guest = daemon.connect()?;
    let worker = Process(guest.worker);
    assert!(worker.has_root(&fixture.file("share"))?);
    assert_eq!(worker.mounts()?, ["/"]);
    for namespace in ["mnt", "pid", "net"] {
        assert_ne!(
            worker.namespace(namespace)?,
            Process(daemon.pid()).namespace(namespace)?,
            "{namespace}"
        );
    }
    assert_eq!(worker.status("Seccomp")?, "2");
    assert_eq!(worker.status("NoNewPrivs")?, "1");
    assert_eq!(worker.capabilities("CapEff")?, NEEDED | DAC_READ_SEARCH);
    assert_eq!(worker.capabilities("CapPrm")?, NEEDED | DAC_READ_SEARCH);
    assert_eq!(worker.capabilities("CapInh")?, 0);
    assert_eq!(worker.capabilities("CapAmb")?, 0);
    assert_eq!(worker.status("Groups")?, "");
    assert_nothing_leads_out(&fixture, &worker)?;
    assert!(daemon.signal(Signal::TERM)?.status.success());
    Ok(())
}

#[test]
fn acceptor_and_keeper_can_do_nothing_themselves() -> Result<()> {
    if !root_or_skip("acceptor_and_keeper_can_do_nothing_themselves") {
        return Ok(());
    }
    let fixture = Fixture::new()?;
    let daemon = fixture.serve(&["--sandbox=namespace"])?;
    let guest = daemon.connect()?;
    let acceptor = Process(daemon.acceptor_pid()?);
    assert_ne!(acceptor.0, daemon.pid());
    for mount in acceptor.mounts()? {
        assert!(
            ["/", "/share"].contains(&mount.as_str()) || mount.starts_with("/proc"),
            "{mount}"
        );
    }
    assert_eq!(acceptor.status("Seccomp")?, "2");
    assert_eq!(acceptor.status("Threads")?, "1");
    assert_eq!(acceptor.capabilities("CapEff")?, 0);
    // What a worker keeps, and what it and its keeper need to leave the acceptor's root.
    assert_eq!(
        acceptor.capabilities("CapPrm")?,
        NEEDED | DAC_READ_SEARCH | SYS_ADMIN | SYS_CHROOT
    );
    let keeper = Process(guest.keeper);
    // The first process of its namespace, which only its worker is in.
    assert_eq!(keeper.status("NSpid")?.split_whitespace().last(), Some("1"));
    assert_eq!(
        keeper.namespace("pid")?,
        Process(guest.worker).namespace("pid")?
    );
    let other = daemon.connect()?;
    assert_ne!(
        keeper.namespace("pid")?,
        Process(other.keeper).namespace("pid")?
    );
    assert_eq!(keeper.status("Seccomp")?, "2");
    assert_eq!(keeper.status("Threads")?, "1");
    assert_eq!(keeper.capabilities("CapEff")?, 0);
    // What a worker begins with.
    assert_eq!(
        keeper.capabilities("CapPrm")?,
        NEEDED | DAC_READ_SEARCH | SYS_ADMIN
    );
    assert!(keeper.has_root(&fixture.file("share"))?);
    assert!(daemon.signal(Signal::TERM)?.status.success());
    Ok(())
}

#[test]
fn chroot_has_the_share_as_root() -> Result<()> {
    if !root_or_skip("chroot_has_the_share_as_root") {
        return Ok(());
    }
    let fixture = Fixture::new()?;
    let daemon = fixture.serve(&["--sandbox=chroot", "--inode-file-handles=never"])?;
    let guest = daemon.connect()?;
    for process in [daemon.acceptor_pid()?, guest.worker] {
        let process = Process(process);
        assert_ne!(process.0, daemon.pid());
        assert!(process.has_root(&fixture.file("share"))?);
        assert_ne!(
            process.namespace("net")?,
            Process(daemon.pid()).namespace("net")?
        );
        assert_eq!(process.status("Seccomp")?, "2");
    }
    let worker = Process(guest.worker);
    assert_eq!(worker.capabilities("CapEff")?, NEEDED);
    assert_eq!(worker.capabilities("CapPrm")?, NEEDED);
    assert_nothing_leads_out(&fixture, &worker)?;
    assert!(daemon.signal(Signal::TERM)?.status.success());
    Ok(())
}

#[test]
fn without_sandbox_the_processes_still_give_up_what_they_can() -> Result<()> {
    let fixture = Fixture::new()?;
    let daemon = fixture.serve(&["--sandbox=none"])?;
    let guest = daemon.connect()?;
    for process in [daemon.acceptor_pid()?, guest.keeper, guest.worker] {
        let process = Process(process);
        assert_eq!(process.status("Seccomp")?, "2");
        assert_eq!(process.status("NoNewPrivs")?, "1");
        let effective = process.capabilities("CapEff")?;
        assert_eq!(effective & !(NEEDED | DAC_READ_SEARCH), 0);
    }
    assert_eq!(Process(daemon.acceptor_pid()?).capabilities("CapEff")?, 0);
    assert!(daemon.signal(Signal::TERM)?.status.success());
    Ok(())
}

/// A file system of its own below the share, as long as it is there.
struct Submount(PathBuf);

impl Submount {
    fn new(place: PathBuf) -> Result<Self> {
        fs::create_dir(&place)?;
        mount("tmpfs", &place, "tmpfs", MountFlags::empty(), None)?;
        Ok(Self(place))
    }
}

impl Drop for Submount {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn no_device_is_opened_through_the_share_or_what_is_mounted_below_it() -> Result<()> {
    if !root_or_skip("no_device_is_opened_through_the_share_or_what_is_mounted_below_it") {
        return Ok(());
    }
    for user in [None, Some(User::NOBODY)] {
        let fixture = Fixture::of(user)?;
        let _submount = Submount::new(fixture.file("share/below"))?;
        let daemon = fixture.serve(&["--sandbox=namespace"])?;
        let guest = daemon.connect()?;
        for process in [guest.keeper, guest.worker] {
            let mounts = Process(process).mount_options()?;
            let points: Vec<&str> = mounts.iter().map(|(point, _)| point.as_str()).collect();
            assert_eq!(points, ["/", "/below"], "{user:?}");
            for (point, options) in &mounts {
                for needed in ["nodev", "nosuid"] {
                    let has = options.iter().any(|option| option == needed);
                    assert!(has, "{user:?}: {point} is mounted with {options:?}");
                }
            }
        }
        assert!(daemon.signal(Signal::TERM)?.status.success());
    }
    Ok(())
}

#[test]
fn workers_are_ended_before_the_processes_that_serve_all_guests() -> Result<()> {
    let own = Process(std::process::id()).oom_score_adj()?;
    for (fixture, sandbox) in setups()? {
        let daemon = fixture.serve(&[sandbox])?;
        let guest = daemon.connect()?;
        let score = |process: u32| Process(process).oom_score_adj();
        // It takes CAP_SYS_RESOURCE to have a lower score than before.
        let started_with = Process(daemon.pid()).capabilities("CapPrm")?;
        let served = match started_with & SYS_RESOURCE {
            0 => own,
            _ => own.min(-500),
        };
        let processes = [
            daemon.pid(),
            daemon.acceptor_pid()?,
            guest.keeper,
            guest.worker,
        ];
        let [supervisor, acceptor, keeper, worker] = processes.map(score);
        let of_all = [supervisor?, acceptor?, keeper?];
        assert_eq!(of_all, [served; 3], "{sandbox}");
        assert_eq!(worker?, own.max(0), "{sandbox}");
        assert!(daemon.signal(Signal::TERM)?.status.success());
    }
    Ok(())
}

#[test]
fn whole_host_can_be_shared() -> Result<()> {
    if !root_or_skip("whole_host_can_be_shared") {
        return Ok(());
    }
    let fixture = Fixture::new()?;
    for sandbox in ["--sandbox=namespace", "--sandbox=chroot"] {
        let daemon = fixture.start(&["--socket-path=fs.sock", "--shared-dir=/", sandbox])?;
        let guest = daemon.connect()?;
        assert_eq!(Process(guest.worker).status("Seccomp")?, "2");
        assert!(daemon.signal(Signal::TERM)?.status.success());
    }
    Ok(())
}

#[test]
fn seccomp_and_capabilities_follow_the_operator() -> Result<()> {
    if !root_or_skip("seccomp_and_capabilities_follow_the_operator") {
        return Ok(());
    }
    let fixture = Fixture::new()?;
    for (action, mode) in [("kill", "2"), ("trap", "2"), ("log", "2"), ("none", "0")] {
        let daemon =
            fixture.serve(&[&format!("--seccomp={action}"), "--modcaps=+sys_nice:-chown"])?;
        let guest = daemon.connect()?;
        for process in [daemon.acceptor_pid()?, guest.keeper, guest.worker] {
            assert_eq!(Process(process).status("Seccomp")?, mode, "{action}");
        }
        let effective = Process(guest.worker).capabilities("CapEff")?;
        assert_eq!(effective, (NEEDED | DAC_READ_SEARCH | SYS_NICE) & !CHOWN);
        assert!(daemon.signal(Signal::TERM)?.status.success());
    }
    Ok(())
}

#[test]
fn ordinary_user_gets_a_user_namespace() -> Result<()> {
    let Some(fixture) = ordinary_users_place("ordinary_user_gets_a_user_namespace")? else {
        return Ok(());
    };
    let daemon = fixture.serve(&["--sandbox=namespace"])?;
    let guest = daemon.connect()?;
    let worker = Process(guest.worker);
    assert!(worker.has_root(&fixture.file("share"))?);
    assert_eq!(worker.mounts()?, ["/"]);
    assert_eq!(worker.status("Seccomp")?, "2");
    let map = worker.read("uid_map")?;
    let user = worker.status("Uid")?;
    let user = user.split_whitespace().next().unwrap_or_default();
    assert_eq!(
        map.split_whitespace().collect::<Vec<_>>(),
        [user, user, "1"]
    );
    assert_nothing_leads_out(&fixture, &worker)?;
    let ended = daemon.signal(Signal::TERM)?;
    assert!(ended.status.success());
    assert!(
        ended.errors.contains("owns the files they create"),
        "{ended:?}"
    );
    assert!(!fixture.file("fs.sock").exists());
    Ok(())
}

#[test]
fn ordinary_user_without_sandbox_serves_with_no_capability() -> Result<()> {
    let test = "ordinary_user_without_sandbox_serves_with_no_capability";
    let Some(fixture) = ordinary_users_place(test)? else {
        return Ok(());
    };
    let daemon = fixture.serve(&["--sandbox=none"])?;
    let guest = daemon.connect()?;
    for process in [daemon.acceptor_pid()?, guest.worker] {
        assert_eq!(Process(process).capabilities("CapPrm")?, 0);
        assert_eq!(Process(process).status("Seccomp")?, "2");
    }
    assert!(daemon.signal(Signal::TERM)?.status.success());
    Ok(())
}

#[test]
fn ordinary_user_is_told_what_takes_root() -> Result<()> {
    let Some(fixture) = ordinary_users_place("ordinary_user_is_told_what_takes_root")? else {
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
        let ended = fixture.run(&all)?;
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.errors.contains(hint), "{ended:?}");
        assert!(!fixture.file("fs.sock").exists(), "{arguments:?}");
    }
    Ok(())
}

#[test]
fn user_namespace_that_cannot_be_had_is_named() -> Result<()> {
    let test = "user_namespace_that_cannot_be_had_is_named";
    let Some(fixture) = ordinary_users_place(test)? else {
        return Ok(());
    };
    // In the user's own user namespace, the limit of further ones can be set to zero.
    let daemon = fixture.command(&["--socket-path=fs.sock", "--shared-dir=share"]);
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
    command.args(arguments).current_dir(fixture.path());
    let ended = fixture.finish(command)?;
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.errors.contains("user namespace"), "{ended:?}");
    assert!(ended.errors.contains("--sandbox=none"), "{ended:?}");
    assert!(!fixture.file("fs.sock").exists());
    Ok(())
}

#[test]
fn root_without_the_privilege_for_namespaces_is_told_so() -> Result<()> {
    if !root_or_skip("root_without_the_privilege_for_namespaces_is_told_so") {
        return Ok(());
    }
    let fixture = Fixture::new()?;
    let weak = |sandbox: &str| {
        let mut command = Command::new("setpriv");
        command
            .args(["--bounding-set=-sys_admin", "--"])
            .arg(fixture.program())
            .args(["--socket-path=fs.sock", "--shared-dir=share", sandbox])
            .current_dir(fixture.path());
        command
    };
    let ended = fixture.finish(weak("--sandbox=namespace"))?;
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.errors.contains("CAP_SYS_ADMIN"), "{ended:?}");
    assert!(ended.errors.contains("--sandbox=chroot"), "{ended:?}");
    assert!(!fixture.file("fs.sock").exists());

    // The option that the message names works.
    let daemon = fixture.start_command(weak("--sandbox=chroot"))?;
    assert!(daemon.signal(Signal::TERM)?.status.success());
    Ok(())
}

#[test]
fn the_end_of_a_process_ends_those_below_it() -> Result<()> {
    for (fixture, sandbox) in setups()? {
        let mut daemon = fixture.serve(&[sandbox])?;
        let acceptor = daemon.acceptor_pid()?;
        let first = daemon.connect()?;
        let second = daemon.connect()?;
        kill(first.keeper)?;
        gone(first.worker)?;
        assert!(Process(second.worker).is_alive() && Process(acceptor).is_alive());
        kill(daemon.pid())?;
        daemon.end()?;
        for process in [acceptor, second.keeper, second.worker] {
            gone(process)?;
        }
    }
    Ok(())
}

#[test]
fn the_end_of_a_keeper_is_told_and_a_worker_is_replaced() -> Result<()> {
    let fixture = Fixture::new()?;
    let daemon = fixture.serve(&["--sandbox=none"])?;
    let mut lost_worker = daemon.connect()?;
    let mut lost_keeper = daemon.connect()?;
    let mut other = daemon.connect()?;
    kill(lost_worker.worker)?;
    gone(lost_worker.worker)?;
    kill(lost_keeper.keeper)?;
    gone(lost_keeper.worker)?;
    let ended = lost_keeper.stream.read(&mut [0; 8])?;
    assert_eq!(ended, 0, "the connection ends");
    lost_worker.get_features()?;
    other.get_features()?;
    daemon.connect()?.get_features()?;
    let ended = daemon.signal(Signal::TERM)?;
    assert!(ended.status.success());
    for text in [
        "the worker of guest 1 was ended by signal 9",
        "the keeper of guest 2 was ended by signal 9",
    ] {
        assert!(ended.errors.contains(text), "{ended:?}");
    }
    Ok(())
}

#[test]
fn guests_beyond_the_most_that_the_operator_permits_are_refused() -> Result<()> {
    let fixture = Fixture::new()?;
    let daemon = fixture.serve(&["--sandbox=none", "--max-guests=2"])?;
    let _first = daemon.connect()?;
    let second = daemon.connect()?;
    assert!(daemon.connect().is_err());
    let worker = second.worker;
    drop(second);
    gone(worker)?;
    // The acceptor notices the end of the keeper, which is the last to go.
    wait::until("another guest is accepted", Duration::from_secs(60), || {
        Ok(daemon.connect().is_ok())
    })?;
    let ended = daemon.signal(Signal::TERM)?;
    assert!(ended.errors.contains("--max-guests"), "{ended:?}");
    Ok(())
}

/// Fixtures and sandboxes, as root and as an ordinary user.
pub(crate) fn setups() -> Result<Vec<(Fixture, &'static str)>> {
    let mut setups = vec![
        (Fixture::new()?, "--sandbox=namespace"),
        (Fixture::new()?, "--sandbox=none"),
    ];
    if root_or_skip("--sandbox=chroot") {
        setups.push((Fixture::new()?, "--sandbox=chroot"));
        setups.push((Fixture::of(Some(User::NOBODY))?, "--sandbox=namespace"));
    }
    Ok(setups)
}

/// A fixture in which the daemon runs as an ordinary user: the user of the tests, or nobody.
fn ordinary_users_place(test: &str) -> Result<Option<Fixture>> {
    if !User::is_root() {
        return Fixture::new().map(Some);
    }
    let allowed = fs::read_to_string("/proc/sys/user/max_user_namespaces")
        .is_ok_and(|number| number.trim() != "0");
    if !allowed {
        eprintln!("SKIPPED {test}: this host has no user namespaces");
        return Ok(None);
    }
    Fixture::of(Some(User::NOBODY)).map(Some)
}

/// Fails if a descriptor of the process is a file or directory outside the share, except its log
/// and its guest's state.
fn assert_nothing_leads_out(fixture: &Fixture, process: &Process) -> Result<()> {
    for entry in fs::read_dir(format!("/proc/{}/fd", process.0))? {
        let entry = entry?;
        let number: u32 = entry.file_name().to_string_lossy().parse()?;
        let Ok(target) = fs::metadata(entry.path()) else {
            continue;
        };
        let share = fs::metadata(fixture.file("share"))?;
        let in_share =
            target.is_dir() && (target.dev(), target.ino()) == (share.dev(), share.ino());
        let link = fs::read_link(entry.path())?;
        let state = link.as_os_str() == "/memfd:gangplank-guest (deleted)";
        let own_descriptors = target.dev() == fs::metadata("/proc")?.dev();
        assert!(
            number <= 2
                || in_share
                || state
                || own_descriptors
                || !(target.is_dir() || target.is_file()),
            "descriptor {number} leads to {}",
            link.display()
        );
    }
    Ok(())
}

pub(crate) fn kill(pid: u32) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(pid.try_into()?).context("a process's number")?;
    Ok(rustix::process::kill_process(pid, Signal::KILL)?)
}

/// Waits until the process is gone or a zombie.
pub(crate) fn gone(pid: u32) -> Result<()> {
    let what = format!("process {pid} is gone");
    wait::until(&what, Duration::from_secs(60), || {
        Ok(!Process(pid).is_alive())
    })
}
