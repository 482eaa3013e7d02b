//! The whole crate against an installed `linux/fuse.h`: sizes, offsets, constants, and that nothing
//! in it is missing here.
//!
//! Needs a C compiler and the header; says so loudly and passes where either is missing. What an
//! older header does not know is passed over. `GANGPLANK_FUSE_HEADER` names another header, such as
//! a newer kernel's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use bitflags::Flags;

use crate::wire::Layout;
use crate::*;

/// What the header has and this crate does not, by beginning of the name.
const NOT_HERE: &[(&str, &str)] = &[
    ("_LINUX_FUSE_H", "include guard"),
    ("FUSE_DEV_IOC_", "ioctl of /dev/fuse, not on the wire"),
    ("fuse_backing_map", "argument of such an ioctl"),
    ("FUSE_BACKING_", "argument of such an ioctl"),
    ("FUSE_URING_", "carries the wire over io_uring of /dev/fuse"),
    (
        "FUSE_IO_URING_",
        "carries the wire over io_uring of /dev/fuse",
    ),
    ("fuse_uring_", "carries the wire over io_uring of /dev/fuse"),
    ("FUSE_COMPAT_ENTRY_OUT_SIZE", "layout of peers before 7.9"),
    ("FUSE_COMPAT_ATTR_OUT_SIZE", "layout of peers before 7.9"),
    ("FUSE_COMPAT_MKNOD_IN_SIZE", "layout of peers before 7.12"),
    ("FUSE_COMPAT_WRITE_IN_SIZE", "layout of peers before 7.9"),
    ("FUSE_COMPAT_STATFS_SIZE", "layout of peers before 7.4"),
    (
        "FUSE_REMOVEMAPPING_MAX_ENTRY",
        "follows from the client's page size",
    ),
    (
        "FUSE_NAME_OFFSET",
        "offset of the name in a directory entry: the structure's size",
    ),
    (
        "FUSE_NOTIFY_CODE_MAX",
        "one more than the last, which moves",
    ),
    (
        "FUSE_WRITE_KILL_PRIV",
        "obsolete alias of FUSE_WRITE_KILL_SUIDGID",
    ),
    (
        "FUSE_DIRECT_IO_RELAX",
        "obsolete alias of FUSE_DIRECT_IO_ALLOW_MMAP",
    ),
];

/// A C expression and the number it must have.
struct Claim {
    /// The identifier that the header must define for the claim to be checked.
    subject: String,
    expression: String,
    value: u64,
}

struct Claims {
    header: String,
    minor: u32,
    claims: Vec<Claim>,
    passed_over: Vec<String>,
}

impl Claims {
    fn constant(&mut self, name: &str, value: u64) {
        if !words(&self.header).any(|word| word == name) {
            self.passed_over.push(name.to_owned());
            return;
        }
        // 1 << 31 is negative in C.
        let cast = if value <= u64::from(u32::MAX) {
            "(uint32_t)"
        } else {
            ""
        };
        self.claims.push(Claim {
            subject: name.to_owned(),
            expression: format!("{cast}{name}"),
            value,
        });
    }

    fn flags<T: Flags>(&mut self, prefix: &str)
    where
        T::Bits: Into<u64>,
    {
        for flag in T::FLAGS {
            // Behind its prefix the C name may go on with a digit, which an identifier here cannot
            // begin with.
            let name = flag.name().replace("BIT32", "32BIT");
            self.constant(&format!("{prefix}{name}"), flag.value().bits().into());
        }
    }

    fn layout<T: Layout>(&mut self) {
        let name = T::C_NAME;
        let Some(body) = struct_body(&self.header, name).map(str::to_owned) else {
            self.passed_over.push(format!("struct {name}"));
            return;
        };
        self.claims.push(Claim {
            subject: name.to_owned(),
            expression: format!("sizeof(struct {name})"),
            value: T::SIZE as u64,
        });
        for &(field, offset) in T::FIELDS {
            let field = field.trim_start_matches("r#");
            // Spare room moves as it is taken into use, so an older header has it elsewhere.
            let reserved = ["unused", "spare", "padding", "dummy"]
                .iter()
                .any(|spare| field.contains(spare));
            let comparable = self.minor >= KERNEL_MINOR_VERSION || !reserved;
            if comparable && words(&body).any(|word| word == field) {
                self.claims.push(Claim {
                    subject: name.to_owned(),
                    expression: format!("offsetof(struct {name}, {field})"),
                    value: offset as u64,
                });
            } else {
                self.passed_over.push(format!("{name}.{field}"));
            }
        }
    }
}

macro_rules! layouts {
    ($claims:ident: $($name:ident)*) => { $( $claims.layout::<$name>(); )* };
}

