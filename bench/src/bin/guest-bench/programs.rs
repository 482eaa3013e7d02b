//! Workloads that run programs: tar, git, a C compiler, fio.

use std::fs;
use std::process;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::transfers::{FILE, file_mib};
use crate::work_dir::WorkDir;
use crate::workload::{Measured, timed};

/// Files of the archive and of the repository.
const FILES: u32 = 1000;

/// C sources of the tree that is compiled.
const SOURCES: u32 = 24;

/// Makes an archive outside the measured directories, once for all of them. Several of these
/// programs may do so at once.
pub(crate) fn make_archive(dir: &WorkDir) -> Result<()> {
    if dir.aside("archive.tar").exists() {
        return Ok(());
    }
    let name = format!("archive-{}", process::id());
    let tree = dir.aside(&name);
    for number in 0..dir.scaled(FILES) {
        let directory = tree.join(format!("archived/{:02}", number % 50));
        fs::create_dir_all(&directory)?;
        let content = format!("line of file {number}\n").repeat(100);
        fs::write(directory.join(format!("file-{number}.txt")), content)?;
    }
    dir.shell(&format!(
        "cd /tmp && tar -C {name} -cf {name}.tar archived && mv {name}.tar archive.tar"
    ))?;
    Ok(fs::remove_dir_all(tree)?)
}

/// Unpacks the archive.
pub(crate) fn untar(dir: &WorkDir) -> Result<Measured> {
    let files = dir.scaled(FILES);
    timed(|| {
        dir.shell("tar -xf /tmp/archive.tar")?;
        Ok(files.into())
    })
}

/// Makes a repository and commits everything.
pub(crate) fn make_repository(dir: &WorkDir) -> Result<()> {
    make_archive(dir)?;
    dir.shell(
        "tar -xf /tmp/archive.tar && cd archived && git init -q . && git add . && \
             git -c user.name=g -c user.email=g@g commit -q -m all",
    )
    .map(drop)
}

/// Runs `git status` in the repository.
pub(crate) fn git_status(dir: &WorkDir) -> Result<Measured> {
    timed(|| {
        dir.shell("cd archived && test -z \"$(git -c safe.directory='*' status --porcelain)\"")?;
        Ok(1)
    })
}

/// Writes C sources with a common header.
pub(crate) fn make_sources(dir: &WorkDir) -> Result<()> {
    let sources = dir.scaled(SOURCES);
    fs::write(
        dir.path("common.h"),
        "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <errno.h>\n",
    )?;
    let mut calls = String::from("#include \"common.h\"\n");
    let mut body = String::from("int main(void) { int sum = 0;\n");
    for number in 0..sources {
        fs::write(
            dir.path(format!("part{number}.c")),
            format!(
                "#include \"common.h\"\nint part{number}(int x) {{ char b[64]; \
                 snprintf(b, sizeof b, \"%d\", x); return (int)strlen(b) + {number}; }}\n"
            ),
        )?;
        calls.push_str(&format!("int part{number}(int);\n"));
        body.push_str(&format!("sum += part{number}({number});\n"));
    }
    body.push_str("return sum == 0; }\n");
    fs::write(dir.path("main.c"), calls + &body)?;
    Ok(())
}

/// Compiles the sources one by one, links them, and runs the program.
pub(crate) fn compile(dir: &WorkDir) -> Result<Measured> {
    let files = dir.scaled(SOURCES) + 1;
    timed(|| {
        dir.shell(
            "for file in *.c; do tcc -c \"$file\" || exit; done && tcc -o program *.o && ./program",
        )?;
        Ok(files.into())
    })
}

pub(crate) fn fio_read_1m(dir: &WorkDir) -> Result<Measured> {
    fio(dir, "read", "1M")
}

pub(crate) fn fio_write_1m(dir: &WorkDir) -> Result<Measured> {
    fio(dir, "write", "1M")
}

pub(crate) fn fio_randread_4k(dir: &WorkDir) -> Result<Measured> {
    fio(dir, "randread", "4k")
}

pub(crate) fn fio_randwrite_4k(dir: &WorkDir) -> Result<Measured> {
    fio(dir, "randwrite", "4k")
}

/// Runs one fio job on the large file. fio takes the time.
fn fio(dir: &WorkDir, how: &str, block: &str) -> Result<Measured> {
    let told = dir.shell(&format!(
        "fio --name=bench --filename={FILE} --size={}M --rw={how} --bs={block} --ioengine=psync \
         --thread \
         --randseed=7 --end_fsync=1 --output-format=terse --terse-version=3",
        file_mib(dir)
    ))?;
    read_terse(&told).with_context(|| format!("fio said: {told}"))
}

/// Fields of fio's terse output (version 3, counted from 0): KiB and KiB/s of reads, then of
/// writes.
const AMOUNT_AND_RATE: [(usize, usize); 2] = [(5, 6), (46, 47)];

fn read_terse(told: &str) -> Option<Measured> {
    let fields: Vec<&str> = told
        .lines()
        .find(|line| line.starts_with("3;"))?
        .split(';')
        .collect();
    AMOUNT_AND_RATE.iter().find_map(|&(amount, rate)| {
        let kib: u32 = fields.get(amount)?.parse().ok()?;
        let rate: u32 = fields.get(rate)?.parse().ok()?;
        (kib > 0 && rate > 0).then(|| Measured {
            took: Duration::from_secs_f64(f64::from(kib) / f64::from(rate)),
            count: u64::from(kib) << 10,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terse_output_gives_what_was_moved_and_how_fast() {
        let mut fields = vec!["0"; 130];
        fields[0] = "3";
        fields[46] = "4096";
        fields[47] = "2048";
        let measured = read_terse(&fields.join(";")).unwrap();
        assert_eq!(measured.took, Duration::from_secs(2));
        assert_eq!(measured.count, 4 << 20);
        assert!(read_terse("fio: no such file").is_none());
    }
}
