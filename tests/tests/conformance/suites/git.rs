//! git: a repository cloned inside the guest is sound on both sides.

use std::time::Duration;

use anyhow::Result;
use gangplank_tests::git::{git, make_repository};

use crate::Fixture;

const FILES: usize = 400;

/// The guest clones, changes, commits and packs; both sides check every object.
pub(crate) fn clones_and_checks(fixture: &mut Fixture) -> Result<()> {
    fixture.debian()?;
    let source = fixture.host_path("debian/work/source");
    make_repository(&source, FILES)?;
    fixture.guest.sh_within(
        "cat >/mnt/debian/work/script <<'END'\n\
         set -e\n\
         export HOME=/work GIT_AUTHOR_NAME=g GIT_AUTHOR_EMAIL=g@g GIT_COMMITTER_NAME=g \
         GIT_COMMITTER_EMAIL=g@g\n\
         cd /work\n\
         git clone --quiet --no-local source clone\n\
         cd clone\n\
         git fsck --full --strict\n\
         test -z \"$(git status --porcelain)\"\n\
         echo changed >>dir-3/file-3\n\
         git rm --quiet -r dir-4\n\
         git commit --quiet -a -m changed\n\
         git gc --quiet\n\
         git fsck --full --strict\n\
         END\n\
         chroot /mnt/debian /bin/bash /work/script",
        Duration::from_secs(900),
    )?;
    let clone = fixture.host_path("debian/work/clone");
    git(&clone, &["fsck", "--full", "--strict"])?;
    git(&clone, &["diff", "--quiet", "HEAD"])?;
    git(&clone, &["diff", "--quiet", "HEAD~", "--", "dir-5"])?;
    Ok(())
}
