//! The metrics are OpenMetrics, and the dashboard names no others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use gangplank_backend::status::metrics;
use gangplank_tests::cache;
use gangplank_tests::driver::fixture;

use super::fixture::Fixture;
use super::work;

/// A line: name, labels as written, value.
type Sample<'a> = (&'a str, &'a str, f64);

fn sample(line: &str) -> Result<Sample<'_>> {
    let (series, value) = line.rsplit_once(' ').context("no value")?;
    let value = value.parse().with_context(|| line.to_owned())?;
    match series.split_once('{') {
        Some((name, labels)) => {
            let labels = labels.strip_suffix('}').context("labels without an end")?;
            Ok((name, labels, value))
        }
        None => Ok((series, "", value)),
    }
}

/// Checks the text against the format (OpenMetrics 1.0), as far as it is used. Returns the samples.
fn parse(text: &str) -> Result<Vec<Sample<'_>>> {
    let body = text.strip_suffix("# EOF\n").context("no end mark")?;
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut samples = Vec::new();
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<&str> = comment.splitn(3, ' ').collect();
            match words[..] {
                ["TYPE", name, kind] => {
                    let known = ["counter", "gauge", "histogram", "info"].contains(&kind);
                    ensure!(known && types.insert(name, kind).is_none(), "{line}");
                }
                ["UNIT", name, unit] => ensure!(name.ends_with(&format!("_{unit}")), "{line}"),
                ["HELP", ..] => {}
                _ => bail!("{line}"),
            }
            continue;
        }
        let sample = sample(line)?;
        let (name, labels, value) = sample;
        ensure!(seen.insert((name, labels)), "twice: {line}");
        ensure!(value >= 0.0, "{line}");
        let family = types.iter().find(|(family, kind)| {
            let suffixes: &[&str] = match **kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_count", "_sum"],
                "info" => &["_info"],
                _ => &[""],
            };
            let ending = name.strip_prefix(**family);
            ending.is_some_and(|ending| suffixes.contains(&ending))
        });
        ensure!(family.is_some(), "{line} has no type");
        samples.push(sample);
    }
    Ok(samples)
}

/// Buckets never decrease, and the last one has all.
fn check_buckets(samples: &[Sample<'_>]) -> Result<()> {
    let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (name, labels, value) in samples {
        if let Some(family) = name.strip_suffix("_bucket") {
            let (limit, others) = labels.split_once("\",").context("labels")?;
            let limit = limit.strip_prefix("le=\"").context("no limit")?;
            let key = format!("{family}_count {others}");
            series
                .entry(key)
                .or_default()
                .push((limit.parse()?, *value));
        }
    }
    ensure!(!series.is_empty(), "no histogram");
    for (key, buckets) in series {
        ensure!(
            buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
            "{key}: {buckets:?}"
        );
        let (limit, all) = buckets.last().context("a bucket")?;
        let counted = samples
            .iter()
            .find(|(name, labels, _)| format!("{name} {labels}") == key);
        ensure!(limit.is_infinite(), "{key} has no bucket without a limit");
        ensure!(counted.is_some_and(|(_, _, count)| count == all), "{key}");
    }
    Ok(())
}

#[test]
fn the_metrics_are_openmetrics_and_exact() -> Result<()> {
    let fixture = Fixture::start(&[])?;
    work(&mut fixture.driver()?)?;
    let mut driver = fixture.driver()?;
    driver.unlink(gangplank_fuse::NodeId::ROOT, c"file")?;
    work(&mut driver)?;
    let text = fixture.metrics()?;
    let samples = parse(&text).with_context(|| text.clone())?;
    check_buckets(&samples)?;
    for (name, labels, expected) in [
        ("gangplank_connections_total", "", 2.0),
        (
            "gangplank_requests_total",
            r#"guest="2",tag="myfs",opcode="READ""#,
            20.0,
        ),
        (
            "gangplank_request_errors_total",
            r#"guest="2",tag="myfs",opcode="UNLINK""#,
            3.0,
        ),
        (
            "gangplank_request_received_bytes_total",
            r#"guest="2",tag="myfs",opcode="WRITE""#,
            41760.0,
        ),
        ("gangplank_guest_open_files", r#"guest="2",tag="myfs""#, 1.0),
    ] {
        let found = samples
            .iter()
            .find(|found| (found.0, found.1) == (name, labels));
        ensure!(
            found.is_some_and(|found| found.2 == expected),
            "{name} {labels} in {text}"
        );
    }
    Ok(())
}

#[test]
fn a_port_of_this_host_tells_them_and_one_for_others_is_refused() -> Result<()> {
    // Free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let fixture = fixture::Fixture::quiet(&[&format!("--metrics={address}")])?;
    let mut client = TcpStream::connect(address)?;
    client.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut reply = String::new();
    client.read_to_string(&mut reply)?;
    ensure!(reply.ends_with("# EOF\n"), "{reply}\n{}", fixture.log());
    let Err(refused) = fixture::Fixture::quiet(&["--metrics=0.0.0.0:1"]) else {
        bail!("other hosts may read");
    };
    ensure!(
        format!("{refused:#}").contains("--metrics-allow-remote"),
        "{refused:#}"
    );
    Ok(())
}

/// Words of an expression that begin like metrics.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("gangplank_"))
}

#[test]
fn the_dashboard_names_metrics_that_exist() -> Result<()> {
    let path = cache::workspace().join("configs/grafana/gangplankd.json");
    let text = fs::read_to_string(path)?;
    let dashboard: serde_json::Value = serde_json::from_str(&text)?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    let names = metrics::names();
    let mut used = BTreeSet::new();
    for panel in panels {
        let targets = panel["targets"].as_array().context("targets")?;
        for target in targets {
            let expression = target["expr"].as_str().context("an expression")?;
            for name in named(expression) {
                ensure!(
                    names.iter().any(|known| known == name),
                    "{name} is no metric"
                );
                used.insert(name.to_owned());
            }
        }
    }
    ensure!(used.len() >= 10, "it shows {used:?} only");
    Ok(())
}
