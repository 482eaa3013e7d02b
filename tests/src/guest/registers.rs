//! Processors whose registers User Mode Linux cannot save.
//!
//! Kernels before 6.13 have room for 2696 bytes of floating-point registers (`HOST_FP_SIZE`,
//! `arch/x86/um/user-offsets.c`). The host takes a process's registers (`PTRACE_SETREGSET`,
//! `NT_X86_XSTATE`) only as a whole, which is more where the processor has AMX, so that such a
//! kernel panics when it starts its first program. It does without that call where the host refuses
//! to read the registers so, and then keeps the 512 bytes of FXSAVE.

use std::process::Command;

/// Bytes that User Mode Linux has room for.
#[cfg(target_arch = "x86_64")]
const ROOM: u32 = 2696;

/// Has `command`, which starts User Mode Linux, do without the host's extended registers where they
/// are too large for it.
#[cfg(target_arch = "x86_64")]
pub(super) fn hide_large(command: &mut Command) {
    use std::arch::x86_64::__cpuid_count;

    // CPUID leaf 0xd: bytes of the registers that the host's kernel has enabled.
    if __cpuid_count(0xd, 0).ebx > ROOM {
        refusing::refuse_xstate(command);
    }
}

/// Nothing: only x86 processors have such registers.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn hide_large(_: &mut Command) {}

#[cfg(target_arch = "x86_64")]
mod refusing {
    #![allow(unsafe_code)] // code that runs between fork and exec

    use std::collections::BTreeMap;
    use std::io;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch,
    };

    /// `PTRACE_GETREGSET` (`linux/ptrace.h`).
    const GETREGSET: u64 = 0x4204;

    /// `NT_X86_XSTATE` (`linux/elf.h`).
    const XSTATE: u64 = 0x202;

    /// Has the host refuse `PTRACE_GETREGSET` of `NT_X86_XSTATE` to the program.
    pub(super) fn refuse_xstate(command: &mut Command) {
        let filter = filter();
        let install = move || {
            let filter = filter.as_ref().map_err(|_| io::ErrorKind::InvalidInput)?;
            // It also sets `no_new_privs`.
            seccompiler::apply_filter(filter).map_err(|_| io::ErrorKind::Unsupported.into())
        };
        // SAFETY: `install` makes two system calls and allocates nothing.
        unsafe { command.pre_exec(install) };
    }

    fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
        let is = |argument, value| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value)
        };
        let rule = SeccompRule::new(vec![is(0, GETREGSET)?, is(2, XSTATE)?])?;
        SeccompFilter::new(
            BTreeMap::from([(libc::SYS_ptrace, vec![rule])]),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EIO.cast_unsigned()),
            TargetArch::x86_64,
        )?
        .try_into()
    }
}
