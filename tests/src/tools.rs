//! Programs that the tests build: the daemon, check programs for guests, and other projects' test
//! suites.
//!
//! Those of the workspace are static builds in the cargo profile that [`profile`] tells.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::Result;
use parking_lot::Mutex;

use crate::cache;
use crate::packages::{self, Arch};

/// The daemon under test: `$GANGPLANKD_BIN`, or a static build of gangplankd.
///
/// # Errors
/// When it does not build.
pub fn gangplankd() -> Result<PathBuf> {
    match std::env::var_os("GANGPLANKD_BIN") {
        Some(program) => Ok(cache::workspace().join(program)),
        None => workspace_program("gangplank-backend", "gangplankd", host_arch()),
    }
}

/// A build of the daemon whose workers die where a test says (`gangplank_backend::crash_hook`), in
/// a directory of its own. All crates but one are those of [`gangplankd`].
///
/// # Errors
/// When it does not build.
pub fn gangplankd_that_crashes() -> Result<PathBuf> {
    static DONE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let once = || -> Result<PathBuf> {
        let directory = cache::target_dir().join("crash-hook");
        let target = host_arch().musl_target();
        packages::run(
            build("gangplank-backend", target)
                .args(["--bin", "gangplankd"])
                .args(["--features", "gangplank-backend/crash-hook"])
                .arg("--target-dir")
                .arg(&directory)
                .env("CARGO_BUILD_BUILD_DIR", cache::target_dir()),
        )?;
        Ok(built_path(&directory, target, "gangplankd"))
    };
    let built = DONE.get_or_init(|| once().map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

/// A static build of the daemon for `arch`, to run in a guest.
///
/// # Errors
/// When it does not build.
pub fn gangplankd_for(arch: Arch) -> Result<PathBuf> {
    workspace_program("gangplank-backend", "gangplankd", arch)
}

/// The frontend under test: `$GANGPLANK_FRONTEND_BIN`, or a static build.
///
/// # Errors
/// When it does not build.
pub fn frontend() -> Result<PathBuf> {
    match std::env::var_os("GANGPLANK_FRONTEND_BIN") {
        Some(program) => Ok(cache::workspace().join(program)),
        None => workspace_program("gangplank-frontend", "gangplank-frontend", host_arch()),
    }
}

/// The DVK bridge under test: `$GANGPLANK_DVK_BIN`, or a static build.
///
/// # Errors
/// When it does not build.
pub fn dvk() -> Result<PathBuf> {
    match std::env::var_os("GANGPLANK_DVK_BIN") {
        Some(program) => Ok(cache::workspace().join(program)),
        None => workspace_program("gangplank-dvk", "gangplank-dvk", host_arch()),
    }
}

/// The NFS server under test: `$GANGPLANK_NFS_BIN`, or a static build.
///
/// # Errors
/// When it does not build.
pub fn nfs() -> Result<PathBuf> {
    match std::env::var_os("GANGPLANK_NFS_BIN") {
        Some(program) => Ok(cache::workspace().join(program)),
        None => workspace_program("gangplank-nfs", "gangplank-nfs", host_arch()),
    }
}

/// A static build of the program that wakes a guest's watchers, to run on `arch`.
///
/// # Errors
/// When it does not build.
pub fn guest(arch: Arch) -> Result<PathBuf> {
    workspace_program("gangplank-guest", "gangplank-guest", arch)
}

/// The DVK bridge for machines whose kernel has DVK: `$GANGPLANK_DVK_I686_BIN`, or a static 32-bit
/// build.
///
/// # Errors
/// When it does not build.
pub fn dvk_i686() -> Result<PathBuf> {
    match std::env::var_os("GANGPLANK_DVK_I686_BIN") {
        Some(program) => Ok(cache::workspace().join(program)),
        None => built_for("gangplank-dvk", "gangplank-dvk", "i686-unknown-linux-musl"),
    }
}

/// A static build of the frontend for `arch`, to run in a guest.
///
/// # Errors
/// When it does not build.
pub fn frontend_for(arch: Arch) -> Result<PathBuf> {
    workspace_program("gangplank-frontend", "gangplank-frontend", arch)
}

/// The library that lets User Mode Linux run where it has no room for the host's registers.
///
/// # Errors
/// When it does not build.
#[cfg(target_arch = "x86_64")]
pub fn uml_registers() -> Result<PathBuf> {
    static DONE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || -> Result<PathBuf> {
        packages::run(
            Command::new(cargo())
                .current_dir(cache::workspace())
                .args(["build", "--quiet", "--locked"])
                .args(["--package", "gangplank-uml-registers"]),
        )?;
        Ok(cache::target_dir().join("debug/libgangplank_uml_registers.so"))
    };
    let built = DONE.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

/// virtiofsd 1.14.0, another project's daemon: `$VIRTIOFSD_BIN`, or a build from crates.io, which
/// needs a C linker and the host's libseccomp and libcap-ng. It is optimized as far as the daemon
/// under test is ([`profile`]).
///
/// # Errors
/// When it cannot be fetched or does not build.
pub fn virtiofsd() -> Result<PathBuf> {
    match std::env::var_os("VIRTIOFSD_BIN") {
        Some(program) => Ok(cache::workspace().join(program)),
        None => {
            // A failed build is not repeated for each test.
            static ONCE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
            let optimization = match profile().as_str() {
                "release" => Optimization::Own,
                _ => Optimization::Little,
            };
            let once = || installed_for("virtiofsd", "1.14.0", None, optimization);
            let built = ONCE.get_or_init(|| once().map_err(|error| format!("{error:#}")));
            built.clone().map_err(anyhow::Error::msg)
        }
    }
}

/// The static program that makes checks a shell cannot, in a guest or on the host.
///
/// # Errors
/// When it does not build.
pub fn guest_check(arch: Arch) -> Result<PathBuf> {
    workspace_program("gangplank-tests", "guest-check", arch)
}

/// The static program that fills a disk in a guest and checks that no data is lost silently.
///
/// # Errors
/// When it does not build.
pub fn disk_check(arch: Arch) -> Result<PathBuf> {
    workspace_program("gangplank-tests", "disk-check", arch)
}

/// The static program that traces file operations, inside a guest or on the host.
///
/// # Errors
/// When it does not build.
pub fn io_trace(arch: Arch) -> Result<PathBuf> {
    workspace_program("gangplank-tests", "io-trace", arch)
}

/// The static program that is a guest's session until it is told to end, on any host.
///
/// # Errors
/// When it does not build.
pub fn session_check(arch: Arch) -> Result<PathBuf> {
    workspace_program("gangplank-tests", "session-check", arch)
}

/// The static program that tests the device model under an emulated Bao.
///
/// # Errors
/// When it does not build.
pub fn bao_check(arch: Arch) -> Result<PathBuf> {
    workspace_program("gangplank-tests", "bao-check", arch)
}

/// Every optional feature that Linux has, two accounts that both sides know, and a sleep longer
/// than the granularity of the host's time stamps (one tick of at most 10 ms).
pub const PJDFSTEST_CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.02
allow_remount = false

[dummy_auth]
entries = [["nobody", "nogroup"], ["games", "games"]]
"#;

/// What fsx does on the file of one guest beside other work: all that it checks on one client.
pub const FSX_CONFIGURATION: &str = r"
flen = 262144

[opsize]
max = 65536
";

/// pjdfstest, the POSIX conformance suite, as a static program.
///
/// # Errors
/// When it cannot be fetched or does not build.
pub fn pjdfstest() -> Result<PathBuf> {
    installed("pjdfstest", "0.2.2")
}

/// fsx, the file system exerciser, as a static program.
///
/// # Errors
/// When it cannot be fetched or does not build.
pub fn fsx() -> Result<PathBuf> {
    installed("fsx", "0.3.2")
}

/// The architecture the tests run on.
#[must_use]
pub fn host_arch() -> Arch {
    if cfg!(target_arch = "aarch64") {
        Arch::Arm64
    } else {
        Arch::Amd64
    }
}

/// Builds a static program of the workspace for `arch`, once for each process.
///
/// # Errors
/// The program does not build.
pub fn workspace_program(package: &str, program: &str, arch: Arch) -> Result<PathBuf> {
    built_for(package, program, arch.musl_target())
}

fn built_for(package: &str, program: &str, target: &str) -> Result<PathBuf> {
    static DONE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let path = built_path(&cache::target_dir(), target, program);
    let mut done = DONE.lock();
    if !done.contains(&path) {
        packages::run(build(package, target).args(["--bin", program]))?;
        done.push(path.clone());
    }
    Ok(path)
}

/// The cargo profile of programs that the tests build for a machine of 64 bits:
/// `$GANGPLANK_PROFILE`. Otherwise the caller's own decides. Tests, which have debug assertions,
/// run programs of the profile `tested`. Optimized programs (the benchmark, the demonstration) run
/// programs as released.
#[must_use]
pub fn profile() -> String {
    std::env::var("GANGPLANK_PROFILE").unwrap_or_else(|_| {
        let profile = match cfg!(debug_assertions) {
            true => "tested",
            false => "release",
        };
        profile.to_owned()
    })
}

/// [`profile`] for `target`. The 32-bit program shares its crates with its unit tests.
fn profile_for(target: &str) -> String {
    match is_narrow(target) {
        true => "dev".to_owned(),
        false => profile(),
    }
}

/// Whether machines of `target` have 32 bits.
fn is_narrow(target: &str) -> bool {
    target.starts_with("i686")
}

/// The path at which cargo puts `program`, built for `target`, in its target directory `directory`.
fn built_path(directory: &Path, target: &str, program: &str) -> PathBuf {
    let profile = profile_for(target);
    let folder = match profile.as_str() {
        "dev" => "debug",
        other => other,
    };
    directory.join(target).join(folder).join(program)
}

/// `cargo build` of a program of `package` for `target`, without the program's name.
fn build(package: &str, target: &str) -> Command {
    let mut command = Command::new(cargo());
    command
        .current_dir(cache::workspace())
        .args(["build", "--quiet", "--locked", "--target", target])
        .args(["--profile", &profile_for(target)])
        // One selection of packages for all programs. With another one, crates have other features,
        // and cargo compiles them again.
        .args(selection(package, target));
    command
}

/// The packages whose features cargo unites.
fn selection<'a>(package: &'a str, target: &str) -> Vec<&'a str> {
    match is_narrow(target) {
        // The others are for machines of 64 bits.
        true => vec!["--package", package],
        false => vec!["--workspace"],
    }
}

/// How much another project's program is optimized.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Optimization {
    /// As its own manifest says: for programs that are measured.
    Own,
    /// As the profile `tested` of this workspace, for a faster build.
    Little,
}

