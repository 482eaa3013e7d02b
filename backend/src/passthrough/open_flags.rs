//! Decoding open flags, whose values depend on the guest's architecture.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use super::options::GuestArch;

/// The relevant open flags whose values differ between architectures (`asm/fcntl.h`).
struct ArchFlags {
    direct: u32,
    large_file: u32,
}

/// `asm-generic/fcntl.h`, used by x86.
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

/// The decoded flags of a guest's open, independent of the architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenFlags {
    /// Open for reading.
    pub(super) read: bool,
    /// Open for writing.
    pub(super) write: bool,
    /// Each write appends (`O_APPEND`).
    pub(super) append: bool,
    /// Truncate the file (`O_TRUNC`).
    pub(super) truncate: bool,
    /// The file must not exist (`O_EXCL`).
    pub(super) exclusive: bool,
    /// Bypass the page cache (`O_DIRECT`).
    pub(super) direct: bool,
    /// Do not update the access time (`O_NOATIME`).
    pub(super) no_atime: bool,
    /// The flags of [`PASSED_THROUGH`] that are set.
    passed_through: i32,
}

/// Flags passed to the host unchanged: their values are the same on all architectures and they
/// affect the open file alone.
const PASSED_THROUGH: i32 = libc::O_NONBLOCK | libc::O_DSYNC | libc::O_SYNC;

impl OpenFlags {
    /// Open for reading, without any other flag.
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

    /// Decodes the flags that a guest of architecture `arch` sent.
    ///
    /// Flags without a field here never reach the host: the operation itself decides about
    /// creation, links, terminals, signals, `O_PATH` and `O_TMPFILE`.
    ///
    /// # Errors
    /// EINVAL for an invalid access mode.
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

    /// Decodes the flags of a file that was open on a host of this architecture.
    ///
    /// # Errors
    /// EINVAL for an invalid access mode.
    pub(super) fn of_host(flags: i32) -> io::Result<Self> {
        Self::decode(HOST_ARCH, flags.cast_unsigned())
    }

    /// Whether the open can change the file.
    pub(super) fn changes(self) -> bool {
        self.write || self.truncate
    }

    /// Whether the file is open for reading without other flags, so that its descriptor can be
    /// reused.
    pub(super) fn is_read_only(self) -> bool {
        self.host_flags() == libc::O_RDONLY
    }

    /// The host's flags for opening an existing file. They never include `O_APPEND`: the guest may
    /// change the flag later (`F_SETFL`) and writeback of a mapping never appends, so each WRITE
    /// says whether it appends.
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

/// The guest's architecture: configured, or detected from its open flags.
#[derive(Debug)]
pub(super) struct GuestArchDetector {
    configured: Option<GuestArch>,
    detected: AtomicU8,
}

const UNKNOWN: u8 = 0;
const DETECTED_X86_64: u8 = 1;
const DETECTED_AARCH64: u8 = 2;

impl GuestArchDetector {
    /// Starts with the configured architecture, if any.
    pub(super) fn new(configured: Option<GuestArch>) -> Self {
        Self {
            configured,
            detected: AtomicU8::new(UNKNOWN),
        }
    }

    /// The guest's architecture; the host's until it is detected.
    pub(super) fn arch(&self) -> GuestArch {
        match (self.configured, self.detected.load(Ordering::Relaxed)) {
            (Some(configured), _) => configured,
            (None, DETECTED_X86_64) => GuestArch::X86_64,
            (None, DETECTED_AARCH64) => GuestArch::Aarch64,
            (None, _) => HOST_ARCH,
        }
    }

    /// Detects the architecture from the flags of an OPEN, OPENDIR or CREATE. A 64-bit kernel
    /// always sets its `O_LARGEFILE`. The other architecture uses the same bit for `O_NOFOLLOW`, so
    /// flags with both bits say nothing.
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

    /// Detects the architecture from the flags of an open, and decodes them.
    ///
    /// # Errors
    /// Those of [`OpenFlags::decode`].
    pub(super) fn decode(&self, raw: u32) -> io::Result<OpenFlags> {
        self.detect(raw);
        OpenFlags::decode(self.arch(), raw)
    }

    /// Whether the flags of a READ or WRITE include `O_DIRECT`.
    pub(super) fn is_direct(&self, raw: u32) -> bool {
        raw & ArchFlags::of(self.arch()).direct != 0
    }

    /// Forgets the detected architecture, because another kernel may boot in the guest.
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
