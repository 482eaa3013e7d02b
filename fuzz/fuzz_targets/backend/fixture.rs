//! The shared directory of a fuzzing process, and a file outside of it that must not change.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use gangplank_backend::passthrough::options::{InodeFileHandles, Locks};
use gangplank_backend::passthrough::{Abilities, Options, PassthroughFs, Share};
use gangplank_backend::state::arena::{Arena, Limits};
use gangplank_backend::state::migration::{MigrationOnError, MigrationOptions};
use tempfile::TempDir;

/// Content of the file outside the share.
const SECRET: &[u8] = b"outside";

/// Most bytes of a file, so that a guest's large offsets do not fill the disk.
const MAX_FILE_LEN: u64 = 16 << 20;

/// Runs on a thread of its own: serving gives it a working directory and umask of its own, and
/// libFuzzer's thread must keep the process's.
pub fn on_own_thread(run: impl FnOnce() + Send) {
    std::thread::scope(|scope| scope.spawn(run).join().expect("a panic ends the process"));
}

/// What a fuzzing process may do.
pub const ABILITIES: Abilities = Abilities {
    can_change_credentials: false,
    can_open_by_handle: false,
};

/// The options of a share.
pub fn options() -> Options {
    Options {
        xattr: true,
        locks: Locks::Host,
        inode_file_handles: InodeFileHandles::Never,
        fd_budget: 256,
        migration: MigrationOptions {
            on_error: MigrationOnError::GuestError,
            ..MigrationOptions::default()
        },
        ..Options::default()
    }
}

/// The fixture. All sequences of a process share one.
pub struct Fixture {
    dir: TempDir,
    share: Arc<Share>,
    /// Descriptors of the process between sequences, counted after the first one.
    idle_descriptors: OnceLock<usize>,
}

impl Fixture {
    pub fn get() -> &'static Self {
        static FIXTURE: OnceLock<Fixture> = OnceLock::new();
        FIXTURE.get_or_init(|| {
            limit_file_len();
            let dir = tempfile::tempdir().expect("a temporary directory");
            let share = dir.path().join("share");
            fs::create_dir(&share).expect("made");
            fs::write(dir.path().join("secret"), SECRET).expect("written");
            let options = options();
            let limits = Limits {
                inode_bytes: options.max_inode_memory,
                descriptors: options.fd_budget,
                rings: 1,
                ring_size: 64,
            };
            let arena = Arena::new(limits).expect("memory for the guest's state");
            let share = Share::new(
                path_only(&share),
                path_only(Path::new("/proc/self/fd")),
                options,
                ABILITIES,
                arena,
            )
            .expect("a directory can be shared");
            Self {
                dir,
                share,
                idle_descriptors: OnceLock::new(),
            }
        })
    }

    pub fn file_system(&self) -> PassthroughFs {
        self.fill();
        PassthroughFs::new(Arc::clone(&self.share))
    }

    /// Creates the files that every sequence begins with.
    pub fn fill(&self) {
        fill(&self.dir.path().join("share"));
    }

    /// The shared directory, for a share of one sequence's own.
    pub fn open_root(&self) -> OwnedFd {
        path_only(&self.dir.path().join("share"))
    }

    /// Checks that an ended session holds nothing and has changed nothing outside the share.
    pub fn check_and_clean(&self) {
        assert_eq!(
            self.share.held_descriptors(),
            0,
            "an ended session holds descriptors"
        );
        let mut outside: Vec<PathBuf> = fs::read_dir(self.dir.path())
            .expect("listed")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        outside.sort();
        let expected = ["secret", "share"].map(|name| self.dir.path().join(name));
        assert_eq!(
            outside, expected,
            "a file outside the share was created or removed"
        );
        let secret = fs::read(self.dir.path().join("secret")).expect("read");
        assert_eq!(secret, SECRET, "a file outside the share was changed");
        clean(&self.dir.path().join("share"));
        let open = open_descriptors();
        let idle_descriptors = self.idle_descriptors.get_or_init(|| open.len());
        assert!(
            open.len() <= *idle_descriptors,
            "{idle_descriptors} descriptors were open before, now there are {open:#?}"
        );
    }
}

/// The targets of this process's open descriptors, without pipes: the sanitizer uses some to talk
/// to its symbolizer.
fn open_descriptors() -> Vec<PathBuf> {
    fs::read_dir("/proc/self/fd")
        .expect("listed")
        .filter_map(|entry| fs::read_link(entry.expect("an entry").path()).ok())
        .filter(|target| !target.as_os_str().as_encoded_bytes().starts_with(b"pipe:"))
        .collect()
}

/// Creates the files that every sequence begins with.
fn fill(share: &Path) {
    fs::create_dir(share.join("d")).expect("made");
    fs::write(share.join("d/f"), "inner").expect("written");
    fs::write(share.join("f"), "content").expect("written");
    std::os::unix::fs::symlink("../secret", share.join("l")).expect("linked");
}

/// Removes everything in the share, whatever its permissions.
fn clean(share: &Path) {
    fs::set_permissions(share, fs::Permissions::from_mode(0o755)).expect("changed");
    for entry in fs::read_dir(share).expect("listed") {
        let path = entry.expect("an entry").path();
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            make_removable(&path);
            fs::remove_dir_all(&path).expect("removed");
        } else {
            fs::remove_file(&path).expect("removed");
        }
    }
}

/// Gives a tree the permissions needed to remove it.
fn make_removable(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("changed");
    for entry in fs::read_dir(dir).expect("listed") {
        let path = entry.expect("an entry").path();
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            make_removable(&path);
        }
    }
}

/// Opens a path for its descriptor alone (`O_PATH`).
pub fn path_only(path: &Path) -> OwnedFd {
    let file: File = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
        .expect("opened");
    file.into()
}

fn limit_file_len() {
    let limit = libc::rlimit {
        rlim_cur: MAX_FILE_LEN,
        rlim_max: MAX_FILE_LEN,
    };
    // SAFETY: `limit` is initialised, and `RLIMIT_FSIZE` is a valid resource.
    assert_eq!(
        unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) },
        0
    );
    // SAFETY: an ignored signal runs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
