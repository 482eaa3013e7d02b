//! `gangplankd status --watch`: a screen that is renewed each second.
//!
//! ```text
//! daemon
//! guests      a line and a curve of requests per second for each
//! operations  of the chosen guest
//! keys
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table};

use super::client::Error;
use super::model::{Guest, Operation, Status};
use super::table::{bytes, count, duration, percentile, summary};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Points of a curve.
const POINTS: usize = 120;

/// By what operations are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    #[default]
    Rate,
    Errors,
    Bytes,
    Name,
}

impl Order {
    const fn next(self) -> Self {
        match self {
            Self::Rate => Self::Errors,
            Self::Errors => Self::Bytes,
            Self::Bytes => Self::Name,
            Self::Name => Self::Rate,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Rate => "requests per second",
            Self::Errors => "errors",
            Self::Bytes => "bytes",
            Self::Name => "name",
        }
    }
}

/// What is on the screen.
#[derive(Debug, Default)]
struct Screen {
    now: Status,
    before: Option<Status>,
    /// Why there is nothing newer.
    failure: Option<String>,
    /// Requests per second of each guest, the newest last.
    curves: BTreeMap<u64, VecDeque<u64>>,
    chosen: usize,
    order: Order,
}

/// Shows `first` and what `ask` says each second, until a key ends it.
///
/// # Errors
/// The terminal's. A daemon that does not answer is named on the screen.
pub(super) fn run(first: Status, ask: impl Fn() -> Result<Status, Error>) -> io::Result<()> {
    let mut screen = Screen::default();
    screen.renew(first);
    // Also has a panic restore the terminal.
    let mut terminal = ratatui::try_init()?;
    let result = show(&mut terminal, &mut screen, ask);
    ratatui::try_restore()?;
    result
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    screen: &mut Screen,
    ask: impl Fn() -> Result<Status, Error>,
) -> io::Result<()> {
    let mut next = Instant::now() + INTERVAL;
    loop {
        terminal.draw(|frame| screen.draw(frame))?;
        if event::poll(next.saturating_duration_since(Instant::now()))? {
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
            {
                let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
                if screen.is_ended_by(key.code, is_control) {
                    return Ok(());
                }
            }
            continue;
        }
        next = Instant::now() + INTERVAL;
        match ask() {
            Ok(status) => screen.renew(status),
            Err(error) => screen.failure = Some(error.to_string()),
        }
    }
}

impl Screen {
    fn renew(&mut self, status: Status) {
        self.failure = None;
        self.before = Some(std::mem::replace(&mut self.now, status));
        if self.now.guests.is_empty() {
            self.curves.clear();
        }
        let numbers: Vec<u64> = self.now.guests.iter().map(|guest| guest.number).collect();
        self.curves.retain(|number, _| numbers.contains(number));
        for guest in &self.now.guests {
            let rate = self.rate(guest, |operation| operation.requests);
            let curve = self.curves.entry(guest.number).or_default();
            curve.push_back(rate);
            if curve.len() > POINTS {
                curve.pop_front();
            }
        }
        self.chosen = self.chosen.min(self.now.guests.len().saturating_sub(1));
    }

