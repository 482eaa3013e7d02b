//! Protection against guest memory whose file is truncated.
//!
//! Guest memory is a mapped file that belongs to the virtual machine monitor. If the monitor
//! truncates the file, an access beyond the new end raises SIGBUS, which would kill the guest's
//! worker without a word in the log. So a table lists each mapping. The signal handler maps an
//! anonymous page over a faulting address inside one of them and marks the mapping as truncated.
//! Any other SIGBUS kills the process as usual.
//!
//! No published crate repairs the mapping and marks it without a lock.
#![allow(unsafe_code)] // a signal handler and the memory mapping it repairs

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, compiler_fence};

/// Limit of mappings: enough for three memory tables of one guest with the maximum of 509 regions
/// each, those that requests in flight still use included.
const SLOTS: usize = 2048;

/// All mappings. A signal handler must not take a lock, so each slot consists of atomics.
static TABLE: [Slot; SLOTS] = [const { Slot::empty() }; SLOTS];

thread_local! {
    /// How often the thread's accesses met truncated memory. Constant and without a destructor, so
    /// that the signal handler may use it.
    static REPAIRS: AtomicUsize = const { AtomicUsize::new(0) };
}

/// How often an access of this thread met truncated memory, which zero pages have replaced since.
/// If two calls return the same number, the thread read no such zeros between them, except where
/// another thread had met them before.
pub fn repairs() -> usize {
    // The handler runs within what the compiler sees as ordinary loads.
    compiler_fence(Ordering::SeqCst);
    REPAIRS.with(|count| count.load(Ordering::Relaxed))
}

struct Slot {
    taken: AtomicBool,
    base: AtomicPtr<u8>,
    /// Length in bytes; 0 while the slot is unused. Written last and read first.
    len: AtomicUsize,
    truncated: AtomicBool,
}

impl Slot {
    const fn empty() -> Self {
        Self {
            taken: AtomicBool::new(false),
            base: AtomicPtr::new(std::ptr::null_mut()),
            len: AtomicUsize::new(0),
            truncated: AtomicBool::new(false),
        }
    }

    /// Base and length of the mapping, if it contains `address`.
    fn containing(&self, address: usize) -> Option<(*mut u8, usize)> {
        let len = self.len.load(Ordering::Acquire);
        let base = self.base.load(Ordering::Acquire);
        let offset = address.checked_sub(base.addr())?;
        (offset < len).then_some((base, len))
    }
}

/// A mapping of guest memory that is in the table until this value is dropped.
#[derive(Debug)]
pub struct Guarded {
    slot: &'static Slot,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot")
            .field("base", &self.base)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Guarded {
    /// Enters `len` bytes of guest memory, mapped at the page-aligned address `base`. The value
    /// must outlive each use of the mapping.
    ///
    /// A core file of this process does not have the memory, which is the guest's alone.
    ///
    /// # Errors
    /// ENOSPC if the table is full; those of madvise(2).
    pub fn new(base: *mut u8, len: usize) -> io::Result<Self> {
        install_handler();
        // SAFETY: the advice changes no content.
        if unsafe { libc::madvise(base.cast(), len, libc::MADV_DONTDUMP) } != 0 {
            return Err(io::Error::last_os_error());
        }
        for slot in &TABLE {
            if !slot.taken.swap(true, Ordering::AcqRel) {
                slot.truncated.store(false, Ordering::Release);
                slot.base.store(base, Ordering::Release);
                slot.len.store(len, Ordering::Release);
                return Ok(Self { slot });
            }
        }
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }

    /// Whether an access found a part of the mapping without memory.
    pub fn is_truncated(&self) -> bool {
        self.slot.truncated.load(Ordering::Acquire)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.slot.len.store(0, Ordering::Release);
        self.slot.taken.store(false, Ordering::Release);
    }
}

/// Page size in bytes. The C library returns it without a system call, so the sandboxed signal
/// handler may call this.
fn page_size() -> usize {
    // SAFETY: sysconf takes no pointers.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

fn install_handler() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // SAFETY: all-zero is a valid `sigaction` with an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            handle_sigbus;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: `action` is initialised, and its handler is async-signal-safe.
        if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } != 0 {
            log::warn!(
                "cannot install the SIGBUS handler, so truncated guest memory ends the daemon: {}",
                io::Error::last_os_error()
            );
        }
    });
}

/// The SIGBUS handler. It runs on the faulting thread in the middle of an instruction, so it takes
/// no lock and allocates nothing.
extern "C" fn handle_sigbus(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler installed with SA_SIGINFO.
    let info = unsafe { &*info };
    // SAFETY: `si_addr` is set for SIGBUS.
    let address = unsafe { info.si_addr() };
    let page = page_size();
    let start = address.map_addr(|a| a & !(page - 1));
    // The kernel runs the handler on the thread whose access failed.
    REPAIRS.with(|count| count.fetch_add(1, Ordering::Relaxed));
    let mut repaired = false;
    // While a memory table changes, two slots may list the same mapping; both are marked.
    for slot in &TABLE {
        if let Some((base, len)) = slot.containing(address.addr()) {
            slot.truncated.store(true, Ordering::Release);
            // A huge page cannot be replaced in part; then the whole mapping is replaced.
            repaired = repaired || map_anonymous(start, page) || map_anonymous(base.cast(), len);
        }
    }
    if repaired {
        return;
    }
    // Not a guest's mapping: restore the default action, which applies when the instruction is
    // repeated.
    // SAFETY: `signal` is async-signal-safe and takes no pointers.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

/// Replaces mapped memory with anonymous zero pages.
fn map_anonymous(start: *mut libc::c_void, len: usize) -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: the range lies within a mapping of guest memory, which is accessed by raw addresses
    // only and which its owner unmaps as a range, whatever is mapped there.
    let mapped = unsafe { libc::mmap(start, len, protection, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use vm_memory::{
        Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    };

    use super::*;

    fn shared_memory(len: usize) -> (File, GuestMemoryMmap, Guarded) {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(len as u64).expect("grown");
        let backing = FileOffset::new(file.try_clone().expect("cloned"), 0);
        let memory =
            GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), len, Some(backing))])
                .expect("mapped");
        let region = memory.iter().next().expect("one region");
        let guarded = Guarded::new(
            region.as_ptr(),
            usize::try_from(region.len()).expect("small"),
        )
        .expect("noted");
        (file, memory, guarded)
    }

    #[test]
    fn memory_that_was_cut_off_reads_as_zeroes_and_is_marked() {
        let (file, memory, guarded) = shared_memory(4 * page_size());
        let end = GuestAddress(3 * page_size() as u64);
        memory.write_obj(7u64, end).expect("in range");
        assert!(!guarded.is_truncated());
        file.set_len(page_size() as u64).expect("cut");
        let before = repairs();
        assert_eq!(memory.read_obj::<u64>(end).expect("in range"), 0);
        assert!(guarded.is_truncated() && repairs() > before);
        memory.write_obj(9u64, end).expect("in range");
        assert_eq!(
            memory.read_obj::<u64>(GuestAddress(0)).expect("in range"),
            0
        );
    }

    #[test]
    fn one_guest_s_tear_leaves_another_s_mapping_whole() {
        let (file, memory, guarded) = shared_memory(2 * page_size());
        let (_other_file, other_memory, other) = shared_memory(2 * page_size());
        file.set_len(0).expect("cut");
        assert_eq!(
            memory.read_obj::<u32>(GuestAddress(0)).expect("in range"),
            0
        );
        other_memory
            .write_obj(5u32, GuestAddress(8))
            .expect("in range");
        assert!(guarded.is_truncated() && !other.is_truncated());
    }
}
