//! What goes into the engine and what comes out.

use std::sync::Arc;
use std::time::Instant;

use outrank_core::Score;
use serde::{Deserialize, Serialize};

use crate::{SamplingParams, Token};

/// One request for one output.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// The prompt in tokens of the model, at least 1.
    pub prompt: Vec<Token>,
    /// Predicted length, if a prediction was made in time; a later one goes through
    /// [`crate::EngineHandle::score`].
    pub score: Option<Score>,
    /// True output length in tokens, known only in the replay of a trace; read by the `oracle-*` policies.
    pub true_tokens: Option<u32>,
    /// How tokens are chosen, and when to stop.
    pub sampling: SamplingParams,
    /// When the request reached the host.
    pub arrival: Instant,
    /// Who asked.
    pub tenant: Option<Arc<str>>,
    /// Service class named by the client.
    pub class: Option<Arc<str>>,
}

impl GenerateRequest {
    /// A request that arrives now, without prediction, tenant or class.
    pub fn new(prompt: Vec<Token>, sampling: SamplingParams) -> Self {
        Self {
            prompt,
            score: None,
            true_tokens: None,
            sampling,
            arrival: Instant::now(),
            tenant: None,
            class: None,
        }
    }
}

/// What the engine tells the client of one request, in order: any number of `Token`, then exactly one of
/// `Finished` and `Failed`.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// One output token.
    Token {
        /// Text that this token completes, whole characters only. Empty while a character or a possible stop
        /// string is incomplete, and for control tokens.
        text: String,
        /// The token itself.
        token: Token,
        /// Its log-probability, if asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// The output is complete.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// Tokens used.
        usage: Usage,
        /// Where the time went.
        timings: Timings,
    },
    /// The engine could not go on with this request.
    Failed(String),
}

/// Log-probabilities of one token: log-softmax of the raw logits, before temperature and penalties.
#[derive(Clone, PartialEq, Debug)]
pub struct TokenLogprobs {
    /// Natural logarithm of the probability of the token that was chosen.
    pub logprob: f32,
    /// The likeliest tokens and their log-probabilities, likeliest first; as many as were asked for.
    pub top: Vec<(Token, f32)>,
}

/// Why an output ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// End of text, or a stop string.
    Stop,
    /// `max_tokens` reached.
    Length,
}

/// Tokens of one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated, the end-of-text token included.
    pub output_tokens: u32,
}

/// Where the time of one request went, in seconds since its arrival.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Timings {
    /// Until it took a seat for the first time.
    pub queue_s: f64,
    /// Until its first output token.
    pub ttft_s: f64,
    /// Until its last output token.
    pub e2e_s: f64,
    /// Times it lost its seat.
    pub preemptions: u32,
}
