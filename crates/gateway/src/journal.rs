//! The journal: one JSON line for each answered request, in the format of a trace, so that `outrank simulate --from-journal`
//! replays it and `outrank train --from-journal` learns from it. Prompts are not stored unless asked; their features are, by the
//! thread that writes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use outrank_ranker::Example;
use outrank_ranker::features::Scratch;
use parking_lot::RwLock;
use serde::Serialize;
use tokio::sync::watch;

use crate::config::JournalConfig;
use crate::metrics::Metrics;

/// Lines that may wait to be written; beyond it they are dropped and counted.
const MAX_QUEUED_LINES: usize = 4096;
/// Bytes of text in the lines that wait, at most; beyond it they are dropped and counted too.
const MAX_QUEUED_TEXT_BYTES: usize = 64 << 20;
/// How long to leave the disk alone after it refused a line.
const ERROR_PAUSE: Duration = Duration::from_millis(200);

/// A line.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    /// Empty, unless the settings say that prompts are kept.
    pub(crate) prompt: Arc<str>,
    pub(crate) arrival_s: f64,
    pub(crate) prompt_tokens: u32,
    pub(crate) output_tokens: u32,
    pub(crate) truncated: bool,
    pub(crate) model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tenant: Option<Arc<str>>,
    pub(crate) class: &'static str,
    /// Predicted median length in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) score: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) spread: Option<f32>,
    pub(crate) outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) upstream: Option<String>,
    pub(crate) queue_s: Option<f64>,
    pub(crate) ttft_s: Option<f64>,
    pub(crate) e2e_s: f64,
    pub(crate) request_id: String,
    /// Answers that were asked for, where they are several: `output_tokens` is the sum of theirs.
    #[serde(rename = "n", skip_serializing_if = "is_one")]
    pub(crate) outputs: u32,
    /// Whether the answer was made to go on to its limit.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ignore_eos: bool,
    /// The features of `scored`, which the thread that writes fills in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) features: Option<String>,
    /// What the ranker reads.
    #[serde(skip)]
    pub(crate) scored: Option<Arc<str>>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
fn is_one(outputs: &u32) -> bool {
    *outputs == 1
}

impl Line {
    /// Bytes of text that it keeps in memory.
    fn text_bytes(&self) -> usize {
        self.prompt.len() + self.scored.as_ref().map_or(0, |text| text.len())
    }

    /// Puts features in the place of what was scored, unless they would be too long.
    fn extract(&mut self, scratch: &mut Scratch) {
        let text = self.scored.take();
        self.features =
            text.and_then(|text| Example::new(scratch, &text, self.output_tokens, self.truncated).pack());
    }
}

/// The journal in force, and the threads that write: that of a journal which a reload replaced may still be at it.
#[derive(Debug, Default)]
pub(crate) struct Journals {
    current: RwLock<Option<Arc<Journal>>>,
    /// Every thread that writes holds a receiver.
    writers: watch::Sender<()>,
}

impl Journals {
    /// Opens a journal and starts its thread; it is in force once it is given to [`Journals::replace`].
    pub(crate) fn open(&self, config: &JournalConfig, metrics: &Arc<Metrics>) -> io::Result<Journal> {
        Journal::open(config, Arc::clone(metrics), self.writers.subscribe())
    }

    /// From now on lines go there; those before are written where they were to go.
    pub(crate) fn replace(&self, journal: Option<Journal>) {
        *self.current.write() = journal.map(Arc::new);
    }

    /// Where lines go.
    pub(crate) fn current(&self) -> Option<Arc<Journal>> {
        self.current.read().clone()
    }

    /// Ends the journal, and waits until all lines are written, but no longer than `limit`: a disk may hang.
    pub(crate) async fn close(&self, limit: Duration) {
        self.replace(None);
        if tokio::time::timeout(limit, self.writers.closed()).await.is_err() {
            tracing::error!(
                waited_s = limit.as_secs_f64(),
                "the last lines of the journal could not be written in time"
            );
        }
    }
}

/// Where lines go; the thread that writes them ends when this is dropped and all are written.
#[derive(Debug)]
pub(crate) struct Journal {
    lines: SyncSender<Line>,
    queued_text_bytes: Arc<AtomicUsize>,
    /// No more lines come, so a disk that refuses some is not waited for.
    closing: Arc<AtomicBool>,
    pub(crate) prompts: bool,
    pub(crate) features: bool,
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Release);
    }
}

