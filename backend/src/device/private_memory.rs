//! Finds out that the daemon does not see the guest's memory, since it is not shared.
//!
//! With `share=off`, QEMU passes the file of the memory, but has a private copy of it for the
//! guest. The rings then look empty for ever, and the guest waits. QEMU sends the memory when the
//! guest's driver starts the device, which takes a kernel that runs. So a file that has nothing but
//! zeros where firmware and kernel lie is not the guest's memory. (It has pages: the kernel
//! allocates one before it makes a private copy of it.)

use std::os::fd::{AsFd, OwnedFd};

use gangplank_vhost_user::message::{FrontendReq, MemoryRegion, MemoryTableHead, Message, payload};
use rustix::fs::FileType;

use crate::sys::file::file_system_magic;

/// Least memory of a guest that is judged.
const MIN_MEMORY: u64 = 64 << 20;

/// Bytes that are read at most. Firmware and kernel lie in the first ones.
const MAX_READ: u64 = 32 << 20;

/// Bytes that are read at a time.
const BLOCK: usize = 64 * 1024;

/// File systems of memory (memfd, hugetlbfs; `linux/magic.h`), which never keep a reader waiting.
const MEMORY: [u64; 2] = [0x0102_1994, 0x9584_58f6];

/// The guest's memory is not shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the guest's memory is not shared: add share=on to its memory backend (with QEMU: -object \
     memory-backend-memfd,share=on)"
)]
pub struct NotShared;

/// Looks at the memory table of a QEMU whose guest has started the device.
///
/// # Errors
/// [`NotShared`].
pub(super) fn check(message: &Message) -> Result<(), NotShared> {
    if message.frontend_request() != Some(FrontendReq::SET_MEM_TABLE) {
        return Ok(());
    }
    let (head, regions) = message
        .payload
        .split_at_checked(size_of::<MemoryTableHead>())
        .unwrap_or_default();
    if head.is_empty() {
        return Ok(());
    }
    let regions: Vec<MemoryRegion> = regions
        .chunks_exact(size_of::<MemoryRegion>())
        .filter_map(payload::decode)
        .collect();
    let total = regions.iter().fold(0_u64, |total, region| {
        total.saturating_add(region.memory_size)
    });
    if total < MIN_MEMORY {
        return Ok(());
    }
    let mut left = MAX_READ;
    for (region, file) in regions.iter().zip(&message.descriptors) {
        let len = region.memory_size.min(left);
        left -= len;
        if !is_zero(file, region.mmap_offset, len) {
            return Ok(());
        }
    }
    Err(NotShared)
}

/// Whether `len` bytes of a file from `offset` on are zeros. False if that cannot be told.
fn is_zero(file: &OwnedFd, offset: u64, len: u64) -> bool {
    let is_file = rustix::fs::fstat(file)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    let is_memory = file_system_magic(file.as_fd()).is_ok_and(|magic| MEMORY.contains(&magic));
    if !is_file || !is_memory {
        return false;
    }
    let mut block = vec![0; BLOCK];
    let mut done = 0;
    while done < len {
        let wanted = usize::try_from(len - done).unwrap_or(BLOCK).min(BLOCK);
        let Some(position) = offset.checked_add(done) else {
            return false;
        };
        match rustix::io::pread(file, &mut block[..wanted], position) {
            // Behind the end.
            Ok(0) => return true,
            Ok(read) if block[..read].iter().all(|byte| *byte == 0) => {
                done += u64::try_from(read).unwrap_or(u64::MAX);
            }
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::io::pwrite;

    use super::*;

    fn table(size: u64, content_at: Option<u64>) -> Message {
        let file = memfd_create(c"memory", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, size).unwrap();
        if let Some(offset) = content_at {
            pwrite(&file, b"kernel", offset).unwrap();
        }
        let mut payload = vec![1, 0, 0, 0, 0, 0, 0, 0];
        for number in [0, size, 0, 0] {
            payload.extend(number.to_le_bytes());
        }
        Message {
            descriptors: vec![file],
            ..Message::new(FrontendReq::SET_MEM_TABLE, payload)
        }
    }

    #[test]
    fn a_running_guests_memory_has_content() {
        assert_eq!(check(&table(512 << 20, None)), Err(NotShared));
        assert_eq!(check(&table(512 << 20, Some(0))), Ok(()));
        assert_eq!(check(&table(512 << 20, Some((16 << 20) - 3))), Ok(()));
        // Too small for a guest of QEMU.
        assert_eq!(check(&table(16 << 20, None)), Ok(()));
    }

    #[test]
    fn what_says_nothing_is_permitted() {
        let mut device = table(512 << 20, None);
        device.descriptors = vec![std::fs::File::open("/dev/zero").unwrap().into()];
        assert_eq!(check(&device), Ok(()));
        let mut short = table(512 << 20, None);
        short.payload.truncate(4);
        assert_eq!(check(&short), Ok(()));
        let other = Message {
            request: FrontendReq::SET_OWNER as u32,
            ..table(512 << 20, None)
        };
        assert_eq!(check(&other), Ok(()));
    }
}
