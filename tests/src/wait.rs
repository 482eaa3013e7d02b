//! Waiting, for a limited time, for what other processes and threads do.

use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `is_so`. `what` says in words what that is.
///
/// # Errors
/// It is not so within `limit`, or `is_so` fails.
pub fn until(what: &str, limit: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    until_found(what, limit, || Ok(is_so()?.then_some(())))
}

/// Waits until `find` finds something, and returns that. `what` says in words what that means.
///
/// # Errors
/// Nothing is found within `limit`, or `find` fails.
pub fn until_found<T>(
    what: &str,
    limit: Duration,
    mut find: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut look = || loop {
        if let Some(found) = find()? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "not within {limit:?}");
        thread::sleep(PAUSE);
    };
    look().with_context(|| format!("waiting until {what}"))
}

/// Whether a process is ready, which has been looked at before.
///
/// # Errors
/// It is not, and has ended.
pub fn ready(child: &mut Child, is_ready: bool) -> Result<bool> {
    if !is_ready && let Some(status) = child.try_wait()? {
        bail!("the process has ended: {status}");
    }
    Ok(is_ready)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_wait_ends_with_what_is_found_with_an_error_or_at_its_limit() {
        let mut looks = 0;
        let found = until_found("it is there", Duration::from_secs(60), || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(found.unwrap(), 3);
        let failed = until("it is there", Duration::from_secs(60), || bail!("no look"));
        let text = format!("{:#}", failed.unwrap_err());
        assert_eq!(text, "waiting until it is there: no look");
        let late = until("it is there", Duration::from_millis(10), || Ok(false));
        let text = format!("{:#}", late.unwrap_err());
        assert_eq!(text, "waiting until it is there: not within 10ms");
    }

    #[test]
    fn a_process_that_ends_before_it_is_ready_ends_the_wait() {
        let mut child = Command::new("false").spawn().unwrap();
        let limit = Duration::from_secs(60);
        let ended = until("it is ready", limit, || ready(&mut child, false));
        let text = format!("{:#}", ended.unwrap_err());
        assert!(text.contains("has ended: exit status: 1"), "{text}");
        assert!(ready(&mut child, true).unwrap());
    }
}
