//! `--ownership=mapped`: apt installs, upgrades and purges packages in a guest whose root file
//! system is the share. An ordinary user runs daemon and guest.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine, Options, Role};
use gangplank_tests::process::User;
use gangplank_tests::{debian_tree, packages, tools};

use crate::LONG;

/// The accounts of Debian's base-passwd and apt that the packages need.
const PASSWD: &str = "man:x:6:12:man:/var/cache/man:/usr/sbin/nologin\n\
    _apt:x:42:65534::/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "man:x:12:\nshadow:x:42:\nutmp:x:43:\n";

/// Packages of Debian: one with a set-group-id program, and all that it depends on.
const DEBIANS: [&str; 3] = ["libutempter0", "libc6", "libgcc-s1"];

/// What the script of a package does when it is configured: owners that no archive has.
const POSTINST: &str = "#!/bin/sh\nset -e\n\
    mkdir -p /var/games/shanty\n\
    chown games:games /var/games/shanty\n\
    chmod 2775 /var/games/shanty\n\
    test \"$1\" = configure && echo \"configured $2\" >>/var/games/shanty/log\n";

/// What is in place after the installation: path, owner, permissions.
const INSTALLED: &[(&str, &str, &str)] = &[
    ("/usr/bin/shanty", "root:root", "4755"),
    ("/usr/games/shanty-score", "root:games", "2755"),
    ("/usr/share/shanty/man", "man:man", "755"),
    ("/usr/share/shanty/man/page", "man:man", "640"),
    ("/usr/share/shanty/other-name", "man:man", "640"),
    ("/etc/shanty.conf", "root:shadow", "640"),
    ("/var/games/shanty", "games:games", "2775"),
    ("/var/games/shanty/log", "root:games", "644"),
    ("/usr/lib/shanty/plugin", "root:root", "644"),
];

/// Makes a package of a directory with its files.
fn build(files: &Path, control: &str, repository: &Path) -> Result<PathBuf> {
    fs::create_dir_all(files.join("DEBIAN"))?;
    fs::write(files.join("DEBIAN/control"), control)?;
    packages::run(
        Command::new("dpkg-deb")
            .args(["--build", "-Zgzip"])
            .arg(files)
            .arg(repository),
    )?;
    let field = |name: &str| {
        let line = control.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).context("a package without a field")
    };
    let name = format!("{}_{}_all.deb", field("Package:")?, field("Version:")?);
    Ok(repository.join(name))
}

