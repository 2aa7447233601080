//! The ranker inside the program: what it learned from, and how to make it again.
//!
//! `assets/default.outrank` is what [`train_shipped`] gives for the traces of [`SOURCES`], byte for byte. Only
//! MIT and Apache-2.0 traces and prompts of our own are among them, and none of the prompts is in the file. The number of passes is
//! chosen for families of traces left out ([`TraceFile::family`]), because it is a cold start: a ranker
//! trained on the traffic of the served model orders it far better.

use std::path::{Path, PathBuf};

use crate::ranker::Ranker;
use crate::trace::{Lengths, TraceError, read_trace};
use crate::train::{Progress, TraceFile, TrainConfig, TrainError, TrainReport, train};

/// The ranker file.
pub const FILE: &[u8] = include_bytes!("../assets/default.outrank");

/// The largest that the ranker file may be, in bytes.
pub const MAX_FILE_BYTES: usize = 5 << 20;

/// Licence of the shipped weights.
pub const LICENCE: &str = "MIT OR Apache-2.0; learned from MIT and Apache-2.0 traces only";

/// The command that makes the shipped file.
pub const COMMAND: &str = "make ranker DATA=DIR";

/// One trace that the shipped ranker learns from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShippedSource {
    /// File name in one of the data folders.
    pub file: &'static str,
    /// Licence of the trace.
    pub licence: &'static str,
    /// One row in this many is learned from, so that a big set does not drown the others.
    pub every: usize,
    /// Weight of a row.
    pub weight: f64,
    /// Rows whose `source` is this are left out.
    pub without: Option<&'static str>,
}

const fn source(file: &'static str, licence: &'static str, every: usize, weight: f64) -> ShippedSource {
    ShippedSource { file, licence, every, weight, without: None }
}

/// What the shipped ranker learns from, in this order.
pub const SOURCES: [ShippedSource; 19] = [
    source("alpaca-libre-gpt35.jsonl.gz", "MIT", 1, 1.0),
    source("arenahard-gpt-3.5-turbo-0125.jsonl.gz", "Apache-2.0", 1, 2.0),
    source("arenahard-gpt-4-0314.jsonl.gz", "Apache-2.0", 1, 2.0),
    source("arenahard-gpt-4-0613.jsonl.gz", "Apache-2.0", 1, 2.0),
    source("chatdoctor-gpt35.jsonl.gz", "Apache-2.0", 4, 1.0),
    // Prompts of our own with lengths that a language model estimated (`traces/README.md`): an order to begin with.
    source("estimated-lengths.jsonl.gz", "MIT OR Apache-2.0", 1, 2.0),
    source("gpteacher-gpt4.jsonl.gz", "MIT", 2, 1.0),
    source("gpteacher-roleplay-gpt4.jsonl.gz", "MIT", 1, 1.0),
    source("ifbench.jsonl.gz", "Apache-2.0", 1, 1.0),
    source("mifeval-gpt4o-mini.jsonl.gz", "Apache-2.0", 1, 0.5),
    source("mifeval-gpt4o.jsonl.gz", "Apache-2.0", 1, 0.5),
    source("mifeval-llama31-8b.jsonl.gz", "Apache-2.0", 1, 0.5),
    source("mifeval-mistral-7b.jsonl.gz", "Apache-2.0", 1, 0.5),
    source("mifeval-qwen25-7b.jsonl.gz", "Apache-2.0", 1, 0.5),
    // Its rows from halueval go back to prompts of Alpaca, which are CC BY-NC.
    ShippedSource {
        without: Some("halueval"),
        ..source("mixed-smollm2-135m-t1.jsonl.gz", "MIT AND Apache-2.0", 2, 1.0)
    },
    source("mmlupro-gemini15-flash.jsonl.gz", "Apache-2.0", 20, 1.0),
    source("mmlupro-llama31-8b.jsonl.gz", "Apache-2.0", 20, 1.0),
    source("mmlupro-mistral-7b.jsonl.gz", "Apache-2.0", 20, 1.0),
    source("mmlupro-qwen15-7b.jsonl.gz", "Apache-2.0", 20, 1.0),
];

/// Why the shipped ranker could not be made again.
#[derive(Debug, thiserror::Error)]
pub enum ShippedError {
    /// A trace is in none of the folders.
    #[error("{file} is in none of the data folders given")]
    Missing {
        /// The trace's file name.
        file: &'static str,
    },
    /// A trace could not be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
}

/// The settings of the shipped ranker: it learns from all rows.
pub fn shipped_config() -> TrainConfig {
    TrainConfig { all: true, licence: LICENCE.into(), command: COMMAND.into(), ..TrainConfig::default() }
}

/// Makes the shipped ranker from the traces of [`SOURCES`], each in one of `folders` or in its `length/`.
///
/// # Errors
/// [`ShippedError`]: a missing or bad trace.
pub fn train_shipped(
    folders: &[&Path],
    progress: &mut dyn FnMut(Progress),
) -> Result<(Ranker, TrainReport), ShippedError> {
    let files = SOURCES.iter().map(|source| read_source(source, folders)).collect::<Result<Vec<_>, _>>()?;
    Ok(train(&shipped_config(), &files, progress)?)
}

fn read_source(source: &ShippedSource, folders: &[&Path]) -> Result<TraceFile, ShippedError> {
    let places =
        folders.iter().flat_map(|folder| [folder.join(source.file), folder.join("length").join(source.file)]);
    let path: PathBuf =
        places.into_iter().find(|path| path.is_file()).ok_or(ShippedError::Missing { file: source.file })?;
    let records = read_trace(&path, Lengths::Required)?;
    let kept =
        records.into_iter().filter(|r| source.without.is_none() || r.source.as_deref() != source.without);
    let name = source.file.trim_end_matches(".jsonl.gz");
    Ok(TraceFile {
        name: name.to_owned(),
        family: name.split('-').next().map(str::to_owned),
        licence: Some(source.licence.to_owned()),
        weight: source.weight,
        records: kept.step_by(source.every).collect(),
    })
}
