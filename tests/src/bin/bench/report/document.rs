//! Results in a document: between two marks, so that they are replaced by the next.

use super::Part;

const END: &str = "<!-- end of results -->";

/// What stands before a part's.
const fn begin(part: Part) -> &'static str {
    match part {
        Part::Daemons => "<!-- results: scripts/bench --document puts them here -->",
        Part::Rhostfs => "<!-- results of rhostfs: scripts/bench --document puts them here -->",
    }
}

/// The document with other results of a part; none if it has no marks for them.
pub(super) fn fill(document: &str, part: Part, results: &str) -> Option<String> {
    let begin = begin(part);
    let (before, rest) = document.split_once(begin)?;
    let (_, after) = rest.split_once(END)?;
    let results = results.trim();
    Some(format!("{before}{begin}\n\n{results}\n\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_replace_results_of_their_part_and_nothing_else() {
        let [daemons, rhostfs] = [Part::Daemons, Part::Rhostfs].map(begin);
        let document = format!(
            "# Speed\n{daemons}\n\nold\n\n{END}\nmore\n{rhostfs}\n\nother\n\n{END}\nand more\n"
        );
        let filled = fill(&document, Part::Daemons, "new").unwrap();
        assert_eq!(filled, document.replace("old", "new"));
        assert_eq!(fill(&filled, Part::Daemons, "new").as_ref(), Some(&filled));
        let filled = fill(&document, Part::Rhostfs, "new").unwrap();
        assert_eq!(filled, document.replace("other", "new"));
        assert_eq!(fill("# Speed", Part::Daemons, "new"), None);
    }
}
