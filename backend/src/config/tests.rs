use super::checks::migration;
use super::*;
use crate::args::MigrationArgs;
use crate::passthrough::id_map::IdMap;
use crate::passthrough::options::{GuestArch, InodeFileHandles, Locks};
use crate::sandbox::options::{Mode, Seccomp};
use crate::state::migration::MigrationMode;

fn config(line: &str) -> Result<Config, Error> {
    let words = std::iter::once("gangplankd").chain(line.split_whitespace());
    let args = Args::from_command_line(words).expect("the command line is well formed");
    Config::from_args(args)
}

/// The configuration of `line`, added to the shortest valid command line.
pub(super) fn with(line: &str) -> Config {
    config(&format!("--shared-dir /srv --socket-path /run/s {line}")).expect(line)
}

#[test]
fn least_command_line_gives_the_documented_defaults() {
    let config = with("");
    assert_eq!(config.shared_dir, PathBuf::from("/srv"));
    assert_eq!(
        config.socket,
        socket::Source::Path {
            path: "/run/s".into(),
            group: None
        }
    );
    assert!(!config.exit_on_disconnect);
    assert_eq!(config.keep_session(), Duration::from_secs(10));
    assert_eq!(config.device, device::Options::default());
    assert_eq!(config.passthrough, passthrough::Options::default());
    assert_eq!(config.quota, quota::Options::default());
    assert_eq!(config.sandbox, sandbox::Options::default());
    assert_eq!(config.logging.level, LevelFilter::Info);
    assert!(!config.logging.syslog);
    assert!(config.deprecations.is_empty());
}

#[test]
fn command_line_of_the_bao_demo_is_understood() {
    let config = config(
        "--socket-path=/root/Fs.sock --shared-dir /mnt --tag=myfs --announce-submounts \
         --sandbox chroot",
    )
    .unwrap();
    assert_eq!(config.shared_dir, PathBuf::from("/mnt"));
    assert_eq!(config.device.tag, "myfs");
    assert!(config.passthrough.announce_submounts);
    assert_eq!(config.sandbox.mode, Mode::Chroot);
}

#[test]
fn each_option_reaches_its_layer() {
    let config = with(
        "--tag=t --num-request-queues 4 --queue-size 256 --thread-pool-size=8 --xattr \
         --busy-poll=30 --max-guest-memory=16G --max-memory-regions=32 --max-threads=20 \
         --readonly --no-announce-submounts --inode-file-handles=mandatory --cache metadata \
         --timeout 0.5 --negative-timeout=2 --allow-mmap --events --no-readdirplus --writeback \
         --allow-direct-io --killpriv-v2 --locks=host --preserve-noatime \
         --translate-uid=map:0:1000:1 --translate-gid squash-guest:0:7:4294967295 \
         --guest-arch=aarch64 \
         --exit-on-disconnect --sandbox=none --seccomp=log --modcaps=+sys_admin \
         --rlimit-nofile=4096 --max-inode-memory=64M --log-level=trace --syslog \
         --limit-iops=500 --limit-bps=50M --limit-bps-burst=1M \
         --quota-bytes=10G --quota-inodes=1000 \
         --socket-group=kvm",
    );
    assert_eq!(
        config.device,
        device::Options {
            tag: "t".to_owned(),
            num_request_queues: 4,
            max_queue_size: 256,
            thread_pool_size: 8,
            thread_pool_grows: false,
            max_threads: 20,
            busy_poll: Duration::from_micros(30),
            limits: device::Limits {
                operations: Some(device::Rate {
                    per_second: 500,
                    burst: 50
                }),
                bytes: Some(device::Rate {
                    per_second: 50 << 20,
                    burst: 1 << 20
                }),
            },
            max_guest_memory: 16 << 30,
            max_memory_regions: 32,
            has_slots_for_qemu: true,
        }
    );
    assert_eq!(
        config.passthrough,
        passthrough::Options {
            cache: CachePolicy::Metadata,
            timeout: Some(Duration::from_millis(500)),
            negative_timeout: Duration::from_secs(2),
            xattr: true,
            readonly: true,
            announce_submounts: false,
            inode_file_handles: InodeFileHandles::Mandatory,
            events: true,
            allow_mmap: true,
            readdirplus: false,
            writeback: true,
            allow_direct_io: true,
            killpriv_v2: true,
            locks: Locks::Host,
            preserve_noatime: true,
            id_map: IdMap::new(
                &["map:0:1000:1".parse().unwrap()],
                &["squash-guest:0:7:4294967295".parse().unwrap()]
            )
            .unwrap(),
            guest_arch: Some(GuestArch::Aarch64),
            max_inode_memory: 64 << 20,
            ..passthrough::Options::default()
        }
    );
    assert_eq!(
        config.sandbox,
        sandbox::Options {
            mode: Mode::None,
            events: true,
            seccomp: Seccomp::Log,
            modcaps: "+sys_admin".parse().unwrap(),
            rlimit_nofile: Some(4096),
            ..sandbox::Options::default()
        }
    );
    assert_eq!(
        config.quota,
        quota::Options {
            bytes: Some(10 << 30),
            inodes: Some(1000)
        }
    );
    assert_eq!(config.logging.level, LevelFilter::Trace);
    assert!(config.logging.syslog);
    assert!(config.exit_on_disconnect);
    assert_eq!(
        config.socket,
        socket::Source::Path {
            path: "/run/s".into(),
            group: Some("kvm".to_owned())
        }
    );
}

