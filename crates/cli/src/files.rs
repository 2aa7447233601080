//! Reading the files that several commands take.

use std::path::Path;

use anyhow::Result;
use outrank_ranker::trace::{Lengths, read_trace};
use outrank_ranker::{Ranker, TraceRecord};

/// Name of a trace in reports: the file's own, without its folders.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// A trace of which every record has a length.
pub(crate) fn trace(path: &Path) -> Result<Vec<TraceRecord>> {
    Ok(read_trace(path, Lengths::Required)?)
}

/// The ranker in a file, or the one inside the program.
pub(crate) fn ranker(path: Option<&Path>) -> Result<Ranker> {
    Ok(match path {
        Some(path) => Ranker::load(path)?,
        None => Ranker::shipped().clone(),
    })
}
