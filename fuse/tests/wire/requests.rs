//! One valid request of every operation, from random material, with the bytes that the kernel's
//! sources say it has.

use std::ffi::CStr;

use gangplank_fuse::*;
use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

/// What requests are made of.
#[derive(Debug, Clone)]
pub(crate) struct Material {
    /// For structures: longer than any.
    bytes: Vec<u8>,
    /// With their NUL.
    names: [Vec<u8>; 2],
    value: Vec<u8>,
    groups: Option<Vec<u32>>,
    labels: Option<Vec<(Vec<u8>, Vec<u8>)>>,
    pub(crate) dialect: Dialect,
    pub(crate) header: RequestHeader,
}

impl Material {
    fn structure<T: FromBytes>(&self) -> T {
        T::read_from_prefix(&self.bytes).unwrap().0
    }

    fn name(&self, which: usize) -> &CStr {
        CStr::from_bytes_with_nul(&self.names[which]).unwrap()
    }

    fn records<T: FromBytes>(&self) -> Vec<T> {
        let records = self.value.chunks_exact(size_of::<T>());
        records
            .map(|record| T::read_from_bytes(record).unwrap())
            .collect()
    }
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    vec(1_u8.., 0..300).prop_map(|mut name| {
        name.push(0);
        name
    })
}

pub(crate) fn dialect() -> impl Strategy<Value = Dialect> {
    let minors = prop_oneof![Just(45_u32), Just(38), Just(37), Just(27)];
    (minors, any::<bool>(), any::<bool>()).prop_map(|(minor, setxattr_ext, security_ctx)| Dialect {
        minor,
        setxattr_ext,
        security_ctx,
    })
}

pub(crate) fn material() -> impl Strategy<Value = Material> {
    let parts = (
        vec(any::<u8>(), 88),
        [name(), name()],
        vec(any::<u8>(), 0..400),
        prop::option::of(vec(any::<u32>(), 0..40)),
        prop::option::of(vec((name(), vec(any::<u8>(), 0..100)), 0..4)),
        dialect(),
        any::<[u64; 2]>(),
        any::<[u32; 3]>(),
    );
    parts.prop_map(
        |(bytes, names, value, groups, labels, dialect, [unique, node], [uid, gid, pid])| {
            Material {
                bytes,
                names,
                value,
                groups,
                labels,
                dialect,
                header: RequestHeader {
                    unique: Unique::new(unique),
                    node: NodeId::new(node),
                    uid,
                    gid,
                    pid,
                },
            }
        },
    )
}

pub(crate) fn opcode() -> impl Strategy<Value = Opcode> {
    prop::sample::select(Opcode::ALL)
}

