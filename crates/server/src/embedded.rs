//! The embedded engine as a [`Backend`].

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use outrank_core::{Counters, Explanation, RequestId, Score, Trust};
use outrank_engine::{ChatMessage, EngineHandle, GenerateRequest, SubmitError, Token};

use crate::backend::{Backend, Generation, PromptError};

/// The embedded engine and its model.
#[derive(Clone, Debug)]
pub struct EmbeddedEngine {
    handle: EngineHandle,
    context_tokens: u32,
}

impl EmbeddedEngine {
    /// An engine that was started with contexts of `context_tokens`.
    pub fn new(handle: EngineHandle, context_tokens: u32) -> Self {
        Self { handle, context_tokens }
    }
}

impl Backend for EmbeddedEngine {
    fn context_tokens(&self) -> u32 {
        self.context_tokens
    }

    fn chat_tokens(&self, messages: &[ChatMessage]) -> Result<Vec<Token>, PromptError> {
        self.handle.model().chat_prompt(messages).map_err(|error| PromptError(error.to_string()))
    }

    fn text_tokens(&self, text: &str) -> Vec<Token> {
        // Control tokens that are spelled out count, as in vLLM and llama.cpp: clients send chats that they rendered.
        self.handle.model().tokenize(text, true, true)
    }

    fn token_bytes(&self, token: Token) -> Vec<u8> {
        self.handle.model().piece(token).to_vec()
    }

    fn submit(&self, request: GenerateRequest) -> BoxFuture<'_, Result<Generation, SubmitError>> {
        async move {
            let submission = self.handle.submit(request).await?;
            let (id, placement) = (submission.id(), submission.placement());
            let outputs = stream::unfold(submission, |mut submission| async move {
                submission.next().await.map(|output| (output, submission))
            });
            Ok(Generation { id, placement, outputs: outputs.boxed() })
        }
        .boxed()
    }

    fn score(&self, id: RequestId, score: Score) {
        self.handle.score(id, score);
    }

    fn explain(&self, id: RequestId) -> BoxFuture<'_, Option<Explanation>> {
        self.handle.explain(id).boxed()
    }

    fn counters(&self) -> Counters {
        self.handle.counters()
    }

    fn trust(&self) -> Trust {
        self.handle.trust()
    }

    fn stopped(&self) -> Option<String> {
        self.handle.stopped()
    }
}
