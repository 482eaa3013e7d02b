//! One manual page: what clap_mangen makes of a command line, and the sections of [`Manual`].

use std::path::Path;

use anyhow::Result;
use clap::Command;
use clap_mangen::Man;
use gangplank_service::manual::{Entry, Manual};
use roff::{Inline, Roff, bold, roman};

use crate::programs::{PROGRAMS, Program};
use crate::write;

/// Writes the pages of all programs into `directory`, with `date` (such as 2026-01-31) in their
/// footers.
///
/// # Errors
/// A page cannot be written.
pub fn write_all(directory: &Path, date: &str) -> Result<()> {
    for program in PROGRAMS {
        for (path, command) in program.commands() {
            let (name, text) = render(&program, &path, command, date)?;
            write(directory, &name, text.as_bytes())?;
        }
    }
    Ok(())
}

/// The file name and the text of a command's page.
///
/// # Errors
/// clap_mangen cannot write it.
pub fn render(
    program: &Program,
    path: &[String],
    command: Command,
    date: &str,
) -> Result<(String, String)> {
    let mut words = vec![program.name.to_owned()];
    words.extend_from_slice(path);
    let name = words.join("-");
    let manual = program.manual(path);
    let headings: Vec<String> = command
        .get_arguments()
        .filter_map(|arg| arg.get_help_heading().map(str::to_owned))
        .collect();
    let notes = command.get_after_help().map(ToString::to_string);
    let has_commands = command.get_subcommands().any(|below| !below.is_hide_set());
    // A command without a manual of its own has its own short description.
    let about = command.get_about().map(ToString::to_string);
    let about = about.unwrap_or_default();
    let is_own = command.get_long_about().is_some();
    let mut summary = about
        .lines()
        .next()
        .unwrap_or_default()
        .trim_end_matches('.');
    if let Some((first, _)) = summary.split_once(": ").filter(|_| path.is_empty()) {
        summary = first;
    }
    let man = Man::new(command.clone().about(summary.to_owned()))
        .title(name.clone())
        .section(program.section)
        .date(date)
        .source(format!("gangplank {}", env!("CARGO_PKG_VERSION")))
        .manual("gangplank");

    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    let mut description = Roff::new();
    description.control("SH", ["DESCRIPTION"]);
    let own = [about.as_str()];
    let paragraphs: &[&str] = if is_own { manual.description } else { &own };
    for (position, text) in paragraphs.iter().enumerate() {
        if position > 0 {
            description.control("PP", []);
        }
        description.text(inline(text));
    }
    description.to_writer(&mut page)?;
    let mut options = Vec::new();
    man.render_options_section(&mut options)?;
    page.extend(subsections(&String::from_utf8(options)?, &headings).bytes());
    if has_commands {
        man.render_subcommands_section(&mut page)?;
    }
    let notes = notes.filter(|_| !path.is_empty());
    sections(&manual, notes.as_deref(), program, path).to_writer(&mut page)?;
    Ok((
        format!("{name}.{}", program.section),
        String::from_utf8(page)?,
    ))
}

/// Text as roff: what is between backquotes is bold.
fn inline(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    parts
        .map(|(position, part)| match position % 2 {
            0 => roman(part),
            _ => bold(part),
        })
        .collect()
}

/// Makes the options' headings, which clap_mangen writes as sections, subsections of OPTIONS.
fn subsections(options: &str, headings: &[String]) -> String {
    let mut page = String::new();
    if !options.lines().any(|line| line == ".SH OPTIONS") {
        page.push_str(".SH OPTIONS\n");
    }
    // Where a list of values follows a help text, clap_mangen writes more breaks than roff takes.
    let options = options.replace("\n.br\n\n.br\n", "\n.sp\n");
    for line in options.lines() {
        let named = line.strip_prefix(".SH ").map(|name| name.trim_matches('"'));
        match headings
            .iter()
            .find(|heading| named == Some(heading.to_uppercase().as_str()))
        {
            Some(heading) => page.push_str(&format!(".SS \"{heading}\"")),
            None => page.push_str(line),
        }
        page.push('\n');
    }
    page
}

