//! The trace contract: prompts and the lengths that a model really answered with.
//!
//! A trace is a file of JSON lines, plain or gzip. Each line is one request:
//!
//! | key | type | meaning |
//! |---|---|---|
//! | `prompt` | string | the prompt; or |
//! | `messages` | `[{role, content}]` | the chat |
//! | `output_tokens` | integer or list | tokens generated; a list holds several samples of the same prompt; or |
//! | `generated` / `response` | string | the answer's text, whose tokens the caller counts ([`Lengths::Count`]) |
//! | `truncated` | bool or list | the sample hit the generation limit, so its length is a lower bound |
//! | `prompt_tokens` | integer | tokens of the prompt |
//! | `arrival_s` | number | arrival time in seconds |
//! | `model`, `source`, `tenant`, `class` | string | where the request came from |
//! | `score` | number | a score given by someone else |
//! | `features` | string | in a gateway's journal, hashed features in the place of the prompt ([`crate::Example::unpack`]); kept as an unknown key |
//!
//! Unknown keys are kept and written back. Of those, a ranker reads what OpenAI's API calls `max_tokens`, `response_format`,
//! `tools`, `n`, `stop`, `temperature` and `reasoning_effort` ([`RequestFacts`]).

mod facts;
mod parse;
mod read;
mod split;
mod write;

pub use facts::RequestFacts;
pub(crate) use facts::split_facts;
pub use read::{Lengths, MAX_LINE_BYTES, TraceReader, read_trace};
pub use split::{HELD_OUT_DIVISOR, held_out, held_out_text};
pub use write::{TraceWriter, check_writable, write_trace, write_whole};

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Separates the earlier turns of a chat from its last user message in a flattened prompt
/// (U+001E, RECORD SEPARATOR). The features read what follows it as the request itself.
pub const CONTEXT_END: char = '\u{1e}';

/// One chat message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text of the message.
    pub content: String,
}

/// What the model was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A bare prompt.
    Text(String),
    /// A chat, oldest message first.
    Messages(Vec<Message>),
}

/// One line of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceRecord {
    /// What the model was asked.
    pub prompt: Prompt,
    /// Tokens generated, one entry a sample. Empty where only the prompt is known.
    pub output_tokens: Vec<u32>,
    /// Which samples hit the generation limit. Empty (nothing known) or as long as `output_tokens`.
    pub truncated: Vec<bool>,
    /// The answer's text, where the trace has it.
    pub generated: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: Option<u32>,
    /// Arrival time in seconds.
    pub arrival_s: Option<f64>,
    /// The model that answered.
    pub model: Option<String>,
    /// Where the prompt came from.
    pub source: Option<String>,
    /// Who asked.
    pub tenant: Option<String>,
    /// Service class.
    pub class: Option<String>,
    /// A score given by someone else.
    pub score: Option<f64>,
    /// Keys that the contract does not know, written back as they were.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl TraceRecord {
    /// A record of a bare prompt; set the other fields as known.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            output_tokens: Vec::new(),
            truncated: Vec::new(),
            generated: None,
            prompt_tokens: None,
            arrival_s: None,
            model: None,
            source: None,
            tenant: None,
            class: None,
            score: None,
            extra: serde_json::Map::new(),
        }
    }

    /// The text that a ranker reads: the prompt, or the chat flattened by [`flatten_messages`].
    pub fn text(&self) -> String {
        match &self.prompt {
            Prompt::Text(text) => text.clone(),
            Prompt::Messages(messages) => flatten_messages(messages),
        }
    }

    /// The text with what the request says beside it ([`RequestFacts`]): what a ranker scores and learns from.
    pub fn request_text(&self) -> String {
        let facts = RequestFacts { tenant: self.tenant.clone(), ..RequestFacts::of(&self.extra) };
        facts.before(&self.text())
    }

    /// The length label in tokens: the geometric mean of the samples, each taken as at least one token
    /// where there are several. `None` without a length.
    pub fn length_tokens(&self) -> Option<f64> {
        match self.output_tokens.as_slice() {
            [] => None,
            [one] => Some(f64::from(*one)),
            many => {
                let sum: f64 = many.iter().map(|&n| libm::log(f64::from(n.max(1)))).sum();
                Some(libm::exp(sum / many.len() as f64))
            }
        }
    }

    /// True where at least half of the samples hit the generation limit: the label is a lower bound.
    pub fn is_censored(&self) -> bool {
        let hits = self.truncated.iter().filter(|&&hit| hit).count();
        hits > 0 && 2 * hits >= self.truncated.len()
    }
}

/// Flattens a chat for ranking: the other messages in order, each as `[role]` and its content, then
/// [`CONTEXT_END`], then the last user message bare. A chat of one user message is just its content, so
/// it ranks exactly as the same bare prompt does.
pub fn flatten_messages(messages: &[Message]) -> String {
    let last_user = messages.iter().rposition(|message| message.role == "user");
    let mut flat = String::with_capacity(messages.iter().map(|m| m.content.len() + 16).sum());
    for (index, message) in messages.iter().enumerate() {
        if Some(index) != last_user {
            flat.push('[');
            flat.push_str(&message.role);
            flat.push_str("]\n");
            flat.extend(message.content.chars().map(without_separator));
            flat.push('\n');
        }
    }
    if let Some(index) = last_user {
        if !flat.is_empty() {
            flat.push(CONTEXT_END);
        }
        flat.extend(messages[index].content.chars().map(without_separator));
    }
    flat
}

fn without_separator(c: char) -> char {
    if c == CONTEXT_END { ' ' } else { c }
}

/// A rough token count for text whose tokenizer is unknown: the larger of words and a quarter of the
/// bytes, at least 1 for text that is not empty. Wrong by a third either way on ordinary English; use it only where order matters and
/// no tokenizer is at hand.
pub fn approximate_tokens(text: &str) -> u32 {
    let words = text.split_whitespace().count();
    let tokens = words.max(text.len().div_ceil(4));
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

/// Why a trace could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file could not be opened, read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The trace.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// One line breaks the contract.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The trace.
        path: PathBuf,
        /// Its line, from 1.
        line: u64,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The file holds no request.
    #[error("{}: the trace has no request; expected one JSON object a line", path.display())]
    Empty {
        /// The trace.
        path: PathBuf,
    },
}
