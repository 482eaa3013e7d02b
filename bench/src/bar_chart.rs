//! Rates as an SVG bar chart: one group for each workload, one bar for each daemon or file system.

use std::fmt::Write;

/// The length of the longest bar, in pixels.
const LONGEST: f64 = 480.0;
/// Left end of titles, headings and labels, and the margin at the right.
const MARGIN: f64 = 12.0;
/// Between two columns.
const SPACE: f64 = 10.0;
/// Pixels of a character at most, on average over a word: of the widest common sans-serif font
/// (DejaVu Sans), in its size of 12.
const CHARACTER: f64 = 7.6;
/// The same of a bold one.
const BOLD_CHARACTER: f64 = 8.4;
/// The size of the title.
const TITLE_SIZE: f64 = 15.0;
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

/// Left ends of the columns, and the width of the picture.
#[derive(Clone, Copy, Debug)]
struct Columns {
    names: f64,
    bars: f64,
    told: f64,
    width: f64,
}

impl Columns {
    /// Wide enough for every text of the picture.
    fn new(title: &str, notes: &[&str], groups: &[Group]) -> Self {
        let longest = |texts: &mut dyn Iterator<Item = &str>| texts.map(width).fold(0.0, f64::max);
        let bars = || groups.iter().flat_map(|group| &group.bars);
        let names = MARGIN + longest(&mut groups.iter().map(|it| it.label.as_str())) + SPACE;
        let left = names + longest(&mut bars().map(|bar| bar.name.as_str())) + SPACE;
        let told = left + LONGEST + SPACE;
        let end = told + longest(&mut bars().map(|bar| bar.told.as_str()));
        let headings = groups.iter().map(|group| bold_width(&group.heading, 12.0));
        let wide = headings.chain([
            bold_width(title, TITLE_SIZE),
            longest(&mut notes.iter().copied()),
        ]);
        let wide = MARGIN + wide.fold(0.0, f64::max);
        Self {
            names,
            bars: left,
            told,
            width: (end.max(wide) + MARGIN).ceil(),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "no text has so many characters")]
fn width(text: &str) -> f64 {
    text.chars().count() as f64 * CHARACTER
}

fn bold_width(text: &str, size: f64) -> f64 {
    width(text) / CHARACTER * BOLD_CHARACTER * size / 12.0
}

/// Draws all groups under `title` and `notes`, which explain the names.
#[must_use]
pub fn draw(title: &str, notes: &[&str], groups: &[Group]) -> String {
    let columns = Columns::new(title, notes, groups);
    let mut body = String::new();
    let mut y = 40.0;
    for note in notes {
        text(&mut body, MARGIN, y, "normal", note);
        y += BAR + 2.0;
    }
    let mut heading = "";
    for group in groups {
        if heading != group.heading {
            heading = &group.heading;
            y += GAP;
            text(&mut body, MARGIN, y, "bold", heading);
            y += GAP;
        }
        y = bars(&mut body, group, y, columns) + GAP;
    }
    let (width, height) = (columns.width, y + GAP);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"22\" font-size=\"{TITLE_SIZE}\" font-weight=\"bold\">{}</text>\n\
         {body}</svg>\n",
        escaped(title)
    )
}