    fn is_ended_by(&mut self, key: KeyCode, is_control: bool) -> bool {
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('c') if is_control => return true,
            KeyCode::Char('s') => self.order = self.order.next(),
            KeyCode::Down | KeyCode::Char('j') => {
                let last = self.now.guests.len().saturating_sub(1);
                self.chosen = (self.chosen + 1).min(last);
            }
            KeyCode::Up | KeyCode::Char('k') => self.chosen = self.chosen.saturating_sub(1),
            _ => {}
        }
        false
    }

    /// The guest as it was before.
    fn earlier(&self, number: u64) -> Option<&Guest> {
        let guests = &self.before.as_ref()?.guests;
        let earlier = guests.iter().find(|guest| guest.number == number);
        earlier.filter(|guest| guest.unavailable.is_none())
    }

    /// By how much a number has grown per second.
    fn per_second(&self, now: u64, before: u64) -> u64 {
        let began = self.before.as_ref().map_or(0, |before| before.time_ns);
        let passed = self.now.time_ns.saturating_sub(began).max(1);
        let grown = u128::from(now.saturating_sub(before)) * 1_000_000_000;
        u64::try_from(grown / u128::from(passed)).unwrap_or(u64::MAX)
    }

    /// What all operations of a guest have done per second; 0 for one that is new.
    fn rate(&self, guest: &Guest, of: impl Fn(&Operation) -> u64 + Copy) -> u64 {
        self.earlier(guest.number).map_or(0, |earlier| {
            self.per_second(guest.total(of), earlier.total(of))
        })
    }

    /// The same of one operation.
    fn operation_rate(
        &self,
        guest: &Guest,
        operation: &Operation,
        of: impl Fn(&Operation) -> u64,
    ) -> u64 {
        self.earlier(guest.number).map_or(0, |earlier| {
            let same = |earlier: &&Operation| earlier.opcode == operation.opcode;
            let before = earlier.operations.iter().find(same).map_or(0, &of);
            self.per_second(of(operation), before)
        })
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let guests = u16::try_from(self.now.guests.len()).unwrap_or(u16::MAX);
        // A third of the screen at most.
        let guests = guests
            .saturating_add(2)
            .clamp(3, (frame.area().height / 3).max(3));
        let [head, list, curve, below, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(guests),
            Constraint::Length(4),
            Constraint::Min(4),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(self.head(), head);
        frame.render_widget(self.guests(list.height), list);
        if let Some(guest) = self.now.guests.get(self.chosen) {
            self.draw_curve(frame, curve, guest);
            let [facts, operations] =
                Layout::vertical([Constraint::Length(4), Constraint::Min(0)]).areas(below);
            let lines: Vec<Line<'_>> = summary(guest).into_iter().map(Line::from).collect();
            frame.render_widget(Paragraph::new(lines), facts);
            frame.render_widget(self.operations(guest), operations);
        }
        let keys_text = format!(
            "q quit   up/down guest   s sort, now by {}",
            self.order.name()
        );
        let style = Style::new().add_modifier(Modifier::DIM);
        frame.render_widget(Paragraph::new(keys_text).style(style), keys);
    }

    fn head(&self) -> Paragraph<'_> {
        let reversed = Style::new().add_modifier(Modifier::REVERSED);
        let text = match &self.failure {
            Some(failure) => format!("no answer: {failure}"),
            None => format!(
                "gangplankd {}  {} as {}  {}/{} guests",
                self.now.program,
                self.now.shared_dir,
                self.now.tag,
                self.now.connected_and_lost().0,
                self.now.max_guests
            ),
        };
        Paragraph::new(text).style(reversed)
    }

    /// The guests around the chosen one, as far as `height` permits.
    fn guests(&self, height: u16) -> Table<'_> {
        let room = usize::from(height.saturating_sub(1)).max(1);
        let first = (self.chosen + 1).saturating_sub(room);
        let shown = self.now.guests.iter().enumerate().skip(first).take(room);
        let rows = shown.map(|(index, guest)| {
            let restarts = &guest.restarts;
            let oldest = guest.oldest.as_ref();
            let cells = match &guest.unavailable {
                // Its reason is among the facts below.
                Some(_) => vec![guest.number.to_string(), "waits".to_owned()],
                None => vec![
                    guest.number.to_string(),
                    count(self.rate(guest, |operation| operation.requests)),
                    bytes(self.rate(guest, |operation| operation.bytes_in)),
                    bytes(self.rate(guest, |operation| operation.bytes_out)),
                    count(guest.total(|operation| operation.errors)),
                    count(guest.in_flight()),
                    oldest.map_or("-".to_owned(), |oldest| duration(oldest.age_ns)),
                    count(guest.inodes),
                    count(guest.descriptors),
                    count(restarts.count),
                ],
            };
            let row = Row::new(cells.into_iter().map(Cell::from));
            match index == self.chosen {
                true => row.style(Style::new().add_modifier(Modifier::BOLD)),
                false => row,
            }
        });
        let widths = [5, 8, 9, 9, 7, 6, 7, 8, 7, 5].map(Constraint::Length);
        Table::new(rows, widths).header(header([
            "guest", "req/s", "in/s", "out/s", "errors", "queue", "oldest", "inodes", "fds", "died",
        ]))
    }

    fn draw_curve(&self, frame: &mut Frame<'_>, area: Rect, guest: &Guest) {
        let points = self.curves.get(&guest.number);
        let points: Vec<u64> = points.into_iter().flatten().copied().collect();
        let first = points.len().saturating_sub(area.width.into());
        let most = points.iter().max().copied().unwrap_or_default();
        let title = format!(
            "guest {}, requests per second, at most {}",
            guest.number,
            count(most)
        );
        let block = Block::new().borders(Borders::TOP).title(title);
        let curve = Sparkline::default().block(block).data(&points[first..]);
        frame.render_widget(curve, area);
    }

    fn operations(&self, guest: &Guest) -> Table<'_> {
        let mut operations: Vec<(&Operation, u64)> = guest
            .operations
            .iter()
            .map(|operation| {
                let rate = self.operation_rate(guest, operation, |operation| operation.requests);
                (operation, rate)
            })
            .collect();
        operations.sort_by_key(|(operation, rate)| {
            let number = match self.order {
                Order::Rate => *rate,
                Order::Errors => operation.errors,
                Order::Bytes => operation.bytes_in.saturating_add(operation.bytes_out),
                Order::Name => 0,
            };
            let requests = match self.order {
                Order::Name => 0,
                _ => operation.requests,
            };
            (
                std::cmp::Reverse((number, requests)),
                operation.opcode.clone(),
            )
        });
        let rows = operations.into_iter().map(|(operation, rate)| {
            let cells = [
                operation.opcode.clone(),
                count(rate),
                count(operation.requests),
                count(operation.errors),
                bytes(operation.bytes_in),
                bytes(operation.bytes_out),
                percentile(operation, 50),
                percentile(operation, 99),
            ];
            Row::new(cells.map(Cell::from))
        });
        let widths = [16, 8, 9, 8, 10, 10, 8, 8].map(Constraint::Length);
        Table::new(rows, widths).header(header([
            "operation",
            "req/s",
            "requests",
            "errors",
            "in",
            "out",
            "p50",
            "p99",
        ]))
    }
}