fn collect(claims: &mut Claims) {
    use crate::dir::{Dirent, Direntplus};
    layouts! { claims:
        InHeader OutHeader Attr EntryOut ForgetIn ForgetOne BatchForgetIn GetattrIn AttrOut
        SetattrIn StatxIn SxTime Statx StatxOut MknodIn MkdirIn RenameIn Rename2In LinkIn OpenIn
        CreateIn OpenOut ReleaseIn FlushIn FsyncIn ReadIn WriteIn WriteOut LseekIn LseekOut
        FallocateIn CopyFileRangeIn CopyFileRangeOut SetxattrIn GetxattrIn GetxattrOut FileLock LkIn
        LkOut Kstatfs StatfsOut SyncfsIn AccessIn InterruptIn InitIn InitOut CuseInitIn CuseInitOut
        BmapIn BmapOut IoctlIn IoctlIovec IoctlOut PollIn PollOut Dirent Direntplus SetupmappingIn
        RemovemappingIn RemovemappingOne ExtHeader SecctxHeader Secctx SuppGroups
        NotifyPollWakeupOut NotifyInvalInodeOut NotifyInvalEntryOut NotifyDeleteOut NotifyStoreOut
        NotifyRetrieveOut NotifyRetrieveIn NotifyPruneOut
    }

    claims.flags::<InitFlags>("FUSE_");
    claims.flags::<CuseInitFlags>("CUSE_");
    claims.flags::<AttrFlags>("FUSE_ATTR_");
    claims.flags::<GetattrFlags>("FUSE_GETATTR_");
    claims.flags::<SetattrValid>("FATTR_");
    claims.flags::<OpenInFlags>("FUSE_OPEN_");
    claims.flags::<FopenFlags>("FOPEN_");
    claims.flags::<ReleaseFlags>("FUSE_RELEASE_");
    claims.flags::<FsyncFlags>("FUSE_FSYNC_");
    claims.flags::<ReadFlags>("FUSE_READ_");
    claims.flags::<WriteFlags>("FUSE_WRITE_");
    claims.flags::<LkFlags>("FUSE_LK_");
    claims.flags::<SetxattrFlags>("FUSE_SETXATTR_");
    claims.flags::<IoctlFlags>("FUSE_IOCTL_");
    claims.flags::<PollFlags>("FUSE_POLL_");
    claims.flags::<SetupmappingFlags>("FUSE_SETUPMAPPING_FLAG_");
    claims.flags::<NotifyInvalEntryFlags>("FUSE_");

    for &opcode in Opcode::ALL {
        let prefix = if opcode == Opcode::CuseInit {
            ""
        } else {
            "FUSE_"
        };
        claims.constant(&format!("{prefix}{opcode}"), opcode as u64);
    }
    for name in ["CUSE_INIT_BSWAP_RESERVED", "FUSE_INIT_BSWAP_RESERVED"] {
        let swapped = if name.starts_with("CUSE") {
            4096 << 8
        } else {
            26 << 24
        };
        assert!(UnknownOpcode(swapped).is_byte_swapped_init());
        claims.constant(name, u64::from(swapped));
    }
    let notifications = [
        ("POLL", NotifyCode::Poll),
        ("INVAL_INODE", NotifyCode::InvalInode),
        ("INVAL_ENTRY", NotifyCode::InvalEntry),
        ("STORE", NotifyCode::Store),
        ("RETRIEVE", NotifyCode::Retrieve),
        ("DELETE", NotifyCode::Delete),
        ("RESEND", NotifyCode::Resend),
        ("INC_EPOCH", NotifyCode::IncEpoch),
        ("PRUNE", NotifyCode::Prune),
    ];
    for (name, code) in notifications {
        assert_eq!(NotifyCode::from_error(code as i32), Some(code));
        claims.constant(&format!("FUSE_NOTIFY_{name}"), code as u64);
    }
    for (name, value) in [
        ("FUSE_KERNEL_VERSION", u64::from(KERNEL_VERSION)),
        ("FUSE_ROOT_ID", NodeId::ROOT.get()),
        ("FUSE_MIN_READ_BUFFER", MIN_READ_BUFFER as u64),
        ("FUSE_UNIQUE_RESEND", Unique::RESEND),
        ("FUSE_INVALID_UIDGID", u64::from(INVALID_UIDGID)),
        ("FUSE_MAX_NR_SECCTX", u64::from(MAX_NR_SECCTX)),
        ("FUSE_EXT_GROUPS", u64::from(EXT_GROUPS)),
        ("FUSE_IOCTL_MAX_IOV", u64::from(IOCTL_MAX_IOV)),
        ("CUSE_INIT_INFO_MAX", CUSE_INIT_INFO_MAX as u64),
        ("FUSE_COMPAT_INIT_OUT_SIZE", InitOut::COMPAT_SIZE as u64),
        (
            "FUSE_COMPAT_22_INIT_OUT_SIZE",
            InitOut::COMPAT_22_SIZE as u64,
        ),
        (
            "FUSE_COMPAT_SETXATTR_IN_SIZE",
            SetxattrIn::COMPAT_SIZE as u64,
        ),
    ] {
        claims.constant(name, value);
    }
}

