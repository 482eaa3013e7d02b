//! Attributes of files that only ioctl(2) reaches: flags, projects, fs-verity and fscrypt. They go
//! through a daemon that runs beside this program, so that both sides are compared. The file system
//! below the share has to have all of them.
#![allow(unsafe_code, reason = "ioctl with these commands has no safe wrapper")]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::{Driver, NodeAndFile, Setup};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// The word that asks for these checks.
pub(crate) const FILE_ATTRIBUTES: &str = "--file-attributes";

/// `FS_IOC_GETFLAGS`, `FS_IOC_SETFLAGS`, `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR`
/// (`include/uapi/linux/fs.h`).
const GET_FLAGS: u32 = 0x8008_6601;
const SET_FLAGS: u32 = 0x4008_6602;
const GET_ATTRIBUTES: u32 = 0x801c_581f;
const SET_ATTRIBUTES: u32 = 0x401c_5820;

/// `FS_IMMUTABLE_FL` and `FS_NODUMP_FL`.
const IMMUTABLE: u32 = 0x10;
const NODUMP: u32 = 0x40;

/// `struct fsxattr`: its bytes, where the project is, and `FS_XFLAG_PROJINHERIT` in the second
/// byte.
const ATTRIBUTES_LEN: usize = 28;
const PROJECT: std::ops::Range<usize> = 12..16;
const PASSED_ON: u8 = 2;

/// `FS_IOC_ENABLE_VERITY` and `FS_IOC_MEASURE_VERITY` (`include/uapi/linux/fsverity.h`).
const ENABLE_VERITY: u32 = 0x4080_6685;
const MEASURE_VERITY: u32 = 0xc004_6686;

/// Bytes of `struct fsverity_digest` with the longest digest, and with SHA-256.
const DIGEST_ROOM: usize = 4 + 64;
const SHA256_DIGEST: usize = 4 + 32;

/// `FS_IOC_SET_ENCRYPTION_POLICY`, `FS_IOC_GET_ENCRYPTION_POLICY_EX` and
/// `FS_IOC_ADD_ENCRYPTION_KEY` (`include/uapi/linux/fscrypt.h`).
const SET_POLICY: u32 = 0x800c_6613;
const GET_POLICY: u32 = 0xc009_6616;
const ADD_KEY: u32 = 0xc050_6617;

/// Bytes of `struct fscrypt_policy_v2`.
const POLICY_LEN: usize = 24;

/// Checks the attributes of files in `share`, the directory that the daemon at `socket` shares.
pub(crate) fn agree(share: &Path, socket: &str) -> Result<()> {
    let mut guest = Driver::mount(Path::new(socket), &Setup::default())?;
    flags(&mut guest, share).context("flags")?;
    projects(&mut guest, share).context("projects")?;
    digests(&mut guest, share).context("fs-verity")?;
    policies(&mut guest, share).context("fscrypt")
}

/// Flags that the guest sets are on the host, and the host's kernel keeps what they promise.
fn flags(guest: &mut Driver, share: &Path) -> Result<()> {
    let file = guest.create(NodeId::ROOT, c"flagged", 0o644)?;
    let on_host = File::open(share.join("flagged"))?;
    let before = number(&guest.ioctl(file, GET_FLAGS, &[], 4)?)?;
    for flags in [before | NODUMP, before | IMMUTABLE, before] {
        guest
            .ioctl(file, SET_FLAGS, &flags.to_ne_bytes(), 0)
            .with_context(|| format!("setting {flags:#x}"))?;
        let seen = number(&guest.ioctl(file, GET_FLAGS, &[], 4)?)?;
        let host = number(&on_the_host(&on_host, GET_FLAGS, &[0; 8])?)?;
        ensure!(
            seen == flags && host == flags,
            "{flags:#x} is {seen:#x} in the guest, {host:#x} on the host"
        );
        if flags & IMMUTABLE != 0 {
            let refused = guest.unlink(NodeId::ROOT, c"flagged");
            ensure!(
                refused
                    .as_ref()
                    .is_err_and(|error| error.errno() == Some(Errno::PERM)),
                "an immutable file: {refused:?}"
            );
        }
    }
    Ok(guest.unlink(NodeId::ROOT, c"flagged")?)
}

