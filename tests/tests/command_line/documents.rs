//! The documents: their links lead somewhere, and the programs take the command lines in them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use gangplank_manuals::programs::PROGRAMS;
use gangplank_tests::cache;

/// All documents for users and contributors, with their texts.
fn documents() -> Result<Vec<(PathBuf, String)>> {
    let root = cache::workspace();
    let mut found = Vec::new();
    for directory in [
        root.to_owned(),
        root.join("docs"),
        root.join("docs/reference"),
    ] {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path)?;
                found.push((path, text));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The targets of `[text](target)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
}

#[test]
fn every_link_leads_to_a_file_and_the_book_has_every_page() -> Result<()> {
    let documents = documents()?;
    for (path, text) in &documents {
        let here = path.parent().context("a document in no directory")?;
        for link in links(text).filter(|link| !link.contains("://")) {
            let file = link.split('#').next().unwrap_or_default();
            ensure!(
                file.is_empty() || here.join(file).exists(),
                "{}: {link} leads nowhere",
                path.display()
            );
        }
    }
    let docs = cache::workspace().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md"))?;
    let listed: Vec<PathBuf> = links(&summary).map(|link| docs.join(link)).collect();
    for (path, _) in &documents {
        let is_page = path.starts_with(&docs) && !path.ends_with("SUMMARY.md");
        ensure!(
            !is_page || listed.contains(path),
            "{} is not in docs/SUMMARY.md",
            path.display()
        );
    }
    Ok(())
}

#[test]
fn readme_is_short() -> Result<()> {
    let text = fs::read_to_string(cache::workspace().join("README.md"))?;
    ensure!(
        text.lines().count() < 120,
        "README.md has 120 lines or more"
    );
    Ok(())
}

/// The indented command lines of a document that start one of our programs, as words.
fn command_lines(text: &str) -> Vec<Vec<String>> {
    let joined = text.replace("\\\n", " ");
    let lines = joined
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        // Others are lines of pictures.
        .filter(|line| line.is_ascii())
        .map(|line| line.trim_start().trim_start_matches("host$"))
        .map(|line| line.split(" #").next().unwrap_or_default())
        .map(|line| line.trim_end().trim_end_matches('&'));
    lines
        // A shell would remove the quotes of a word.
        .map(|line| {
            line.split_whitespace()
                .map(|word| word.trim_matches('\'').to_owned())
                .collect()
        })
        .filter(|words: &Vec<String>| {
            let first = words.first();
            first.is_some_and(|first| PROGRAMS.iter().any(|program| program.name == first))
        })
        .collect()
}

#[test]
fn programs_take_the_command_lines_of_the_documents() -> Result<()> {
    let mut checked = 0;
    for (path, text) in documents()? {
        // The first draws processes, which begin with the programs' names; the reference is
        // wrapped.
        if path.ends_with("ARCHITECTURE.md")
            || path.parent().is_some_and(|dir| dir.ends_with("reference"))
        {
            continue;
        }
        for words in command_lines(&text) {
            let program = PROGRAMS.iter().find(|program| program.name == words[0]);
            let program = program.context("one of our programs")?;
            // A line with `...` stands for others.
            if words.iter().any(|word| word == "...") || words.iter().any(|word| word == "|") {
                continue;
            }
            checked += 1;
            if let Err(error) = program.command().try_get_matches_from(&words) {
                let fine = error.exit_code() == 0;
                ensure!(fine, "{}: {words:?}\n{error}", path.display());
            }
        }
    }
    ensure!(checked > 20, "only {checked} command lines were found");
    Ok(())
}

#[test]
fn book_is_where_mdbook_looks_for_it() -> Result<()> {
    let docs = cache::workspace().join("docs");
    let settings = fs::read_to_string(docs.join("book.toml"))?;
    ensure!(settings.lines().any(|line| line == "src = \".\""));
    ensure!(Path::new(&docs).join("SUMMARY.md").exists());
    Ok(())
}
