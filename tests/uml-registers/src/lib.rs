//! A library that stands between User Mode Linux and the C library's `ptrace` (`LD_PRELOAD`).
//!
//! Kernels before 6.13 have room for 2696 bytes of floating-point registers (`HOST_FP_SIZE`,
//! `arch/x86/um/user-offsets.c`). The host takes a process's registers (`PTRACE_SETREGSET`,
//! `NT_X86_XSTATE`) only as a whole. Where the processor has AMX that is 11008 bytes, and such a
//! kernel panics when it starts its first program. This library completes what the kernel sets with
//! what the process has.
#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code)] // it is called by C

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_long, c_void};
use std::ptr;

use libc::{iovec, pid_t};

/// `PTRACE_GETREGSET` and `PTRACE_SETREGSET` (`linux/ptrace.h`).
const GETREGSET: c_long = 0x4204;
const SETREGSET: c_long = 0x4205;

/// `NT_X86_XSTATE` (`linux/elf.h`).
const XSTATE: usize = 0x202;

/// Bytes of registers at most: several times of what any processor has.
const MAX_LEN: usize = 1 << 16;

/// All registers of a process. Not on the stack: the kernel's stacks are smaller.
struct Registers(UnsafeCell<[u8; MAX_LEN]>);

// SAFETY: User Mode Linux has one processor, and calls `ptrace` on one thread at a time.
unsafe impl Sync for Registers {}

static REGISTERS: Registers = Registers(UnsafeCell::new([0; MAX_LEN]));

/// As the C library's, which takes the arguments that the request has. Returns -1 and sets `errno`
/// if it fails.
///
/// # Safety
/// `data` is what `ptrace` wants for the request.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptrace(
    request: c_int,
    process: pid_t,
    address: *mut c_void,
    data: *mut c_void,
) -> c_long {
    let request = c_long::from(request);
    if request == SETREGSET && address.addr() == XSTATE {
        // SAFETY: for this request, `data` is an `iovec`.
        let set = unsafe { &*data.cast::<iovec>() };
        return set_registers(process, set);
    }
    let is_peek = (1..=3).contains(&request);
    if !is_peek {
        // SAFETY: by the caller's promise.
        return unsafe { libc::syscall(libc::SYS_ptrace, request, process, address, data) };
    }
    // The system call stores the word, and the C library returns it.
    let mut word: c_long = 0;
    let into = &raw mut word;
    // SAFETY: the kernel writes one word.
    let result = unsafe { libc::syscall(libc::SYS_ptrace, request, process, address, into) };
    match result {
        0 => word,
        error => error,
    }
}

/// Sets the first registers of a process to `set`, and leaves the others as they are.
fn set_registers(process: pid_t, set: &iovec) -> c_long {
    let registers = REGISTERS.0.get().cast::<c_void>();
    let mut whole = iovec {
        iov_base: registers,
        iov_len: MAX_LEN,
    };
    // SAFETY: `whole` is as long as it says.
    let read =
        unsafe { libc::syscall(libc::SYS_ptrace, GETREGSET, process, XSTATE, &raw mut whole) };
    if read != 0 {
        return read;
    }
    let len = set.iov_len.min(whole.iov_len);
    // SAFETY: both have `len` bytes, and no one else knows of `REGISTERS`.
    unsafe { ptr::copy_nonoverlapping(set.iov_base, registers, len) };
    // SAFETY: `whole` is as long as it says.
    unsafe { libc::syscall(libc::SYS_ptrace, SETREGSET, process, XSTATE, &raw mut whole) }
}
