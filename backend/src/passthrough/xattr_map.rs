//! The rules by which extended attributes have other names on the host than in the guest
//! (`--xattrmap`).
//!
//! ```text
//! :TYPE:SCOPE:KEY:PREPEND:     a rule; its first character separates its fields
//! :map:KEY:PREPEND:            an abbreviation for the rules of `map_rules`, the last of the map
//! ```
//!
//! The first rule that matches a name counts. A rule for the client matches the names in a guest's
//! requests that begin with KEY, one for the server the names on the host that begin with PREPEND.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::str::FromStr;

use thiserror::Error;

/// A text that is no map.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum XattrMapError {
    /// No rule at all.
    #[error("no rules: expected for example :map::user.virtiofs.:")]
    Empty,
    /// A rule ends early.
    #[error("rule {0} is incomplete: expected :type:scope:key:prepend: or :map:key:prepend:")]
    Incomplete(usize),
    /// An unknown type.
    #[error("rule {rule} has the type '{found}': expected prefix, ok, bad, unsupported or map")]
    Type {
        /// Number of the rule, from 1.
        rule: usize,
        /// As typed.
        found: String,
    },
    /// An unknown scope.
    #[error("rule {rule} has the scope '{found}': expected all, client or server")]
    Scope {
        /// Number of the rule, from 1.
        rule: usize,
        /// As typed.
        found: String,
    },
    /// `map` before another rule.
    #[error("rule {0} is a map, which only the last rule may be")]
    MapNotLast(usize),
    /// Names that no rule matches.
    #[error("no rule ends the map for the {0}: add one that matches all names, such as :ok:all:::")]
    NoEnd(&'static str),
}

/// Why a guest may not use a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// A rule of type `bad`.
    Bad,
    /// A rule of type `unsupported`.
    Unsupported,
}

/// The rules, for each name at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XattrMap {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    action: Action,
    scope: Scope,
    key: Vec<u8>,
    prepend: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Prefix,
    Ok,
    Bad,
    Unsupported,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    All,
    Client,
    Server,
}

impl Rule {
    fn all(action: Action, key: &[u8], prepend: &[u8]) -> Self {
        Self {
            action,
            scope: Scope::All,
            key: key.to_vec(),
            prepend: prepend.to_vec(),
        }
    }

    fn matches_client(&self, name: &[u8]) -> bool {
        self.scope != Scope::Server && name.starts_with(&self.key)
    }

    fn matches_server(&self, name: &[u8]) -> bool {
        self.scope != Scope::Client && name.starts_with(&self.prepend)
    }
}

/// The rules that `map` stands for: the names that begin with `key` get a prefix on the host, where
/// they are hidden if they have none, and guests cannot use names that have it already. All other
/// names stay as they are, or do not exist if `key` is empty.
fn map_rules(key: &[u8], prepend: &[u8]) -> Vec<Rule> {
    let prefixed = Rule::all(Action::Prefix, key, prepend);
    match key {
        [] => vec![prefixed, Rule::all(Action::Bad, b"", b"")],
        key => vec![
            prefixed,
            Rule::all(Action::Bad, prepend, key),
            Rule::all(Action::Ok, b"", b""),
        ],
    }
}

impl XattrMap {
    /// The host's name of a guest's attribute.
    pub(super) fn host_name<'a>(&self, name: &'a CStr) -> Result<Cow<'a, CStr>, Denied> {
        let bytes = name.to_bytes();
        let rule = self.rules.iter().find(|rule| rule.matches_client(bytes));
        match rule.map(|rule| (rule.action, &rule.prepend)) {
            Some((Action::Ok, _)) => Ok(Cow::Borrowed(name)),
            Some((Action::Prefix, prepend)) => {
                // Neither part has a NUL.
                let name = CString::new([prepend, bytes].concat()).map_err(|_| Denied::Bad)?;
                Ok(Cow::Owned(name))
            }
            Some((Action::Unsupported, _)) => Err(Denied::Unsupported),
            Some((Action::Bad, _)) | None => Err(Denied::Bad),
        }
    }

    /// The guest's name of an attribute of the host; `None` if the guest must not see it.
    pub(super) fn guest_name<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        let rule = self.rules.iter().find(|rule| rule.matches_server(name))?;
        match rule.action {
            Action::Ok => Some(name),
            Action::Prefix => name
                .get(rule.prepend.len()..)
                .filter(|name| !name.is_empty()),
            Action::Bad | Action::Unsupported => None,
        }
    }
}

