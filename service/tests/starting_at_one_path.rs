//! Programs that start at one path at the same time.
//!
//! A test program of its own: a process that another test starts would hold this one's sockets for
//! a moment.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use gangplank_service::unix_listener::OwnedListener;

/// Rounds of [`exactly_one_of_two_starters_wins_and_the_other_names_it`].
const ROUNDS: usize = 50;

/// Time in which both starters learn when to start.
const START_DELAY: Duration = Duration::from_millis(2);

/// The variable by which that test tells its own program to be a starter, and where.
const STARTER_PATH: &str = "GANGPLANK_TEST_STARTER_PATH";

/// Not a test: what a child process of the next test does. It says when it is ready, binds at the
/// time that it is told, says what came of it, and keeps the socket until it is told to end.
#[test]
fn starter() {
    let Some(path) = std::env::var_os(STARTER_PATH) else {
        return;
    };
    let mut output = io::stderr();
    writeln!(output, "ready").unwrap();
    let mut line = String::new();
    io::stdin().read_line(&mut line).unwrap();
    let start = Duration::from_nanos(line.trim().parse().unwrap());
    // Waking from a sleep takes longer than the calls that are to overlap.
    while UNIX_EPOCH.elapsed().unwrap() < start {
        std::hint::spin_loop();
    }
    let bound = OwnedListener::bind(Path::new(&path), None);
    match &bound {
        Ok(_) => writeln!(output, "bound").unwrap(),
        Err(error) => writeln!(output, "{error}").unwrap(),
    }
    // Ends when the test closes the pipe.
    let _ = io::stdin().read_line(&mut line);
}

struct Starter {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStderr>,
}

impl Starter {
    fn start(path: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "starter"])
            .env(STARTER_PATH, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stderr.take().unwrap());
        let mut starter = Self {
            process,
            input,
            output,
        };
        assert_eq!(starter.line(), "ready");
        starter
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn end(mut self) {
        drop(self.input);
        self.process.wait().unwrap();
    }
}

#[test]
fn exactly_one_of_two_starters_wins_and_the_other_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fs.sock");
    for round in 0..ROUNDS {
        // One round in five starts without the socket of a process that has ended.
        if round % 5 != 0 {
            drop(UnixListener::bind(&path).unwrap());
        }
        let mut starters = [Starter::start(&path), Starter::start(&path)];
        let start = UNIX_EPOCH.elapsed().unwrap() + START_DELAY;
        for starter in &mut starters {
            writeln!(starter.input, "{}", start.as_nanos()).unwrap();
        }
        let lines = starters.each_mut().map(Starter::line);
        let bound = lines.iter().filter(|line| *line == "bound").count();
        assert_eq!(bound, 1, "round {round}: {lines:?}");
        let (winner, refusal) = match &lines {
            [first, second] if first == "bound" => (&starters[0], second),
            [first, _] => (&starters[1], first),
        };
        let name = format!("process {} (", winner.process.id());
        assert!(refusal.contains(&name), "round {round}: {name}: {lines:?}");
        UnixStream::connect(&path).unwrap();
        starters.into_iter().for_each(Starter::end);
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }
}
