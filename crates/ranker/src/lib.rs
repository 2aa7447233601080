//! Prompt -> predicted length of the answer -> [`outrank_core::Score`].
//!
//! A [`Ranker`] is a sparse linear model over hashed words, cheap facts about the prompt and the guess of a small encoder
//! ([`features`]), trained with ListMLE ([`train()`]) on a trace ([`trace`]) of prompts and the lengths that a
//! model really answered with, and calibrated to tokens ([`calibration`]). Its file is versioned and has a
//! checksum ([`mod@file`]); how well it orders is measured by Kendall's tau-b ([`tau`], [`evaluate()`]).

pub mod adapt;
pub mod calibration;
mod encoder;
pub mod evaluate;
pub mod features;
pub mod file;
pub mod learner;
mod ranker;
pub mod shipped;
pub mod tau;
pub mod trace;
pub mod train;

pub use evaluate::{EvalReport, evaluate};
pub use features::PackedError;
pub use file::{RankerBytesError, RankerFileError};
pub use ranker::{Card, HeldOut, Ranker, SourceCard};
pub use tau::{kendall_tau_b, pairwise_accuracy};
pub use trace::{TraceError, TraceRecord, read_trace, write_trace};
pub use train::{Example, Objective, Progress, TraceFile, TrainConfig, TrainError, TrainReport, train};
