//! Converting between the ids of guests and those of the host (`--translate-uid`,
//! `--translate-gid`).
//!
//! This is the only module that converts them. Each direction has ranges of its own, which need not
//! be each other's inverse. An id in no range is the same number on both sides.

use std::fmt;
use std::io;
use std::str::FromStr;

use thiserror::Error;

use crate::session::file_system::{GuestGid, GuestUid};
use crate::sys::ids::{HostGid, HostUid};

/// One `--translate-uid` or `--translate-gid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRule {
    kind: Kind,
    /// First id of the translated range. Of [`Kind::Map`]: in the guest.
    first: u32,
    /// What `first` becomes. Of [`Kind::ForbidGuest`]: 0.
    target: u32,
    /// Number of ids.
    count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Guest,
    Host,
    SquashGuest,
    SquashHost,
    Map,
    ForbidGuest,
}

impl Kind {
    const ALL: [(&'static str, Self); 6] = [
        ("guest", Self::Guest),
        ("host", Self::Host),
        ("squash-guest", Self::SquashGuest),
        ("squash-host", Self::SquashHost),
        ("map", Self::Map),
        ("forbid-guest", Self::ForbidGuest),
    ];

    const fn numbers(self) -> usize {
        match self {
            Self::ForbidGuest => 2,
            _ => 3,
        }
    }
}

impl FromStr for IdRule {
    type Err = String;

    /// Reads `TYPE:NUMBER:NUMBER[:NUMBER]`. The separator may be any character that no type has.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_of_type =
            |character: char| character.is_alphanumeric() || matches!(character, '-' | '_');
        let separator = text.find(|character| !is_of_type(character));
        let (name, rest) = text.split_at(separator.unwrap_or(text.len()));
        let lower = name.to_lowercase();
        let Some((_, kind)) = Kind::ALL.into_iter().find(|(known, _)| *known == lower) else {
            return Err(format!(
                "'{name}' is not a type: expected guest, host, squash-guest, squash-host, map or \
                 forbid-guest"
            ));
        };
        let mut rest = rest.chars();
        let separator = rest.next().unwrap_or(':');
        let numbers = match rest.as_str() {
            "" => Vec::new(),
            rest => rest
                .split(separator)
                .map(|number| number.parse::<u32>())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| {
                    format!(
                        "expected numbers from 0 to {} after '{name}{separator}'",
                        u32::MAX
                    )
                })?,
        };
        let (first, target, count) = match numbers[..] {
            [first, count] if kind.numbers() == 2 => (first, 0, count),
            [first, target, count] if kind.numbers() == 3 => (first, target, count),
            _ => {
                return Err(format!(
                    "{name} takes {} numbers, here are {}",
                    kind.numbers(),
                    numbers.len()
                ));
            }
        };
        Ok(Self {
            kind,
            first,
            target,
            count,
        })
    }
}

impl fmt::Display for IdRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, kind) in Kind::ALL {
            if kind == self.kind {
                f.write_str(name)?;
            }
        }
        let Self {
            first,
            target,
            count,
            ..
        } = self;
        match self.kind {
            Kind::ForbidGuest => write!(f, ":{first}:{count}"),
            _ => write!(f, ":{first}:{target}:{count}"),
        }
    }
}

/// A rule that cannot be applied.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IdMapError {
    /// A range goes beyond the greatest id.
    #[error("'{0}' goes beyond the greatest id, {max}", max = u32::MAX - 1)]
    TooLong(IdRule),
    /// Two rules of the same direction have an id in common.
    #[error("'{0}' and '{1}' translate the same {2} id")]
    Overlap(IdRule, IdRule, &'static str),
}

/// The id map of a share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap {
    users: Translation,
    groups: Translation,
}

impl IdMap {
    /// The map that the rules for users and for groups describe.
    ///
    /// # Errors
    /// For the first rule that does not fit: whether it is for users, and the reason.
    pub fn new(users: &[IdRule], groups: &[IdRule]) -> Result<Self, (bool, IdMapError)> {
        Ok(Self {
            users: Translation::new(users).map_err(|error| (true, error))?,
            groups: Translation::new(groups).map_err(|error| (false, error))?,
        })
    }

    /// The host's id of a guest's user.
    ///
    /// # Errors
    /// EPERM: a rule forbids the id.
    pub(super) fn host_uid(&self, uid: GuestUid) -> io::Result<HostUid> {
        Ok(HostUid::new(self.users.to_host.translate(uid.get())?))
    }

    /// The host's id of a guest's group.
    ///
    /// # Errors
    /// EPERM: a rule forbids the id.
    pub(super) fn host_gid(&self, gid: GuestGid) -> io::Result<HostGid> {
        Ok(HostGid::new(self.groups.to_host.translate(gid.get())?))
    }

