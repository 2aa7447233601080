//! What the server needs of whatever generates the tokens.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use outrank_core::{Counters, Explanation, Placement, RequestId, Score, Trust};
use outrank_engine::{ChatMessage, GenerateRequest, Output, SubmitError, Token};
use thiserror::Error;

/// An accepted request. Dropping it cancels the request: the engine's ticket lives in the stream.
pub struct Generation {
    /// The scheduler's name of the request.
    pub id: RequestId,
    /// Where it stands.
    pub placement: Placement,
    /// What it produces.
    pub outputs: BoxStream<'static, Output>,
}

/// A conversation that cannot become tokens, and why.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0}")]
pub struct PromptError(pub String);

/// Generates tokens in the scheduler's order: the embedded engine, or a double in tests.
///
/// Making tokens of a prompt may take as long as the prompt is long; no other call may block, since the server
/// calls them on its async threads.
pub trait Backend: Send + Sync + 'static {
    /// Longest context of one sequence, prompt and output together, in tokens.
    fn context_tokens(&self) -> u32;

    /// Tokens of a conversation in the model's chat template, ready for the assistant's answer.
    ///
    /// # Errors
    /// [`PromptError`] when the template refuses the conversation.
    fn chat_tokens(&self, messages: &[ChatMessage]) -> Result<Vec<Token>, PromptError>;

    /// Tokens of a bare text.
    fn text_tokens(&self, text: &str) -> Vec<Token>;

    /// The bytes that a token stands for, not always whole characters; empty for control tokens.
    fn token_bytes(&self, token: Token) -> Vec<u8>;

    /// Accepts a request, or says why not. Requests stand in the order in which the futures were first polled;
    /// dropping one cancels its request.
    ///
    /// # Errors
    /// [`SubmitError`] when the queue is full, the request can never run, or the engine is gone.
    fn submit(&self, request: GenerateRequest) -> BoxFuture<'_, Result<Generation, SubmitError>>;

    /// Delivers a score after submission; a request that has left is ignored.
    fn score(&self, id: RequestId, score: Score);

    /// Where a request stands, unless it has left.
    fn explain(&self, id: RequestId) -> BoxFuture<'_, Option<Explanation>>;

    /// Counters of the scheduler.
    fn counters(&self) -> Counters;

    /// The verdict on the scores, whether or not the policy follows it.
    fn trust(&self) -> Trust;

    /// Why nothing can be generated any more; `None` while all is well.
    fn stopped(&self) -> Option<String>;
}