/// The identifiers and numbers of a text.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c != '_' && !c.is_ascii_alphanumeric())
}

fn struct_body<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let (_, body) = header.split_once(&format!("struct {name} {{"))?;
    body.split_once("};").map(|(body, _)| body)
}

/// Constants and structures that the header defines.
fn defined(header: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for line in header.lines() {
        let line = line.trim();
        let name = line
            .split(|c: char| c != '_' && !c.is_ascii_alphanumeric())
            .next()
            .unwrap_or_default();
        if let Some(rest) = line.strip_prefix("#define ") {
            let end = rest
                .find(|c: char| c != '_' && !c.is_ascii_alphanumeric())
                .unwrap_or(rest.len());
            let (name, value) = rest.split_at(end);
            if !value.starts_with('(') {
                found.insert(name);
            }
        } else if let Some(rest) = line
            .strip_prefix("struct ")
            .and_then(|rest| rest.strip_suffix(" {"))
        {
            found.insert(rest);
        } else if (name.starts_with("FUSE_") || name.starts_with("CUSE_"))
            && line.contains(['=', ','])
        {
            found.insert(name);
        }
    }
    found
}

/// The values of the claims' expressions, as the C compiler sees them; `None` if there is none.
fn evaluate(header: &Path, claims: &[Claim]) -> Option<Vec<u64>> {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("claims.c");
    let program = directory.path().join("claims");
    let mut text = String::from("#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n");
    text += &format!("#include \"{}\"\nint main(void) {{\n", header.display());
    for claim in claims {
        text += &format!(
            "printf(\"%llu\\n\", (unsigned long long)({}));\n",
            claim.expression
        );
    }
    text += "return 0; }\n";
    std::fs::write(&source, text).unwrap();

    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let compiled = Command::new(compiler)
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .status()
        .ok()?;
    assert!(
        compiled.success(),
        "the claims do not compile against {}",
        header.display()
    );
    let output = Command::new(&program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.lines().map(|line| line.parse().unwrap()).collect())
}

#[test]
fn everything_is_as_the_kernels_header_has_it() {
    let path = std::env::var_os("GANGPLANK_FUSE_HEADER")
        .map_or("/usr/include/linux/fuse.h".into(), PathBuf::from);
    let Ok(header) = std::fs::read_to_string(&path) else {
        eprintln!(
            "SKIPPED: {} cannot be read (linux-libc-dev has it)",
            path.display()
        );
        return;
    };
    let minor = header
        .split_once("#define FUSE_KERNEL_MINOR_VERSION ")
        .and_then(|(_, rest)| rest.lines().next())
        .and_then(|number| number.trim().parse().ok())
        .expect("the header says its minor version");
    let mut claims = Claims {
        header,
        minor,
        claims: Vec::new(),
        passed_over: Vec::new(),
    };
    collect(&mut claims);

    let Some(values) = evaluate(&path, &claims.claims) else {
        eprintln!("SKIPPED: there is no C compiler to ask");
        return;
    };
    assert_eq!(values.len(), claims.claims.len());
    let wrong: Vec<_> = claims
        .claims
        .iter()
        .zip(&values)
        .filter(|(claim, value)| claim.value != **value)
        .map(|(claim, value)| format!("{} is {value}, not {}", claim.expression, claim.value))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");

    let checked: BTreeSet<_> = claims
        .claims
        .iter()
        .map(|claim| claim.subject.as_str())
        .collect();
    let missing: Vec<_> = defined(&claims.header)
        .into_iter()
        .filter(|name| !checked.contains(name) && *name != "FUSE_KERNEL_MINOR_VERSION")
        .filter(|name| {
            !NOT_HERE
                .iter()
                .any(|(beginning, _)| name.starts_with(beginning))
        })
        .collect();
    if minor <= KERNEL_MINOR_VERSION {
        assert!(
            missing.is_empty(),
            "the header has what this crate has not: {missing:?}"
        );
    }
    eprintln!(
        "{} (7.{minor}): {} claims hold; it does not know {:?}",
        path.display(),
        values.len(),
        claims.passed_over
    );
    assert!(minor < KERNEL_MINOR_VERSION || claims.passed_over.is_empty());
}
