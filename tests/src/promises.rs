//! What the options of the daemon promise, tried in a guest that has mounted the share on `/mnt`
//! and the programs for it on `/tools`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::XattrFlags;

use crate::cache;
use crate::daemon::{self, Daemon};
use crate::guest::{self, Guest};
use crate::packages::{self, Arch};
use crate::process::User;

/// The first id outside of a namespace: of a user's further ids (subuid(5)), and of a container.
pub const FIRST_SUB_ID: u32 = 200_000;

/// The tag of the programs' share.
const PROGRAMS_TAG: &str = "tools";

/// Fails unless a promise is kept.
pub type Promise = fn(&mut Tried<'_>) -> Result<()>;

/// A share with the programs for guests of x86-64, which they can only read.
pub struct Programs(Daemon);

impl Programs {
    /// Shares them. `user` runs the guest; `None` is the caller.
    ///
    /// # Errors
    /// The programs cannot be had, or the daemon does not start.
    pub fn share(user: Option<User>) -> Result<Self> {
        let options = daemon::Options::new(&programs()?).tag(PROGRAMS_TAG);
        let daemon = Daemon::start(&options.arguments(&["--readonly", "--cache=always"]))?;
        if let Some(user) = user {
            let socket = daemon.socket();
            for path in socket.ancestors().take(2) {
                chown(path, Some(user.uid), Some(user.gid))?;
            }
        }
        Ok(Self(daemon))
    }

    /// The options of a guest that has the programs as well.
    #[must_use]
    pub fn add_to(&self, options: guest::Options) -> guest::Options {
        options.share(self.0.socket(), PROGRAMS_TAG)
    }

    /// Mounts the programs in a guest that has mounted the share, unless it has them already.
    ///
    /// # Errors
    /// The guest cannot mount them.
    pub fn mount(guest: &mut Guest) -> Result<()> {
        let mounted = guest.run("grep -q ' /tools/mnt ' /proc/mounts", guest::USUAL)?;
        if mounted.status == 0 {
            return Ok(());
        }
        guest.mount(PROGRAMS_TAG, "/tools")?;
        guest.sh("mount --bind /mnt /tools/mnt").map(drop)
    }
}

/// A directory with programs for guests and their libraries.
fn programs() -> Result<PathBuf> {
    cache::once("option-tools-2", |tree| {
        let tools = ["acl", "attr", "coreutils", "util-linux", "e2fsprogs"];
        packages::unpack_closure(&tools, Arch::Amd64, tree)?;
        fs::create_dir_all(tree.join("mnt")).context("making the mount point of the share")
    })
}

/// A guest and its share on the host.
pub struct Tried<'a> {
    /// The guest, which has the programs.
    pub guest: &'a mut Guest,
    /// The share.
    pub share: &'a Path,
    /// The user and the group of the host that root of the guest is.
    pub owner: u32,
}

impl Tried<'_> {
    /// Runs shell text that has to succeed, in the share. `t PROGRAM` runs a tool, whose paths
    /// must be absolute.
    ///
    /// # Errors
    /// It fails.
    pub fn sh(&mut self, command: &str) -> Result<String> {
        self.guest.sh(&format!(
            "t() {{ chroot /tools \"$@\"; }}; \
                 no() {{ if \"$@\"; then echo \"succeeded: $*\"; exit 1; fi; }}; \
                 cd /mnt; set -e; {command}"
        ))
    }

    /// Owner and group of a file on the host.
    fn owner_of(&self, name: &str) -> Result<(u32, u32)> {
        let path = self.share.join(name);
        let file = fs::symlink_metadata(&path).with_context(|| path.display().to_string())?;
        Ok((file.uid(), file.gid()))
    }
}

/// Files and directories appear on both sides.
///
/// # Errors
/// It is not so.
pub fn shares_files(tried: &mut Tried<'_>) -> Result<()> {
    tried.sh(
        "mkdir d; echo 1 >d/f; mv d/f d/g; ln -s g d/l; test \"$(cat d/l)\" = 1; rm d/l; sync; \
         test \"$(ls d)\" = g",
    )?;
    ensure!(fs::read_to_string(tried.share.join("d/g"))? == "1\n");
    ensure!(tried.owner_of("d/g")? == (tried.owner, tried.owner));
    fs::write(tried.share.join("from-host"), "2\n")?;
    ensure!(tried.sh("cat from-host")? == "2\n");
    Ok(())
}

