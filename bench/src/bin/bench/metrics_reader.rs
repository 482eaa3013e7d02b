//! Reads a daemon's metrics while the daemon is measured, as a monitoring system does, only more
//! often.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Time from one reading to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// Limit for an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// A thread that reads; it ends when this is dropped.
pub(crate) struct MetricsReader {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsReader {
    /// Reads the metrics at the Unix socket `path` once, and then each second.
    ///
    /// # Errors
    /// The first reading fails. A later one says so on standard error.
    pub(crate) fn start(path: PathBuf) -> Result<Self> {
        read(&path)?;
        let (end, ended) = mpsc::channel();
        let thread = thread::spawn(move || {
            while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = read(&path) {
                    eprintln!("bench: {error:#}");
                }
            }
        });
        Ok(Self {
            end: Some(end),
            thread: Some(thread),
        })
    }
}

impl Drop for MetricsReader {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It has said what it had to say.
            let _ = thread.join();
        }
    }
}

fn read(path: &Path) -> Result<()> {
    let mut text = String::new();
    UnixStream::connect(path)
        .and_then(|mut socket| {
            socket.set_read_timeout(Some(LIMIT))?;
            socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
            socket.read_to_string(&mut text)
        })
        .with_context(|| format!("reading metrics at {}", path.display()))?;
    ensure!(text.starts_with("HTTP/1.1 200"), "the metrics are: {text}");
    Ok(())
}
