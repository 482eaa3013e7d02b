//! The configuration file of `serve`: its options in TOML, by the names of the command line.
//!
//! What the command line gives comes before what the file gives.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, de};

use crate::exports::{ExportError, Exports};
use crate::network::config::{EthernetAddress, OwnAddress};
use crate::network::link::Link;
use crate::serve::ServeArgs;

/// The file's content.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileConfig {
    backend: Option<PathBuf>,
    state: Option<PathBuf>,
    #[serde(default)]
    listen: Vec<SocketAddr>,
    #[serde(default)]
    portmap: Vec<SocketAddr>,
    workers: Option<u16>,
    busy_poll: Option<u16>,
    timeout: Option<u64>,
    grace: Option<u64>,
    /// Directories of the share, and their clients.
    #[serde(default)]
    exports: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    network: Network,
}

/// The server's own address.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Network {
    #[serde(default, deserialize_with = "parsed")]
    address: Option<OwnAddress>,
    #[serde(default)]
    switch_stream: Vec<PathBuf>,
    #[serde(default)]
    switch_packet: Vec<PathBuf>,
    #[serde(default)]
    switch_dgram: Vec<PathBuf>,
    #[serde(default, deserialize_with = "all_parsed")]
    net: Vec<Link>,
    gateway: Option<Ipv4Addr>,
    #[serde(default, deserialize_with = "parsed")]
    mac: Option<EthernetAddress>,
    mtu: Option<u16>,
}

/// A value that is parsed as the command line's is.
fn parsed<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: std::str::FromStr<Err = &'static str>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(de::Error::custom)
}

/// Values that are parsed as those of the command line are.
fn all_parsed<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: std::str::FromStr<Err = &'static str>,
{
    let texts = Vec::<String>::deserialize(deserializer)?;
    let values = texts.iter().map(|text| text.parse());
    values.collect::<Result<_, _>>().map_err(de::Error::custom)
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read it")]
    Read(#[source] std::io::Error),
    /// It is no TOML, or has other keys and values than those of the options.
    #[error("{0}")]
    Syntax(String),
    /// An export is wrong.
    #[error("in exports: {0}")]
    Exports(ExportError),
    /// A number is outside of what the option allows.
    #[error("{key} is {value}, and has to be from {least} to {most}")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        value: u64,
        /// The least value.
        least: u64,
        /// The largest value.
        most: u64,
    },
}

impl FileConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(ConfigError::Read)?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|error| ConfigError::Syntax(error.to_string().trim_end().to_owned()))?;
        let ranges = [
            ("workers", config.workers.map(u64::from), 1, 256),
            ("timeout", config.timeout, 1, 3600),
            ("busy-poll", config.busy_poll.map(u64::from), 0, 10_000),
            ("grace", config.grace, 1, 600),
            ("mtu", config.network.mtu.map(u64::from), 576, 9000),
        ];
        for (key, value, least, most) in ranges {
            if let Some(value) = value.filter(|value| !(least..=most).contains(value)) {
                return Err(ConfigError::Range {
                    key,
                    value,
                    least,
                    most,
                });
            }
        }
        config.exports()?;
        Ok(config)
    }

    /// The exports; `None` if the file has none.
    ///
    /// # Errors
    /// [`ConfigError::Exports`].
    pub fn exports(&self) -> Result<Option<Exports>, ConfigError> {
        if self.exports.is_empty() {
            return Ok(None);
        }
        let lines = self.exports.iter();
        let lines: Vec<_> = lines
            .map(|(directory, clients)| format!("{directory} {}", clients.join(" ")))
            .collect();
        Exports::parse(&lines.join("\n"))
            .map(Some)
            .map_err(ConfigError::Exports)
    }

    /// Adds what the command line does not give.
    pub fn complete(self, args: &mut ServeArgs) {
        fn or<T>(list: &mut Vec<T>, other: Vec<T>) {
            if list.is_empty() {
                *list = other;
            }
        }
        args.backend = args.backend.take().or(self.backend);
        args.state = args.state.take().or(self.state);
        or(&mut args.listen, self.listen);
        or(&mut args.portmap, self.portmap);
        args.workers = args.workers.or(self.workers);
        args.busy_poll = args.busy_poll.or(self.busy_poll);
        args.timeout = args.timeout.or(self.timeout);
        args.grace = args.grace.or(self.grace);
        let (network, file) = (&mut args.network, self.network);
        network.address = network.address.or(file.address);
        or(&mut network.switch_stream, file.switch_stream);
        or(&mut network.switch_packet, file.switch_packet);
        or(&mut network.switch_dgram, file.switch_dgram);
        or(&mut network.links, file.net);
        network.gateway = network.gateway.or(file.gateway);
        network.mac = network.mac.or(file.mac);
        network.mtu = network.mtu.or(file.mtu);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn serve(words: &[&str]) -> ServeArgs {
        let words = ["gangplank-nfs", "serve"].iter().chain(words);
        let Command::Serve(args) = Args::parse_from(words).command;
        *args
    }

    #[test]
    fn example_is_complete_and_the_command_line_comes_first() {
        let text = include_str!("../../configs/nfs.toml");
        let config = FileConfig::parse(text).unwrap();
        assert!(config.exports().unwrap().unwrap().iter().count() > 0);
        let mut args = serve(&["--config", "nfs.toml", "--listen", "[::1]:9"]);
        config.complete(&mut args);
        assert_eq!(args.backend.unwrap(), Path::new("/run/gangplank/fs.sock"));
        assert_eq!(args.listen, ["[::1]:9".parse().unwrap()]);
        let address = args.network.address.unwrap();
        assert_eq!(address.address, Ipv4Addr::new(10, 0, 2, 1));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message) in [
            ("workers = 0", "workers is 0, and has to be from 1 to 256"),
            (
                "busy-poll = 10001",
                "busy-poll is 10001, and has to be from 0 to 10000",
            ),
            ("worker = 1", "unknown field `worker`"),
            (
                "[exports]\n\"/\" = [\"*(sync)\"]",
                "an unknown option: \"sync\"",
            ),
            ("[network]\naddress = \"10.0.2.1\"", "such as 10.0.2.1/24"),
        ] {
            let error = FileConfig::parse(text).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