/// Nothing can be changed.
///
/// # Errors
/// It is not so.
pub fn is_read_only(tried: &mut Tried<'_>) -> Result<()> {
    fs::write(tried.share.join("from-host"), "2\n")?;
    ensure!(tried.sh("cat from-host")? == "2\n");
    tried.sh("touch new 2>&1 | grep 'Read-only file system'")?;
    Ok(())
}

/// A guest's users own what they make on the host.
///
/// # Errors
/// It is not so.
pub fn users_own_files(tried: &mut Tried<'_>) -> Result<()> {
    tried
        .sh("chmod 777 .; su games -c 'echo x >/mnt/games'; touch given; chown 1000:1001 given")?;
    let base = tried.owner;
    ensure!(
        tried.owner_of("games")? == (base + 5, base + 60),
        "{:?}",
        tried.owner_of("games")
    );
    ensure!(
        tried.owner_of("given")? == (base + 1000, base + 1001),
        "{:?}",
        tried.owner_of("given")
    );
    ensure!(tried.sh("stat -c %u:%g games given")? == "5:60\n1000:1001\n");
    Ok(())
}

/// The guest's root is the user who runs the daemon, and all others are the user's further ids.
///
/// # Errors
/// It is not so.
pub fn root_is_the_user(tried: &mut Tried<'_>) -> Result<()> {
    tried.sh(
        "ls -ldn . | grep -q ' 0  *0 '; touch own; chmod 777 .; su games -c 'echo x >/mnt/games'; \
         touch given; chown 1000:1001 given",
    )?;
    let own = tried.owner;
    ensure!(
        tried.owner_of("own")? == (own, own),
        "{:?}",
        tried.owner_of("own")
    );
    // Id 1 of the namespace is the first.
    let sub = |id: u32| FIRST_SUB_ID + id - 1;
    ensure!(
        tried.owner_of("games")? == (sub(5), sub(60)),
        "{:?}",
        tried.owner_of("games")
    );
    ensure!(
        tried.owner_of("given")? == (sub(1000), sub(1001)),
        "{:?}",
        tried.owner_of("given")
    );
    ensure!(tried.sh("stat -c %u:%g own games given")? == "0:0\n5:60\n1000:1001\n");
    Ok(())
}

/// Only the user who runs the daemon owns files, and chown says so.
///
/// # Errors
/// It is not so.
pub fn nobody_else_owns_files(tried: &mut Tried<'_>) -> Result<()> {
    tried.sh(
        "touch own; { chown 1000 own 2>&1 || true; } | grep 'Operation not permitted'; \
         chmod 777 .; su games -c 'echo x >/mnt/games'",
    )?;
    let own = tried.owner;
    ensure!(tried.owner_of("own")? == (own, own) && tried.owner_of("games")? == (own, own));
    Ok(())
}

/// User 1000 of the guest reads what the host has, and owns what it makes.
///
/// # Errors
/// It is not so.
pub fn user_1000_owns_files(tried: &mut Tried<'_>) -> Result<()> {
    owns_files(tried, 1000)
}

/// The same of `nobody`.
///
/// # Errors
/// It is not so.
pub fn nobody_owns_files(tried: &mut Tried<'_>) -> Result<()> {
    owns_files(tried, 65534)
}

fn owns_files(tried: &mut Tried<'_>, user: u32) -> Result<()> {
    fs::set_permissions(tried.share, fs::Permissions::from_mode(0o777))?;
    let path = tried.share.join("from-host");
    fs::write(&path, "of the host")?;
    chown(&path, Some(tried.owner), Some(tried.owner))?;
    let seen = tried.sh(&format!(
        "t chroot --userspec={user}:{user} / cp /mnt/from-host /mnt/made; stat -c %u:%g made"
    ))?;
    ensure!(seen == format!("{user}:{user}\n"), "the guest sees {seen}");
    ensure!(fs::read_to_string(tried.share.join("made"))? == "of the host");
    Ok(())
}

