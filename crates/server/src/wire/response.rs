//! What is around the choices of a response or chunk.

use serde::Serialize;
use serde_json::Value;

/// Tokens of a whole request. The prompt counts once however many outputs it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub(crate) struct UsageBody {
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) total_tokens: u64,
}

impl UsageBody {
    pub(crate) fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

/// A response, or a chunk of a streamed one.
#[derive(Debug, Serialize)]
pub(crate) struct Envelope<'a> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    /// Seconds since the Unix epoch.
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) choices: Vec<Value>,
    /// Absent, or null in all but the last chunk, or there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Option<UsageBody>>,
}
