//! Open flags in the numbering of the guest's architecture, and what of them reaches the host.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use super::options::GuestArch;

/// Of the flags whose numbers differ between architectures (`asm/fcntl.h`), those that matter here.
struct ArchFlags {
    direct: u32,
    large_file: u32,
}

/// `asm-generic/fcntl.h`, which x86 uses.
const X86_64: ArchFlags = ArchFlags {
    direct: 0x4000,
    large_file: 0x8000,
};

/// `arch/arm64/include/uapi/asm/fcntl.h`.
const AARCH64: ArchFlags = ArchFlags {
    direct: 0x1_0000,
    large_file: 0x2_0000,
};

impl ArchFlags {
    const fn of(arch: GuestArch) -> &'static Self {
        match arch {
            GuestArch::X86_64 => &X86_64,
            GuestArch::Aarch64 => &AARCH64,
        }
    }
}

/// The architecture that this daemon runs on.
const HOST_ARCH: GuestArch = if cfg!(target_arch = "aarch64") {
    GuestArch::Aarch64
} else {
    GuestArch::X86_64
};

/// What a guest's open asks for, free of any numbering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenFlags {
    /// Content is to be read.
    pub(super) read: bool,
    /// Content is to be written.
    pub(super) write: bool,
    /// Every write goes to the end (`O_APPEND`).
    pub(super) append: bool,
    /// The content is thrown away (`O_TRUNC`).
    pub(super) truncate: bool,
    /// The file must not exist yet (`O_EXCL`).
    pub(super) exclusive: bool,
    /// Transfers go past the page cache (`O_DIRECT`).
    pub(super) direct: bool,
    /// Reading does not move the access time (`O_NOATIME`).
    pub(super) no_atime: bool,
    /// The flags that mean the same everywhere and are handed on as they are.
    passed_through: i32,
}

/// Handed on as they are: they have one number on all architectures and concern the opened file alone.
const PASSED_THROUGH: i32 = libc::O_NONBLOCK | libc::O_DSYNC | libc::O_SYNC;

impl OpenFlags {
    /// Reading, and nothing else.
    pub(super) const READ_ONLY: Self = Self {
        read: true,
        write: false,
        append: false,
        truncate: false,
        exclusive: false,
        direct: false,
        no_atime: false,
        passed_through: 0,
    };

    /// Reads what a guest of `arch` sent. What is in neither field is dropped here and never reaches the host:
    /// creation, following links, terminals, signals, `O_PATH`, `O_TMPFILE` are decided by the operation.
    ///
    /// # Errors
    /// EINVAL for an access mode that does not exist.
    pub(super) fn decode(arch: GuestArch, raw: u32) -> io::Result<Self> {
        let flags_of_arch = ArchFlags::of(arch);
        let flags = raw.cast_signed();
        let (read, write) = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => (true, false),
            libc::O_WRONLY => (false, true),
            libc::O_RDWR => (true, true),
            _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
        };
        Ok(Self {
            read,
            write,
            append: flags & libc::O_APPEND != 0,
            truncate: flags & libc::O_TRUNC != 0,
            exclusive: flags & libc::O_EXCL != 0,
            direct: raw & flags_of_arch.direct != 0,
            no_atime: flags & libc::O_NOATIME != 0,
            passed_through: flags & PASSED_THROUGH,
        })
    }

    /// Whether it changes the file.
    pub(super) fn changes(self) -> bool {
        self.write || self.truncate
    }

    /// Whether it wants to read, and nothing else: any two of these can share what was opened.
    pub(super) fn is_read_only(self) -> bool {
        self.host_flags() == libc::O_RDONLY
    }

    /// The host's flags for opening what is there. `O_APPEND` is not among them: each write tells by itself
    /// whether it appends, since the guest may change its mind (`F_SETFL`) and a mapping never appends.
    pub(super) fn host_flags(self) -> i32 {
        let access = match (self.read, self.write) {
            (true, true) => libc::O_RDWR,
            (false, true) => libc::O_WRONLY,
            (_, false) => libc::O_RDONLY,
        };
        let mut flags = access | self.passed_through;
        for (asked, flag) in [
            (self.truncate, libc::O_TRUNC),
            (self.direct, libc::O_DIRECT),
            (self.no_atime, libc::O_NOATIME),
        ] {
            if asked {
                flags |= flag;
            }
        }
        flags
    }
}

/// The guest's architecture: told, or learned from what its kernel sends.
#[derive(Debug)]
pub(super) struct GuestArchDetector {
    configured: Option<GuestArch>,
    detected: AtomicU8,
}

const UNKNOWN: u8 = 0;
const DETECTED_X86_64: u8 = 1;
const DETECTED_AARCH64: u8 = 2;

