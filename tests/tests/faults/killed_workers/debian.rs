//! Programs that need the Debian tree: their scripts, and what they must have left.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gangplank_tests::git::make_repository;
use gangplank_tests::guest::Guest;
use gangplank_tests::guest_work::FIO_SCRIPT;
use gangplank_tests::{debian_tree, tools};

/// Files of the repository that the guest clones.
const FILES: usize = 60;

/// Each script goes on until `/dev/shm/end` exists.
const SCRIPTS: [(&str, &str); 5] = [
    ("fio.sh", FIO_SCRIPT),
    (
        "sqlite.sh",
        "n=0\n\
         while ! test -e /dev/shm/end; do\n\
         sqlite3 -cmd '.timeout 100000' /work/database \"BEGIN IMMEDIATE; \
         UPDATE counter SET n = n + 1; INSERT INTO line SELECT n, '$1' FROM counter; COMMIT;\" || \
         exit 1\n\
         n=$((n+1))\n\
         done\n\
         echo $n >/dev/shm/sqlite-$1\n",
    ),
    (
        "flock.sh",
        "n=0\n\
         while ! test -e /dev/shm/end; do\n\
         ( flock 9 && c=$(cat /work/flock-counter) && echo $((c+1)) >/work/flock-counter ) \
         9>>/work/flock-lock || exit 1\n\
         n=$((n+1))\n\
         done\n\
         echo $n >/dev/shm/flock-$1\n",
    ),
    (
        "git.sh",
        "set -e\n\
         export HOME=/work GIT_AUTHOR_NAME=g GIT_AUTHOR_EMAIL=g@g GIT_COMMITTER_NAME=g \
         GIT_COMMITTER_EMAIL=g@g\n\
         cd /work\n\
         while ! test -e /dev/shm/end; do\n\
         rm -rf clone\n\
         git clone --quiet --no-local source clone\n\
         cd clone\n\
         git fsck --full --strict\n\
         test -z \"$(git status --porcelain)\"\n\
         echo changed >>dir-3/file-3\n\
         git commit --quiet -a -m changed\n\
         git fsck --full --strict\n\
         cd ..\n\
         done\n",
    ),
    (
        "pjdfstest.sh",
        "while ! test -e /dev/shm/end; do\n\
         /work/pjdfstest -c /work/pjdfstest.toml -p /work/pjd-guest >>/dev/shm/pjdfstest.out 2>&1\n\
         done\n\
         true\n",
    ),
];

/// Prepares the share, before the guest has mounted it.
pub(crate) fn prepare(share: &Path, guest: &Guest) -> Result<()> {
    let tree = share.join("debian");
    debian_tree::copy_to(&tree, guest.machine().arch())?;
    let work = tree.join("work");
    fs::create_dir(&work)?;
    for (name, script) in SCRIPTS {
        fs::write(work.join(name), script)?;
    }
    fs::write(work.join("flock-counter"), "0\n")?;
    fs::write(work.join("pjdfstest.toml"), tools::PJDFSTEST_CONFIGURATION)?;
    fs::copy(tools::pjdfstest()?, work.join("pjdfstest"))?;
    fs::create_dir(work.join("pjd-guest"))?;
    make_repository(&work.join("source"), FILES)
}

/// Prepares the tree in the guest, which has mounted the share.
pub(crate) fn enter(guest: &mut Guest) -> Result<()> {
    guest.sh(
        "mount -t proc proc /mnt/debian/proc && mount -o bind /dev /mnt/debian/dev && \
         mount -o bind /dev/shm /mnt/debian/dev/shm && \
         chroot /mnt/debian sqlite3 /work/database 'CREATE TABLE counter (n INTEGER); \
         INSERT INTO counter VALUES (0); CREATE TABLE line (n INTEGER PRIMARY KEY, who TEXT);'",
    )?;
    Ok(())
}

/// A number that a program has left in the guest.
pub(crate) fn number(guest: &mut Guest, file: &str) -> Result<u64> {
    let text = guest.sh(&format!("cat {file}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("{file}: {text}"))
}

/// Checks what the programs have left: no transaction and no locked change is lost or doubled, and
/// each test of pjdfstest ends as on the host. Returns what was done.
pub(crate) fn check(guest: &mut Guest, share: &Path) -> Result<String> {
    let work = share.join("debian/work");
    let locked = number(guest, "/dev/shm/flock-one")? + number(guest, "/dev/shm/flock-two")?;
    let counted = fs::read_to_string(work.join("flock-counter"))?;
    ensure!(
        counted.trim() == locked.to_string(),
        "{locked} times a file was locked, and {counted} were counted"
    );
    let stored = number(guest, "/dev/shm/sqlite-one")? + number(guest, "/dev/shm/sqlite-two")?;
    let told = guest.sh(
        "chroot /mnt/debian sqlite3 /work/database 'PRAGMA integrity_check; \
         SELECT n FROM counter; SELECT count(*) FROM line; SELECT max(n) FROM line;'",
    )?;
    let expected = format!("ok\n{stored}\n{stored}\n{stored}");
    ensure!(
        told.trim() == expected,
        "after {stored} transactions, the database has {told:?}"
    );
    let report = guest.sh("cat /dev/shm/pjdfstest.out")?;
    let (passed, failed) = verdicts(&report);
    ensure!(passed > 100, "pjdfstest has passed only {passed} tests");
    let on_host = match failed.is_empty() {
        true => BTreeSet::new(),
        false => pjdfstest_on_host(share)?,
    };
    let worse: Vec<&String> = failed.difference(&on_host).collect();
    ensure!(
        worse.is_empty(),
        "tests that pass on the host failed: {worse:?}\n{report}"
    );
    Ok(format!(
        "{locked} flocks, {stored} transactions, {passed} tests of pjdfstest"
    ))
}

/// The tests of pjdfstest that fail on the host.
fn pjdfstest_on_host(share: &Path) -> Result<BTreeSet<String>> {
    let path = share.join("pjdfstest");
    fs::create_dir(&path)?;
    let configuration = share.join("debian/work/pjdfstest.toml");
    let done = Command::new(tools::pjdfstest()?)
        .arg("-c")
        .arg(configuration)
        .arg("-p")
        .arg(&path)
        .args(["-s", "/dev/shm"])
        .output()
        .context("running pjdfstest on the host")?;
    let (passed, failed) = verdicts(&String::from_utf8_lossy(&done.stdout));
    ensure!(passed > 300, "only {passed} tests pass on the host");
    Ok(failed)
}

/// The number of tests that passed, and the names of those that failed.
fn verdicts(report: &str) -> (usize, BTreeSet<String>) {
    let mut passed = 0;
    let mut failed = BTreeSet::new();
    for line in report.lines() {
        let mut words = line.split_whitespace();
        let Some(name) = words.next().filter(|name| name.contains("::")) else {
            continue;
        };
        match words.next() {
            Some("ok") => passed += 1,
            Some("FAILED") => {
                failed.insert(name.to_owned());
            }
            _ => {}
        }
    }
    (passed, failed)
}
