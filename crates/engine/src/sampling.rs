//! How the next token is chosen, as the client asks for it.

use serde::{Deserialize, Serialize};

use crate::SamplingError;

/// Stop strings of one request, at most.
const MAX_STOP_STRINGS: usize = 16;
/// Each token of every request waits for the search for them.
const MAX_STOP_BYTES: usize = 1024;
/// Alternatives reported for one token, at most (OpenAI's limit).
const MAX_TOP_LOGPROBS: u8 = 20;

/// Sampling settings of one request. Penalties count the output so far, not the prompt (as OpenAI and vLLM do).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Divisor of the logits, 0 to 2; 0 takes the likeliest token.
    pub temperature: f32,
    /// Nucleus: the likeliest tokens that hold this much probability, in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// The likeliest `top_k` tokens; 0 keeps all.
    pub top_k: u32,
    /// Tokens at least this fraction as likely as the likeliest, 0 to 1; 0 keeps all.
    pub min_p: f32,
    /// Seed of the draws; without one, the engine draws it at random.
    pub seed: Option<u64>,
    /// Subtracted from the logit of every token that the output contains, -2 to 2.
    pub presence_penalty: f32,
    /// Subtracted for each time the output contains the token, -2 to 2.
    pub frequency_penalty: f32,
    /// Output limit in tokens, at least 1.
    pub max_tokens: u32,
    /// Continue past end-of-text tokens until `max_tokens`, as vLLM does: they are sampled and counted, print
    /// nothing and end nothing.
    pub ignore_eos: bool,
    /// Strings that end the output; they are not part of it.
    pub stop: Vec<String>,
    /// Report the log-probability of each token, and of this many of the likeliest.
    pub logprobs: Option<u8>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            max_tokens: 16,
            ignore_eos: false,
            stop: Vec::new(),
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Temperature 0: always the likeliest token.
    pub fn greedy(max_tokens: u32) -> Self {
        Self { temperature: 0.0, max_tokens, ..Self::default() }
    }

    /// Checks every setting against its range.
    ///
    /// # Errors
    /// [`SamplingError`] naming the first setting out of range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        range("temperature", self.temperature, |v| (0.0..=2.0).contains(&v), "a number from 0 to 2")?;
        range("top_p", self.top_p, |v| v > 0.0 && v <= 1.0, "a number above 0 and at most 1")?;
        range("min_p", self.min_p, |v| (0.0..=1.0).contains(&v), "a number from 0 to 1")?;
        let penalty = |v: f32| (-2.0..=2.0).contains(&v);
        range("presence_penalty", self.presence_penalty, penalty, "a number from -2 to 2")?;
        range("frequency_penalty", self.frequency_penalty, penalty, "a number from -2 to 2")?;
        range("max_tokens", self.max_tokens as f32, |v| v >= 1.0, "at least 1")?;
        let logprobs = self.logprobs.unwrap_or(0);
        range("logprobs", f32::from(logprobs), |_| logprobs <= MAX_TOP_LOGPROBS, "at most 20")?;
        if self.stop.len() > MAX_STOP_STRINGS {
            return Err(SamplingError::Stop("at most 16 strings are allowed"));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(SamplingError::Stop("an empty string would stop before the first token"));
        }
        if self.stop.iter().any(|stop| stop.len() > MAX_STOP_BYTES) {
            return Err(SamplingError::Stop("a string may have 1,024 bytes at most"));
        }
        Ok(())
    }
}

/// Refuses `value` unless `holds`; NaN and infinities fail every comparison that names a finite range.
fn range(
    field: &'static str,
    value: f32,
    holds: impl Fn(f32) -> bool,
    expected: &'static str,
) -> Result<(), SamplingError> {
    if holds(value) { Ok(()) } else { Err(SamplingError::Range { field, value: f64::from(value), expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut SamplingParams)) -> String {
        let mut params = SamplingParams::default();
        change(&mut params);
        params.validate().unwrap_err().to_string()
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        assert!(SamplingParams::default().validate().is_ok());
        assert!(SamplingParams::greedy(1).validate().is_ok());
        assert_eq!(refused(|p| p.temperature = f32::NAN), "temperature = NaN: must be a number from 0 to 2");
        assert_eq!(refused(|p| p.max_tokens = 0), "max_tokens = 0: must be at least 1");
        assert!(refused(|p| p.temperature = f32::INFINITY).starts_with("temperature"));
        assert!(refused(|p| p.top_p = 0.0).starts_with("top_p"));
        assert!(refused(|p| p.top_p = f32::NAN).starts_with("top_p"));
        assert!(refused(|p| p.min_p = -0.1).starts_with("min_p"));
        assert!(refused(|p| p.presence_penalty = 2.1).starts_with("presence_penalty"));
        assert!(refused(|p| p.frequency_penalty = f32::NAN).starts_with("frequency_penalty"));
        assert!(refused(|p| p.logprobs = Some(21)).starts_with("logprobs"));
        assert!(refused(|p| p.stop = vec![String::new()]).starts_with("stop"));
        assert!(refused(|p| p.stop = vec!["x".into(); 17]).starts_with("stop"));
    }
}