fn header<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names.map(Cell::from)).style(Style::new().add_modifier(Modifier::UNDERLINED))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::model::{Latency, Ring, Session};
    use super::*;

    fn operation(opcode: &str, requests: u64, errors: u64) -> Operation {
        Operation {
            opcode: opcode.to_owned(),
            requests,
            errors,
            bytes_in: requests * 80,
            bytes_out: requests * 1024,
            latency: Latency {
                measured: 1,
                sum_ns: 400,
                buckets: vec![0, 1, 0],
            },
        }
    }

    fn status(seconds: u64) -> Status {
        let guest = |number| Guest {
            number,
            inodes: 1234,
            descriptors: 99,
            session: Some(Session {
                offered: (7, 45),
                spoken: (7, 45),
                flags: 0,
                kernel_at_least: Some("6.18".to_owned()),
            }),
            rings: vec![
                Ring::default(),
                Ring {
                    in_flight: 3,
                    running: 1,
                },
            ],
            operations: vec![
                operation("LOOKUP", 500, 40 * seconds),
                operation("READ", 2000 * seconds, 0),
            ],
            ..Guest::default()
        };
        Status {
            time_ns: seconds * 1_000_000_000,
            shared_dir: "/srv".to_owned(),
            tag: "myfs".to_owned(),
            max_guests: 100,
            guests: vec![
                guest(1),
                Guest::unavailable(2, "its next worker is starting"),
                guest(5),
            ],
            ..Status::empty()
        }
    }

    fn drawn(screen: &Screen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_screen_of_80_columns_and_24_lines() {
        let mut screen = Screen::default();
        screen.renew(status(1));
        screen.renew(status(2));
        screen.renew(status(4));
        let text = drawn(&screen, 80, 24);
        let lines: Vec<&str> = text
            .lines()
            .map(|line| line.trim_matches('"').trim_end())
            .collect();
        let expected = include_str!("watch-80x24.txt");
        assert_eq!(lines.join("\n"), expected.trim_end(), "\n{text}");
    }

    #[test]
    fn keys_choose_a_guest_and_an_order_and_leave() {
        let mut screen = Screen::default();
        screen.renew(status(1));
        for _ in 0..5 {
            assert!(!screen.is_ended_by(KeyCode::Down, false));
        }
        assert_eq!(screen.chosen, 2);
        assert!(!screen.is_ended_by(KeyCode::Char('s'), false));
        assert!(drawn(&screen, 80, 24).contains("now by errors"));
        let line = |text: &str, name: &str| text.lines().position(|line| line.contains(name));
        let text = drawn(&screen, 80, 24);
        assert!(line(&text, "LOOKUP") < line(&text, "READ"), "{text}");
        screen.renew(Status::empty());
        assert_eq!(screen.chosen, 0);
        assert!(!screen.is_ended_by(KeyCode::Char('c'), false));
        assert!(screen.is_ended_by(KeyCode::Char('c'), true));
        assert!(screen.is_ended_by(KeyCode::Char('q'), false));
    }

    #[test]
    fn a_small_or_large_screen_many_guests_and_a_lost_daemon_are_drawn() {
        let mut screen = Screen::default();
        let mut many = status(3);
        many.guests = (0..200)
            .map(|number| Guest {
                number,
                ..many.guests[0].clone()
            })
            .collect();
        screen.renew(many);
        screen.failure = Some("cannot ask the daemon".to_owned());
        for _ in 0..150 {
            screen.is_ended_by(KeyCode::Down, false);
        }
        for (width, height) in [(1, 1), (10, 5), (80, 24), (300, 100)] {
            let text = drawn(&screen, width, height);
            if width >= 80 {
                assert!(text.contains("no answer: cannot ask the daemon"), "{text}");
                assert!(text.contains("guest 150:"), "{text}");
            }
        }
    }
}
