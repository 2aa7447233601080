//! Reading traces, line by line, plain or gzip.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::parse::parse_line;
use super::{TraceError, TraceRecord};

/// The longest line that a trace may have, in bytes.
pub const MAX_LINE_BYTES: u64 = 64 << 20;

/// Where a record's length comes from, and whether it must have one.
#[derive(Clone, Copy)]
pub enum Lengths<'a> {
    /// Every record needs `output_tokens`.
    Required,
    /// Records of prompts alone are allowed: what `trace collect` reads.
    Optional,
    /// Records without `output_tokens` need `generated` or `response`, whose tokens are counted by the
    /// given function ([`super::approximate_tokens`] where no tokenizer is at hand).
    Count(&'a dyn Fn(&str) -> u32),
}

/// Reads a trace one record at a time; each error carries the file and the line.
pub struct TraceReader<'a> {
    path: PathBuf,
    lines: Box<dyn BufRead>,
    lengths: Lengths<'a>,
    line: u64,
    buffer: Vec<u8>,
    failed: bool,
}

impl<'a> TraceReader<'a> {
    /// Opens a trace. Gzip is recognised by its first two bytes, whatever the name.
    ///
    /// # Errors
    /// [`TraceError::Io`] where the file cannot be opened or read.
    pub fn open(path: &Path, lengths: Lengths<'a>) -> Result<Self, TraceError> {
        let io = |source| TraceError::Io { path: path.to_owned(), source };
        let mut file = BufReader::new(File::open(path).map_err(io)?);
        let gzip = file.fill_buf().map_err(io)?.starts_with(&[0x1f, 0x8b]);
        let lines: Box<dyn BufRead> =
            if gzip { Box::new(BufReader::new(MultiGzDecoder::new(file))) } else { Box::new(file) };
        Ok(Self { path: path.to_owned(), lines, lengths, line: 0, buffer: Vec::new(), failed: false })
    }

    /// The line of the record read last, from 1: for errors about what it says.
    pub fn line(&self) -> u64 {
        self.line
    }

    fn next_line(&mut self) -> Result<Option<TraceRecord>, TraceError> {
        loop {
            self.buffer.clear();
            let mut limited = (&mut self.lines).take(MAX_LINE_BYTES);
            let bytes = limited
                .read_until(b'\n', &mut self.buffer)
                .map_err(|source| TraceError::Io { path: self.path.clone(), source })?;
            if bytes == 0 {
                return Ok(None);
            }
            self.line += 1;
            if bytes as u64 == MAX_LINE_BYTES && self.buffer.last() != Some(&b'\n') {
                return Err(
                    self.problem(format!("longer than {MAX_LINE_BYTES} bytes; one request a line, please"))
                );
            }
            let text =
                std::str::from_utf8(&self.buffer).map_err(|_| self.problem("not valid UTF-8".into()))?;
            if text.trim().is_empty() {
                continue;
            }
            let record = parse_line(text.trim()).and_then(|record| with_length(record, self.lengths));
            return record.map(Some).map_err(|problem| self.problem(problem));
        }
    }

    fn problem(&self, problem: String) -> TraceError {
        TraceError::Line { path: self.path.clone(), line: self.line, problem }
    }
}

impl Iterator for TraceReader<'_> {
    type Item = Result<TraceRecord, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.next_line().transpose();
        // A broken stream does not recover; a broken line does.
        self.failed = matches!(item, Some(Err(TraceError::Io { .. })));
        item
    }
}

fn with_length(mut record: TraceRecord, lengths: Lengths<'_>) -> Result<TraceRecord, String> {
    if !record.output_tokens.is_empty() {
        return Ok(record);
    }
    match (lengths, &record.generated) {
        (Lengths::Optional, _) => Ok(record),
        (Lengths::Count(count), Some(text)) => {
            record.output_tokens = vec![count(text)];
            Ok(record)
        }
        (Lengths::Required, Some(_)) => Err(
            "has the answer's text but no `output_tokens`; count its tokens first (`outrank trace count`)"
                .into(),
        ),
        _ => Err("has no `output_tokens` (an integer, or a list of samples) and no `generated` text".into()),
    }
}

/// Reads a whole trace. Stops at the first bad line.
///
/// # Errors
/// [`TraceError`]: the file, the line and what to do about it; also where there is no request at all.
pub fn read_trace(path: &Path, lengths: Lengths<'_>) -> Result<Vec<TraceRecord>, TraceError> {
    let records = TraceReader::open(path, lengths)?.collect::<Result<Vec<_>, _>>()?;
    if records.is_empty() {
        return Err(TraceError::Empty { path: path.to_owned() });
    }
    Ok(records)
}
