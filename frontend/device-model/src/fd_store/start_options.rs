//! What an fd store gets from the device model that starts it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use gangplank_sandbox::seccomp::Seccomp;

/// The setting by which the kernel chooses the process that it kills when memory runs out
/// (proc(5)).
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// The kernel never kills such a process for lack of memory.
const NEVER: &str = "-1000";

/// How an fd store is started.
#[derive(Debug, Default)]
pub struct StartOptions {
    pub(super) seccomp: Seccomp,
    /// The setting of this process. An fd store inherits it, and could not change it itself.
    oom_score: Option<File>,
}

impl StartOptions {
    /// With `seccomp` as the action on a system call that is not on the fd store's list. Must be
    /// called before the process is confined.
    #[must_use]
    pub fn new(seccomp: Seccomp) -> Self {
        let mut options = OpenOptions::new();
        let oom_score = options.read(true).write(true).open(OOM_SCORE);
        Self {
            seccomp,
            // Without it, an fd store is killed like any other process.
            oom_score: oom_score.ok(),
        }
    }

    /// Has the kernel kill this process, and those that it starts, last when memory runs out.
    /// Returns the earlier setting, or `None` if that is not permitted.
    pub(super) fn protect(&self) -> Option<String> {
        let mut text = [0; 16];
        let len = self.oom_score.as_ref()?.read_at(&mut text, 0).ok()?;
        let earlier = str::from_utf8(text.get(..len)?).ok()?.to_owned();
        self.set_oom_score(NEVER).then_some(earlier)
    }

    /// Changes the setting. Returns whether the process may.
    pub(super) fn set_oom_score(&self, score: &str) -> bool {
        let file = self.oom_score.as_ref();
        file.is_some_and(|file| file.write_at(score.as_bytes(), 0).is_ok())
    }
}
