//! The servers: gangplank-nfs on gangplankd, and nfs-ganesha as Debian has it.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use gangplank_bench::nfs_client::{Client, reach, start_server};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::{cache, packages, process, tools};
use nfs3_types::nfs3::nfs_fh3;
use tempfile::TempDir;

use crate::workload::{FILE, FILE_LEN};

/// Limit for a server to start.
const LIMIT: Duration = Duration::from_secs(60);

/// The port of the first gangplank-nfs; nfs-ganesha's are below.
pub(crate) const FIRST_PORT: u16 = 2052;

/// What nfs-ganesha is called.
pub(crate) const GANESHA_NAME: &str = "nfs-ganesha";

/// The packages of nfs-ganesha. It registers at rpcbind, which it depends on.
const GANESHA: [&str; 3] = ["netbase", "nfs-ganesha", "nfs-ganesha-vfs"];

/// Accounts that they look up.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    _rpc:x:106:65534::/run/rpcbind:/usr/sbin/nologin\n";

/// Where nfs-ganesha sees the shared directory.
const SHARE: &str = "/share";

/// A running server, and a client of it.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) client: Client,
    pub(crate) root: nfs_fh3,
    children: Vec<Child>,
    _daemon: Option<Daemon>,
    _directories: Vec<TempDir>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.children.iter_mut().for_each(process::kill_group);
    }
}

/// A new directory below `disk`, with the file that is read.
fn share(disk: &Path) -> Result<TempDir> {
    let share = tempfile::Builder::new()
        .prefix("bench-nfs-")
        .tempdir_in(disk)?;
    let file = File::create(share.path().join(FILE))?;
    // Without holes.
    let mut written = 0;
    while written < FILE_LEN {
        written += u64::try_from(rustix::io::write(&file, &[1; 1 << 16])?)?;
    }
    file.sync_all()?;
    Ok(share)
}

/// Starts gangplankd and the gangplank-nfs `program` at a port.
pub(crate) fn gangplank(name: &str, program: &Path, disk: &Path, port: u16) -> Result<Server> {
    let share = share(disk)?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let state = tempfile::tempdir()?;
    let log = state.path().join("log");
    let mut children = vec![start_server(program, daemon.socket(), port, state.path())?];
    let (root, client) = reach((port, port), "/", FILE, &log).inspect_err(|_| {
        children.iter_mut().for_each(process::kill_group);
    })?;
    Ok(Server {
        name: name.to_owned(),
        client,
        root,
        children,
        _daemon: Some(daemon),
        _directories: vec![share, state],
    })
}

/// Builds and fetches the servers, so that no network is needed later. Returns the tree of
/// nfs-ganesha's packages.
pub(crate) fn prepare() -> Result<PathBuf> {
    tools::gangplankd()?;
    tools::nfs()?;
    let arch = tools::host_arch();
    cache::once(&format!("ganesha-{}", arch.debian()), |tree| {
        packages::unpack_closure(&GANESHA, arch, tree)?;
        for name in ["dev", "proc", "run", "tmp", "share"] {
            fs::create_dir_all(tree.join(name))?;
        }
        fs::create_dir_all(tree.join("var/lib/nfs/ganesha"))?;
        // Where it looks for mounted file systems, and puts its files.
        symlink("/proc/self/mounts", tree.join("etc/mtab"))?;
        symlink("/run", tree.join("var/run"))?;
        Ok(fs::write(tree.join("etc/passwd"), PASSWD)?)
    })
}

/// Starts rpcbind and nfs-ganesha in a tree of their packages. It mounts there, so the caller has a
/// mount namespace of its own.
pub(crate) fn ganesha(disk: &Path) -> Result<Server> {
    let share = share(disk)?;
    let tree = prepare()?;
    let mount = |arguments: &[&str], at: &str| {
        packages::run(Command::new("mount").args(arguments).arg(tree.join(at)))
    };
    mount(&["-t", "tmpfs", "tmpfs"], "run")?;
    mount(&["-t", "proc", "proc"], "proc")?;
    mount(&["--bind", "/dev"], "dev")?;
    let path = share.path().to_str().context("a path that is no UTF-8")?;
    mount(&["--bind", path], "share")?;
    for name in ["rpcbind", "ganesha"] {
        fs::create_dir_all(tree.join("run").join(name))?;
    }
    fs::write(
        tree.join("run/ganesha.conf"),
        format!(
            "NFS_CORE_PARAM {{\n Protocols = 3;\n NFS_Port = 2050;\n MNT_Port = 2051;\n \
             Enable_NLM = false;\n Enable_RQUOTA = false;\n}}\n\
             EXPORT {{\n Export_Id = 1;\n Path = {SHARE};\n Pseudo = {SHARE};\n \
             Access_Type = RW;\n Squash = No_Root_Squash;\n Protocols = 3;\n \
             Transports = TCP;\n SecType = sys;\n FSAL {{ Name = VFS; }}\n}}\n"
        ),
    )?;
    let log = tree.join("run/log");
    let output = File::create(&log)?;
    let mut children = Vec::new();
    for words in [
        &["/sbin/rpcbind", "-f", "-i"][..],
        &[
            "/usr/bin/ganesha.nfsd",
            "-F",
            "-f",
            "/run/ganesha.conf",
            "-L",
            "/run/log",
            "-p",
            "/run/ganesha/pid",
        ],
    ] {
        let mut command = process::tied("chroot", None);
        command
            .arg(&tree)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output.try_clone()?);
        children.push(process::spawn(command)?);
        if words.len() == 3 {
            process::wait_for_path(&tree.join("run/rpcbind.sock"), LIMIT)?;
        }
    }
    let reached = reach((2050, 2051), SHARE, FILE, &log);
    let (root, client) = match reached {
        Ok(reached) => reached,
        Err(error) => {
            children.iter_mut().for_each(process::kill_group);
            bail!("nfs-ganesha: {error:#}");
        }
    };
    Ok(Server {
        name: GANESHA_NAME.to_owned(),
        client,
        root,
        children,
        _daemon: None,
        _directories: vec![share],
    })
}
