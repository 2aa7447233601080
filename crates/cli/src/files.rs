//! The files that several commands read and write.

use std::fmt;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use outrank_ranker::trace::{Lengths, TraceReader, check_writable, read_trace};
use outrank_ranker::{Ranker, TraceError, TraceRecord};

use crate::error::usage;
use crate::output::{note, plural};

/// Name of a trace in reports: the file's own, without its folders.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// The text of a file, plain or gzip.
pub(crate) fn text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let mut text = String::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_string(&mut text)
    } else {
        (&bytes[..]).read_to_string(&mut text)
    }
    .with_context(|| path.display().to_string())?;
    Ok(text)
}

/// A trace of which every record has a length.
pub(crate) fn trace(path: &Path) -> Result<Vec<TraceRecord>> {
    Ok(read_trace(path, Lengths::Required)?)
}

/// Where a record of a trace stands, for errors that name it: `file:line`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    path: &'a Path,
    line: u64,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// The records of a trace, at least one, each with its place.
pub(crate) fn placed<'a>(path: &'a Path, lengths: Lengths<'_>) -> Result<Vec<(Place<'a>, TraceRecord)>> {
    let mut reader = TraceReader::open(path, lengths)?;
    let mut records = Vec::new();
    while let Some(record) = reader.next() {
        records.push((Place { path, line: reader.line() }, record?));
    }
    if records.is_empty() {
        return Err(TraceError::Empty { path: path.to_owned() }.into());
    }
    Ok(records)
}

/// Hands over the lines of a gateway's journal. A line that cannot be read, as a full disk or a gateway under way leaves it, is
/// skipped and said; more than one and a hundredth of all are too many. Returns how many were.
pub(crate) fn journal<'a>(
    path: &'a Path,
    mut each: impl FnMut(Place<'a>, TraceRecord) -> Result<()>,
) -> Result<usize> {
    /// One line in so many may be torn, beside the last.
    const LINES_PER_TORN: u64 = 100;
    let mut reader = TraceReader::open(path, Lengths::Required)?;
    let (mut torn, mut first) = (0, None);
    while let Some(record) = reader.next() {
        match record {
            Ok(record) => each(Place { path, line: reader.line() }, record)?,
            Err(error @ TraceError::Line { .. }) => {
                torn += 1;
                first.get_or_insert(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(error) = first {
        if torn as u64 > 1 + reader.line() / LINES_PER_TORN {
            return Err(anyhow::Error::new(error).context(format!("{} cannot be read", plural(torn, "line"))));
        }
        note(&format!("skipped {}: {error}", plural(torn, "line")));
    }
    Ok(torn)
}

/// Refuses an output that cannot be written, before the work that leads to it. What is there is not touched.
pub(crate) fn check_out(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(usage(format!("{} is a folder; name a file", path.display())));
    }
    check_writable(path).with_context(|| format!("cannot write {}", path.display()))
}

/// The ranker in a file, or the one inside the program.
pub(crate) fn ranker(path: Option<&Path>) -> Result<Ranker> {
    Ok(match path {
        Some(path) => Ranker::load(path)?,
        None => Ranker::shipped().clone(),
    })
}
