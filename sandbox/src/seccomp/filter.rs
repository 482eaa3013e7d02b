//! Compiles a list to filters for the kernel, and installs them.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
pub use seccompiler::{BpfProgram, SeccompAction};

use super::{CallList, Conditional, Seccomp, Width};
use crate::Error;

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// Installs `list` for all threads of the process. The processes that it forks inherit the list. It
/// cannot be removed again, but a stricter one can be added.
///
/// # Errors
/// [`Error::SeccompList`], [`Error::SeccompInstall`].
pub fn install(action: Seccomp, list: &CallList) -> Result<(), Error> {
    let mismatch = match action {
        Seccomp::None => return Ok(()),
        Seccomp::Kill => SeccompAction::KillProcess,
        Seccomp::Log => SeccompAction::Log,
        Seccomp::Trap => SeccompAction::Trap,
    };
    for program in programs(mismatch, list)? {
        seccompiler::apply_filter_all_threads(&program).map_err(Error::SeccompInstall)?;
    }
    Ok(())
}

/// The filters of `list`, in the order of their installation. `mismatch` is the action on a call
/// outside the list.
///
/// Of several filters' actions on a call the kernel takes the severest (seccomp(2)), so the last
/// filter permits the calls that the others answer with an error.
///
/// # Errors
/// [`Error::SeccompList`].
pub fn programs(mismatch: SeccompAction, list: &CallList) -> Result<Vec<BpfProgram>, Error> {
    compile_all(mismatch, list).map_err(Error::SeccompList)
}

fn compile_all(mismatch: SeccompAction, list: &CallList) -> Result<Vec<BpfProgram>, BackendError> {
    // With --seccomp=log, the kernel logs these calls like all others outside the list.
    let refused: &[_] = match mismatch {
        SeccompAction::Log => &[],
        _ => &list.refused,
    };
    let mut programs = Vec::new();
    for (call, errno) in refused {
        let rules = BTreeMap::from([(*call, Vec::new())]);
        let error = SeccompAction::Errno(errno.cast_unsigned());
        programs.push(compile(rules, SeccompAction::Allow, error)?);
    }
    let allowed = allowed_rules(list, refused)?;
    programs.push(compile(allowed, mismatch, SeccompAction::Allow)?);
    Ok(programs)
}

fn allowed_rules(
    list: &CallList,
    refused: &[(c_long, i32)],
) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    for condition in &list.conditional {
        let rule = SeccompRule::new(vec![condition_of(condition)?])?;
        rules.entry(condition.call).or_default().push(rule);
    }
    // An empty list of rules permits any arguments.
    for call in list.allowed.iter().copied().flatten() {
        rules.insert(*call, Vec::new());
    }
    for (call, _) in refused {
        rules.insert(*call, Vec::new());
    }
    Ok(rules)
}

fn condition_of(condition: &Conditional) -> Result<SeccompCondition, BackendError> {
    let width = match condition.width {
        Width::Int => SeccompCmpArgLen::Dword,
        Width::Long => SeccompCmpArgLen::Qword,
    };
    let operator = match condition.mask {
        u64::MAX => SeccompCmpOp::Eq,
        mask => SeccompCmpOp::MaskedEq(mask),
    };
    SeccompCondition::new(condition.argument, width, operator, condition.value)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    mismatch: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, mismatch, matched, ARCH)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::super::common;
    use super::*;

    /// The variable by which a test tells its own program to confine itself and to make a call.
    const ACTION: &str = "GANGPLANK_TEST_SECCOMP";

    /// Not a test: what a child process of the next test does.
    #[test]
    fn confined_process() {
        let Ok(action) = std::env::var(ACTION) else {
            return;
        };
        install(action.parse().unwrap(), &common::server()).unwrap();
        // Not permitted to servers, and not to this process either.
        let _ = rustix::process::chroot("/nonexistent");
        std::process::exit(0);
    }

    #[test]
    fn call_outside_the_list_ends_the_process_unless_the_operator_permits_it() {
        for (action, signal) in [
            ("kill", Some(libc::SIGSYS)),
            ("trap", Some(libc::SIGSYS)),
            ("log", None),
            ("none", None),
        ] {
            let ended = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "seccomp::filter::tests::confined_process"])
                .env(ACTION, action)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            assert_eq!(ended.signal(), signal, "{action}");
        }
    }
}
