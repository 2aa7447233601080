//! The OpenAI protocols: bodies in, bodies and chunks out. Nothing here knows of connections or the engine's work.

mod call;
mod chat;
mod completions;
mod fields;
mod inert;
mod logprobs;
mod response;

pub(crate) use call::{Call, Limits, Prompt, StreamOptions};
pub(crate) use chat::Chat;
pub(crate) use completions::Completions;
pub(crate) use fields::Fields;
#[cfg(test)]
pub(crate) use inert::{CHAT_INERT, COMMON_INERT, COMPLETIONS_INERT, Inert, MESSAGE_INERT};
pub(crate) use logprobs::{LogprobEntry, TokenLogprob};
pub(crate) use response::{Envelope, UsageBody};

use outrank_engine::FinishReason;
use serde_json::Value;

use outrank_http::ApiError;

/// What sets one generating endpoint apart from the other; everything else is one flow (`generate`).
pub(crate) trait Wire: Send + Sync + 'static {
    /// The field of the prompt.
    const PROMPT: &'static str;
    /// Start of the ids of its completions.
    const ID_PREFIX: &'static str;
    /// What it does, in the words of OpenTelemetry.
    const OPERATION: &'static str;
    /// `object` of a whole response.
    const OBJECT: &'static str;
    /// `object` of a chunk of a stream.
    const CHUNK_OBJECT: &'static str;

    /// Reads a request body, all of it.
    fn read(fields: Fields, limits: &Limits) -> Result<Call, ApiError>;

    /// The choice of the chunk that opens a choice's stream, if the protocol has one.
    fn opening(index: usize) -> Option<Value>;

    /// The choice of a chunk that carries one token.
    fn delta(index: usize, text: &str, logprob: Option<&TokenLogprob>) -> Value;

    /// The choice of the chunk that ends a choice's stream.
    fn closing(index: usize, reason: FinishReason) -> Value;

    /// A choice of a whole response.
    fn choice(index: usize, text: &str, logprobs: Option<&[TokenLogprob]>, reason: FinishReason) -> Value;
}

/// OpenAI's word for why an output ended.
fn finish_word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}