/// Installs a program from crates.io into the cache, as a static build.
fn installed(name: &str, version: &str) -> Result<PathBuf> {
    let target = host_arch().musl_target();
    installed_for(name, version, Some(target), Optimization::Little)
}

/// Installs a program from crates.io into the cache, for `target` or for the host's default target.
fn installed_for(
    name: &str,
    version: &str,
    target: Option<&str>,
    optimization: Optimization,
) -> Result<PathBuf> {
    let entry = match optimization {
        Optimization::Own => format!("tools/{name}-{version}"),
        Optimization::Little => format!("tools/{name}-{version}-tested"),
    };
    let root = cache::once(&entry, |root: &Path| {
        eprintln!("downloading {name} {version} from crates.io and building it, some minutes");
        let mut command = Command::new(cargo());
        command
            .current_dir(cache::workspace())
            .args(["install", "--quiet", "--locked"]);
        if let Some(target) = target {
            command.args(["--target", target]);
        }
        if optimization == Optimization::Little {
            command
                .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
                .env("CARGO_PROFILE_RELEASE_LTO", "off")
                .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
                .env("CARGO_PROFILE_RELEASE_DEBUG", "0");
        }
        packages::run(
            command
                .args([name, "--version", version, "--root"])
                .arg(root)
                .env("CARGO_TARGET_DIR", cache::dir()?.join("build")),
        )
    })?;
    Ok(root.join("bin").join(name))
}

fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}
