//! A system call that a running process is made to make (ptrace(2)), to see from outside what the
//! kernel lets it do.
#![allow(
    unsafe_code,
    reason = "ptrace has no safe wrapper among the dependencies"
)]

use std::io;
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libc::{c_long, c_uint, c_void, pid_t, user_regs_struct};
use rustix::io::Errno;

/// Bytes below the stack pointer that a function may use without moving it (System V ABI of
/// x86-64, 3.2.2), and some more for the path.
const BELOW_STACK: u64 = 512;

/// The instruction `syscall`, behind which a thread is that waits in the kernel.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Limit for a thread to wait in the kernel. It polls and starts on a processor.
const WAITING: Duration = Duration::from_secs(30);

/// A thread that is stopped. It goes on where it was when this is dropped.
struct Stopped {
    thread: pid_t,
    registers: user_regs_struct,
}

/// Opens a path relative to a descriptor of a process's thread, once that waits in the kernel, for
/// reading. Returns the error, or `None` if it is open, which it then stays.
pub(crate) fn open(thread: u32, directory: i32, path: &[u8; 8]) -> Result<Option<Errno>> {
    let stopped = Stopped::new(thread.try_into()?)?;
    let address = (stopped.registers.rsp - BELOW_STACK) & !7;
    stopped.write(address, *path)?;
    let mut call = stopped.registers;
    // No call is to be repeated when this one returns.
    call.orig_rax = u64::MAX;
    call.rax = libc::SYS_openat.cast_unsigned();
    call.rdi = i64::from(directory).cast_unsigned();
    call.rsi = address;
    call.rdx = u64::from((libc::O_RDONLY | libc::O_CLOEXEC).cast_unsigned());
    call.r10 = 0;
    call.rip -= u64::try_from(SYSCALL.len())?;
    let result = stopped.step(&call)?;
    match i32::try_from(result)? {
        0.. => Ok(None),
        errno => Ok(Some(Errno::from_raw_os_error(-errno))),
    }
}

impl Stopped {
    /// Stops a thread once it waits in the kernel.
    fn new(thread: pid_t) -> Result<Self> {
        let deadline = Instant::now() + WAITING;
        loop {
            let stopped = Self::anywhere(thread)?;
            let before = stopped.registers.rip - u64::try_from(SYSCALL.len())?;
            let [one, two, ..] = stopped.read(before)?;
            if [one, two] == SYSCALL {
                return Ok(stopped);
            }
            // It goes on.
            drop(stopped);
            ensure!(
                Instant::now() < deadline,
                "the thread does not wait in the kernel"
            );
            sleep(Duration::from_millis(5));
        }
    }

    fn anywhere(thread: pid_t) -> Result<Self> {
        trace(libc::PTRACE_SEIZE, thread, 0, 0).context("PTRACE_SEIZE")?;
        let stopped = trace(libc::PTRACE_INTERRUPT, thread, 0, 0).map_err(anyhow::Error::from);
        let registers = stopped.and_then(|()| {
            wait(thread)?;
            registers(thread)
        });
        let registers = registers.inspect_err(|_| {
            let _ = trace(libc::PTRACE_DETACH, thread, 0, 0);
        })?;
        Ok(Self { thread, registers })
    }

    fn read(&self, address: u64) -> Result<[u8; 8]> {
        let mut word = MaybeUninit::<c_long>::uninit();
        // The raw call stores the word, unlike the C library's function.
        // SAFETY: the kernel stores a word at `word`, and reads the other process's memory.
        let done = unsafe {
            libc::syscall(
                libc::SYS_ptrace,
                c_long::from(libc::PTRACE_PEEKDATA),
                c_long::from(self.thread),
                address,
                word.as_mut_ptr(),
            )
        };
        ensure!(done == 0, "PTRACE_PEEKDATA: {}", io::Error::last_os_error());
        // SAFETY: the call has succeeded.
        Ok(unsafe { word.assume_init() }.to_ne_bytes())
    }

    fn write(&self, address: u64, bytes: [u8; 8]) -> Result<()> {
        let word = u64::from_ne_bytes(bytes);
        trace(libc::PTRACE_POKEDATA, self.thread, address, word).context("PTRACE_POKEDATA")
    }

    /// Executes one instruction, which makes a system call, with these registers. Returns its
    /// result.
    fn step(&self, registers: &user_regs_struct) -> Result<i64> {
        set_registers(self.thread, registers)?;
        trace(libc::PTRACE_SINGLESTEP, self.thread, 0, 0).context("PTRACE_SINGLESTEP")?;
        wait(self.thread)?;
        Ok(self::registers(self.thread)?.rax.cast_signed())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // If this fails, the process has ended.
        let _ = set_registers(self.thread, &self.registers);
        let _ = trace(libc::PTRACE_DETACH, self.thread, 0, 0);
    }
}

/// A request whose last two arguments are addresses in the other process, or numbers.
fn trace(request: c_uint, thread: pid_t, address: u64, data: u64) -> io::Result<()> {
    // SAFETY: such a request touches none of this process's memory.
    let done = unsafe { libc::ptrace(request, thread, address, data) };
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn registers(thread: pid_t) -> Result<user_regs_struct> {
    let mut registers = MaybeUninit::<user_regs_struct>::uninit();
    // SAFETY: the kernel stores the registers at the address in the last argument.
    let done = unsafe {
        libc::ptrace(
            libc::PTRACE_GETREGS,
            thread,
            null_mut::<c_void>(),
            registers.as_mut_ptr(),
        )
    };
    ensure!(done == 0, "PTRACE_GETREGS: {}", io::Error::last_os_error());
    // SAFETY: the call has succeeded.
    Ok(unsafe { registers.assume_init() })
}

fn set_registers(thread: pid_t, registers: &user_regs_struct) -> Result<()> {
    let registers: *const user_regs_struct = registers;
    // SAFETY: the kernel reads the registers at the address in the last argument.
    let done = unsafe {
        libc::ptrace(
            libc::PTRACE_SETREGS,
            thread,
            null_mut::<c_void>(),
            registers,
        )
    };
    ensure!(done == 0, "PTRACE_SETREGS: {}", io::Error::last_os_error());
    Ok(())
}

/// Waits until the thread has stopped.
fn wait(thread: pid_t) -> Result<()> {
    let mut status = 0;
    // SAFETY: the kernel stores the status.
    let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    ensure!(waited == thread, "waitpid: {}", io::Error::last_os_error());
    ensure!(
        libc::WIFSTOPPED(status),
        "the thread has ended: {status:#x}"
    );
    Ok(())
}
