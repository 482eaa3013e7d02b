//! git: a repository cloned inside the guest is sound on both sides.

use std::time::Duration;

use anyhow::Result;
use gangplank_tests::git::{clone_in_guest, git, make_repository};

use crate::Fixture;

const FILES: usize = 400;

/// The guest clones, changes, commits and packs; both sides check every object.
pub(crate) fn clones_and_checks(fixture: &mut Fixture) -> Result<()> {
    fixture.debian()?;
    let source = fixture.host_path("debian/work/source");
    make_repository(&source, FILES)?;
    fixture.guest.sh_within(
        &clone_in_guest(
            "/mnt/debian",
            &[
                "test -z \"$(git status --porcelain)\"",
                "echo changed >>dir-3/file-3",
                "git rm --quiet -r dir-4",
                "git commit --quiet -a -m changed",
                "git gc --quiet",
                "git fsck --full --strict",
            ],
        ),
        Duration::from_secs(900),
    )?;
    let clone = fixture.host_path("debian/work/clone");
    git(&clone, &["fsck", "--full", "--strict"])?;
    git(&clone, &["diff", "--quiet", "HEAD"])?;
    git(&clone, &["diff", "--quiet", "HEAD~", "--", "dir-5"])?;
    Ok(())
}
