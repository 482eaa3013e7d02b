//! What is exported to whom: rules like those of exports(5).
//!
//! ```text
//! # directory of the share    clients and their options
//! /                           10.0.2.0/24(rw,no_root_squash) 192.168.7.5(ro)
//! /pub                        *(ro,all_squash,anonuid=1000,anongid=1000)
//! ```
//!
//! A directory is a path below the share's root. The first client of an export that matches
//! decides. Without options a client gets `ro`, `root_squash` and `secure`, as in exports(5).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use gangplank_service::fnv::fnv_1a;

use crate::identity::{Identity, NOBODY};
use crate::rpc::message::Credentials;

/// Ports below this one are reserved (`IPPORT_RESERVED`).
const RESERVED_PORTS: u16 = 1024;

/// Most exports. Each is shown to everybody who asks.
const MAX_EXPORTS: usize = 256;

/// The clients that a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientSpec {
    /// All.
    Any,
    /// The addresses that share the first bits with this one.
    Net {
        /// An address of the network.
        address: IpAddr,
        /// Bits that have to be equal.
        prefix: u8,
    },
}

/// How the ids of callers are mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Squash {
    /// All are who they say they are.
    None,
    /// User 0 and group 0 are anonymous.
    Root,
    /// All are anonymous.
    All,
}

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// For whom it is.
    pub client: ClientSpec,
    /// Whether it may change nothing.
    pub read_only: bool,
    /// Whether it has to call from a reserved port.
    ///
    /// Callers say themselves who they are, which is believed of a client's kernel, and not of
    /// every program there: on most systems root alone has these ports. At the server's own
    /// address this is as important, since guests have users and programs as other machines do.
    pub secure: bool,
    /// Whose ids are mapped.
    pub squash: Squash,
    /// The user that anonymous callers are.
    pub anonymous_uid: u32,
    /// The group that anonymous callers are in.
    pub anonymous_gid: u32,
}

/// An exported directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The names that lead to it from the share's root.
    pub path: Vec<Vec<u8>>,
    /// Identifies it in file handles. It depends on the path alone, so it survives restarts.
    pub id: u32,
    /// The rules. The first that matches decides.
    pub rules: Vec<Rule>,
}

/// All exports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exports(Vec<Export>);

/// Why a rule is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The file cannot be read.
    #[error("cannot read it")]
    Read(#[source] std::io::Error),
    /// A line is wrong.
    #[error("line {line}: {what}: {text:?}")]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
        /// The word that is wrong.
        text: String,
    },
}

impl Exports {
    /// Reads rules.
    ///
    /// # Errors
    /// [`ExportError::Syntax`].
    pub fn parse(text: &str) -> Result<Self, ExportError> {
        let mut exports: Vec<Export> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            let wrong = |what, text: &str| ExportError::Syntax {
                line: line_number,
                what,
                text: text.to_owned(),
            };
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(directory) = words.next() else {
                continue;
            };
            let path = parse_path(directory).map_err(|what| wrong(what, directory))?;
            let rules = words
                .map(|word| Rule::parse(word).map_err(|(what, text)| wrong(what, text)))
                .collect::<Result<Vec<_>, _>>()?;
            if rules.is_empty() {
                return Err(wrong("an export needs clients, such as *(ro)", directory));
            }
            let export = Export {
                id: export_id(&path),
                path,
                rules,
            };
            if exports.iter().any(|other| other.id == export.id) {
                return Err(wrong("a directory is exported twice", directory));
            }
            if exports.len() == MAX_EXPORTS {
                return Err(wrong("too many exports", directory));
            }
            exports.push(export);
        }
        Ok(Self(exports))
    }

    /// The whole share by `rules`.
    #[must_use]
    pub fn whole_share(rules: Vec<Rule>) -> Self {
        let path = Vec::new();
        Self(vec![Export {
            id: export_id(&path),
            path,
            rules,
        }])
    }

    /// All exports.
    pub fn iter(&self) -> impl Iterator<Item = &Export> {
        self.0.iter()
    }

    /// The export with this id.
    #[must_use]
    pub fn by_id(&self, id: u32) -> Option<&Export> {
        self.0.iter().find(|export| export.id == id)
    }

    /// The export with the longest path that leads to or towards `path`, and the names behind it.
    #[must_use]
    pub fn containing<'a>(&self, path: &'a [Vec<u8>]) -> Option<(&Export, &'a [Vec<u8>])> {
        self.0
            .iter()
            .filter_map(|export| Some((export, path.strip_prefix(&*export.path)?)))
            .min_by_key(|(_, rest)| rest.len())
    }
}

