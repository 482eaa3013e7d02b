//! Test suites of other projects on the NFS mount: fsx, git, pjdfstest.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use gangplank_tests::debian_tree;
use gangplank_tests::git::{clone_in_guest, git as git_in, make_repository};
use gangplank_tests::runner::note;
use gangplank_tests::tools;

use crate::Fixture;

/// Limit for a suite.
const LIMIT: Duration = Duration::from_secs(900);

/// Operations of fsx that NFSv3 has: no allocation, no holes, no copies on the server.
const FSX: &str = r"
flen = 1048576

[opsize]
max = 131072

[weights]
close_open = 1.0
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 0.0
punch_hole = 0.0
sendfile = 1.0
posix_fadvise = 1.0
copy_file_range = 0.0
";

pub(crate) fn fsx(fixture: &mut Fixture) -> Result<()> {
    fs::write(fixture.host_path("fsx.toml"), FSX)?;
    fixture.guest.sh_within(
        "cd /nfs && fsx -f fsx.toml -N 5000 -S 42 -P /tmp fsx-file && rm fsx-file",
        LIMIT,
    )?;
    Ok(())
}

/// A Debian tree on the share, which the guest sees by NFS.
fn debian(fixture: &mut Fixture) -> Result<()> {
    let tree = fixture.host_path("debian");
    if tree.exists() {
        return Ok(());
    }
    debian_tree::copy_to(&tree, fixture.guest.machine().arch())?;
    fixture
        .guest
        .sh(
            "mount -t proc proc /nfs/debian/proc && mount -o bind /dev /nfs/debian/dev && \
             mount -o bind /dev/shm /nfs/debian/dev/shm && mkdir -p /nfs/debian/work",
        )
        .map(drop)
}

/// The guest clones, changes, commits and packs a repository by NFS; both sides check every object.
pub(crate) fn git(fixture: &mut Fixture) -> Result<()> {
    debian(fixture)?;
    make_repository(&fixture.host_path("debian/work/source"), 100)?;
    fixture.guest.sh_within(
        &clone_in_guest(
            "/nfs/debian",
            &[
                "test -z \"$(git status --porcelain)\"",
                "echo changed >>dir-3/file-3",
                "git commit --quiet -a -m changed",
                "git gc --quiet",
                "git fsck --full --strict",
            ],
        ),
        LIMIT,
    )?;
    let clone = fixture.host_path("debian/work/clone");
    git_in(&clone, &["fsck", "--full", "--strict"])?;
    git_in(&clone, &["diff", "--quiet", "HEAD"])?;
    Ok(())
}

/// What NFSv3 cannot do, by the test's name.
const EXPECTED: &[&str] = &[
    // NFSv3 has no allocation.
    "posix_fallocate::affected_only_create_flags",
    "posix_fallocate::increase_empty",
    "posix_fallocate::increase_not_empty",
    "posix_fallocate::update_ctime_success",
    // The client renames a file that is removed while it is open. So it still has a name.
    "unlink::open_file_not_freed",
    // Times are 32 bits, unsigned: until 2106.
    "utimensat::y2038",
    // The suite takes the C library's limit of links. Fails on the host as well.
    "link::link_count_max",
];

/// pjdfstest passes by NFS, but for what NFSv3 cannot do.
pub(crate) fn pjdfstest(fixture: &mut Fixture) -> Result<()> {
    debian(fixture)?;
    let work = fixture.host_path("debian/work");
    fs::write(work.join("pjdfstest.toml"), tools::PJDFSTEST_CONFIGURATION)?;
    fs::copy(tools::pjdfstest()?, work.join("pjdfstest"))?;
    fs::create_dir_all(work.join("pjd-guest"))?;
    let output = fixture.guest.run(
        "chroot /nfs/debian /work/pjdfstest -c /work/pjdfstest.toml -p /work/pjd-guest -s /dev/shm",
        LIMIT,
    )?;
    let verdict = |word: &str| -> BTreeSet<&str> {
        let lines = output.text.lines().filter(|line| line.ends_with(word));
        let names = lines.filter_map(|line| line.split_whitespace().next());
        names.filter(|name| name.contains("::")).collect()
    };
    let (passed, failed) = (verdict(" ok"), verdict("FAILED"));
    note(&format!("{} passed, {} failed", passed.len(), failed.len()));
    let unexpected: Vec<_> = failed
        .iter()
        .filter(|name| !EXPECTED.contains(name))
        .collect();
    ensure!(unexpected.is_empty(), "{unexpected:#?}\n{}", output.text);
    ensure!(passed.len() > 300, "{}", output.text);
    Ok(())
}
