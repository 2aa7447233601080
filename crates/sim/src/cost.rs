//! How long an engine takes for one step.

use outrank_core::StepSample;
use serde::{Deserialize, Serialize};

/// What one forward pass holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Composition {
    /// Context tokens processed beyond the decodes.
    pub prefill_tokens: u32,
    /// Sequences that decode one token.
    pub decode_seqs: u32,
    /// Context of all sequences in the batch after the step, in tokens.
    pub context_tokens: u64,
}

impl From<&StepSample> for Composition {
    fn from(sample: &StepSample) -> Self {
        Self {
            prefill_tokens: sample.prefill_tokens,
            decode_seqs: sample.decodes,
            context_tokens: sample.context_tokens,
        }
    }
}

/// A point of a piecewise linear cost.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Knot {
    /// Tokens.
    pub tokens: f64,
    /// Seconds.
    pub seconds: f64,
}

/// Seconds of a step as a function of its composition:
///
/// ```text
/// step = decode(sequences that decode) + prefill(prefill tokens, if any) + context_token_s · context tokens
/// ```
///
/// `decode` is flat while reading the weights bounds it and rises where arithmetic does (the roofline); `prefill` is what
/// prefill adds: a constant where it keeps an engine from its decode graph, then arithmetic. Attention over the KV cache
/// adds per context token.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepCost {
    /// Seconds per context token.
    pub context_token_s: f64,
    /// Seconds of a step by the number of decoding sequences; not empty.
    pub decode: Vec<Knot>,
    /// Seconds that prefill adds, by its tokens; not empty.
    pub prefill: Vec<Knot>,
}

impl StepCost {
    /// Seconds of a step.
    pub fn seconds(&self, step: &Composition) -> f64 {
        let prefill_s = match step.prefill_tokens {
            0 => 0.0,
            tokens => at(&self.prefill, f64::from(tokens)),
        };
        at(&self.decode, f64::from(step.decode_seqs))
            + prefill_s
            + step.context_tokens as f64 * self.context_token_s
    }

    /// Why these numbers cannot be a cost, if they cannot.
    pub(crate) fn flaw(&self) -> Option<String> {
        for (name, knots) in [("decode", &self.decode), ("prefill", &self.prefill)] {
            if knots.is_empty() {
                return Some(format!("step.{name} has no knot"));
            }
            if !knots.windows(2).all(|pair| pair[0].tokens < pair[1].tokens) {
                return Some(format!("the knots of step.{name} must have rising tokens"));
            }
        }
        let knots = self.decode.iter().chain(&self.prefill);
        let mut numbers = knots.flat_map(|knot| [knot.tokens, knot.seconds]).chain([self.context_token_s]);
        if let Some(bad) = numbers.find(|x| !(x.is_finite() && *x >= 0.0)) {
            return Some(format!("step: {bad} is no cost; all must be finite and at least 0"));
        }
        (self.decode[0].seconds <= 0.0)
            .then(|| "step.decode must start above 0 seconds, or time would stand still".into())
    }
}

/// A piecewise linear function: constant before the first knot, with the last slope beyond the last.
fn at(knots: &[Knot], tokens: f64) -> f64 {
    let above = knots.partition_point(|knot| knot.tokens < tokens);
    let last = knots.len() - 1;
    if above == 0 || last == 0 {
        return knots[0].seconds;
    }
    let (low, high) = (&knots[above.min(last) - 1], &knots[above.min(last)]);
    low.seconds + (tokens - low.tokens) * (high.seconds - low.seconds) / (high.tokens - low.tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost() -> StepCost {
        let knot = |tokens, seconds| Knot { tokens, seconds };
        StepCost {
            context_token_s: 1e-6,
            decode: vec![knot(1.0, 0.010), knot(101.0, 0.010), knot(201.0, 0.030)],
            prefill: vec![knot(100.0, 0.003), knot(200.0, 0.004)],
        }
    }

    #[test]
    fn a_step_is_flat_then_linear_and_keeps_its_last_slope() {
        let decode = |n| cost().seconds(&Composition { decode_seqs: n, ..Composition::default() });
        assert!((decode(50) - 0.010).abs() < 1e-12);
        assert!((decode(151) - 0.020).abs() < 1e-12);
        assert!((decode(301) - 0.050).abs() < 1e-12);
    }

    #[test]
    fn prefill_and_context_add_their_own() {
        let step = |prefill_tokens| {
            cost().seconds(&Composition { prefill_tokens, decode_seqs: 1, context_tokens: 1000 })
        };
        assert!((step(0) - 0.011).abs() < 1e-12);
        assert!((step(10) - 0.014).abs() < 1e-12);
        assert!((step(300) - 0.016).abs() < 1e-12);
    }

    #[test]
    fn impossible_costs_are_named() {
        assert!(cost().flaw().is_none());
        assert!(StepCost { prefill: vec![], ..cost() }.flaw().unwrap().contains("prefill"));
        assert!(StepCost { context_token_s: f64::NAN, ..cost() }.flaw().unwrap().contains("NaN"));
        let flat = |tokens| Knot { tokens, seconds: 0.0 };
        assert!(StepCost { decode: vec![flat(1.0)], ..cost() }.flaw().is_some());
        assert!(StepCost { decode: vec![flat(2.0), flat(1.0)], ..cost() }.flaw().is_some());
    }
}
