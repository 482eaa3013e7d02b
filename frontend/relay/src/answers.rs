//! What the relay answers to an operator, from what its guests have answered.

use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use super::control::Command;
use super::daemon;
use super::holder::{HeldFor, Summary};

/// What an operator should know after `command` was sent to `guests` guests, beside what they say.
pub(super) fn remark(command: &Command, guests: usize, backend: &Path) -> String {
    match command {
        Command::Status | Command::Switch { .. } => {
            let path = backend.display();
            match daemon::listens_at(backend) {
                Ok(()) => format!("new guests go to {path}\n"),
                Err(why) => format!("new guests wait for a daemon at {path}: {why}\n"),
            }
        }
        Command::Pause if guests == 0 => {
            "nothing was paused: a guest that connects now is served at once\n".to_owned()
        }
        Command::Resume if guests == 0 => "nothing was paused\n".to_owned(),
        Command::StatusJson | Command::Pause | Command::Resume => String::new(),
    }
}

/// What the relay holds, a line for each daemon.
pub(super) fn held_in_words(held: &Summary) -> String {
    let daemons = held.daemons();
    let count: usize = daemons.iter().map(|daemon| daemon.count).sum();
    let mut text = format!(
        "{count} descriptors are held, of {} that may be (--holder-limit)\n",
        held.limit()
    );
    for HeldFor {
        daemon,
        count,
        until,
    } in daemons
    {
        text += &format!("{count} of them for the daemon of {daemon}");
        if let Some(left) = seconds_left(until) {
            text += &format!(", which has ended, for {left:.0} s more");
        }
        text += "\n";
    }
    text
}

fn seconds_left(until: Option<Instant>) -> Option<f64> {
    let left = until?.saturating_duration_since(Instant::now());
    Some(left.as_secs_f64())
}

/// What the guests have answered.
pub(super) struct Collected {
    /// By the guests' numbers.
    answers: Vec<(u64, Result<String, String>)>,
    /// Whether all have succeeded.
    pub(super) is_done: bool,
    /// Whether some have not answered in time.
    is_late: bool,
}

/// Collects the answers of `count` guests for `command_limit`.
pub(super) fn collect(
    answers: &Receiver<(u64, Result<String, String>)>,
    count: usize,
    command_limit: Duration,
) -> Collected {
    let until = Instant::now() + command_limit;
    let mut collected = Collected {
        answers: Vec::new(),
        is_done: true,
        is_late: false,
    };
    while collected.answers.len() < count {
        let left = until.saturating_duration_since(Instant::now());
        match answers.recv_timeout(left) {
            Ok(answer) => {
                collected.is_done &= answer.1.is_ok();
                collected.answers.push(answer);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                collected.is_done = false;
                collected.is_late = true;
                break;
            }
        }
    }
    collected.answers.sort();
    collected
}

impl Collected {
    /// A line for each guest, and `more` behind them.
    pub(super) fn in_words(&self, more: &str) -> Result<String, String> {
        let mut text = String::new();
        if self.is_late {
            text += "guest 0: some guests have not answered yet, and run the command when they \
                     can\n";
        }
        if self.answers.is_empty() && !self.is_late {
            text += "no guest is connected\n";
        }
        for (guest, answer) in &self.answers {
            let (Ok(answer) | Err(answer)) = answer;
            text += &format!("guest {guest}: {answer}\n");
        }
        text += more;
        match self.is_done {
            true => Ok(text),
            false => Err(text),
        }
    }
}

/// The answer to `status-json`.
pub(super) fn in_json(
    collected: &Collected,
    backend: &Path,
    held: Option<&Summary>,
) -> Result<String, String> {
    let answers = collected.answers.iter();
    let guests = answers.filter_map(|(_, answer)| {
        let object = answer.as_ref().ok()?;
        serde_json::from_str::<serde_json::Value>(object).ok()
    });
    let listens = daemon::listens_at(backend);
    let held_for = held.map(|held| {
        let daemons = held.daemons().into_iter().map(|held| {
            serde_json::json!({
                "daemon": held.daemon,
                "descriptors": held.count,
                "time_left_s": seconds_left(held.until),
            })
        });
        daemons.collect::<Vec<_>>()
    });
    let object = serde_json::json!({
        "guests": guests.collect::<Vec<_>>(),
        "complete": collected.is_done,
        "backend": backend.to_string_lossy(),
        "backend_listens": listens.is_ok(),
        "backend_error": listens.err().map(|why| why.to_string()),
        "holder_limit": held.map(Summary::limit),
        "held": held_for,
    });
    let text = format!("{object}\n");
    match collected.is_done {
        true => Ok(text),
        false => Err(text),
    }
}
