//! Rates as an SVG bar chart: one group for each workload, one bar for each daemon or file system.

use std::fmt::Write;

const WIDTH: f64 = 960.0;
/// Left end of the bars and the length of the longest, in pixels.
const LEFT: f64 = 260.0;
const LONGEST: f64 = 480.0;
const BAR: f64 = 14.0;
const GAP: f64 = 12.0;
const COLOURS: [&str; 6] = [
    "#1f77b4", "#ff7f0e", "#7f7f7f", "#2ca02c", "#9467bd", "#8c564b",
];

/// One bar of a group.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What was measured.
    pub name: String,
    /// The median of all rounds, in the group's unit.
    pub median: f64,
    /// The lowest round.
    pub min: f64,
    /// The highest round.
    pub max: f64,
    /// The text after the bar.
    pub told: String,
}

/// One workload, drawn to its own scale.
#[derive(Clone, Debug)]
pub struct Group {
    /// The heading. It is drawn once for consecutive groups with the same heading.
    pub heading: String,
    /// The workload.
    pub label: String,
    /// The bars.
    pub bars: Vec<Bar>,
}

/// Draws all groups under `title`.
#[must_use]
pub fn draw(title: &str, groups: &[Group]) -> String {
    let mut body = String::new();
    let mut y = 40.0;
    let mut heading = "";
    for group in groups {
        if heading != group.heading {
            heading = &group.heading;
            y += GAP;
            text(&mut body, 12.0, y, "bold", heading);
            y += 2.0 * GAP;
        }
        y = bars(&mut body, group, y) + GAP;
    }
    let height = y + GAP;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{}</text>\n{body}</svg>\n",
        escaped(title)
    )
}

/// Draws the bars of one group. Returns the y coordinate below the last.
fn bars(body: &mut String, group: &Group, top: f64) -> f64 {
    let most = group.bars.iter().map(|bar| bar.max);
    let most = most.fold(f64::MIN_POSITIVE, f64::max);
    let scaled = |rate: f64| rate / most * LONGEST;
    let mut y = top;
    text(body, 12.0, y + BAR - 3.0, "normal", &group.label);
    for (bar, colour) in group.bars.iter().zip(COLOURS.iter().cycle()) {
        let length = scaled(bar.median);
        text(body, 150.0, y + BAR - 3.0, "normal", &bar.name);
        let _ = writeln!(
            body,
            "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{:.1}\" \
             fill=\"{colour}\"/>",
            BAR - 2.0
        );
        let middle = y + (BAR - 2.0) / 2.0;
        let (from, to) = (LEFT + scaled(bar.min), LEFT + scaled(bar.max));
        let _ = writeln!(
            body,
            "<path d=\"M{from:.1} {middle:.1}H{to:.1}\" stroke=\"black\"/>"
        );
        text(
            body,
            LEFT + LONGEST + 8.0,
            y + BAR - 3.0,
            "normal",
            &bar.told,
        );
        y += BAR;
    }
    y
}

fn text(body: &mut String, x: f64, y: f64, weight: &str, text: &str) {
    let _ = writeln!(
        body,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-weight=\"{weight}\">{}</text>",
        escaped(text)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_bar_and_names_are_text() {
        let bar = |name: &str| Bar {
            name: name.to_owned(),
            median: 2.0,
            min: 1.0,
            max: 3.0,
            told: "2 & more".to_owned(),
        };
        let group = |label: &str| Group {
            heading: "one".to_owned(),
            label: label.to_owned(),
            bars: vec![bar("a<b"), bar("c")],
        };
        let drawn = draw("rates", &[group("find"), group("cat")]);
        assert_eq!(drawn.matches("<path").count(), 4);
        assert_eq!(drawn.matches(">one<").count(), 1, "one heading for both");
        assert!(drawn.contains("a&lt;b") && !drawn.contains("a<b"));
        assert!(drawn.contains("2 &amp; more"));
    }
}