impl Export {
    /// The rule for a client, if any is for it.
    #[must_use]
    pub fn rule(&self, address: IpAddr) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.client.matches(address))
    }

    /// Its path as text for clients, which is the path that they mount.
    #[must_use]
    pub fn name(&self) -> Vec<u8> {
        if self.path.is_empty() {
            return b"/".to_vec();
        }
        let names = self.path.iter();
        names.flat_map(|name| [b"/", &**name].concat()).collect()
    }
}

/// The names in a path, which has to be absolute and lead nowhere else.
///
/// # Errors
/// What is wrong with it.
pub fn parse_path(path: &str) -> Result<Vec<Vec<u8>>, &'static str> {
    let rest = path
        .strip_prefix('/')
        .ok_or("a directory has to begin with /")?;
    let names = rest.split('/').filter(|name| !name.is_empty());
    let names: Vec<_> = names.map(|name| name.as_bytes().to_vec()).collect();
    match names.iter().any(|name| matches!(&**name, b"." | b"..")) {
        true => Err("a directory has no . and .. in its path"),
        false => Ok(names),
    }
}

fn export_id(path: &[Vec<u8>]) -> u32 {
    let joined = path.join(&b'/');
    let [a, b, c, d, ..] = fnv_1a(&joined).to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

impl Rule {
    /// A rule with exports(5)'s defaults.
    #[must_use]
    pub const fn new(client: ClientSpec) -> Self {
        Self {
            client,
            read_only: true,
            secure: true,
            squash: Squash::Root,
            anonymous_uid: NOBODY,
            anonymous_gid: NOBODY,
        }
    }

    /// A rule as a word: a client and its options.
    ///
    /// # Errors
    /// What is wrong, and the wrong part.
    pub fn parse(word: &str) -> Result<Self, (&'static str, &str)> {
        let (client, options) = match word.split_once('(') {
            Some((client, options)) => {
                let options = options.strip_suffix(')');
                (client, options.ok_or(("a ) is missing", word))?)
            }
            None => (word, ""),
        };
        let client = client.parse().map_err(|what| (what, word))?;
        Self::new(client).with_options(options)
    }

    /// The rule with `options`, separated by commas.
    ///
    /// # Errors
    /// What is wrong, and the wrong option.
    pub fn with_options(mut self, options: &str) -> Result<Self, (&'static str, &str)> {
        let options = options.split(',').map(str::trim);
        for option in options.filter(|option| !option.is_empty()) {
            let number = |value: &str| {
                let number = value.parse();
                number.map_err(|_| ("an id is a number of 32 bits", option))
            };
            match option.split_once('=').unwrap_or((option, "")) {
                ("ro", "") => self.read_only = true,
                ("rw", "") => self.read_only = false,
                ("secure", "") => self.secure = true,
                ("insecure", "") => self.secure = false,
                ("root_squash", "") => self.squash = Squash::Root,
                ("no_root_squash", "") => self.squash = Squash::None,
                ("all_squash", "") => self.squash = Squash::All,
                ("anonuid", value) => self.anonymous_uid = number(value)?,
                ("anongid", value) => self.anonymous_gid = number(value)?,
                _ => return Err(("an unknown option", option)),
            }
        }
        Ok(self)
    }

    /// Whether a client may call from a port.
    #[must_use]
    pub const fn permits_port(&self, port: u16) -> bool {
        !self.secure || port < RESERVED_PORTS
    }

    /// Who a caller is in the share.
    #[must_use]
    pub fn identity(&self, credentials: &Credentials) -> Identity {
        let anonymous = Identity {
            uid: self.anonymous_uid,
            gid: self.anonymous_gid,
            groups: Vec::new(),
        };
        match (credentials, self.squash) {
            (Credentials::None, _) | (_, Squash::All) => anonymous,
            (Credentials::Sys { uid, gid, groups }, Squash::None) => Identity {
                uid: *uid,
                gid: *gid,
                groups: groups.clone(),
            },
            (Credentials::Sys { uid, gid, groups }, Squash::Root) => {
                let group = |gid: u32| if gid == 0 { self.anonymous_gid } else { gid };
                Identity {
                    uid: if *uid == 0 { self.anonymous_uid } else { *uid },
                    gid: group(*gid),
                    groups: groups.iter().copied().map(group).collect(),
                }
            }
        }
    }
}

impl ClientSpec {
    /// Whether it is for a client at `address`.
    #[must_use]
    pub fn matches(self, address: IpAddr) -> bool {
        // A client of IPv4 at a socket of IPv6 has an address of IPv6 that contains its own.
        match (self, address.to_canonical()) {
            (Self::Any, _) => true,
            (
                Self::Net {
                    address: IpAddr::V4(net),
                    prefix,
                },
                IpAddr::V4(client),
            ) => {
                let differing = u32::from(net) ^ u32::from(client);
                differing.checked_shr(32 - u32::from(prefix)).unwrap_or(0) == 0
            }
            (
                Self::Net {
                    address: IpAddr::V6(net),
                    prefix,
                },
                IpAddr::V6(client),
            ) => {
                let differing = u128::from(net) ^ u128::from(client);
                differing.checked_shr(128 - u32::from(prefix)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for ClientSpec {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let wrong = "a client is *, an address, or a network such as 10.0.2.0/24";
        let address: IpAddr = address.parse().map_err(|_| wrong)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(bits), str::parse).map_err(|_| wrong)?;
        if prefix > bits {
            return Err(wrong);
        }
        Ok(Self::Net { address, prefix })
    }
}

impl fmt::Display for ClientSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Net { address, prefix } => write!(f, "{address}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn sys(uid: u32, gid: u32, groups: &[u32]) -> Credentials {
        let groups = groups.to_vec();
        Credentials::Sys { uid, gid, groups }
    }

    #[test]
    fn the_first_client_that_matches_decides() {
        let text = "# comment\n/ 10.0.2.15(rw,no_root_squash) 10.0.2.0/24 fd00::/8(rw)\n";
        let exports = Exports::parse(text).unwrap();
        let export = exports.iter().next().unwrap();
        let rule = |client: &str| export.rule(address(client));
        assert!(!rule("10.0.2.15").unwrap().read_only);
        assert!(rule("10.0.2.16").unwrap().read_only);
        assert!(rule("::ffff:10.0.2.16").unwrap().read_only);
        assert!(!rule("fd00::1").unwrap().read_only);
        assert_eq!(rule("10.0.3.1"), None);
        assert_eq!(rule("fe00::1"), None);
    }

    #[test]
    fn root_and_its_group_are_anonymous_unless_the_rule_says_otherwise() {
        let rule = |word| Rule::parse(word).unwrap();
        let root = sys(0, 0, &[0, 5]);
        let squashed = rule("*(anonuid=7,anongid=8)").identity(&root);
        assert_eq!((squashed.uid, squashed.gid), (7, 8));
        assert_eq!(squashed.groups, [8, 5]);
        let user = rule("*").identity(&sys(1000, 100, &[5]));
        assert_eq!((user.uid, user.gid, &*user.groups), (1000, 100, &[5][..]));
        assert_eq!(rule("*(no_root_squash)").identity(&root).uid, 0);
        let all = rule("*(all_squash)").identity(&sys(1000, 100, &[5]));
        assert_eq!((all.uid, all.gid), (NOBODY, NOBODY));
        assert!(all.groups.is_empty());
        let none = rule("*(no_root_squash)").identity(&Credentials::None);
        assert_eq!(none.uid, NOBODY);
    }

    #[test]
    fn clients_call_from_reserved_ports_unless_the_rule_says_otherwise() {
        let permits = |word, port| Rule::parse(word).unwrap().permits_port(port);
        for word in ["*", "*(rw)", "*(secure)", "*(insecure,secure)"] {
            assert!(permits(word, 1023) && !permits(word, 1024), "{word}");
        }
        assert!(permits("*(insecure)", u16::MAX));
    }

    #[test]
    fn a_path_belongs_to_the_innermost_export() {
        let exports = Exports::parse("/ *\n/a/b *\n").unwrap();
        let found = |path: &str| {
            let path = parse_path(path).unwrap();
            let (export, rest) = exports.containing(&path).unwrap();
            (export.name(), rest.len())
        };
        assert_eq!(found("/"), (b"/".to_vec(), 0));
        assert_eq!(found("/a//b/c"), (b"/a/b".to_vec(), 1));
        assert_eq!(found("/a/bc"), (b"/".to_vec(), 2));
    }

    #[test]
    fn wrong_rules_are_refused_with_their_line() {
        for (text, message) in [
            ("/ *(rw", "line 1: a ) is missing: \"*(rw\""),
            ("\n/ *(sync)", "line 2: an unknown option: \"sync\""),
            ("/", "line 1: an export needs clients, such as *(ro): \"/\""),
            (
                "/a/.. *",
                "line 1: a directory has no . and .. in its path: \"/a/..\"",
            ),
            ("/ *\n/ *", "line 2: a directory is exported twice: \"/\""),
            (
                "/ *(anonuid=x)",
                "line 1: an id is a number of 32 bits: \"anonuid=x\"",
            ),
        ] {
            assert_eq!(Exports::parse(text).unwrap_err().to_string(), message);
        }
        for client in ["10.0.0.0/33", "host.example", "::1/129", "/8"] {
            assert!(client.parse::<ClientSpec>().is_err(), "{client}");
        }
    }
}
