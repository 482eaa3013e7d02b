//! What is typed, and what is refused.

use super::*;

fn parse(line: &str) -> Result<Args, EarlyExit> {
    Args::from_command_line(std::iter::once("gangplankd").chain(line.split_whitespace()))
}

#[test]
fn command_definition_is_consistent() {
    Args::command().debug_assert();
}

#[test]
fn wrong_value_is_named_with_what_would_be_right() {
    let long_tag = format!("--tag={}", "x".repeat(37));
    let table = [
        ("--cache=sometimes", "never, metadata, auto or always"),
        ("--sandbox=jail", "namespace, chroot or none"),
        ("--seccomp=maybe", "kill, log, trap or none"),
        ("--locks=both", "auto, host or guest"),
        ("--posix-acl=maybe", "never, auto or always"),
        ("--security-label=", "never, auto or always"),
        ("--posix-acl auto", "unexpected argument 'auto'"),
        ("--guest-arch=vax", "auto, x86_64 or aarch64"),
        ("--inode-file-handles=often", "never, prefer or mandatory"),
        ("--log-level=loud", "off, error, warn, info, debug or trace"),
        ("--busy-poll=10001", "10001 is not in 0..=10000"),
        ("--queue-size=1000", "power of two from 2 to 32768"),
        ("--queue-size=65536", "power of two from 2 to 32768"),
        ("--queue-size=1", "power of two from 2 to 32768"),
        ("--num-request-queues=0", "1..=63"),
        ("--num-request-queues=64", "1..=63"),
        ("--max-inode-memory=lots", "such as 8T, 512G"),
        ("--timeout=-1", "expected seconds"),
        ("--timeout=soon", "expected seconds"),
        ("--negative-timeout=inf", "expected seconds"),
        ("--fd=-1", "--fd"),
        ("--modcaps=chown", "+capability or -capability"),
        (long_tag.as_str(), "at most 36 bytes, this one has 37"),
        ("--tag=", "at least one byte"),
        ("--max-guest-memory=much", "such as 8T, 512G"),
        ("--max-guest-memory=0", "such as 8T, 512G"),
        ("--max-guest-memory=99999999T", "such as 8T, 512G"),
        ("--max-memory-regions=510", "1..=509"),
        ("--limit-iops=0", "not in 1.."),
        ("--limit-iops=many", "invalid digit"),
        ("--limit-iops-burst=10", "--limit-iops <N>"),
        ("--limit-bps=fast", "such as 8T, 512G"),
        ("--limit-bps-burst=1M", "--limit-bps <SIZE>"),
        ("--quota-bytes=all", "such as 8T, 512G"),
        ("--quota-bytes=0", "such as 8T, 512G"),
        ("--quota-inodes=0", "not in 1.."),
        ("--frobnicate", "--frobnicate"),
    ];
    for (line, hint) in table {
        let exit = parse(line).expect_err(line);
        let text = exit.0.to_string();
        assert!(text.contains(hint), "{line}: {text}");
        assert_eq!(exit.status(), 2, "{line}");
    }
}

#[test]
fn repeated_option_takes_the_last() {
    let args = parse("--cache=never --cache always --tag a --tag b").unwrap();
    assert_eq!(args.cache, CachePolicy::Always);
    assert_eq!(args.tag, "b");
}

#[test]
fn what_was_typed_is_told_by_long_names() {
    let line = "gangplankd --cache=never --readonly --cache always --modcaps=-chown -d \
                --translate-uid=map:0:1:1 --translate-uid map:2:3:1 --posix-acl \
                --announce-submounts --no-announce-submounts";
    let given = Args::given(line.split_whitespace()).unwrap();
    let mut words: Vec<String> = given
        .into_iter()
        .map(|(name, value)| {
            let name = name.unwrap_or_default();
            value.map_or(name.clone(), |value| {
                format!("{name}={}", value.to_string_lossy())
            })
        })
        .collect();
    words.sort();
    assert_eq!(
        words.join(" "),
        " cache=always modcaps=-chown no-announce-submounts posix-acl=always readonly \
         translate-uid=map:0:1:1 translate-uid=map:2:3:1"
    );
}

#[test]
fn an_error_in_one_line_says_what_is_wrong() {
    let exit = parse("--cache=sometimes").unwrap_err();
    assert!(exit.is_of_value());
    assert_eq!(
        exit.summary(),
        "invalid value 'sometimes' for '--cache <POLICY>': expected never, metadata, auto or \
         always"
    );
    let exit = parse("--limit-bps-burst=1M").unwrap_err();
    assert!(!exit.is_of_value());
    assert!(
        exit.summary().ends_with("--limit-bps <SIZE>"),
        "{}",
        exit.summary()
    );
}

#[test]
fn help_names_every_theme_and_succeeds() {
    let exit = parse("--help").unwrap_err();
    let text = exit.0.to_string();
    for heading in [
        SHARE,
        SOCKET,
        DEVICE,
        CACHE,
        FILES,
        CONFINEMENT,
        migration::HEADING,
        status::HEADING,
        shares::HEADING,
        LOGGING,
        DEPRECATED,
    ] {
        assert!(text.contains(&format!("{heading}:")), "{heading}");
    }
    assert_eq!(exit.status(), 0);
}
