//! Embedded LLM engine of outrank on llama.cpp.
//!
//! [`Model`] is a GGUF file: weights, tokenizer and chat template. [`Engine::start`] gives one thread the llama
//! context and the [`outrank_core::Scheduler`]; the thread executes the scheduler's plans exactly: pauses, seats,
//! one forward pass of the whole batch, one sampled token for each sequence that has reached the end of its
//! context. [`EngineHandle`] submits requests from any thread or task; dropping a [`Submission`] cancels it.

mod backend;
mod config;
mod engine;
mod error;
mod executor;
mod gguf;
mod handle;
mod job;
mod model;
mod quantize;
mod request;
mod sampler;
mod sampling;
mod stats;
mod step_log;
mod stop;
mod template;
mod text;
mod worker;

pub use config::EngineConfig;
pub use engine::Engine;
pub use error::{EngineError, ModelError, SamplingError, SubmitError, TemplateError};
pub use executor::{BatchSlice, Executor, ExecutorConfig, SavedSequence, SliceFailure};
pub use gguf::{GgufError, GgufHeader};
pub use handle::{EngineHandle, Submission};
pub use model::{Model, Token};
pub use quantize::{ensure_q8_0, quantize_q8_0};
pub use request::{FinishReason, GenerateRequest, Output, Timings, TokenLogprobs, Usage};
pub use sampler::Sampler;
pub use sampling::SamplingParams;
pub use stats::{EngineStats, STEP_BOUNDS_S};
pub use step_log::StepRecord;
pub use template::{ChatMessage, ChatTemplate};
