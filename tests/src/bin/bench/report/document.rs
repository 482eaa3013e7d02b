//! Results in a document: between two marks, so that they are replaced by the next.

const BEGIN: &str = "<!-- results: scripts/bench --document puts them here -->";
const END: &str = "<!-- end of results -->";

/// The document with other results; none if it has no marks.
pub(super) fn fill(document: &str, results: &str) -> Option<String> {
    let (before, rest) = document.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!(
        "{before}{BEGIN}\n\n{}\n\n{END}{after}",
        results.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_replace_results_and_nothing_else() {
        let document = format!("# Speed\n{BEGIN}\n\nold\n\n{END}\nmore\n");
        let filled = fill(&document, "new").unwrap();
        assert_eq!(filled, document.replace("old", "new"));
        assert_eq!(fill(&filled, "new").as_ref(), Some(&filled));
        assert_eq!(fill("# Speed", "new"), None);
    }
}
