//! A log of steps: what each forward pass held and how long it took. Cost models of the simulator are fitted to it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use outrank_core::StepSample;
use serde::{Deserialize, Serialize};

/// Lines are written in one piece when this much has gathered, in bytes: engines that append to the same file do not
/// cut each other's lines.
const WRITE_BYTES: usize = 64 << 10;
/// ... or after this time.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// One forward pass: a line of the log. Whoever needs no more reads it as a [`StepSample`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StepRecord {
    /// Name of the policy that planned it.
    pub policy: String,
    /// Number of the plan that it executed.
    pub step: u64,
    /// What it held, and how long the forward pass and the sampling took.
    #[serde(flatten)]
    pub sample: StepSample,
    /// Sequences that gave up their seat before the step.
    pub paused: u32,
    /// Sequences restored from host memory before the step.
    pub restored: u32,
    /// Time of pauses, restores and moves before the step, in seconds.
    pub switch_s: f64,
    /// End of the step on the engine's clock, in seconds since its start.
    pub ended_s: f64,
}

/// The file that records go to. It never holds up or fails the engine: after the first error it is closed.
#[derive(Debug)]
pub(crate) struct StepLog<W: Write = File> {
    /// `None` once writing has failed.
    file: Option<W>,
    lines: Vec<u8>,
    written_at: Instant,
}

impl StepLog {
    /// Opens a file, to which records are appended.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::new(OpenOptions::new().create(true).append(true).open(path)?))
    }
}

impl<W: Write> StepLog<W> {
    fn new(file: W) -> Self {
        Self { file: Some(file), lines: Vec::new(), written_at: Instant::now() }
    }

    /// Appends one line.
    pub(crate) fn write(&mut self, record: &StepRecord) {
        if self.file.is_none() {
            return;
        }
        if let Err(error) = serde_json::to_writer(&mut self.lines, record) {
            return self.give_up(&error.into());
        }
        self.lines.push(b'\n');
        if self.lines.len() >= WRITE_BYTES || self.written_at.elapsed() >= WRITE_INTERVAL {
            self.flush();
        }
    }

    /// Writes what has gathered.
    pub(crate) fn flush(&mut self) {
        self.written_at = Instant::now();
        let Some(file) = &mut self.file else { return };
        if !self.lines.is_empty()
            && let Err(error) = file.write_all(&self.lines)
        {
            self.give_up(&error);
        }
        self.lines.clear();
    }

    fn give_up(&mut self, error: &io::Error) {
        self.file = None;
        tracing::warn!(%error, "cannot write the step log: the steps from here on are missing from it");
    }
}

impl<W: Write> Drop for StepLog<W> {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> StepRecord {
        let sample = StepSample { decodes: 3, context_tokens: 70, took_s: 0.02, ..StepSample::default() };
        let policy = "fcfs".to_owned();
        StepRecord { policy, step, sample, paused: 0, restored: 0, switch_s: 0.0, ended_s: 1.5 }
    }

    #[test]
    fn engines_one_after_the_other_append_whole_lines_that_are_samples() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("steps.jsonl");
        for step in [1, 2] {
            let mut log = StepLog::open(&path).unwrap();
            log.write(&record(step));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(serde_json::from_str::<StepRecord>(lines[1]).unwrap(), record(2));
        assert_eq!(serde_json::from_str::<StepSample>(lines[0]).unwrap(), record(1).sample);
    }

    /// A disk that is full, and counts the attempts.
    struct Full<'a>(&'a mut u32);

    impl Write for Full<'_> {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            *self.0 += 1;
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_ends_the_log_and_nothing_else() {
        let mut attempts = 0;
        let mut log = StepLog::new(Full(&mut attempts));
        for step in 0..3 {
            log.write(&record(step));
            log.flush();
        }
        assert!(log.lines.is_empty(), "nothing gathers for a file that is closed");
        drop(log);
        assert_eq!(attempts, 1);
    }
}