/// Whoever makes a file in the guest, it is user 1000's on the host, and the guest sees that.
///
/// # Errors
/// It is not so.
pub fn all_files_are_user_1000s(tried: &mut Tried<'_>) -> Result<()> {
    fs::set_permissions(tried.share, fs::Permissions::from_mode(0o777))?;
    let seen = tried.sh("touch own; su games -c 'echo x >/mnt/games'; stat -c %u:%g own games")?;
    ensure!(seen == "1000:1000\n1000:1000\n", "the guest sees {seen}");
    for name in ["own", "games"] {
        let owner = tried.owner_of(name)?;
        ensure!(owner == (1000, 1000), "{name}: {owner:?}");
    }
    Ok(())
}

/// Extended attributes are the host's.
///
/// # Errors
/// It is not so.
pub fn has_xattrs(tried: &mut Tried<'_>) -> Result<()> {
    tried.sh(
        "touch x; t setfattr -n user.a -v b /mnt/x; t getfattr -d /mnt/x | grep 'user.a=\"b\"'; \
         t setfattr -x user.a /mnt/x; test -z \"$(t getfattr -d /mnt/x)\"",
    )?;
    Ok(())
}

/// A lock that a program of the host holds is held in the guest as well.
///
/// # Errors
/// It is not so.
pub fn has_locks_of_the_host(tried: &mut Tried<'_>) -> Result<()> {
    let path = tried.share.join("locked");
    let held = fs::File::create(&path)?;
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive)?;
    tried.sh("no t flock -n /mnt/locked true")?;
    drop(held);
    tried.sh("t flock -n /mnt/locked true")?;
    Ok(())
}

/// Attributes of guests have other names on the host, and guests see no others. File capabilities
/// go when the file changes.
///
/// # Errors
/// It is not so.
pub fn hides_the_hosts_xattrs(tried: &mut Tried<'_>) -> Result<()> {
    let own = tried.share.join("own");
    fs::write(&own, "")?;
    rustix::fs::setxattr(&own, c"user.own", b"1", XattrFlags::empty())?;
    tried.sh(
        "test -z \"$(t getfattr -d -m - /mnt/own)\"; t setfattr -n trusted.a -v b /mnt/own; \
         t getfattr -d -m - /mnt/own | grep 'trusted.a=\"b\"'",
    )?;
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(&own, c"user.virtiofs.trusted.a", &mut value)?;
    ensure!(value.get(..length) == Some(b"b".as_slice()));
    // cap_net_raw+ep, revision 2 (`linux/capability.h`).
    tried.sh(
        "t setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 /mnt/own; \
         t getfattr -m - /mnt/own | grep security.capability; echo x >>own; \
         test -z \"$(t getfattr -m - /mnt/own | grep security.capability)\"",
    )?;
    let name = c"user.virtiofs.security.capability";
    ensure!(rustix::fs::getxattr(&own, name, &mut value).is_err());
    Ok(())
}

/// A guest's root keeps attributes that the host would not let the daemon's user set.
///
/// # Errors
/// It is not so.
pub fn keeps_trusted_xattrs(tried: &mut Tried<'_>) -> Result<()> {
    tried.sh(
        "touch x; t setfattr -n trusted.a -v b /mnt/x; t setfattr -n user.a -v c /mnt/x; \
         t getfattr -d -m - /mnt/x | grep 'trusted.a=\"b\"'; \
         no t setfattr -n user.vm.trusted.a -v c /mnt/x",
    )?;
    let mut value = [0; 8];
    for name in [c"user.vm.trusted.a", c"user.a"] {
        rustix::fs::getxattr(tried.share.join("x"), name, &mut value)?;
    }
    Ok(())
}

/// Users of the guest are others on the host.
///
/// # Errors
/// It is not so.
pub fn has_translated_owners(tried: &mut Tried<'_>) -> Result<()> {
    chown(tried.share, Some(FIRST_SUB_ID), Some(FIRST_SUB_ID))?;
    tried.sh(
        "chmod 777 .; touch own; su games -c 'echo x >/mnt/games'; touch given; \
         chown 1000:1001 given",
    )?;
    for (name, owner) in [("own", (0, 0)), ("games", (5, 60)), ("given", (1000, 1001))] {
        let expected = (FIRST_SUB_ID + owner.0, FIRST_SUB_ID + owner.1);
        ensure!(
            tried.owner_of(name)? == expected,
            "{name}: {:?}",
            tried.owner_of(name)
        );
    }
    ensure!(tried.sh("stat -c %u:%g . own games given")? == "0:0\n0:0\n5:60\n1000:1001\n");
    Ok(())
}

