//! Which users may bind which endpoints at a switch.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::abi::Endpoint;

/// The users and the slots that each may bind. All others are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    users: BTreeMap<u32, Vec<RangeInclusive<i32>>>,
}

/// An invalid rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a rule such as 1000 (any endpoint) or 1000=1,10..20")]
pub struct AdmissionError(String);

/// One user and its slots, in the syntax `UID` or `UID=SLOT,FIRST..LAST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    uid: u32,
    slots: Vec<RangeInclusive<i32>>,
}

impl FromStr for Rule {
    type Err = AdmissionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || AdmissionError(text.to_owned());
        let number = |text: &str| text.parse::<i32>().map_err(|_| wrong());
        let Some((uid, slots)) = text.split_once('=') else {
            let uid = text.parse().map_err(|_| wrong())?;
            return Ok(Self {
                uid,
                slots: vec![i32::MIN..=i32::MAX],
            });
        };
        let range = |text: &str| match text.split_once("..") {
            Some((first, last)) => Ok(number(first)?..=number(last)?),
            None => number(text).map(|slot| slot..=slot),
        };
        Ok(Self {
            uid: uid.parse().map_err(|_| wrong())?,
            slots: slots.split(',').map(range).collect::<Result<_, _>>()?,
        })
    }
}

impl Admission {
    /// User `uid` alone, with all endpoints.
    pub fn only(uid: u32) -> Self {
        Self {
            users: BTreeMap::from([(uid, vec![i32::MIN..=i32::MAX])]),
        }
    }

    /// Adds a rule. The rules of a user add up.
    pub fn add(&mut self, rule: Rule) {
        self.users.entry(rule.uid).or_default().extend(rule.slots);
    }

    /// Whether user `uid` may connect.
    pub fn admits(&self, uid: u32) -> bool {
        self.users.contains_key(&uid)
    }

    /// Whether user `uid` may bind `endpoint`.
    pub fn allows(&self, uid: u32, endpoint: Endpoint) -> bool {
        let slots = self.users.get(&uid);
        slots.is_some_and(|slots| slots.iter().any(|range| range.contains(&endpoint.slot())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(admission: &Admission, uid: u32, slot: i32) -> bool {
        admission.allows(uid, Endpoint::from_raw(slot))
    }

    #[test]
    fn rules_add_up_and_everything_else_is_refused() {
        let mut admission = Admission::only(0);
        admission.add("1000=1,10..12".parse().unwrap());
        admission.add("1000=-2".parse().unwrap());
        for (uid, slot, allowed) in [
            (0, 200, true),
            (1000, 1, true),
            (1000, 12, true),
            (1000, -2, true),
            (1000, 2, false),
            (1000, 13, false),
            (1001, 1, false),
        ] {
            assert_eq!(allows(&admission, uid, slot), allowed, "{uid} {slot}");
        }
        assert!(admission.admits(1000) && !admission.admits(1001));
    }

    #[test]
    fn invalid_rules_are_refused() {
        for text in ["", "root", "1000=", "1000=a", "1000=1..", "-1", "1000=1,,2"] {
            let error = text.parse::<Rule>().unwrap_err();
            assert!(error.to_string().contains("1000=1,10..20"), "{text}");
        }
    }
}
