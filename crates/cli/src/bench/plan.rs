//! What a run sends. Every policy gets the same.

use anyhow::{Result, bail};
use outrank_ranker::TraceRecord;
use serde_json::json;

use crate::arrivals::Arrival;
use crate::bench::args::LengthMode;
use crate::http::Endpoint;

/// One request of a run.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Its place in the run.
    pub(crate) index: usize,
    /// The record of the trace that it replays.
    pub(crate) record: usize,
    /// When to send it, in seconds since the start.
    pub(crate) arrival_s: f64,
    /// Recorded length in tokens, where the trace has one.
    pub(crate) true_tokens: Option<u32>,
    /// The JSON body.
    pub(crate) body: Vec<u8>,
}

/// How requests are made from records.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// Chat or completions.
    pub(crate) endpoint: Endpoint,
    /// The model's name in the API.
    pub(crate) model: String,
    /// Recorded lengths, or the model's own end of text.
    pub(crate) lengths: LengthMode,
    /// Output limit in tokens.
    pub(crate) max_tokens: Option<u32>,
    /// Sampling temperature.
    pub(crate) temperature: f64,
    /// Sampling seed.
    pub(crate) seed: u64,
    /// Tell the server the true lengths (the `oracle-*` policies need them; only outrank understands).
    pub(crate) hints: bool,
}

impl Shape {
    /// The recorded length of a record as this shape replays it.
    fn true_tokens(&self, record: &TraceRecord) -> Option<u32> {
        let recorded = match self.lengths {
            // One sample, not the mean: what is replayed has the noise of a real answer.
            LengthMode::Recorded => record.output_tokens.first().copied(),
            LengthMode::Free => record.length_tokens().map(|tokens| tokens.round() as u32),
        };
        let limit = self.max_tokens.unwrap_or(u32::MAX);
        recorded.map(|tokens| tokens.clamp(1, limit))
    }

    /// The request that replays `record`.
    fn job(&self, index: usize, arrival: &Arrival, record: &TraceRecord) -> Result<Job> {
        let Arrival { at_s: arrival_s, record: record_index } = *arrival;
        let true_tokens = self.true_tokens(record);
        let mut body = self.endpoint.body(&self.model, record);
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        body["temperature"] = json!(self.temperature);
        body["seed"] = json!(self.seed);
        match (self.lengths, true_tokens) {
            (LengthMode::Recorded, Some(tokens)) => {
                body["ignore_eos"] = json!(true);
                body["max_tokens"] = json!(tokens);
            }
            (LengthMode::Recorded, None) => {
                bail!("a record without a length cannot be replayed: use --lengths free")
            }
            (LengthMode::Free, _) => {
                if let Some(limit) = self.max_tokens {
                    body["max_tokens"] = json!(limit);
                }
            }
        }
        if let Some(tokens) = true_tokens.filter(|_| self.hints) {
            body["outrank"] = json!({"true_output_tokens": tokens});
        }
        Ok(Job { index, record: record_index, arrival_s, true_tokens, body: serde_json::to_vec(&body)? })
    }

    /// The requests of a run: one for each arrival.
    pub(crate) fn jobs(&self, records: &[TraceRecord], arrivals: &[Arrival]) -> Result<Vec<Job>> {
        let job = |(index, arrival): (usize, &Arrival)| self.job(index, arrival, &records[arrival.record]);
        arrivals.iter().enumerate().map(job).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrank_ranker::trace::Prompt;

    fn record(text: &str, tokens: &[u32]) -> TraceRecord {
        TraceRecord { output_tokens: tokens.to_vec(), ..TraceRecord::new(Prompt::Text(text.into())) }
    }

    fn shape(lengths: LengthMode) -> Shape {
        let (endpoint, model) = (Endpoint::Chat, "m".to_owned());
        Shape { endpoint, model, lengths, max_tokens: Some(100), temperature: 0.0, seed: 1, hints: true }
    }

    /// The one request of a run.
    fn job(shape: &Shape, record: TraceRecord) -> Result<Job> {
        Ok(shape.jobs(&[record], &[Arrival { at_s: 0.0, record: 0 }])?.remove(0))
    }

    fn body(job: &Job) -> serde_json::Value {
        serde_json::from_slice(&job.body).unwrap()
    }

    #[test]
    fn recorded_lengths_are_forced_and_capped_and_free_ones_are_only_capped() {
        let forced = body(&job(&shape(LengthMode::Recorded), record("a", &[500, 20])).unwrap());
        assert_eq!((&forced["ignore_eos"], &forced["max_tokens"]), (&json!(true), &json!(100)));
        let free = body(&job(&shape(LengthMode::Free), record("a", &[500, 20])).unwrap());
        assert_eq!((&free["ignore_eos"], &free["max_tokens"]), (&json!(null), &json!(100)));
        assert_eq!(free["outrank"]["true_output_tokens"], json!(100));
    }

    #[test]
    fn true_lengths_go_to_nobody_who_was_not_asked_for() {
        let quiet = Shape { hints: false, ..shape(LengthMode::Free) };
        assert!(body(&job(&quiet, record("a", &[5])).unwrap()).get("outrank").is_none());
    }

    #[test]
    fn a_record_without_a_length_cannot_be_replayed_but_can_run_free() {
        assert!(job(&shape(LengthMode::Recorded), record("a", &[])).is_err());
        assert!(job(&shape(LengthMode::Free), record("a", &[])).is_ok());
    }
}
