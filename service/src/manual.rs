//! What a program's manual says beside its options: the end of `--help`, and sections of its page.

/// A line of a list: a term, and what it means.
pub type Entry = (&'static str, &'static str);

/// The sections of the manual of a program or of one of its commands. Empty ones are left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manual {
    /// Paragraphs about what it does.
    pub description: &'static [&'static str],
    /// Exit statuses and their reasons.
    pub exit_status: &'static [Entry],
    /// Paths that it reads or makes.
    pub files: &'static [Entry],
    /// Environment variables.
    pub environment: &'static [Entry],
    /// Signals and what they do.
    pub signals: &'static [Entry],
    /// What an example achieves, and its command lines.
    pub examples: &'static [Entry],
    /// Other pages, with their sections: `gangplankd(8)`.
    pub see_also: &'static [&'static str],
}

impl Manual {
    /// The description as one text, for the beginning of `--help`.
    #[must_use]
    pub fn long_about(&self) -> String {
        self.description.join("\n\n")
    }

    /// The lists by their headings, in the order of a manual page.
    pub fn lists(&self) -> impl Iterator<Item = (&'static str, &'static [Entry])> {
        [
            ("Exit status", self.exit_status),
            ("Files", self.files),
            ("Environment", self.environment),
            ("Signals", self.signals),
        ]
        .into_iter()
        .filter(|(_, entries)| !entries.is_empty())
    }

    /// The end of `--help`: lists and examples.
    #[must_use]
    pub fn after_help(&self) -> String {
        let mut text = String::new();
        for (heading, entries) in self.lists() {
            text.push_str(heading);
            text.push_str(":\n");
            for (term, meaning) in entries {
                text.push_str(&format!("  {term}\n          {meaning}\n"));
            }
            text.push('\n');
        }
        if !self.examples.is_empty() {
            text.push_str("Examples:\n");
        }
        for (what, lines) in self.examples {
            text.push_str(&format!("  {what}\n"));
            for line in lines.lines() {
                text.push_str(&format!("          {line}\n"));
            }
        }
        text.truncate(text.trim_end().len());
        text
    }
}

/// The manual of the command whose names are `path`; a program's own manual has the empty path. A
/// command without one has the exit statuses and references of the nearest one above it.
#[must_use]
pub fn of_command(manuals: &[(&str, Manual)], path: &[&str]) -> Manual {
    let exact = |path: &[&str]| {
        let path = path.join(" ");
        let mut all = manuals.iter();
        all.find(|(name, _)| *name == path)
            .map(|(_, manual)| *manual)
    };
    if let Some(manual) = exact(path) {
        return manual;
    }
    let above = (0..path.len()).rev().find_map(|len| exact(&path[..len]));
    let above = above.unwrap_or_default();
    Manual {
        exit_status: above.exit_status,
        see_also: above.see_also,
        ..Manual::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANUALS: [(&str, Manual); 2] = [
        (
            "",
            Manual {
                description: &["One.", "Two."],
                exit_status: &[("0", "Done.")],
                files: &[],
                environment: &[],
                signals: &[],
                examples: &[("Serve:", "serve a\nserve b")],
                see_also: &[],
            },
        ),
        (
            "copy",
            Manual {
                description: &[],
                exit_status: &[("3", "Gone.")],
                files: &[],
                environment: &[],
                signals: &[],
                examples: &[],
                see_also: &[],
            },
        ),
    ];

    #[test]
    fn help_ends_with_the_lists_and_examples() {
        let manual = MANUALS[0].1;
        assert_eq!(manual.long_about(), "One.\n\nTwo.");
        let expected = "Exit status:\n  0\n          Done.\n\n\
                        Examples:\n  Serve:\n          serve a\n          serve b";
        assert_eq!(manual.after_help(), expected);
    }

    #[test]
    fn command_without_a_manual_has_the_exit_status_of_the_one_above() {
        let status = |path: &[&str]| of_command(&MANUALS, path).exit_status[0].0;
        assert_eq!(status(&["copy", "deep"]), "3");
        assert_eq!(status(&["other"]), "0");
        assert!(of_command(&MANUALS, &["other"]).examples.is_empty());
        assert!(of_command(&[], &["other"]).exit_status.is_empty());
    }
}
