//! The workloads by name: preparation, timed work and unit.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::work_dir::WorkDir;
use crate::{names, programs, transfers};

/// The result of a run.
pub(crate) struct Measured {
    /// Its duration.
    pub(crate) took: Duration,
    /// The number of units.
    pub(crate) count: u64,
}

/// One workload.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// What [`Measured::count`] counts.
    pub(crate) unit: &'static str,
    /// Whether the guest's caches are dropped before it.
    pub(crate) cold: bool,
    /// Whether each run uses up the preparation.
    pub(crate) consumes: bool,
    pub(crate) prepare: fn(&WorkDir) -> Result<()>,
    pub(crate) run: fn(&WorkDir) -> Result<Measured>,
}

/// Times `work`, which returns its number of units.
pub(crate) fn timed(work: impl FnOnce() -> Result<u64>) -> Result<Measured> {
    let started = Instant::now();
    let count = work()?;
    Ok(Measured {
        took: started.elapsed(),
        count,
    })
}

fn nothing(_: &WorkDir) -> Result<()> {
    Ok(())
}

const fn workload(
    name: &'static str,
    unit: &'static str,
    prepare: fn(&WorkDir) -> Result<()>,
    run: fn(&WorkDir) -> Result<Measured>,
) -> Workload {
    Workload {
        name,
        unit,
        cold: false,
        consumes: true,
        prepare,
        run,
    }
}

const fn cold(mut workload: Workload) -> Workload {
    workload.cold = true;
    workload.consumes = false;
    workload
}

const fn warm(mut workload: Workload) -> Workload {
    workload.consumes = false;
    workload
}

/// All workloads, in the order of the results.
pub(crate) static WORKLOADS: &[Workload] = &[
    workload("untar", "files", programs::make_archive, programs::untar),
    cold(workload("find", "entries", names::make_tree, names::find)),
    warm(workload(
        "find-again",
        "entries",
        names::make_tree,
        names::find,
    )),
    cold(workload(
        "ls-lR",
        "entries",
        names::make_tree,
        names::list_long,
    )),
    cold(workload("cat", "files", names::make_small, names::cat)),
    warm(workload(
        "cat-again",
        "files",
        names::make_small,
        names::cat,
    )),
    cold(workload(
        "git-status",
        "runs",
        programs::make_repository,
        programs::git_status,
    )),
    warm(workload(
        "git-status-again",
        "runs",
        programs::make_repository,
        programs::git_status,
    )),
    workload(
        "compile",
        "files",
        programs::make_sources,
        programs::compile,
    ),
    workload("create", "files", nothing, names::create),
    workload("create-many", "files", nothing, names::create_many),
    workload(
        "tree-made-and-removed",
        "files",
        nothing,
        names::tree_made_and_removed,
    ),
    workload("chmod-tree", "entries", names::make_tree, names::chmod_tree),
    warm(workload("stat", "calls", names::make_small, names::stat)),
    warm(workload("missing", "calls", nothing, names::missing)),
    workload("rename", "calls", names::make_small, names::rename),
    workload("unlink", "files", names::make_small, names::unlink),
    workload("mkdir", "directories", nothing, names::mkdir),
    workload(
        "remove-tree",
        "entries",
        names::make_tree,
        names::remove_tree,
    ),
    workload("append", "writes", nothing, transfers::append),
    workload("fsync", "calls", nothing, transfers::fsync),
    workload(
        "sequential-write",
        "bytes",
        nothing,
        transfers::sequential_write,
    ),
    cold(workload(
        "sequential-read",
        "bytes",
        transfers::make_file,
        transfers::sequential_read,
    )),
    warm(workload(
        "sequential-read-again",
        "bytes",
        transfers::make_file,
        transfers::sequential_read,
    )),
    cold(workload(
        "fio-read-1m",
        "bytes",
        transfers::make_file,
        programs::fio_read_1m,
    )),
    workload("fio-write-1m", "bytes", nothing, programs::fio_write_1m),
    cold(workload(
        "fio-randread-4k",
        "bytes",
        transfers::make_file,
        programs::fio_randread_4k,
    )),
    workload(
        "fio-randwrite-4k",
        "bytes",
        transfers::make_file,
        programs::fio_randwrite_4k,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_does_on_the_host_what_it_says() {
        let directory = tempfile::tempdir().unwrap();
        for workload in WORKLOADS {
            // Workloads that run programs need root and a system tree; a run of the benchmark
            // covers them.
            if workload.name.contains("fio")
                || ["untar", "compile"].contains(&workload.name)
                || workload.name.starts_with("git")
            {
                continue;
            }
            let dir = WorkDir::new(
                "host".to_owned(),
                directory.path().to_owned(),
                "/".into(),
                1,
                false,
            );
            dir.clear().unwrap();
            (workload.prepare)(&dir).unwrap();
            let measured = (workload.run)(&dir).unwrap();
            assert!(measured.count > 0, "{}", workload.name);
        }
    }
}
