//! What one executed step held and how long it took: what costs are learned from, and one line of the step log.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Slice;

/// One executed step. Engines log it as one JSON line; simulators fit their cost models to such lines.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct StepSample {
    /// Context tokens processed by prefills: those of every slice that is no decode.
    pub prefill_tokens: u32,
    /// Slices that prefill, of any length.
    pub prefills: u32,
    /// Slices of one token from which the next is sampled. It is the work that counts, not whose: the last missing token
    /// of a resumed request costs what every other decode costs.
    pub decodes: u32,
    /// Sum over the slices of the context that each attends to, itself included, in tokens.
    pub context_tokens: u64,
    /// Duration of the whole step, in seconds.
    pub took_s: f64,
}

impl StepSample {
    /// The sample of a step that executed `batch` in `took`.
    pub fn new(batch: &[Slice], took: Duration) -> Self {
        let mut sample = Self { took_s: took.as_secs_f64(), ..Self::default() };
        for slice in batch {
            let decodes = slice.samples && slice.tokens == 1;
            sample.decodes += u32::from(decodes);
            sample.prefills += u32::from(!decodes);
            sample.prefill_tokens += if decodes { 0 } else { slice.tokens };
            sample.context_tokens += u64::from(slice.start) + u64::from(slice.tokens);
        }
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RequestId;

    fn slice(start: u32, tokens: u32, samples: bool) -> Slice {
        Slice { id: RequestId(0), start, tokens, samples }
    }

    #[test]
    fn one_token_that_samples_is_a_decode_and_everything_else_prefill() {
        let batch = [
            slice(40, 1, true),  // one token after the other, or the last one of a resumed request
            slice(0, 32, false), // the first chunk of a prompt
            slice(32, 8, true),  // the last one
            slice(8, 1, false),  // a chunk cut to one token by the budget
        ];
        let sample = StepSample::new(&batch, Duration::from_millis(20));
        assert_eq!((sample.decodes, sample.prefills, sample.prefill_tokens), (1, 3, 41));
        assert_eq!((sample.context_tokens, sample.took_s), (41 + 32 + 40 + 9, 0.02));
    }

    #[test]
    fn a_line_of_the_log_is_read_whatever_else_it_holds() {
        let line = r#"{"prefill_tokens":41,"prefills":3,"decodes":1,"context_tokens":122,"took_s":0.02,"policy":"fcfs"}"#;
        let sample: StepSample = serde_json::from_str(line).unwrap();
        assert_eq!((sample.prefill_tokens, sample.context_tokens, sample.took_s), (41, 122, 0.02));
        let written = serde_json::to_string(&sample).unwrap();
        assert_eq!(written, line.replace(r#","policy":"fcfs""#, ""));
    }
}