impl Journal {
    /// Opens the file, and starts the thread that writes, which drops `at_work` in the end.
    fn open(config: &JournalConfig, metrics: Arc<Metrics>, at_work: watch::Receiver<()>) -> io::Result<Self> {
        let files = Files::open(config)?;
        let (lines, queue) = sync_channel(MAX_QUEUED_LINES);
        let queued_text_bytes = Arc::new(AtomicUsize::new(0));
        let closing = Arc::new(AtomicBool::new(false));
        let mut writer = Writer {
            queued_text_bytes: Arc::clone(&queued_text_bytes),
            closing: Arc::clone(&closing),
            files,
            metrics,
        };
        let work = move || {
            writer.write_all(&queue);
            drop(at_work);
        };
        std::thread::Builder::new().name("outrank-journal".into()).spawn(work)?;
        let JournalConfig { prompts, features, .. } = *config;
        Ok(Self { lines, queued_text_bytes, closing, prompts, features })
    }

    /// Hands over a line, unless the disk cannot keep up. Never blocks.
    pub(crate) fn write(&self, line: Line, metrics: &Metrics) {
        let bytes = line.text_bytes();
        let queued = self.queued_text_bytes.fetch_add(bytes, Ordering::Relaxed);
        // A lone line may be as long as a request may.
        let fits = queued == 0 || queued + bytes <= MAX_QUEUED_TEXT_BYTES;
        if !fits || self.lines.try_send(line).is_err() {
            self.queued_text_bytes.fetch_sub(bytes, Ordering::Relaxed);
            metrics.journal_errors.inc();
        }
    }
}

/// What the thread that writes holds.
struct Writer {
    queued_text_bytes: Arc<AtomicUsize>,
    closing: Arc<AtomicBool>,
    files: Files,
    metrics: Arc<Metrics>,
}

impl Writer {
    /// Writes what comes, until nothing can come any more.
    fn write_all(&mut self, queue: &Receiver<Line>) {
        let mut well = true;
        let mut scratch = Scratch::new();
        for mut line in queue {
            self.queued_text_bytes.fetch_sub(line.text_bytes(), Ordering::Relaxed);
            line.extract(&mut scratch);
            match self.files.write(&line) {
                Ok(()) => {
                    self.metrics.journal_lines.inc();
                    well = true;
                }
                Err(error) => {
                    self.metrics.journal_errors.inc();
                    if std::mem::replace(&mut well, false) {
                        let path = self.files.path.display();
                        tracing::error!(%error, %path, "the journal cannot be written; requests go on without");
                    }
                    if !self.closing.load(Ordering::Acquire) {
                        std::thread::sleep(ERROR_PAUSE);
                    }
                }
            }
        }
    }
}

/// The current file and those before it.
#[derive(Debug)]
struct Files {
    path: PathBuf,
    max_file_bytes: u64,
    max_files: u32,
    file: File,
    bytes: u64,
    /// A part of a line was written, which must be ended before the next.
    torn: bool,
}

