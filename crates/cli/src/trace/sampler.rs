//! Asks a server for one answer, patiently.

use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use outrank_ranker::TraceRecord;

use crate::http::{Api, Endpoint, cause, refusal};
use crate::trace::journal::Answer;

/// Tries of a request that the server is too busy for, or cannot be reached.
const TRIES: u32 = 7;
/// Wait before the second try; it doubles each time.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// How answers are sampled.
#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    pub(crate) api: Api,
    pub(crate) endpoint: Endpoint,
    pub(crate) model: String,
    pub(crate) temperature: f64,
    pub(crate) seed: u64,
    pub(crate) max_tokens: u32,
}

/// Why there is no answer.
#[derive(Debug, PartialEq)]
pub(crate) enum Failure {
    /// The server refuses this request and always will.
    Refused(String),
    /// The server is gone or overloaded: no use in going on.
    Unavailable(String),
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    usage: Usage,
}

#[derive(Deserialize)]
struct Choice {
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
}

impl Sampler {
    /// The seed of one sample: from the prompt, so that it stays the same when prompts around it change. 31 bits, which
    /// every server takes.
    fn seed_of(&self, record: &TraceRecord, sample: u32) -> u32 {
        let mut hash = Sha256::new();
        hash.update(self.seed.to_le_bytes());
        hash.update(sample.to_le_bytes());
        hash.update(record.text());
        let bytes = hash.finalize();
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) >> 1
    }

    /// One answer to the prompt of `record`.
    pub(crate) async fn sample(
        &self,
        request: usize,
        record: &TraceRecord,
        sample: u32,
    ) -> Result<Answer, Failure> {
        let mut body = self.endpoint.body(&self.model, record);
        body["max_tokens"] = json!(self.max_tokens);
        body["temperature"] = json!(self.temperature);
        body["seed"] = json!(self.seed_of(record, sample));
        let body = body.to_string();
        let mut wait = FIRST_WAIT;
        for attempt in 1.. {
            match self.attempt(body.as_bytes()).await {
                Ok(done) => {
                    let truncated =
                        done.choices.first().is_some_and(|c| c.finish_reason.as_deref() == Some("length"));
                    let Usage { prompt_tokens, completion_tokens } = done.usage;
                    return Ok(Answer {
                        request,
                        sample,
                        output_tokens: completion_tokens,
                        truncated,
                        prompt_tokens,
                    });
                }
                Err(Failure::Unavailable(_)) if attempt < TRIES => tokio::time::sleep(wait).await,
                Err(failure) => return Err(failure),
            }
            wait *= 2;
        }
        unreachable!("the last try returns")
    }

    async fn attempt(&self, body: &[u8]) -> Result<Completion, Failure> {
        let response = self.api.post(self.endpoint.path(), body).await;
        let response = response.map_err(|error| Failure::Unavailable(cause(&error)))?;
        match response.status() {
            status if status.is_success() => {}
            status if status.is_server_error() || busy(status) => {
                return Err(Failure::Unavailable(refusal(response).await));
            }
            _ => return Err(Failure::Refused(refusal(response).await)),
        }
        let bytes = response.bytes().await.map_err(|error| Failure::Unavailable(cause(&error)))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Failure::Refused(format!("unexpected answer: {error}")))
    }
}

fn busy(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}
