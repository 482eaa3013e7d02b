//! The operations, each prepared and ready to be sent.

use anyhow::Result;
use gangplank_fuse::{
    AccessIn, BatchForget, BmapIn, FlushIn, ForgetIn, ForgetOne, FsyncIn, GetattrIn, GetxattrIn,
    InitFlags, InitIn, InterruptIn, IoctlIn, LinkIn, LseekIn, NodeId, NotifyRetrieveIn, OpenIn,
    Operation, PollIn, RenameIn, SetattrIn, SetattrValid, SetupmappingIn, StatxIn, SyncfsIn,
};
use rustix::fs::OFlags;

use super::requests::{
    Prepared, at, at_old, at_root, copy, create, fallocate, lock, mkdir, mknod, open_in, read_in,
    release_in, rename, set_flags, set_xattr, unlock, write,
};
use super::world::{World, XATTR};

pub(super) type Prepare = fn(&mut World) -> Result<Prepared>;

/// The operations by name, in the order of their numbers.
pub(super) const CASES: &[(&str, Prepare)] = &[
    ("LOOKUP", |world| {
        at_root(world, Operation::Lookup { name: c"old" })
    }),
    ("LOOKUP of nothing", |world| {
        at_root(world, Operation::Lookup { name: c"new" })
    }),
    ("FORGET", |world| {
        let node = world.find(c"old")?;
        world.known.remove(&node.get());
        at(node, Operation::Forget(ForgetIn { nlookup: 1 }))
    }),
    ("BATCH_FORGET", |world| {
        let mut nodes = Vec::new();
        for name in [c"old", c"other"] {
            let nodeid = world.find(name)?.get();
            world.known.remove(&nodeid);
            nodes.push(ForgetOne { nodeid, nlookup: 1 });
        }
        at(
            NodeId::default(),
            Operation::BatchForget(BatchForget::new(nodes.leak())),
        )
    }),
    ("GETATTR", |world| {
        at_old(world, Operation::Getattr(GetattrIn::default()))
    }),
    ("SETATTR", |world| {
        let valid = SetattrValid::MODE.bits();
        at_old(
            world,
            Operation::Setattr(SetattrIn {
                valid,
                mode: 0o600,
                ..SetattrIn::default()
            }),
        )
    }),
    ("SETATTR of the size", |world| {
        let valid = SetattrValid::SIZE.bits();
        at_old(
            world,
            Operation::Setattr(SetattrIn {
                valid,
                size: 2,
                ..SetattrIn::default()
            }),
        )
    }),
    ("READLINK", |world| {
        at(world.find(c"link")?, Operation::Readlink)
    }),
    ("SYMLINK", |world| {
        at_root(
            world,
            Operation::Symlink {
                name: c"new",
                target: c"target",
            },
        )
    }),
    ("SYMLINK of a name that is taken", |world| {
        at_root(
            world,
            Operation::Symlink {
                name: c"link",
                target: c"target",
            },
        )
    }),
    ("MKNOD", |world| at_root(world, mknod(libc::S_IFIFO))),
    ("MKNOD of a file", |world| {
        at_root(world, mknod(libc::S_IFREG))
    }),
    ("MKDIR", |world| at_root(world, mkdir(c"new"))),
    ("MKDIR of a name that is taken", |world| {
        at_root(world, mkdir(c"empty"))
    }),
    ("UNLINK", |world| {
        at_root(world, Operation::Unlink { name: c"gone" })
    }),
    ("UNLINK of an open file", |world| {
        world.open(c"gone", OFlags::RDWR)?;
        at_root(world, Operation::Unlink { name: c"gone" })
    }),
    ("UNLINK of nothing", |world| {
        at_root(world, Operation::Unlink { name: c"new" })
    }),
    ("RMDIR", |world| {
        at_root(world, Operation::Rmdir { name: c"empty" })
    }),
    ("RMDIR of a directory with files", |world| {
        at_root(world, Operation::Rmdir { name: c"full" })
    }),
    ("RENAME", |world| {
        let args = RenameIn {
            newdir: world.root.get(),
        };
        at_root(
            world,
            Operation::Rename {
                args,
                name: c"old",
                new_name: c"new",
            },
        )
    }),
    ("RENAME2 over another", |world| rename(world, 0, c"other")),
    ("RENAME2 without replacement", |world| {
        rename(world, libc::RENAME_NOREPLACE, c"new")
    }),
    ("RENAME2 without replacement, taken", |world| {
        rename(world, libc::RENAME_NOREPLACE, c"other")
    }),
    ("RENAME2, exchange", |world| {
        rename(world, libc::RENAME_EXCHANGE, c"other")
    }),
    ("RENAME2 with a whiteout", |world| {
        rename(world, libc::RENAME_WHITEOUT, c"other")
    }),
    ("LINK", |world| {
        let oldnodeid = world.find(c"old")?.get();
        at_root(
            world,
            Operation::Link {
                args: LinkIn { oldnodeid },
                name: c"new",
            },
        )
    }),
    ("LINK of a name that is taken", |world| {
        let oldnodeid = world.find(c"old")?.get();
        at_root(
            world,
            Operation::Link {
                args: LinkIn { oldnodeid },
                name: c"other",
            },
        )
    }),
    ("OPEN", |world| {
        at_old(world, Operation::Open(open_in(OFlags::RDWR)))
    }),
    ("OPEN for reading", |world| {
        at_old(world, Operation::Open(open_in(OFlags::RDONLY)))
    }),
    ("READ", |world| {
        let opened = world.open(c"old", OFlags::RDONLY)?;
        at(opened.node, Operation::Read(read_in(opened.file)))
    }),
    ("WRITE", |world| write(world, OFlags::WRONLY, 1)),
    ("WRITE at the end", |world| {
        write(world, OFlags::WRONLY | OFlags::APPEND, 3)
    }),
    ("STATFS", |world| at_root(world, Operation::Statfs)),
    ("RELEASE", |world| {
        let opened = world.open(c"old", OFlags::RDWR)?;
        world.closes(opened.file);
        at(opened.node, Operation::Release(release_in(opened.file)))
    }),
    ("FSYNC", |world| {
        let opened = world.open(c"old", OFlags::RDWR)?;
        at(
            opened.node,
            Operation::Fsync(FsyncIn {
                fh: opened.file.get(),
                ..FsyncIn::default()
            }),
        )
    }),
    ("SETXATTR", |world| set_xattr(world, 0, XATTR)),
    ("SETXATTR of a new one", |world| {
        set_xattr(world, libc::XATTR_CREATE, c"user.new")
    }),
    ("SETXATTR of a new one, taken", |world| {
        set_xattr(world, libc::XATTR_CREATE, XATTR)
    }),
    ("SETXATTR of an old one", |world| {
        set_xattr(world, libc::XATTR_REPLACE, XATTR)
    }),
    ("GETXATTR", |world| {
        let args = GetxattrIn {
            size: 100,
            padding: 0,
        };
        at_old(world, Operation::Getxattr { args, name: XATTR })
    }),
    ("LISTXATTR", |world| {
        at_old(
            world,
            Operation::Listxattr(GetxattrIn {
                size: 100,
                padding: 0,
            }),
        )
    }),
    ("REMOVEXATTR", |world| {
        at_old(world, Operation::Removexattr { name: XATTR })
    }),
    ("REMOVEXATTR of nothing", |world| {
        at_old(world, Operation::Removexattr { name: c"user.new" })
    }),
    ("FLUSH", |world| {
        let opened = world.open(c"old", OFlags::RDWR)?;
        at(
            opened.node,
            Operation::Flush(FlushIn {
                fh: opened.file.get(),
                ..FlushIn::default()
            }),
        )
    }),
    ("INIT", |_| {
        let mut args = InitIn {
            major: 7,
            minor: 38,
            ..InitIn::default()
        };
        args.set_features(InitFlags::all() - InitFlags::INIT_RESERVED);
        at(NodeId::default(), Operation::Init(args))
    }),
    ("OPENDIR", |world| {
        at(world.find(c"full")?, Operation::Opendir(OpenIn::default()))
    }),
    ("READDIR", |world| {
        let opened = world.opendir(c"full")?;
        at(opened.node, Operation::Readdir(read_in(opened.file)))
    }),
    ("READDIRPLUS", |world| {
        let opened = world.opendir(c"full")?;
        at(opened.node, Operation::Readdirplus(read_in(opened.file)))
    }),
    ("RELEASEDIR", |world| {
        let opened = world.opendir(c"full")?;
        world.closes(opened.file);
        at(opened.node, Operation::Releasedir(release_in(opened.file)))
    }),
    ("FSYNCDIR", |world| {
        let opened = world.opendir(c"full")?;
        at(
            opened.node,
            Operation::Fsyncdir(FsyncIn {
                fh: opened.file.get(),
                ..FsyncIn::default()
            }),
        )
    }),
    ("GETLK", |world| {
        let opened = world.open(c"old", OFlags::RDWR)?;
        world
            .guest
            .setlk(opened, 1, libc::F_WRLCK.cast_unsigned())?;
        at(opened.node, Operation::Getlk(lock(opened.file, 2)))
    }),
    ("SETLK", |world| {
        let opened = world.open(c"old", OFlags::RDWR)?;
        at(opened.node, Operation::Setlk(lock(opened.file, 1)))
    }),
    ("SETLK of what another holds", |world| {
        let opened = world.open(c"old", OFlags::RDWR)?;
        world
            .guest
            .setlk(opened, 1, libc::F_WRLCK.cast_unsigned())?;
        at(opened.node, Operation::Setlk(lock(opened.file, 2)))
    }),
    ("SETLKW", |world| {
        let opened = world.open(c"old", OFlags::RDWR)?;
        at(opened.node, Operation::Setlkw(lock(opened.file, 1)))
    }),
    ("SETLKW that waits", |world| {
        let opened = world.open(c"old", OFlags::RDWR)?;
        world
            .guest
            .setlk(opened, 1, libc::F_WRLCK.cast_unsigned())?;
        let free = Operation::Setlk(unlock(opened.file, 1));
        Ok(Prepared {
            next: Some((opened.node, free)),
            ..at(opened.node, Operation::Setlkw(lock(opened.file, 2)))?
        })
    }),
    ("ACCESS", |world| {
        at_old(
            world,
            Operation::Access(AccessIn {
                mask: 4,
                padding: 0,
            }),
        )
    }),
    ("CREATE", |world| {
        at_root(world, create(c"new", OFlags::RDWR | OFlags::EXCL))
    }),
    ("CREATE of a name that is taken", |world| {
        at_root(world, create(c"old", OFlags::RDWR | OFlags::EXCL))
    }),
    ("CREATE of a name that may be taken", |world| {
        at_root(world, create(c"new", OFlags::RDWR))
    }),
    ("CREATE of a name that may be taken, and is", |world| {
        at_root(world, create(c"old", OFlags::RDWR))
    }),
    ("INTERRUPT", |_| {
        at(
            NodeId::default(),
            Operation::Interrupt(InterruptIn { unique: 4 }),
        )
    }),
    ("BMAP", |world| {
        at_old(world, Operation::Bmap(BmapIn::default()))
    }),
    ("DESTROY", |world| {
        world.known.clear();
        at(NodeId::default(), Operation::Destroy)
    }),
    ("IOCTL", |world| {
        at_old(world, Operation::Ioctl(IoctlIn::default()))
    }),
    ("IOCTL of flags", set_flags),
    ("POLL", |world| {
        at_old(world, Operation::Poll(PollIn::default()))
    }),
    ("NOTIFY_REPLY", |world| {
        at_old(world, Operation::NotifyReply(NotifyRetrieveIn::default()))
    }),
    ("FALLOCATE", |world| fallocate(world, 0)),
    ("FALLOCATE, insert", |world| {
        fallocate(world, libc::FALLOC_FL_INSERT_RANGE)
    }),
    ("FALLOCATE, collapse", |world| {
        fallocate(world, libc::FALLOC_FL_COLLAPSE_RANGE)
    }),
    ("LSEEK", |world| {
        let opened = world.open(c"old", OFlags::RDWR)?;
        let whence = libc::SEEK_HOLE.cast_unsigned();
        let args = LseekIn {
            fh: opened.file.get(),
            whence,
            ..LseekIn::default()
        };
        at(opened.node, Operation::Lseek(args))
    }),
    ("COPY_FILE_RANGE", |world| {
        let (from, args) = copy(world)?;
        at(from, Operation::CopyFileRange(args))
    }),
    ("COPY_FILE_RANGE_64", |world| {
        let (from, args) = copy(world)?;
        at(from, Operation::CopyFileRange64(args))
    }),
    ("SETUPMAPPING", |world| {
        at_old(world, Operation::Setupmapping(SetupmappingIn::default()))
    }),
    ("SYNCFS", |world| {
        at_root(world, Operation::Syncfs(SyncfsIn::default()))
    }),
    ("TMPFILE", |world| {
        let Operation::Create { args, .. } = create(c"/", OFlags::RDWR) else {
            anyhow::bail!("another operation");
        };
        at_root(world, Operation::Tmpfile { args, name: c"/" })
    }),
    ("STATX", |world| {
        let sx_mask = rustix::fs::StatxFlags::BASIC_STATS.bits();
        at_old(
            world,
            Operation::Statx(StatxIn {
                sx_mask,
                ..StatxIn::default()
            }),
        )
    }),
];