    /// The guest's id of a user of the host.
    pub(super) fn guest_uid(&self, uid: HostUid) -> GuestUid {
        let translated = self.users.to_guest.translate(uid.get());
        // No rule forbids an id of the host.
        GuestUid::new(translated.unwrap_or(uid.get()))
    }

    /// The guest's id of a group of the host.
    pub(super) fn guest_gid(&self, gid: HostGid) -> GuestGid {
        let translated = self.groups.to_guest.translate(gid.get());
        GuestGid::new(translated.unwrap_or(gid.get()))
    }
}

/// Both directions of one kind of ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Translation {
    to_host: Ranges,
    to_guest: Ranges,
}

impl Translation {
    fn new(rules: &[IdRule]) -> Result<Self, IdMapError> {
        let (mut to_host, mut to_guest) = (Vec::new(), Vec::new());
        for rule in rules {
            let IdRule {
                kind,
                first,
                target,
                ..
            } = *rule;
            match kind {
                Kind::Guest => {
                    to_host.push((Range::new(rule, first, Action::Shift(target))?, *rule))
                }
                Kind::Host => {
                    to_guest.push((Range::new(rule, first, Action::Shift(target))?, *rule))
                }
                Kind::SquashGuest => {
                    to_host.push((Range::new(rule, first, Action::Squash(target))?, *rule));
                }
                Kind::SquashHost => {
                    to_guest.push((Range::new(rule, first, Action::Squash(target))?, *rule));
                }
                Kind::Map => {
                    to_host.push((Range::new(rule, first, Action::Shift(target))?, *rule));
                    to_guest.push((Range::new(rule, target, Action::Shift(first))?, *rule));
                }
                Kind::ForbidGuest => {
                    to_host.push((Range::new(rule, first, Action::Forbid)?, *rule))
                }
            }
        }
        Ok(Self {
            to_host: Ranges::new(to_host, "guest")?,
            to_guest: Ranges::new(to_guest, "host")?,
        })
    }
}

/// The ranges of one direction, in ascending order, none empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ranges(Vec<Range>);

impl Ranges {
    fn new(mut ranges: Vec<(Range, IdRule)>, direction: &'static str) -> Result<Self, IdMapError> {
        ranges.retain(|(range, _)| range.first != range.end);
        ranges.sort_by_key(|(range, _)| range.first);
        for pair in ranges.windows(2) {
            if let [(one, rule), (next, other)] = pair
                && next.first < one.end
            {
                return Err(IdMapError::Overlap(*rule, *other, direction));
            }
        }
        Ok(Self(ranges.into_iter().map(|(range, _)| range).collect()))
    }

