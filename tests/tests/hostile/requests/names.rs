//! Names that are not one path component, and names without a terminating NUL.

use std::ffi::{CStr, CString};
use std::fs;

use anyhow::{Result, ensure};
use gangplank_fuse::{
    CreateIn, LinkIn, MkdirIn, MknodIn, NodeId, Opcode, Operation, Rename2In, RenameIn,
};
use gangplank_tests::driver::fixture::Fixture;
use rustix::io::Errno;

use super::{errno, request, send, with_guest};

/// Every operation with a name, with this one.
fn all_with_name(name: &CStr) -> Vec<Operation<'_>> {
    let good = c"good";
    vec![
        Operation::Lookup { name },
        Operation::Create {
            args: CreateIn {
                flags: 2,
                mode: 0o100_644,
                ..CreateIn::default()
            },
            name,
        },
        Operation::Mkdir {
            args: MkdirIn {
                mode: 0o755,
                umask: 0,
            },
            name,
        },
        Operation::Mknod {
            args: MknodIn {
                mode: 0o100_644,
                ..MknodIn::default()
            },
            name,
        },
        Operation::Symlink {
            name,
            target: c"/etc/passwd",
        },
        Operation::Unlink { name },
        Operation::Rmdir { name },
        Operation::Link {
            args: LinkIn { oldnodeid: 1 },
            name,
        },
        Operation::Rename {
            args: RenameIn { newdir: 1 },
            name,
            new_name: good,
        },
        Operation::Rename {
            args: RenameIn { newdir: 1 },
            name: good,
            new_name: name,
        },
        Operation::Rename2 {
            args: Rename2In {
                newdir: 1,
                flags: 2,
                padding: 0,
            },
            name,
            new_name: good,
        },
        Operation::Rename2 {
            args: Rename2In {
                newdir: 1,
                flags: 2,
                padding: 0,
            },
            name: good,
            new_name: name,
        },
    ]
}

#[test]
fn names_that_are_not_one_component_are_refused() -> Result<()> {
    with_guest(&[], |guest, fixture| {
        fs::write(fixture.share().join("good"), "good")?;
        fs::write(fixture.outside().join("secret"), "secret")?;
        let before = listing(fixture)?;
        for name in [
            c"",
            c".",
            c"..",
            c"/",
            c"a/b",
            c"../outside/secret",
            c"/etc/passwd",
            c"good/",
            c"./good",
            c"//",
            c"..//",
        ] {
            for operation in all_with_name(name) {
                let answer = errno(guest, NodeId::ROOT, operation, &[], 512)?;
                ensure!(answer == Some(Errno::INVAL), "{operation:?}: {answer:?}");
            }
        }
        for len in [256, 1000, 4095, 4096, 64 * 1024] {
            let name = CString::new(vec![b'n'; len])?;
            for operation in all_with_name(&name) {
                let answer = errno(guest, NodeId::ROOT, operation, &[], 512)?;
                ensure!(
                    answer == Some(Errno::NAMETOOLONG),
                    "{len} bytes of name: {answer:?}"
                );
            }
        }
        ensure!(
            listing(fixture)? == before,
            "a bad name has made or removed something"
        );
        Ok(())
    })
}

/// The names in and beside the share, without the neighbour's.
fn listing(fixture: &Fixture) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for dir in [fixture.share(), fixture.outside()] {
        for entry in fs::read_dir(dir)? {
            names.push(entry?.path().display().to_string());
        }
    }
    names.sort();
    Ok(names)
}

#[test]
fn names_without_or_with_inner_nul_are_invalid() -> Result<()> {
    with_guest(&["malformed request"], |guest, fixture| {
        fs::write(fixture.share().join("good"), "good")?;
        let bad: [&[u8]; 6] = [b"good", b"", b"go\0od\0", b"\0", b"good\0\0", b"\0good\0"];
        for name in bad {
            for opcode in [
                Opcode::Lookup,
                Opcode::Unlink,
                Opcode::Rmdir,
                Opcode::Removexattr,
            ] {
                let answer = send(guest, &request(opcode as u32, 1, name))?;
                ensure!(
                    matches!(
                        answer,
                        Some(
                            Errno::INVAL
                                | Errno::NOENT
                                | Errno::NODATA
                                | Errno::NOSYS
                                | Errno::RANGE
                        )
                    ),
                    "{opcode:?} {name:?}: {answer:?}"
                );
            }
        }
        let long = vec![b'x'; 64 * 1024];
        let answer = send(guest, &request(Opcode::Lookup as u32, 1, &long))?;
        ensure!(
            answer == Some(Errno::INVAL),
            "64 KiB without a NUL: {answer:?}"
        );
        ensure!(
            fixture.share().join("good").exists(),
            "a bad name has removed a good one"
        );
        Ok(())
    })
}