impl GuestArchDetector {
    /// As told, or nothing known yet.
    pub(super) fn new(configured: Option<GuestArch>) -> Self {
        Self {
            configured,
            detected: AtomicU8::new(UNKNOWN),
        }
    }

    /// The architecture as far as known; the host's until then.
    pub(super) fn arch(&self) -> GuestArch {
        match (self.configured, self.detected.load(Ordering::Relaxed)) {
            (Some(configured), _) => configured,
            (None, DETECTED_X86_64) => GuestArch::X86_64,
            (None, DETECTED_AARCH64) => GuestArch::Aarch64,
            (None, _) => HOST_ARCH,
        }
    }

    /// Learns from the flags of an OPEN, OPENDIR or CREATE. Every 64-bit kernel sets its `O_LARGEFILE` there; the
    /// other architecture's number for it is `O_NOFOLLOW` here, so flags with both tell nothing.
    pub(super) fn detect(&self, raw: u32) {
        if self.configured.is_some() || self.detected.load(Ordering::Relaxed) != UNKNOWN {
            return;
        }
        let detected = match (raw & X86_64.large_file != 0, raw & AARCH64.large_file != 0) {
            (true, false) => DETECTED_X86_64,
            (false, true) => DETECTED_AARCH64,
            _ => return,
        };
        self.detected.store(detected, Ordering::Relaxed);
    }

    /// Learns from the flags of an open, and reads them.
    ///
    /// # Errors
    /// [`OpenFlags::decode`]'s.
    pub(super) fn decode(&self, raw: u32) -> io::Result<OpenFlags> {
        self.detect(raw);
        OpenFlags::decode(self.arch(), raw)
    }

    /// Whether the flags of a READ or WRITE say that the guest has the file open with `O_DIRECT`.
    pub(super) fn is_direct(&self, raw: u32) -> bool {
        raw & ArchFlags::of(self.arch()).direct != 0
    }

    /// Forgets what was learned: another kernel may run in the guest next time.
    pub(super) fn reset(&self) {
        self.detected.store(UNKNOWN, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_numbering_is_right() {
        let host = ArchFlags::of(HOST_ARCH);
        assert_eq!(host.direct, libc::O_DIRECT.cast_unsigned());
    }

    #[test]
    fn direct_is_told_from_directory() {
        let x86 = OpenFlags::decode(GuestArch::X86_64, 0x4000 | 0x8000).expect("valid");
        assert!(x86.direct);
        assert_eq!(x86.host_flags(), libc::O_DIRECT);
        let arm = OpenFlags::decode(GuestArch::Aarch64, 0x1_0000 | 0x2_0000 | 2).expect("valid");
        assert!(arm.direct);
        assert_eq!(arm.host_flags(), libc::O_DIRECT | libc::O_RDWR);
        let directory = OpenFlags::decode(GuestArch::Aarch64, 0x4000 | 0x2_0000).expect("valid");
        assert!(!directory.direct);
    }

    #[test]
    fn an_architecture_is_learned_from_the_large_file_bit() {
        for (raw, arch) in [
            (0x8000, GuestArch::X86_64),
            (0x1_8800, GuestArch::X86_64),
            (0x2_0000, GuestArch::Aarch64),
            (0x2_4800, GuestArch::Aarch64),
        ] {
            let detector = GuestArchDetector::new(None);
            detector.detect(0);
            detector.detect(0x2_8000);
            assert_eq!(detector.arch(), HOST_ARCH);
            detector.detect(raw);
            assert_eq!(detector.arch(), arch, "{raw:#x}");
            detector.detect(0x8000);
            detector.detect(0x2_0000);
            assert_eq!(detector.arch(), arch, "{raw:#x}, detected once");
            detector.reset();
            assert_eq!(detector.arch(), HOST_ARCH);
        }
    }

    #[test]
    fn what_is_told_is_not_learned() {
        let detector = GuestArchDetector::new(Some(GuestArch::Aarch64));
        detector.detect(0x8000);
        assert_eq!(detector.arch(), GuestArch::Aarch64);
    }

    #[test]
    fn only_harmless_flags_reach_the_host() {
        let all = !3;
        for arch in [GuestArch::X86_64, GuestArch::Aarch64] {
            let flags = OpenFlags::decode(arch, all)
                .expect("read-only")
                .host_flags();
            let expected = PASSED_THROUGH | libc::O_TRUNC | libc::O_DIRECT | libc::O_NOATIME;
            assert_eq!(flags, expected);
        }
        let error = OpenFlags::decode(GuestArch::X86_64, 3).expect_err("no such mode");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