/// A file gets a project, and a directory passes its project on.
fn projects(guest: &mut Driver, share: &Path) -> Result<()> {
    let file = guest.create(NodeId::ROOT, c"counted", 0o644)?;
    let mut attributes = guest.ioctl(file, GET_ATTRIBUTES, &[], ATTRIBUTES_LEN)?;
    ensure!(project(&attributes)? == 0, "{attributes:?}");
    put_project(&mut attributes, 77)?;
    guest.ioctl(file, SET_ATTRIBUTES, &attributes, 0)?;
    let seen = project(&guest.ioctl(file, GET_ATTRIBUTES, &[], ATTRIBUTES_LEN)?)?;
    let host = project_on_the_host(&share.join("counted"))?;
    ensure!(
        (seen, host) == (77, 77),
        "{seen} in the guest, {host} on the host"
    );

    let node = NodeId::new(guest.mkdir(NodeId::ROOT, c"project")?.nodeid);
    let directory = NodeAndFile {
        node,
        file: guest.opendir(node)?,
    };
    let mut attributes = guest.ioctl(directory, GET_ATTRIBUTES, &[], ATTRIBUTES_LEN)?;
    put_project(&mut attributes, 78)?;
    *attributes.get_mut(1).context("no flags")? |= PASSED_ON;
    guest.ioctl(directory, SET_ATTRIBUTES, &attributes, 0)?;
    guest.create(node, c"file", 0o644)?;
    let host = project_on_the_host(&share.join("project/file"))?;
    ensure!(
        host == 78,
        "the directory's project is 78, its file's {host}"
    );
    Ok(())
}

/// The guest reads the digest of a file that fs-verity protects, and cannot write to the file.
fn digests(guest: &mut Driver, share: &Path) -> Result<()> {
    fs::write(share.join("sealed"), vec![7; 10_000])?;
    let on_host = File::open(share.join("sealed"))?;
    // `struct fsverity_enable_arg`: version 1, SHA-256, blocks of 4096 bytes, no salt.
    let mut enable = [0; 128];
    for (at, value) in [(0, 1u32), (4, 1), (8, 4096)] {
        put(&mut enable, at, value)?;
    }
    on_the_host(&on_host, ENABLE_VERITY, &enable).context("enabling it on the host")?;
    let room = u32::try_from(DIGEST_ROOM - 4)?;
    let mut measure = [0; DIGEST_ROOM];
    put(&mut measure, 0, room << 16)?;
    let host = on_the_host(&on_host, MEASURE_VERITY, &measure)?;

    let sealed = open(guest, c"sealed")?;
    // Linux sends the header with the room that a program has.
    let header = (room << 16).to_ne_bytes();
    let seen = guest.ioctl(sealed, MEASURE_VERITY, &header, DIGEST_ROOM)?;
    ensure!(
        seen.get(..SHA256_DIGEST) == host.get(..SHA256_DIGEST)
            && seen.get(..4) == Some(&[1, 0, 32, 0]),
        "the guest reads {seen:?}, the host {host:?}"
    );
    fails(
        guest.ioctl(sealed, MEASURE_VERITY, &header, SHA256_DIGEST - 1),
        Errno::OVERFLOW,
    )?;
    fails(guest.open(sealed.node, OFlags::RDWR), Errno::PERM)?;
    let plain = guest.create(NodeId::ROOT, c"unsealed", 0o644)?;
    fails(
        guest.ioctl(plain, MEASURE_VERITY, &header, DIGEST_ROOM),
        Errno::NODATA,
    )
}