    fn translate(&self, id: u32) -> io::Result<u32> {
        let after = self.0.partition_point(|range| range.first <= id);
        let range = after.checked_sub(1).and_then(|index| self.0.get(index));
        match range {
            Some(range) if id < range.end => match range.action {
                // Checked when the range was made.
                Action::Shift(to) => Ok(to.wrapping_add(id.wrapping_sub(range.first))),
                Action::Squash(to) => Ok(to),
                Action::Forbid => Err(io::Error::from_raw_os_error(libc::EPERM)),
            },
            _ => Ok(id),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u32,
    /// One more than the last.
    end: u32,
    action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// The first id becomes this one, the next the next.
    Shift(u32),
    /// Each id becomes this one.
    Squash(u32),
    Forbid,
}

impl Range {
    fn new(rule: &IdRule, first: u32, action: Action) -> Result<Self, IdMapError> {
        let too_long = || IdMapError::TooLong(*rule);
        let end = first.checked_add(rule.count).ok_or_else(too_long)?;
        if let Action::Shift(to) = action {
            to.checked_add(rule.count).ok_or_else(too_long)?;
        }
        Ok(Self { first, end, action })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<IdRule> {
        let rule = |text: &&str| {
            text.parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"))
        };
        texts.iter().map(rule).collect()
    }

    fn map(texts: &[&str]) -> IdMap {
        IdMap::new(&rules(texts), &[]).expect("a map")
    }

    /// Both directions of an id of users; `None` for a forbidden one.
    fn both(map: &IdMap, id: u32) -> (Option<u32>, u32) {
        let host = map.host_uid(GuestUid::new(id)).map(HostUid::get).ok();
        (host, map.guest_uid(HostUid::new(id)).get())
    }

    #[test]
    fn each_id_maps_to_itself_and_back() {
        let map = IdMap::default();
        for number in [0, 1, 1000, u32::MAX] {
            let (uid, gid) = (GuestUid::new(number), GuestGid::new(number));
            let (user, group) = (map.host_uid(uid).unwrap(), map.host_gid(gid).unwrap());
            assert_eq!((user.get(), group.get()), (number, number));
            assert_eq!((map.guest_uid(user), map.guest_gid(group)), (uid, gid));
        }
    }

    #[test]
    fn each_type_translates_its_direction() {
        /// An id, and what [`both`] says of it.
        type Case = (u32, (Option<u32>, u32));
        let table: [(&str, [Case; 4]); 6] = [
            (
                "guest:10:100:5",
                [
                    (9, (Some(9), 9)),
                    (10, (Some(100), 10)),
                    (14, (Some(104), 14)),
                    (15, (Some(15), 15)),
                ],
            ),
            (
                "host/10/100/5",
                [
                    (9, (Some(9), 9)),
                    (10, (Some(10), 100)),
                    (14, (Some(14), 104)),
                    (15, (Some(15), 15)),
                ],
            ),
            (
                "squash-guest:0:1000:4294967295",
                [
                    (0, (Some(1000), 0)),
                    (7, (Some(1000), 7)),
                    (u32::MAX - 1, (Some(1000), u32::MAX - 1)),
                    (1000, (Some(1000), 1000)),
                ],
            ),
            (
                "Squash-Host.0.7.10",
                [
                    (0, (Some(0), 7)),
                    (7, (Some(7), 7)),
                    (9, (Some(9), 7)),
                    (10, (Some(10), 10)),
                ],
            ),
            (
                "map:0:100000:65536",
                [
                    (0, (Some(100_000), 0)),
                    (100_000, (Some(100_000), 0)),
                    (65_535, (Some(165_535), 65_535)),
                    (165_535, (Some(165_535), 65_535)),
                ],
            ),
            (
                "forbid-guest:1:2",
                [
                    (0, (Some(0), 0)),
                    (1, (None, 1)),
                    (2, (None, 2)),
                    (3, (Some(3), 3)),
                ],
            ),
        ];
        for (rule, cases) in table {
            let map = map(&[rule]);
            for (id, expected) in cases {
                assert_eq!(both(&map, id), expected, "{rule}, {id}");
            }
        }
    }

    #[test]
    fn rules_stand_in_any_order_and_may_be_empty() {
        let map = map(&[
            "guest:10:20:10",
            "forbid-guest:0:0",
            "squash-guest:0:5:10",
            "guest:10:0:0",
            "host:4294967295:0:0",
        ]);
        assert_eq!(both(&map, 3), (Some(5), 3));
        assert_eq!(both(&map, 19), (Some(29), 19));
        let groups = IdMap::new(&[], &rules(&["forbid-guest:5:1"])).expect("a map");
        let error = groups.host_gid(GuestGid::new(5)).expect_err("forbidden");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert_eq!(both(&groups, 5).0, Some(5), "of users");
    }

    #[test]
    fn rules_that_cannot_be_are_refused_with_the_reason() {
        for (text, hint) in [
            ("", "'' is not a type"),
            ("guests:1:2:3", "'guests' is not a type"),
            ("guest", "takes 3 numbers, here are 0"),
            ("guest:1:2", "takes 3 numbers, here are 2"),
            ("guest:1:2:3:4", "takes 3 numbers, here are 4"),
            ("forbid-guest:1:2:3", "takes 2 numbers, here are 3"),
            ("guest:1:2:", "expected numbers from 0 to 4294967295"),
            ("guest:1:2:-3", "expected numbers"),
            ("map:1:2:4294967296", "expected numbers"),
            ("map:1/2:3", "expected numbers"),
        ] {
            let message = text.parse::<IdRule>().expect_err(text);
            assert!(message.contains(hint), "{text}: {message}");
        }
        for (texts, hint) in [
            (
                vec!["guest:1:0:4294967295"],
                "'guest:1:0:4294967295' goes beyond",
            ),
            (
                vec!["forbid-guest:2:4294967294"],
                "'forbid-guest:2:4294967294' goes beyond",
            ),
            (vec!["map:0:1:4294967295"], "goes beyond"),
            (
                vec!["guest:0:0:10", "forbid-guest:9:1"],
                "'guest:0:0:10' and 'forbid-guest:9:1' translate the same guest id",
            ),
            (vec!["map:0:5:2", "host:6:1:1"], "the same host id"),
        ] {
            let (_, error) = IdMap::new(&rules(&texts), &[]).expect_err("refused");
            assert!(error.to_string().contains(hint), "{texts:?}: {error}");
        }
        assert!(IdMap::new(&[], &rules(&["map:1:1:4294967295"])).is_err_and(|error| !error.0));
    }
}
