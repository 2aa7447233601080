//! What can go wrong, in words for the person who reads it.

use std::path::PathBuf;

use outrank_core::{CapacityError, Rejection};
use thiserror::Error;

use crate::gguf::GgufError;

/// A model file that cannot be used.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The file is missing or unreadable.
    #[error("cannot read model {}: {source}", path.display())]
    Io {
        /// The model file, or a file made from it.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not a whole, well-formed GGUF file.
    #[error("{} is not a usable GGUF file: {source}", path.display())]
    Gguf {
        /// The model file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// The file is well-formed, but not a model that generates text here.
    #[error("{} cannot be served: {reason}", path.display())]
    Unsupported {
        /// The model file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// llama.cpp refused the file.
    #[error("llama.cpp cannot load {}: {reason}", path.display())]
    Load {
        /// The model file.
        path: PathBuf,
        /// The error lines that llama.cpp logged.
        reason: String,
    },
    /// Requantising failed.
    #[error("cannot requantise {}: {reason}", path.display())]
    Quantize {
        /// The source file.
        path: PathBuf,
        /// The error lines that llama.cpp logged.
        reason: String,
    },
    /// The llama.cpp backend could not be initialised.
    #[error("llama.cpp backend: {0}")]
    Backend(String),
}

/// A chat that cannot be rendered.
#[derive(Clone, Debug, Error)]
pub enum TemplateError {
    /// The model has no chat template.
    #[error("the model has no chat template: use the completions API, or a model with one")]
    Missing,
    /// The conversation is empty.
    #[error("messages must not be empty")]
    NoMessages,
    /// A role that no chat template here knows.
    #[error("messages[{index}].role: unknown role {role:?}, expected one of system, user, assistant, tool")]
    UnknownRole {
        /// Position of the message.
        index: usize,
        /// The role given.
        role: String,
    },
    /// The template itself refused the conversation (`raise_exception`).
    #[error("the model's chat template refuses this conversation: {0}")]
    Refused(String),
    /// The template is malformed or uses something that is not supported.
    #[error("the model's chat template failed: {0}")]
    Render(String),
}

/// Sampling settings out of their range.
#[derive(Clone, PartialEq, Debug, Error)]
pub enum SamplingError {
    /// A number out of its range, or not finite.
    #[error("{field} = {value}: must be {expected}")]
    Range {
        /// Name of the setting.
        field: &'static str,
        /// The value given.
        value: f64,
        /// The range in words.
        expected: &'static str,
    },
    /// Too many stop strings, or an empty one.
    #[error("stop: {0}")]
    Stop(&'static str),
}

/// An engine that cannot start.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The capacity cannot serve what it accepts.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// A setting makes no sense for this model.
    #[error("{0}")]
    Config(String),
    /// llama.cpp or the engine thread did not come up.
    #[error("{0}")]
    Start(String),
    /// llama.cpp could not make a context, usually for want of memory.
    #[error("llama.cpp cannot allocate a context of {seats} x {context_tokens} tokens: {reason}")]
    Context {
        /// Sequences.
        seats: u32,
        /// Tokens a sequence.
        context_tokens: u32,
        /// The error lines that llama.cpp logged.
        reason: String,
    },
    /// The engine thread could not be started, or the step log not be opened.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// A request that was not accepted.
#[derive(Debug, Error)]
pub enum SubmitError {
    /// The scheduler refused it.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// A sampling setting is out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// A prompt token that the model does not have.
    #[error("prompt token {token} is outside the vocabulary of {n_vocab} tokens")]
    InvalidToken {
        /// The token.
        token: i32,
        /// Size of the vocabulary.
        n_vocab: i32,
    },
    /// The engine drains: it finishes what it has and accepts no more.
    #[error("the engine is shutting down")]
    Draining,
    /// The engine has stopped.
    #[error("the engine has stopped: {0}")]
    Stopped(String),
}