/// The sections that are no part of a command line.
fn sections(manual: &Manual, notes: Option<&str>, program: &Program, path: &[String]) -> Roff {
    let mut page = Roff::new();
    if let Some(notes) = notes {
        page.control("SH", ["NOTES"]);
        for (position, text) in notes
            .split('\n')
            .filter(|text| !text.is_empty())
            .enumerate()
        {
            if position > 0 {
                page.control("PP", []);
            }
            page.text(inline(text.trim()));
        }
    }
    for (heading, entries) in manual.lists() {
        page.control("SH", [heading.to_uppercase().as_str()]);
        for entry in entries {
            list_item(&mut page, entry);
        }
    }
    if !manual.examples.is_empty() {
        page.control("SH", ["EXAMPLES"]);
    }
    for (position, (what, lines)) in manual.examples.iter().enumerate() {
        if position > 0 {
            page.control("PP", []);
        }
        page.text(inline(what));
        page.control("PP", []);
        page.control("RS", ["4"]);
        page.control("nf", []);
        for line in lines.lines() {
            page.text([roman(line)]);
        }
        page.control("fi", []);
        page.control("RE", []);
    }
    page.control("SH", ["SEE ALSO"]);
    let parents = (0..path.len()).map(|len| {
        let mut words = vec![program.name.to_owned()];
        words.extend_from_slice(&path[..len]);
        format!("{}({})", words.join("-"), program.section)
    });
    let others = manual.see_also.iter().map(|&page| page.to_owned());
    let all: Vec<String> = parents.chain(others).collect();
    page.text([roman(all.join(", "))]);
    page
}

fn list_item(page: &mut Roff, (term, meaning): &Entry) {
    page.control("TP", []);
    page.text([bold(*term)]);
    page.text(inline(meaning));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of each page by its file name.
    fn pages() -> Vec<(String, String)> {
        let mut pages = Vec::new();
        for program in PROGRAMS {
            for (path, command) in program.commands() {
                pages.push(render(&program, &path, command, "2026-01-31").expect("a page"));
            }
        }
        pages
    }

    #[test]
    fn programs_have_all_sections_and_commands_those_that_concern_them() {
        for (name, page) in pages() {
            let program = PROGRAMS
                .iter()
                .any(|program| name == format!("{}.{}", program.name, program.section));
            let mut sections = vec!["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"];
            sections.extend(["\"EXIT STATUS\"", "\"SEE ALSO\""]);
            if program {
                sections.extend(["FILES", "SIGNALS", "EXAMPLES"]);
            }
            for section in sections {
                let line = format!(".SH {section}");
                let found = page.lines().filter(|&text| text == line).count();
                assert_eq!(found, 1, "{name}: {section}\n{page}");
            }
        }
    }

    #[test]
    fn references_lead_to_pages_of_ours_or_of_linux() {
        let pages = pages();
        let known = ["mount(8)", "systemd.service(5)"];
        for (name, page) in &pages {
            let (_, others) = page.rsplit_once(".SH \"SEE ALSO\"\n").expect(name);
            let others = others.trim().replace("\\-", "-");
            for other in others.split(", ") {
                let file = other.replace('(', ".").replace(')', "");
                let ours = pages.iter().any(|(name, _)| *name == file);
                assert!(ours || known.contains(&other), "{name}: {other}");
            }
        }
    }

    #[test]
    fn headings_of_options_are_below_options() {
        let text = ".SH OPTIONS\nx\n.SH \"THE SHARE\"\ny\n";
        let expected = ".SH OPTIONS\nx\n.SS \"The share\"\ny\n";
        assert_eq!(subsections(text, &["The share".to_owned()]), expected);
    }
}