#[test]
fn file_handles_need_no_check_of_paths() {
    for (mode, verify, confirm, refused) in [
        (MigrationMode::FindPaths, true, true, None),
        (MigrationMode::FileHandles, false, false, None),
        (
            MigrationMode::FileHandles,
            true,
            false,
            Some("verify-handles"),
        ),
        (
            MigrationMode::FileHandles,
            false,
            true,
            Some("confirm-paths"),
        ),
    ] {
        let checked = migration(&MigrationArgs {
            migration_mode: mode,
            migration_verify_handles: verify,
            migration_confirm_paths: confirm,
            ..MigrationArgs::default()
        });
        match (checked, refused) {
            (Ok(options), None) => {
                let got = (options.mode, options.verify_handles, options.confirm_paths);
                assert_eq!(got, (mode, verify, confirm));
            }
            (Err(error), Some(name)) => assert_eq!(
                error.to_string(),
                format!(
                    "--migration-{name} cannot be used together with \
                     --migration-mode=file-handles"
                )
            ),
            (checked, _) => panic!("{checked:?}, {refused:?}"),
        }
    }
}

#[test]
fn what_needs_extended_attributes_implies_them() {
    for line in [
        "--xattrmap=:map::user.virtiofs.:",
        "-o xattrmap=:map::user.virtiofs.:,no_xattr",
    ] {
        let options = with(line).passthrough;
        assert!(options.xattr && options.xattr_map.is_some(), "{line}");
    }
    for (line, acl, label) in [
        (
            "--posix-acl",
            NegotiationMode::Always,
            NegotiationMode::Never,
        ),
        (
            "--posix-acl=auto",
            NegotiationMode::Auto,
            NegotiationMode::Never,
        ),
        (
            "--security-label=auto --posix-acl=never",
            NegotiationMode::Never,
            NegotiationMode::Auto,
        ),
        (
            "-o security_label,posix_acl,no_posix_acl,no_xattr",
            NegotiationMode::Never,
            NegotiationMode::Always,
        ),
    ] {
        let options = with(line).passthrough;
        assert_eq!(
            (options.posix_acl, options.security_label),
            (acl, label),
            "{line}"
        );
        assert!(options.xattr, "{line}");
    }
    assert!(!with("--posix-acl=never").passthrough.xattr);
}

#[test]
fn opposite_flags_take_the_last() {
    let table: [(&str, bool, bool); 4] = [
        ("--announce-submounts --no-announce-submounts", false, false),
        ("--no-announce-submounts --announce-submounts", true, false),
        ("--no-killpriv-v2 --killpriv-v2", true, true),
        ("--killpriv-v2 --no-killpriv-v2", true, false),
    ];
    for (line, announce_submounts, killpriv_v2) in table {
        let options = with(line).passthrough;
        assert_eq!(options.announce_submounts, announce_submounts, "{line}");
        assert_eq!(options.killpriv_v2, killpriv_v2, "{line}");
    }
}

#[test]
fn a_level_that_is_given_in_any_way_is_known_to_be() {
    for (line, level) in [
        ("--log-level=warn", Some(LevelFilter::Warn)),
        ("-o loglevel=err", Some(LevelFilter::Error)),
        ("-o xattr,loglevel=debug", Some(LevelFilter::Debug)),
        ("-o xattr,debug", Some(LevelFilter::Debug)),
        ("-o log_level=err", Some(LevelFilter::Error)),
        ("-d", Some(LevelFilter::Debug)),
        ("--xattr", None),
    ] {
        let config = with(line);
        assert_eq!(config.is_log_level_given, level.is_some(), "{line}");
        assert_eq!(
            config.logging.level,
            level.unwrap_or(LevelFilter::Info),
            "{line}"
        );
    }
}

