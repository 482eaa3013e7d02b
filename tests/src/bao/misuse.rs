//! Device models that each break one rule. The tests check with them that the emulated driver
//! notices.
#![allow(unsafe_code)] // ioctls as wrong as they can be, a mapping, and a signal mask

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use super::abi::{A, Abi, B, Request, word};

/// The first argument that makes a program with this module break a rule: see [`misuse`].
pub const MISUSE: &str = "--misuse";

/// The uses of the driver, and what it has to report. The text is empty for the one that breaks no
/// rule.
pub(super) const USES: &[(DriverUse, &str)] = &[
    (DriverUse::Correct, ""),
    (DriverUse::CompletesTwice, "a second time"),
    (DriverUse::Alters, "came back as"),
    (DriverUse::AnswersStores, "came back as"),
    (DriverUse::WaitsTwice, "two threads in ATTACH"),
    (DriverUse::UnblocksSignals, "lets signals in"),
    (DriverUse::Closes, "closed by the last"),
    (DriverUse::Destroys, "destroy"),
    (DriverUse::UnknownIoctl, "unknown call"),
    (DriverUse::MapsAtOffset, "is mapped from 0x1000 on"),
];

/// A use of the driver: one that breaks no rule, or one that breaks one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DriverUse {
    /// Breaks no rule.
    Correct,
    /// Completes a request twice.
    CompletesTwice,
    /// Changes fields of a request that only the driver may set.
    Alters,
    /// Completes a store with a value, as if it were a load.
    AnswersStores,
    /// Waits for accesses in two threads at once.
    WaitsTwice,
    /// Waits with signals unblocked.
    UnblocksSignals,
    /// Closes a device that is in use.
    Closes,
    /// Destroys the device.
    Destroys,
    /// Calls an ioctl that the driver does not have.
    UnknownIoctl,
    /// Maps the shared memory from an offset on.
    MapsAtOffset,
}

impl DriverUse {
    /// Whether it takes accesses and completes them.
    pub(super) const fn takes_accesses(self) -> bool {
        matches!(
            self,
            Self::Correct
                | Self::CompletesTwice
                | Self::Alters
                | Self::AnswersStores
                | Self::UnblocksSignals
        )
    }
}

/// Acts as such a device model. `arguments` are the names of the use and of the generation, and the
/// node.
///
/// # Errors
/// The driver fails a valid call.
pub fn misuse(mut arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let mut next = || arguments.next().context("an argument is missing");
    let (name, abi, node) = (next()?, next()?, next()?);
    let usage = USES
        .iter()
        .find(|(usage, _)| format!("{usage:?}").as_str() == name);
    let (usage, _) = *usage.context("no such usage")?;
    behave(usage, if abi == A.name { A } else { B }, Path::new(&node))
}

fn behave(usage: DriverUse, abi: Abi, node: &Path) -> Result<()> {
    let node = File::options().read(true).write(true).open(node)?;
    let device = open(&node, abi)?;
    let file = device.as_raw_fd();
    if usage != DriverUse::UnblocksSignals {
        block_signals();
    }
    match usage {
        DriverUse::Closes => {
            drop(device);
            return Ok(());
        }
        DriverUse::Destroys => {
            return call(node.as_raw_fd(), A.destroy.unwrap_or_default(), &mut 0u32).map(drop);
        }
        DriverUse::UnknownIoctl => {
            let done = call(file, 0xc020_a6ff, &mut [0u64; 4]);
            ensure!(done.is_err(), "the driver accepted an unknown ioctl");
            return Ok(());
        }
        DriverUse::MapsAtOffset => return map(file, 0x1000),
        DriverUse::WaitsTwice => {
            // There is no access yet: the call that returns first is the refused one.
            let (done, first) = mpsc::channel();
            for _ in 0..2 {
                let done = done.clone();
                thread::spawn(move || done.send(attach(file, abi).is_err()));
            }
            ensure!(
                first.recv()?,
                "two threads wait in ATTACH, and the driver refuses neither"
            );
            return Ok(());
        }
        _ => {}
    }
    // The guest makes a store, then a load.
    for _ in 0..2 {
        let mut request = attach(file, abi)?;
        let is_store = request[word::OP] == super::abi::WRITE;
        match usage {
            DriverUse::Alters => request[word::ADDR] ^= 4,
            DriverUse::AnswersStores if is_store => request[word::VALUE] = 1,
            _ if is_store => {}
            _ => request[word::VALUE] = 0x1234,
        }
        call(file, abi.complete, &mut request)?;
        if usage == DriverUse::CompletesTwice {
            ensure!(
                call(file, abi.complete, &mut request).is_err(),
                "completed twice"
            );
        }
    }
    Ok(())
}

fn open(node: &File, abi: Abi) -> Result<OwnedFd> {
    let mut info = [0u8; 32];
    let value = call(node.as_raw_fd(), abi.open, &mut info)?;
    let number = match info.last_chunk() {
        _ if abi.creates => value,
        Some(number) => {
            ensure!(value == 1, "get info returns {value}");
            RawFd::from_ne_bytes(*number)
        }
        None => bail!("no number"),
    };
    ensure!(number > 2, "descriptor {number}");
    // SAFETY: the driver has just put it into this process.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn attach(file: RawFd, abi: Abi) -> Result<Request> {
    let mut request: Request = [0; 8];
    call(file, abi.attach, &mut request)?;
    Ok(request)
}

fn call<T>(file: RawFd, number: u32, argument: &mut T) -> Result<i32> {
    let (number, argument) = (u64::from(number), std::ptr::from_mut(argument));
    // SAFETY: the test answers every call, and writes no further than the argument's length. (The C
    // libraries do not agree on the type of the number.)
    let value = unsafe { libc::syscall(libc::SYS_ioctl, file, number, argument) };
    match i32::try_from(value) {
        Ok(value @ 0..) => Ok(value),
        _ => Err(io::Error::last_os_error().into()),
    }
}

fn map(file: RawFd, offset: i64) -> Result<()> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, at an unused address that the kernel chooses.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            0x1000,
            access,
            libc::MAP_SHARED,
            file,
            offset,
        )
    };
    ensure!(mapped != libc::MAP_FAILED, "{}", io::Error::last_os_error());
    Ok(())
}

fn block_signals() {
    // SAFETY: a set of signals is plain data.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set outlives the call.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: the set outlives the call; no old one is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()) };
}