/// Calls `check` with the request that `material` makes for `opcode`, and with the bytes it must
/// have after its header.
pub(crate) fn with_request(
    opcode: Opcode,
    material: &Material,
    check: impl FnOnce(Request<'_>, &[u8]),
) {
    let m = material;
    let forgets: Vec<ForgetOne> = m.records();
    let removals: Vec<RemovemappingOne> = m.records();
    let [first, second] = &m.names;

    macro_rules! plain {
        ($variant:ident, $structure:ident) => {{
            let args: $structure = m.structure();
            (Operation::$variant(args), args.as_bytes().to_vec())
        }};
    }
    macro_rules! named {
        ($variant:ident) => {
            (Operation::$variant { name: m.name(0) }, first.clone())
        };
        ($variant:ident, $structure:ident) => {{
            let args: $structure = m.structure();
            (
                Operation::$variant {
                    args,
                    name: m.name(0),
                },
                [args.as_bytes(), first].concat(),
            )
        }};
    }
    macro_rules! renamed {
        ($variant:ident, $structure:ident) => {{
            let args: $structure = m.structure();
            let operation = Operation::$variant {
                args,
                name: m.name(0),
                new_name: m.name(1),
            };
            (operation, [args.as_bytes(), first, second].concat())
        }};
    }

    let (operation, mut expected) = match opcode {
        Opcode::Lookup => named!(Lookup),
        Opcode::Forget => plain!(Forget, ForgetIn),
        Opcode::Getattr => plain!(Getattr, GetattrIn),
        Opcode::Setattr => plain!(Setattr, SetattrIn),
        Opcode::Readlink => (Operation::Readlink, vec![]),
        Opcode::Symlink => {
            let operation = Operation::Symlink {
                name: m.name(0),
                target: m.name(1),
            };
            (operation, [first.as_slice(), second].concat())
        }
        Opcode::Mknod => named!(Mknod, MknodIn),
        Opcode::Mkdir => named!(Mkdir, MkdirIn),
        Opcode::Unlink => named!(Unlink),
        Opcode::Rmdir => named!(Rmdir),
        Opcode::Rename => renamed!(Rename, RenameIn),
        Opcode::Link => named!(Link, LinkIn),
        Opcode::Open => plain!(Open, OpenIn),
        Opcode::Read => plain!(Read, ReadIn),
        Opcode::Write => {
            let mut args: WriteIn = m.structure();
            args.size >>= 1;
            (Operation::Write(args), args.as_bytes().to_vec())
        }
        Opcode::Statfs => (Operation::Statfs, vec![]),
        Opcode::Release => plain!(Release, ReleaseIn),
        Opcode::Fsync => plain!(Fsync, FsyncIn),
        Opcode::Setxattr => {
            let mut args: SetxattrIn = m.structure();
            args.size = u32::try_from(m.value.len()).unwrap();
            let mut length = 16;
            if !m.dialect.setxattr_ext {
                (args.setxattr_flags, args.padding, length) = (0, 0, 8);
            }
            let operation = Operation::Setxattr {
                args,
                name: m.name(0),
                value: &m.value,
            };
            (
                operation,
                [&args.as_bytes()[..length], first, &m.value].concat(),
            )
        }
        Opcode::Getxattr => named!(Getxattr, GetxattrIn),
        Opcode::Listxattr => plain!(Listxattr, GetxattrIn),
        Opcode::Removexattr => named!(Removexattr),
        Opcode::Flush => plain!(Flush, FlushIn),
        Opcode::Init => {
            let mut args: InitIn = m.structure();
            let mut length = 64;
            if !args.features().contains(InitFlags::INIT_EXT) {
                (args.flags2, args.unused, length) = (0, [0; 11], 16);
            }
            (Operation::Init(args), args.as_bytes()[..length].to_vec())
        }
        Opcode::Opendir => plain!(Opendir, OpenIn),
        Opcode::Readdir => plain!(Readdir, ReadIn),
        Opcode::Releasedir => plain!(Releasedir, ReleaseIn),
        Opcode::Fsyncdir => plain!(Fsyncdir, FsyncIn),
        Opcode::Getlk => plain!(Getlk, LkIn),
        Opcode::Setlk => plain!(Setlk, LkIn),
        Opcode::Setlkw => plain!(Setlkw, LkIn),
        Opcode::Access => plain!(Access, AccessIn),
        Opcode::Create => named!(Create, CreateIn),
        Opcode::Interrupt => plain!(Interrupt, InterruptIn),
        Opcode::Bmap => plain!(Bmap, BmapIn),
        Opcode::Destroy => (Operation::Destroy, vec![]),
        Opcode::Ioctl => {
            let mut args: IoctlIn = m.structure();
            args.in_size >>= 1;
            (Operation::Ioctl(args), args.as_bytes().to_vec())
        }
        Opcode::Poll => plain!(Poll, PollIn),
        Opcode::NotifyReply => {
            let mut args: NotifyRetrieveIn = m.structure();
            args.size >>= 1;
            (Operation::NotifyReply(args), args.as_bytes().to_vec())
        }
        Opcode::BatchForget => {
            let head = [u32::try_from(forgets.len()).unwrap(), 0];
            let operation = Operation::BatchForget(BatchForget::new(&forgets));
            (operation, [head.as_bytes(), forgets.as_bytes()].concat())
        }
        Opcode::Fallocate => plain!(Fallocate, FallocateIn),
        Opcode::Readdirplus => plain!(Readdirplus, ReadIn),
        Opcode::Rename2 => renamed!(Rename2, Rename2In),
        Opcode::Lseek => plain!(Lseek, LseekIn),
        Opcode::CopyFileRange => plain!(CopyFileRange, CopyFileRangeIn),
        Opcode::Setupmapping => plain!(Setupmapping, SetupmappingIn),
        Opcode::Removemapping => {
            let head = u32::try_from(removals.len()).unwrap();
            let operation = Operation::Removemapping(Removemapping::new(&removals));
            (operation, [head.as_bytes(), removals.as_bytes()].concat())
        }
        Opcode::Syncfs => plain!(Syncfs, SyncfsIn),
        Opcode::Tmpfile => named!(Tmpfile, CreateIn),
        Opcode::Statx => plain!(Statx, StatxIn),
        Opcode::CopyFileRange64 => plain!(CopyFileRange64, CopyFileRangeIn),
        Opcode::CuseInit => plain!(CuseInit, CuseInitIn),
    };

    let counted = m.dialect.minor >= 38;
    let labels: Option<Vec<_>> = m
        .labels
        .as_ref()
        .filter(|_| opcode.creates())
        .map(|labels| {
            let context = |(name, value): &'_ (Vec<u8>, Vec<u8>)| (name.clone(), value.clone());
            labels.iter().map(context).collect()
        });
    let contexts: Option<Vec<_>> = labels.as_ref().map(|labels| {
        let context = |(name, value)| SecurityContext { name, value };
        let parts = labels
            .iter()
            .map(|(name, value)| (CStr::from_bytes_with_nul(name).unwrap(), value.as_slice()));
        parts.map(context).collect()
    });
    let mut buffer = Vec::new();
    let mut extensions = Extensions::default();
    if let Some(contexts) = contexts
        .as_ref()
        .filter(|_| counted || m.dialect.security_ctx)
    {
        extensions.security_contexts = Some(SecurityContexts::new(contexts, &mut buffer));
        let mut body = Vec::new();
        for context in contexts {
            body.extend_from_slice([u32::try_from(context.value.len()).unwrap(), 0].as_bytes());
            body.extend_from_slice(context.name.to_bytes_with_nul());
            body.extend_from_slice(context.value);
            body.resize(body.len().next_multiple_of(8), 0);
        }
        let head = [
            u32::try_from(8 + body.len()).unwrap(),
            u32::try_from(contexts.len()).unwrap(),
        ];
        expected.extend_from_slice(head.as_bytes());
        expected.extend_from_slice(&body);
    }
    if let Some(groups) = m.groups.as_ref().filter(|_| counted && opcode.creates()) {
        extensions.groups = Some(SupplementaryGroups::new(groups));
        let length = (12 + 4 * groups.len()).next_multiple_of(8);
        let end = expected.len() + length;
        let head = [
            u32::try_from(length).unwrap(),
            32,
            u32::try_from(groups.len()).unwrap(),
        ];
        expected.extend_from_slice(head.as_bytes());
        expected.extend_from_slice(groups.as_bytes());
        expected.resize(end, 0);
    }
    check(
        Request {
            operation,
            extensions,
        },
        &expected,
    );
}
