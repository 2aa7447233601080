//! One streamed request, as its client sees it.

use std::time::Duration;

use futures_util::StreamExt;
use serde::Deserialize;
use tokio::time::Instant;

use crate::bench::plan::Job;
use crate::http::{Api, Endpoint, cause, refusal};

/// A server-sent event longer than this is not one of ours.
const MAX_EVENT_BYTES: usize = 8 << 20;

/// Milliseconds until the end of the answer, as outrank expects it on arrival.
const ETA_HEADER: &str = "x-outrank-eta-ms";

/// What became of one request. Times are in seconds since it should have been sent: a client that is late charges the
/// delay to the request, as an open loop must.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample {
    /// Which job.
    pub(crate) job: usize,
    /// When it should have been sent, in seconds since the start of the run.
    pub(crate) arrival_s: f64,
    /// Until the first token.
    pub(crate) ttft_s: Option<f64>,
    /// Until the end of the answer.
    pub(crate) e2e_s: f64,
    /// Gaps between its tokens.
    pub(crate) gaps_s: Vec<f32>,
    /// Tokens generated, as the server counts them.
    pub(crate) output_tokens: u32,
    /// Tokens of the prompt, as the server counts them.
    pub(crate) prompt_tokens: Option<u32>,
    /// E2E as the server expected it on arrival (`x-outrank-eta-ms`).
    pub(crate) eta_s: Option<f64>,
    /// The answer ended at the limit.
    pub(crate) truncated: bool,
    /// Why it failed.
    pub(crate) failure: Option<String>,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Option<Delta>,
    text: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    role: Option<String>,
    content: Option<String>,
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
}

impl Choice {
    /// Whether the chunk stands for a token: it has text, or it is neither the opening nor the end. Servers send empty
    /// text for tokens that print nothing.
    fn is_token(&self) -> bool {
        let (role, text) = match &self.delta {
            Some(delta) => {
                (delta.role.is_some(), delta.content.as_ref().or(delta.reasoning_content.as_ref()))
            }
            None => (false, self.text.as_ref()),
        };
        text.is_some_and(|text| !text.is_empty() || (!role && self.finish_reason.is_none()))
    }
}

/// What has been seen of a stream so far.
struct Progress {
    due: Instant,
    last: Instant,
    chunks: u32,
    finished: bool,
    sample: Sample,
}

impl Progress {
    /// Reads one `data:` payload that arrived at `now`; `Ok(true)` is the end.
    fn event(&mut self, data: &[u8], now: Instant) -> Result<bool, String> {
        if data == b"[DONE]" {
            return Ok(true);
        }
        let chunk: Chunk =
            serde_json::from_slice(data).map_err(|error| format!("malformed event: {error}"))?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            let message = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
            return Err(format!("in the stream: {message}"));
        }
        if let Some(choice) = chunk.choices.first() {
            if choice.is_token() {
                match self.sample.ttft_s {
                    None => self.sample.ttft_s = Some(now.duration_since(self.due).as_secs_f64()),
                    Some(_) => self.sample.gaps_s.push(now.duration_since(self.last).as_secs_f32()),
                }
                self.last = now;
                self.chunks += 1;
            }
            if let Some(reason) = &choice.finish_reason {
                self.finished = true;
                self.sample.truncated = reason == "length";
                self.sample.e2e_s = now.duration_since(self.due).as_secs_f64();
            }
        }
        if let Some(usage) = chunk.usage {
            self.sample.output_tokens = usage.completion_tokens;
            self.sample.prompt_tokens = Some(usage.prompt_tokens);
        }
        Ok(false)
    }
}

/// Sends a job, due at `due`, and reads its answer to the end. Never fails: what went wrong is in the sample.
pub(crate) async fn request(
    api: &Api,
    endpoint: Endpoint,
    job: &Job,
    due: Instant,
    limit: Duration,
) -> Sample {
    let sample = Sample { job: job.index, arrival_s: job.arrival_s, ..Sample::default() };
    let mut progress = Progress { due, last: due, chunks: 0, finished: false, sample };
    let outcome = match tokio::time::timeout(limit, read(api, endpoint, job, &mut progress)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no end of the answer within {} s", limit.as_secs())),
    };
    let mut sample = progress.sample;
    if sample.output_tokens == 0 {
        sample.output_tokens = progress.chunks;
    }
    if outcome.is_err() || !progress.finished {
        sample.e2e_s = Instant::now().duration_since(due).as_secs_f64();
        sample.failure = outcome.err().or_else(|| Some("the stream broke off".into()));
    }
    sample
}

async fn read(api: &Api, endpoint: Endpoint, job: &Job, progress: &mut Progress) -> Result<(), String> {
    let response = api.post(endpoint.path(), &job.body).await.map_err(|error| cause(&error))?;
    if !response.status().is_success() {
        return Err(refusal(response).await);
    }
    let eta_ms =
        response.headers().get(ETA_HEADER).and_then(|value| value.to_str().ok()?.parse::<f64>().ok());
    progress.sample.eta_s = eta_ms.map(|eta_ms| eta_ms / 1e3);
    let mut bytes = response.bytes_stream();
    let mut buffer: Vec<u8> = Vec::new();
    while let Some(piece) = bytes.next().await {
        let now = Instant::now();
        buffer.extend_from_slice(&piece.map_err(|error| cause(&error))?);
        let mut start = 0;
        while let Some(length) = buffer[start..].iter().position(|&byte| byte == b'\n') {
            let line = buffer[start..start + length].trim_ascii_end();
            start += length + 1;
            if let Some(data) = line.strip_prefix(b"data:")
                && progress.event(data.trim_ascii_start(), now)?
            {
                return Ok(());
            }
        }
        buffer.drain(..start);
        if buffer.len() > MAX_EVENT_BYTES {
            return Err(format!("an event of more than {MAX_EVENT_BYTES} bytes"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(json: &str) -> Choice {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_opening_and_the_end_are_no_tokens_but_unprintable_tokens_are() {
        assert!(!choice(r#"{"delta":{"role":"assistant","content":""},"finish_reason":null}"#).is_token());
        assert!(!choice(r#"{"delta":{},"finish_reason":"stop"}"#).is_token());
        assert!(!choice(r#"{"delta":{"content":""},"finish_reason":"stop"}"#).is_token());
        assert!(choice(r#"{"delta":{"content":"Hi"}}"#).is_token());
        assert!(choice(r#"{"delta":{"content":""},"finish_reason":null}"#).is_token());
        assert!(choice(r#"{"text":"Hi","finish_reason":"length"}"#).is_token());
        assert!(!choice(r#"{"text":"","finish_reason":"stop"}"#).is_token());
    }
}