impl Files {
    fn open(config: &JournalConfig) -> io::Result<Self> {
        let file = open(&config.path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            path: config.path.clone(),
            max_file_bytes: config.max_file_bytes.max(1),
            max_files: config.max_files.max(1),
            file,
            bytes,
            torn: false,
        })
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut text = Vec::with_capacity(512);
        if self.torn {
            text.push(b'\n');
        }
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
        if self.bytes > 0 && self.bytes + text.len() as u64 > self.max_file_bytes {
            self.rotate()?;
        }
        // All at once, so that a full disk seldom leaves half a line.
        let result = self.file.write_all(&text);
        self.torn = result.is_err();
        self.bytes += text.len() as u64;
        result
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.max_files).rev() {
            let from = if number == 1 { self.path.clone() } else { numbered(&self.path, number - 1) };
            match std::fs::rename(from, numbered(&self.path, number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.max_files == 1 {
            std::fs::remove_file(&self.path)?;
        }
        self.file = open(&self.path)?;
        (self.bytes, self.torn) = (0, false);
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use outrank_ranker::trace::{Lengths, TraceReader};

    use super::*;

    fn line(output_tokens: u32) -> Line {
        Line {
            prompt: "".into(),
            arrival_s: 1.5,
            prompt_tokens: 7,
            output_tokens,
            truncated: false,
            model: "m".into(),
            tenant: Some("a".into()),
            class: "default",
            score: Some(40.0),
            spread: Some(0.7),
            outcome: "completed",
            upstream: None,
            queue_s: Some(0.1),
            ttft_s: None,
            e2e_s: 2.0,
            request_id: "req-1".into(),
            outputs: 1,
            ignore_eos: false,
            features: None,
            scored: None,
        }
    }

    fn config(path: PathBuf, max_file_bytes: u64, max_files: u32) -> JournalConfig {
        JournalConfig { path, max_file_bytes, max_files, prompts: false, features: true }
    }

    #[test]
    fn a_line_is_a_line_of_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j.jsonl");
        let mut files = Files::open(&config(path.clone(), 1 << 20, 3)).unwrap();
        files.write(&line(42)).unwrap();
        let records: Vec<_> =
            TraceReader::open(&path, Lengths::Required).unwrap().collect::<Result<_, _>>().unwrap();
        let record = &records[0];
        assert_eq!((&record.output_tokens[..], record.prompt_tokens), (&[42][..], Some(7)));
        assert_eq!(
            (record.arrival_s, record.score, record.tenant.as_deref()),
            (Some(1.5), Some(40.0), Some("a"))
        );
    }

    #[test]
    fn features_say_what_was_scored_and_the_words_are_gone() {
        let text = "\u{1d}tenant:a\u{1f}Write a poem about a secret.";
        let mut with = Line { scored: Some(text.into()), outputs: 3, ignore_eos: true, ..line(42) };
        with.extract(&mut Scratch::new());
        let json = serde_json::to_value(&with).unwrap();
        let example = Example::unpack(json["features"].as_str().unwrap(), 42, false).unwrap();
        assert_eq!(example, Example::new(&mut Scratch::new(), text, 42, false));
        assert_eq!((&json["n"], &json["ignore_eos"], &json["prompt"]), (&3.into(), &true.into(), &"".into()));
        assert!(!json.to_string().contains("secret"));
        let mut without = line(42);
        without.extract(&mut Scratch::new());
        let json = serde_json::to_value(&without).unwrap();
        assert!(
            ["features", "n", "ignore_eos", "scored"].iter().all(|key| json.get(key).is_none()),
            "{json}"
        );
    }

    #[test]
    fn text_that_waits_for_the_disk_is_bounded() {
        let (lines, queue) = sync_channel(MAX_QUEUED_LINES);
        let queued_text_bytes = Arc::new(AtomicUsize::new(0));
        let closing = Arc::default();
        let journal = Journal { lines, queued_text_bytes, closing, prompts: true, features: true };
        let metrics = Metrics::default();
        let text: Arc<str> = "x".repeat(MAX_QUEUED_TEXT_BYTES / 4).into();
        (0..9).for_each(|n| journal.write(Line { scored: Some(Arc::clone(&text)), ..line(n) }, &metrics));
        assert_eq!((queue.try_iter().count(), metrics.journal_errors.get()), (4, 5));
    }

    #[test]
    fn files_are_rotated_at_their_size_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j.jsonl");
        let size = serde_json::to_vec(&line(1)).unwrap().len() as u64 + 1;
        let mut files = Files::open(&config(path.clone(), 2 * size, 3)).unwrap();
        (1..=9).for_each(|tokens| files.write(&line(tokens)).unwrap());
        let mut found: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        found.sort();
        assert_eq!(found, ["j.jsonl", "j.jsonl.1", "j.jsonl.2"]);
        let lines = |path: &Path| std::fs::read_to_string(path).unwrap().lines().count();
        assert_eq!((lines(&path), lines(&numbered(&path, 1)), lines(&numbered(&path, 2))), (1, 2, 2));
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"output_tokens\":9"));
    }

    #[test]
    fn a_full_disk_is_an_error_and_nothing_else() {
        let mut files = Files::open(&config("/dev/full".into(), 1 << 20, 1)).unwrap();
        assert_eq!(files.write(&line(1)).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(files.torn);
    }
}
