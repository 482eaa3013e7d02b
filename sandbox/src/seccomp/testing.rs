//! Tries a list, for tests.

use seccompiler::SeccompAction;

use super::CallList;
use super::filter::programs;

/// The errno of a call outside of a list under [`under`]: none that such a call returns itself.
pub const OUTSIDE: i32 = libc::EDOM;

/// Runs `body` in a thread under `list`. A call outside of the list fails with [`OUTSIDE`].
///
/// # Panics
/// The list does not compile, the kernel refuses it, or `body` panics.
pub fn under(list: &CallList, body: impl FnOnce() + Send + 'static) {
    let action = SeccompAction::Errno(OUTSIDE.cast_unsigned());
    let programs = programs(action, list).expect("the list compiles");
    std::thread::spawn(move || {
        for program in &programs {
            seccompiler::apply_filter(program).expect("the kernel has seccomp");
        }
        body();
    })
    .join()
    .expect("the body succeeds");
}