impl FromStr for XattrMap {
    type Err = XattrMapError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut rest = text.trim();
        let mut rules = Vec::new();
        let mut number = 0;
        while let Some(separator) = rest.chars().next() {
            number += 1;
            rest = rest.strip_prefix(separator).unwrap_or(rest);
            let mut field = || {
                let (field, after) = rest
                    .split_once(separator)
                    .ok_or(XattrMapError::Incomplete(number))?;
                rest = after;
                Ok(field)
            };
            let action = match field()? {
                "prefix" => Some(Action::Prefix),
                "ok" => Some(Action::Ok),
                "bad" => Some(Action::Bad),
                "unsupported" => Some(Action::Unsupported),
                "map" => None,
                other => {
                    return Err(XattrMapError::Type {
                        rule: number,
                        found: other.to_owned(),
                    });
                }
            };
            match action {
                Some(action) => {
                    let scope = match field()? {
                        "all" => Scope::All,
                        "client" => Scope::Client,
                        "server" => Scope::Server,
                        other => {
                            return Err(XattrMapError::Scope {
                                rule: number,
                                found: other.to_owned(),
                            });
                        }
                    };
                    rules.push(Rule {
                        action,
                        scope,
                        key: field()?.into(),
                        prepend: field()?.into(),
                    });
                }
                None => {
                    let (key, prepend) = (field()?, field()?);
                    rules.extend(map_rules(key.as_bytes(), prepend.as_bytes()));
                    if !rest.is_empty() {
                        return Err(XattrMapError::MapNotLast(number));
                    }
                }
            }
            rest = rest.trim_start();
        }
        let map = Self { rules };
        match () {
            () if map.rules.is_empty() => Err(XattrMapError::Empty),
            () if !map.rules.iter().any(|rule| rule.matches_client(b"")) => {
                Err(XattrMapError::NoEnd("client"))
            }
            () if !map.rules.iter().any(|rule| rule.matches_server(b"")) => {
                Err(XattrMapError::NoEnd("server"))
            }
            () => Ok(map),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> XattrMap {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// The name on the host, or why there is none.
    fn host(map: &XattrMap, name: &str) -> Result<String, Denied> {
        let name = CString::new(name).expect("no NUL");
        let name = map.host_name(&name)?;
        Ok(name.to_str().expect("UTF-8").to_owned())
    }

    fn guest<'a>(map: &XattrMap, name: &'a str) -> Option<&'a str> {
        let name = map.guest_name(name.as_bytes())?;
        Some(std::str::from_utf8(name).expect("UTF-8"))
    }

    #[test]
    fn map_of_all_names_hides_what_has_no_prefix() {
        for text in [
            ":map::user.virtiofs.:",
            "/prefix/all//user.virtiofs./:bad:all:::",
        ] {
            let map = map(text);
            assert_eq!(
                host(&map, "security.capability").as_deref(),
                Ok("user.virtiofs.security.capability")
            );
            assert_eq!(
                host(&map, "user.virtiofs.x").as_deref(),
                Ok("user.virtiofs.user.virtiofs.x")
            );
            assert_eq!(guest(&map, "user.virtiofs.user.a"), Some("user.a"));
            assert_eq!(guest(&map, "user.a"), None);
            assert_eq!(guest(&map, "user.virtiofs."), None, "an empty name");
        }
    }

    #[test]
    fn map_of_some_names_leaves_the_others() {
        for text in [
            ":map:trusted.:user.virtiofs.:",
            "\n /prefix/all/trusted./user.virtiofs./ /bad/server//trusted./\t
             +bad+client+user.virtiofs.++ §ok§all§§§ \n",
        ] {
            let map = map(text);
            assert_eq!(
                host(&map, "trusted.a").as_deref(),
                Ok("user.virtiofs.trusted.a")
            );
            assert_eq!(host(&map, "user.virtiofs.trusted.a"), Err(Denied::Bad));
            assert_eq!(host(&map, "user.a").as_deref(), Ok("user.a"));
            assert_eq!(guest(&map, "user.virtiofs.trusted.a"), Some("trusted.a"));
            assert_eq!(guest(&map, "trusted.a"), None);
            assert_eq!(guest(&map, "user.a"), Some("user.a"));
        }
    }

    #[test]
    fn first_rule_that_matches_counts_for_its_scope_alone() {
        let map = map(
            ":unsupported:client:security.:: :bad:server::security.: :ok:all:user.:user.:\
             :prefix:client:user.x:never.: :unsupported:all:::",
        );
        assert_eq!(host(&map, "security.selinux"), Err(Denied::Unsupported));
        assert_eq!(host(&map, "user.x").as_deref(), Ok("user.x"));
        assert_eq!(host(&map, "trusted.x"), Err(Denied::Unsupported));
        assert_eq!(guest(&map, "user.x"), Some("user.x"));
        assert_eq!(guest(&map, "security.selinux"), None);
        assert_eq!(guest(&map, "trusted.x"), None);
    }

    #[test]
    fn names_of_other_alphabets_stay_whole() {
        let map = map(":prefix:all:user.ä:user.ö.::ok:all:::");
        assert_eq!(host(&map, "user.ä").as_deref(), Ok("user.ö.user.ä"));
        assert_eq!(guest(&map, "user.ö.user.ä"), Some("user.ä"));
    }

    #[test]
    fn texts_that_are_no_map_are_refused_with_the_rule() {
        for (text, hint) in [
            ("", "no rules"),
            (" \n", "no rules"),
            (":", "rule 1 is incomplete"),
            (":ok:all::", "rule 1 is incomplete"),
            (":ok:all::: :prefix:all:a:b", "rule 2 is incomplete"),
            ("ok:all:::", "rule 1"),
            (":allow:all:::", "rule 1 has the type 'allow'"),
            (":ok:both:::", "rule 1 has the scope 'both'"),
            (":ok:all::: :map:a:b::ok:all:::", "rule 2 is a map"),
            (":map:a:b: :map:a:b:", "rule 1 is a map"),
            (":prefix:all:trusted.:user.:", "for the client"),
            (":ok:client:::", "for the server"),
            (":ok:server:::", "for the client"),
            (":prefix:all::user.:", "for the server"),
        ] {
            let error = text.parse::<XattrMap>().expect_err(text).to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