/// The guest reads the encryption policy of a directory, and of what it makes there.
fn policies(guest: &mut Driver, share: &Path) -> Result<()> {
    let policy = encrypt(&share.join("encrypted"))?;
    let directory = NodeId::new(guest.lookup(NodeId::ROOT, c"encrypted")?.nodeid);
    let made = guest.create(directory, c"secret", 0o600)?;
    guest.write(made, 0, b"secret")?;
    let opened = NodeAndFile {
        node: directory,
        file: guest.opendir(directory)?,
    };
    let header = (POLICY_LEN as u64).to_ne_bytes();
    for (what, name) in [(opened, "directory"), (made, "file")] {
        let seen = guest
            .ioctl(what, GET_POLICY, &header, 8 + POLICY_LEN)
            .context(name)?;
        ensure!(
            seen == [&header[..], &policy].concat(),
            "the {name}'s policy is {policy:?}, the guest reads {seen:?}"
        );
    }
    fails(
        guest.ioctl(opened, GET_POLICY, &header, 8 + POLICY_LEN - 1),
        Errno::OVERFLOW,
    )?;
    let plain = open(guest, c"unsealed")?;
    fails(
        guest.ioctl(plain, GET_POLICY, &header, 8 + POLICY_LEN),
        Errno::NODATA,
    )?;
    let written = fs::read(share.join("encrypted/secret"))?;
    ensure!(written == b"secret", "{written:?}");
    Ok(())
}

/// Makes a directory whose files are encrypted. Returns its policy.
fn encrypt(path: &Path) -> Result<[u8; POLICY_LEN]> {
    const IDENTIFIER: std::ops::Range<usize> = 8..24;
    fs::create_dir(path)?;
    let directory = File::open(path)?;
    // `struct fscrypt_add_key_arg`: a key of 64 bytes, to which the kernel gives an identifier.
    let mut key = [5; 80 + 64];
    key[..80].fill(0);
    put(&mut key, 0, 2)?;
    put(&mut key, 40, 64)?;
    let added = on_the_host(&directory, ADD_KEY, &key).context("adding a key on the host")?;
    // `struct fscrypt_policy_v2`: version, AES-256-XTS, AES-256-CTS, names padded to 32 bytes.
    let mut policy = [0; POLICY_LEN];
    policy[..4].copy_from_slice(&[2, 1, 4, 3]);
    let identifier = added.get(IDENTIFIER).context("no identifier")?;
    policy[8..].copy_from_slice(identifier);
    on_the_host(&directory, SET_POLICY, &policy).context("setting a policy on the host")?;
    Ok(policy)
}

fn open(guest: &mut Driver, name: &std::ffi::CStr) -> Result<NodeAndFile> {
    let node = NodeId::new(guest.lookup(NodeId::ROOT, name)?.nodeid);
    Ok(NodeAndFile {
        node,
        file: guest.open(node, OFlags::RDONLY)?,
    })
}

fn fails<T: std::fmt::Debug>(
    done: gangplank_tests::driver::Result<T>,
    expected: Errno,
) -> Result<()> {
    let errno = done.as_ref().err().and_then(|error| error.errno());
    ensure!(
        errno == Some(expected),
        "{expected:?} was expected: {done:?}"
    );
    Ok(())
}

fn put(bytes: &mut [u8], at: usize, value: u32) -> Result<()> {
    let target = bytes.get_mut(at..at + 4).context("no room")?;
    target.copy_from_slice(&value.to_ne_bytes());
    Ok(())
}

fn number(bytes: &[u8]) -> Result<u32> {
    let bytes = bytes.get(..4).context("no number")?;
    Ok(u32::from_ne_bytes(bytes.try_into()?))
}

fn project(attributes: &[u8]) -> Result<u32> {
    number(attributes.get(PROJECT).context("no project")?)
}

fn put_project(attributes: &mut [u8], project: u32) -> Result<()> {
    put(attributes, PROJECT.start, project)
}

fn project_on_the_host(path: &Path) -> Result<u32> {
    let file = File::open(path)?;
    project(&on_the_host(&file, GET_ATTRIBUTES, &[0; ATTRIBUTES_LEN])?)
}

/// ioctl(2) on a file of the host. Returns its argument as it is then.
fn on_the_host(file: &File, command: u32, argument: &[u8]) -> Result<Vec<u8>> {
    let mut argument = argument.to_vec();
    #[cfg(target_env = "musl")]
    let command = command.cast_signed();
    #[cfg(not(target_env = "musl"))]
    let command = libc::c_ulong::from(command);
    // SAFETY: each command of this module reads and writes at most as many bytes as its callers
    // give it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), command, argument.as_mut_ptr()) };
    match result {
        0.. => Ok(argument),
        _ => Err(io::Error::last_os_error().into()),
    }
}