/// Draws the bars of one group. Returns the y coordinate below the last.
fn bars(body: &mut String, group: &Group, top: f64, columns: Columns) -> f64 {
    let most = group.bars.iter().map(|bar| bar.max);
    let most = most.fold(f64::MIN_POSITIVE, f64::max);
    let scaled = |rate: f64| (rate / most).clamp(0.0, 1.0) * LONGEST;
    let left = columns.bars;
    let mut y = top;
    text(body, MARGIN, y + BAR - 3.0, "normal", &group.label);
    for (bar, colour) in group.bars.iter().zip(COLOURS.iter().cycle()) {
        let length = scaled(bar.median);
        text(body, columns.names, y + BAR - 3.0, "normal", &bar.name);
        let _ = writeln!(
            body,
            "<rect x=\"{left:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{:.1}\" \
             fill=\"{colour}\"/>",
            BAR - 2.0
        );
        let middle = y + (BAR - 2.0) / 2.0;
        let (from, to) = (left + scaled(bar.min), left + scaled(bar.max));
        let _ = writeln!(
            body,
            "<path d=\"M{from:.1} {middle:.1}H{to:.1}\" stroke=\"black\"/>"
        );
        text(body, columns.told, y + BAR - 3.0, "normal", &bar.told);
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

    fn bar(name: &str, told: &str) -> Bar {
        Bar {
            name: name.to_owned(),
            median: 2.0,
            min: 1.0,
            max: 3.0,
            told: told.to_owned(),
        }
    }

    fn group(heading: &str, label: &str, bars: Vec<Bar>) -> Group {
        Group {
            heading: heading.to_owned(),
            label: label.to_owned(),
            bars,
        }
    }

    /// The value of `name` in an element.
    fn number(element: &str, name: &str) -> f64 {
        let (_, value) = element.split_once(&format!(" {name}=\"")).unwrap();
        value.split('"').next().unwrap().parse().unwrap()
    }

    #[test]
    fn each_has_a_bar_and_names_are_text() {
        let bars = || vec![bar("a<b", "2 & more"), bar("c", "2 & more")];
        let groups = [group("one", "find", bars()), group("one", "cat", bars())];
        let drawn = draw("rates", &["c is the other"], &groups);
        assert_eq!(drawn.matches("<path").count(), 4);
        assert_eq!(drawn.matches(">one<").count(), 1, "one heading for both");
        assert!(drawn.contains("a&lt;b") && !drawn.contains("a<b"));
        assert!(drawn.contains("2 &amp; more"));
        assert!(drawn.contains(">c is the other<"));
    }

    /// No text lies outside of the picture or in another column, however long it is.
    #[test]
    fn nothing_is_cut_off_and_nothing_overlaps() {
        let long = "a text that is much longer than all the others";
        for at in 0..6 {
            let text = |number: usize| if number == at { long } else { "short" };
            let groups = [
                group(text(0), text(1), vec![bar(text(2), text(3)), bar("b", "c")]),
                group("", "d", vec![bar("e", "f")]),
            ];
            let drawn = draw(text(4), &[text(5)], &groups);
            let picture = drawn.lines().next().unwrap();
            let (right, bottom) = (number(picture, "width"), number(picture, "height"));
            let mut texts = Vec::new();
            for element in drawn.lines().filter(|line| line.starts_with("<text")) {
                let shown = element.split_once('>').unwrap().1;
                let shown = shown.strip_suffix("</text>").unwrap();
                let (x, y) = (number(element, "x"), number(element, "y"));
                let size = if element.contains("font-size") {
                    15.0
                } else {
                    12.0
                };
                let end = match element.contains("bold") {
                    true => x + bold_width(shown, size),
                    false => x + width(shown),
                };
                assert!(end <= right && y <= bottom, "{element} in {picture}");
                texts.push((y, x, end));
            }
            let mut bars = 0;
            for element in drawn.lines().filter(|line| line.contains("fill=\"#")) {
                bars += 1;
                let (x, y) = (number(element, "x"), number(element, "y"));
                let end = x + number(element, "width");
                assert!(end <= right && y + BAR <= bottom, "{element}");
                // The texts of its line.
                for &(at, from, to) in &texts {
                    let is_beside = (y..y + BAR).contains(&at);
                    assert!(
                        !is_beside || to <= x || from >= end,
                        "{element}: {from} {to}"
                    );
                }
            }
            assert_eq!(bars, 3);
            for &(y, from, _) in &texts {
                let left = texts
                    .iter()
                    .filter(|it| (it.0 - y).abs() < 10.0 && it.1 < from);
                for &(_, _, end) in left {
                    assert!(end <= from, "{drawn}");
                }
            }
        }
    }
}