/// `shanty`, a program with all that makes owners and permissions matter, in one version.
fn build_shanty(version: &str, at: &Path, repository: &Path) -> Result<PathBuf> {
    let files = at.join(format!("shanty-{version}"));
    for directory in [
        "usr/bin",
        "usr/games",
        "usr/share/shanty/man",
        "etc",
        "DEBIAN",
    ] {
        fs::create_dir_all(files.join(directory))?;
    }
    for (name, owner, mode) in [
        ("usr/bin/shanty", (0, 0), 0o4755),
        ("usr/games/shanty-score", (0, 60), 0o2755),
        ("usr/share/shanty/man/page", (6, 12), 0o640),
        ("etc/shanty.conf", (0, 42), 0o640),
    ] {
        let path = files.join(name);
        fs::write(&path, format!("#!/bin/sh\necho {name} {version}\n"))?;
        chown(&path, Some(owner.0), Some(owner.1))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    chown(files.join("usr/share/shanty/man"), Some(6), Some(12))?;
    let share = files.join("usr/share/shanty");
    fs::hard_link(share.join("man/page"), share.join("other-name"))?;
    symlink("man/page", share.join("link"))?;
    fs::write(files.join("DEBIAN/conffiles"), "/etc/shanty.conf\n")?;
    let script = files.join("DEBIAN/postinst");
    fs::write(&script, POSTINST)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let control = format!(
        "Package: shanty\nVersion: {version}\nArchitecture: all\nDepends: shanty-plugin\n\
         Maintainer: Nobody <nobody@example.org>\nDescription: songs\n"
    );
    build(&files, &control, repository)
}

fn build_plugin(at: &Path, repository: &Path) -> Result<PathBuf> {
    let files = at.join("plugin");
    fs::create_dir_all(files.join("usr/lib/shanty"))?;
    fs::write(files.join("usr/lib/shanty/plugin"), "plugin\n")?;
    let control = "Package: shanty-plugin\nVersion: 1\nArchitecture: all\n\
                   Maintainer: Nobody <nobody@example.org>\nDescription: a plugin\n";
    build(&files, control, repository)
}

/// Writes the index of a repository for `debs`, which are in it.
fn index(repository: &Path, debs: &[PathBuf]) -> Result<()> {
    let mut index = String::new();
    for deb in debs {
        let control = packages::output(Command::new("dpkg-deb").arg("--field").arg(deb))?;
        let sum = packages::output(Command::new("sha256sum").arg(deb))?;
        let sum = sum.split(' ').next().unwrap_or_default();
        let name = deb.file_name().unwrap_or_default().to_string_lossy();
        let size = fs::metadata(deb)?.len();
        index += &format!(
            "{}\nFilename: ./{name}\nSize: {size}\nSHA256: {sum}\n\n",
            control.trim_end()
        );
    }
    Ok(fs::write(repository.join("Packages"), index)?)
}

/// Makes the tree a system in which apt has a repository, and no package is installed yet.
fn prepare(tree: &Path, at: &Path) -> Result<()> {
    for directory in [
        "srv/repository",
        "srv/update",
        "var/lib/dpkg/info",
        "var/lib/dpkg/updates",
        "var/lib/dpkg/triggers",
        "var/lib/apt/lists/partial",
        "var/cache/apt/archives/partial",
        "var/log/apt",
        "etc/apt/apt.conf.d",
        "etc/apt/preferences.d",
    ] {
        fs::create_dir_all(tree.join(directory))?;
    }
    for file in ["status", "available"] {
        fs::write(tree.join("var/lib/dpkg").join(file), "")?;
    }
    let (old, new) = (tree.join("srv/repository"), tree.join("srv/update"));
    let plugin = build_plugin(at, &old)?;
    let first = build_shanty("1.0", at, &old)?;
    let mut debs = vec![plugin, first];
    let arch = Machine::Uml.arch();
    let base = packages::first_dependency("libgcc-s1", arch)?;
    for name in DEBIANS.into_iter().chain([base.as_str()]) {
        let from = packages::fetch(name, arch)?;
        let to = old.join(from.file_name().context("a package without a name")?);
        fs::copy(from, &to)?;
        debs.push(to);
    }
    index(&old, &debs)?;
    let second = build_shanty("2.0", at, &new)?;
    index(&new, &[second])?;
    fs::write(
        tree.join("etc/apt/sources.list"),
        "deb [trusted=yes] file:/srv/repository ./\ndeb [trusted=yes] copy:/srv/update ./\n",
    )?;
    for (file, lines) in [("etc/passwd", PASSWD), ("etc/group", GROUP)] {
        let before = fs::read_to_string(tree.join(file))?;
        fs::write(tree.join(file), before + lines)?;
    }
    // apt downloads as its own user, who owns these.
    for directory in [
        "var/lib/apt/lists/partial",
        "var/cache/apt/archives/partial",
    ] {
        chown(tree.join(directory), Some(42), Some(0))?;
        fs::set_permissions(tree.join(directory), fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// What `stat` says of the installed files.
fn owners() -> (String, String) {
    let paths: Vec<&str> = INSTALLED.iter().map(|(path, ..)| *path).collect();
    let lines = INSTALLED
        .iter()
        .map(|(path, owner, mode)| format!("{path} {owner} {mode}\n"));
    (
        format!("stat -c '%n %U:%G %a' {}", paths.join(" ")),
        lines.collect(),
    )
}

pub(crate) fn installs() -> Result<()> {
    let parent = tempfile::Builder::new()
        .prefix("gangplank-apt-")
        .tempdir()?;
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755))?;
    let (tree, share) = (parent.path().join("tree"), parent.path().join("share"));
    debian_tree::copy_with(&tree, Machine::Uml.arch(), &["apt", "dpkg", "libc-bin"])?;
    prepare(&tree, parent.path())?;
    fs::create_dir(&share)?;
    let user = User::NOBODY;
    chown(&share, Some(user.uid), Some(user.gid))?;
    let options = daemon::Options::new(&share).user(user);
    let daemon = Daemon::start(&options.arguments(&["--ownership=mapped", "--sandbox=namespace"]))?;
    // The file client is the guest here that unpacks the system, with its owners.
    packages::run(
        Command::new(tools::frontend()?)
            .args(["fs", "--as=0:0", "--socket"])
            .arg(daemon.socket())
            .args(["cp", "-a"])
            .arg(format!("{}/.", tree.display()))
            .arg(":/"),
    )
    .with_context(|| daemon.log())?;

    let mut options = Options::new(Machine::Uml).share(daemon.socket(), TAG);
    options.user = Some(user);
    options.role = Role::Root(TAG.to_owned());
    let mut guest = Guest::boot(&options).with_context(|| daemon.log())?;
    let environment = "set -e; export DEBIAN_FRONTEND=noninteractive LC_ALL=C \
                       PATH=/usr/sbin:/usr/bin:/sbin:/bin; ";
    let run = |guest: &mut Guest, script: &str| {
        let ran = guest.sh_within(&format!("{environment}{script}"), LONG);
        ran.with_context(|| daemon.log())
    };
    run(
        &mut guest,
        "apt-get update && apt-get install -y shanty=1.0",
    )?;
    let (stat, expected) = owners();
    let found = run(&mut guest, &stat)?;
    ensure!(found == expected, "installed:\n{found}");
    let said = run(
        &mut guest,
        "/usr/bin/shanty; cat /usr/share/shanty/link; cat /var/games/shanty/log; \
         stat -c '%h' /usr/share/shanty/other-name",
    )?;
    let page = "#!/bin/sh\necho usr/share/shanty/man/page 1.0\n";
    ensure!(
        said == format!("usr/bin/shanty 1.0\n{page}configured \n2\n"),
        "{said}"
    );
    let query = "dpkg --verify && dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\\n'";
    let known = run(&mut guest, query)?;
    ensure!(
        known == "shanty 1.0 installed\nshanty-plugin 1 installed\n",
        "{known}"
    );
    // Packages of Debian, the C library among them.
    run(&mut guest, "apt-get install -y libutempter0")?;
    let helper = run(
        &mut guest,
        "dpkg --verify && dpkg --audit && stat -c '%U:%G %a' /usr/lib/*/utempter/utempter",
    )?;
    ensure!(helper == "root:utmp 2755\n", "{helper}");
    // dpkg finds what somebody changes.
    let changed = run(
        &mut guest,
        "echo x >>/usr/lib/shanty/plugin; dpkg --verify; true",
    )?;
    ensure!(changed.contains("/usr/lib/shanty/plugin"), "{changed}");
    guest.power_off()?;

    // After another boot: an upgrade keeps the configuration that was changed, and owners stay.
    let mut guest = Guest::boot(&options).with_context(|| daemon.log())?;
    run(
        &mut guest,
        "echo mine >>/etc/shanty.conf; apt-get install -y --reinstall shanty-plugin; \
         apt-get -y -o Dpkg::Options::=--force-confold dist-upgrade",
    )?;
    let found = run(&mut guest, &stat)?;
    ensure!(found == expected, "upgraded:\n{found}");
    let known = run(
        &mut guest,
        &query.replace("dpkg --verify &&", "dpkg --verify;"),
    )?;
    ensure!(
        known.contains(" c /etc/shanty.conf\n"),
        "the changed file: {known}"
    );
    ensure!(known.contains("shanty 2.0 installed\n"), "{known}");
    let changed = known.lines().filter(|line| line.contains('/')).count();
    ensure!(changed == 1, "only that file has changed: {known}");
    let kept = run(
        &mut guest,
        "tail -n 1 /etc/shanty.conf; /usr/bin/shanty; dpkg --audit",
    )?;
    ensure!(kept == "mine\nusr/bin/shanty 2.0\n", "{kept}");

    // tar takes what apt has installed out and in, with its owners.
    run(
        &mut guest,
        "cd /; tar -cf /tmp/out.tar etc usr/bin usr/games usr/sbin usr/share/shanty \
         usr/lib/shanty usr/libexec var; mkdir /tmp/in; tar -xpf /tmp/out.tar -C /tmp/in; \
         list() { (cd \"$1\"; find etc usr/bin usr/games usr/sbin usr/share/shanty \
         usr/lib/shanty usr/libexec var -exec stat -c '%n %u:%g %a %F %h' {} + | sort); }; \
         list / >/tmp/before; list /tmp/in >/tmp/after; diff /tmp/before /tmp/after; \
         test \"$(wc -l </tmp/after)\" -gt 500; for line in ' 0:60 2755 ' ' 6:12 640 ' \
         ' 0:42 640 ' ' 42:0 700 ' ' 5:60 2775 ' ' 0:0 4755 '; do \
         grep -q -e \"$line\" /tmp/after; done; rm -r /tmp/in /tmp/out.tar",
    )?;
    run(
        &mut guest,
        "apt-get purge -y shanty shanty-plugin; rm -r /var/games/shanty",
    )?;
    let left = run(
        &mut guest,
        "find / -xdev -name '*shanty*' -not -path '/srv/*' -not -path '/var/cache/apt/*'; \
         dpkg-query -W",
    )?;
    ensure!(!left.contains("shanty"), "left behind: {left}");
    guest.power_off()?;

    // The host has an ordinary user's files, and no set-id program.
    let program = fs::symlink_metadata(share.join("usr/bin/bash"))?;
    ensure!(
        program.uid() == user.uid && program.mode() & 0o6000 == 0,
        "{program:?}"
    );
    Ok(())
}