/// Users of the guest that have no other on the host own nothing.
///
/// # Errors
/// It is not so.
pub fn forbids_other_owners(tried: &mut Tried<'_>) -> Result<()> {
    tried.sh("touch own; { chown 70000 own 2>&1 || true; } | grep 'Operation not permitted'")?;
    Ok(())
}

/// Access control lists are kept, inherited and enforced.
///
/// # Errors
/// It is not so.
pub fn has_acls(tried: &mut Tried<'_>) -> Result<()> {
    tried.sh(
        "mkdir acls; chmod 700 acls; t setfacl -m u:5:rwx,d:u:5:rw /mnt/acls; umask 077; \
         echo secret >acls/file; mkdir acls/below; umask 022; \
         t getfacl -n /mnt/acls/file | grep '^user:5:rw-'; \
         t getfacl -n /mnt/acls/below | grep '^default:user:5:rw-'; \
         test \"$(stat -c %a acls/file)\" = 660; \
         test \"$(su games -c 'cat /mnt/acls/file')\" = secret; \
         su games -c 'echo x >/mnt/acls/file'; \
         no su daemon -c 'cat /mnt/acls/file'",
    )?;
    let acl = c"system.posix_acl_access";
    let length = rustix::fs::getxattr(tried.share.join("acls/file"), acl, &mut [0; 200])?;
    ensure!(length > 4, "the host has the list");
    tried.sh(
        "t setfacl -x u:5 /mnt/acls/file; no su games -c 'cat /mnt/acls/file'; \
         t setfacl -b /mnt/acls; test -z \"$(t getfacl -n /mnt/acls | grep user:5)\"; \
         t setfattr -n user.a -v b /mnt/acls/file; \
         test -z \"$(t getfattr -m - /mnt/acls | grep posix_acl)\"; rm -r acls",
    )?;
    Ok(())
}

/// A list of another user's file keeps the file's set-group-ID bit.
///
/// # Errors
/// It is not so.
pub fn acls_keep_set_group_id(tried: &mut Tried<'_>) -> Result<()> {
    tried.sh("touch sgid; chown games:games sgid; chmod 2775 sgid; \
         t setfacl -m u:1:r /mnt/sgid; test \"$(stat -c %a sgid)\" = 2775; rm sgid")?;
    Ok(())
}

/// In a namespace of one user, no list can name another: the guest is told so, and lists that name
/// nobody are kept.
///
/// # Errors
/// It is not so.
pub fn acls_name_no_other_user(tried: &mut Tried<'_>) -> Result<()> {
    tried.sh(
        "mkdir acls; { t setfacl -m u:5:rwx /mnt/acls 2>&1 || true; } | grep 'Invalid argument'; \
         t setfacl -m d:g::r,d:o::- /mnt/acls; umask 0; touch acls/file; umask 022; \
         test \"$(stat -c %a acls/file)\" = 640; rm -r acls",
    )?;
    Ok(())
}

/// The flags of files are the host's, and root may make a file immutable, if the daemon may.
///
/// # Errors
/// It is not so.
pub fn has_file_flags(tried: &mut Tried<'_>) -> Result<()> {
    tried.sh(
        "touch f; mkdir flags; t lsattr -d /mnt/flags /mnt/f || { touch unsupported; exit 0; }; \
         t chattr +d /mnt/f /mnt/flags; t lsattr /mnt/f | grep '^[^ ]*d'; \
         t lsattr -d /mnt/flags | grep '^[^ ]*d'; \
         t chattr +i /mnt/f; t lsattr /mnt/f | grep '^[^ ]*i'; no sh -c 'echo x >/mnt/f'; \
         no rm f; t chattr -i /mnt/f; echo x >f; rm f; t lsattr -p -d /mnt/flags",
    )?;
    ensure!(
        !tried.share.join("unsupported").exists(),
        "the file system of the temporary directory has no flags"
    );
    Ok(())
}