#[test]
fn readdirplus_without_cache_is_off() {
    assert!(!with("--cache=never").passthrough.readdirplus);
    assert!(with("--cache=metadata").passthrough.readdirplus);
}

#[test]
fn listening_descriptor_serves_one_guest() {
    let config = config("--shared-dir /srv --fd 3").unwrap();
    assert_eq!(config.socket, socket::Source::Fd(3));
    assert!(config.exit_on_disconnect);
}

#[test]
fn a_daemon_that_ends_with_its_guests_keeps_no_sessions() {
    let least = "--shared-dir /srv --socket-path /run/s";
    let keeps = |line: &str| config(line).unwrap().keep_session();
    assert_eq!(keeps(&format!("{least} --keep-session=3")).as_secs(), 3);
    for ending in [
        "--shared-dir /srv --fd 3".to_owned(),
        format!("{least} --exit-on-disconnect"),
    ] {
        assert!(keeps(&ending).is_zero());
        assert!(keeps(&format!("{ending} --keep-session=0")).is_zero());
        let error = config(&format!("{ending} --keep-session=1")).unwrap_err();
        assert!(error.to_string().contains("--keep-session"), "{error}");
    }
}

#[test]
fn deprecated_ways_work_and_are_noticed() {
    let config =
        config("--socket s -o source=/srv,cache=none -d -f --inode-file-handles=fallback").unwrap();
    assert_eq!(config.shared_dir, PathBuf::from("/srv"));
    assert_eq!(config.passthrough.cache, CachePolicy::Never);
    assert_eq!(config.logging.level, LevelFilter::Debug);
    assert_eq!(
        config.passthrough.inode_file_handles,
        InodeFileHandles::Prefer
    );
    assert_eq!(config.deprecations.len(), 5);
}

#[test]
fn contradictions_and_omissions_are_named() {
    let table = [
        ("--socket-path s", "--shared-dir"),
        ("--shared-dir /srv", "--socket-path"),
        (
            "--shared-dir /srv --socket-path s --fd 3",
            "--fd cannot be used together with --socket-path",
        ),
        (
            "--shared-dir /srv --socket s --fd 3",
            "--fd cannot be used together with --socket-path",
        ),
        (
            "--shared-dir /srv --socket s --events --readonly --cache=always",
            "--events cannot be used together with --readonly and --cache=always",
        ),
        (
            "--shared-dir /srv --fd 3 --socket-group kvm",
            "--socket-group cannot be used together with --fd",
        ),
        (
            "--shared-dir /srv --socket a --socket-path b",
            "different sockets",
        ),
        (
            "--shared-dir /srv --socket-path s --modcaps=-dac_read_search",
            "--inode-file-handles=never",
        ),
        (
            "--shared-dir /srv --socket-path s --thread-pool-size=8 --max-threads=10",
            "a guest needs 11",
        ),
        (
            "--shared-dir /srv --socket-path s --posix-acl=auto --translate-gid=map:0:1:1",
            "--translate-gid cannot be used together with --posix-acl",
        ),
        (
            "--shared-dir /srv --socket-path s --ownership=mapped --posix-acl=auto",
            "--posix-acl cannot be used together with --ownership=mapped",
        ),
        (
            "--shared-dir /srv --socket-path s --quota-inodes=9 --modcaps=+sys_resource",
            "sys_resource, which overrides --quota-inodes",
        ),
        (
            "--shared-dir /srv --socket-path s --sandbox=none --gid-map=:0:1:1:",
            "--gid-map cannot be used together with --sandbox=none",
        ),
        (
            "--shared-dir /srv --socket-path s --translate-gid=guest:0:1:9 \
             --translate-gid=map:8:1:1",
            "--translate-gid: 'guest:0:1:9' and 'map:8:1:1' translate the same guest id",
        ),
    ];
    for (line, hint) in table {
        let message = config(line).expect_err(line).to_string();
        assert!(message.contains(hint), "{line}: {message}");
    }
    with("--modcaps=-dac_read_search --inode-file-handles=never");
}
