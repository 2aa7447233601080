//! How long an engine takes for one step.

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

impl Composition {
    /// Tokens that the forward pass computes.
    pub fn tokens(&self) -> u32 {
        self.prefill_tokens + self.decode_seqs
    }
}

/// A point of the piecewise linear part of [`StepCost`].
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Knot {
    /// Tokens in the forward pass.
    pub tokens: f64,
    /// Seconds.
    pub seconds: f64,
}

/// Seconds of a step as a function of its composition:
///
/// ```text
/// step = f(tokens) + context_token_s · context tokens + [prefill > 0] · prefill_step_s + prefill_token_s · prefill tokens
/// ```
///
/// `f` is piecewise linear in the tokens of the forward pass: flat while the weights' way through memory bounds it,
/// rising where arithmetic does (the roofline), with the engine's own steps in between. Attention over the KV cache adds
/// per context token; a step with prefill costs extra where an engine leaves its decode graph.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepCost {
    /// `f`, with rising `tokens`; linear between knots, and beyond the last with the last slope. Not empty.
    pub knots: Vec<Knot>,
    /// Seconds per context token.
    pub context_token_s: f64,
    /// Seconds that a step with prefill takes longer.
    pub prefill_step_s: f64,
    /// Seconds per prefill token beyond `f`.
    pub prefill_token_s: f64,
}

impl StepCost {
    /// Seconds of a step.
    pub fn seconds(&self, step: &Composition) -> f64 {
        let prefill = f64::from(step.prefill_tokens) * self.prefill_token_s
            + if step.prefill_tokens > 0 { self.prefill_step_s } else { 0.0 };
        self.forward_s(f64::from(step.tokens())) + step.context_tokens as f64 * self.context_token_s + prefill
    }

    /// `f(tokens)`.
    fn forward_s(&self, tokens: f64) -> f64 {
        let above = self.knots.partition_point(|knot| knot.tokens < tokens);
        let (Some(last), at) = (self.knots.len().checked_sub(1), above) else { return 0.0 };
        if at == 0 || last == 0 {
            return self.knots[0].seconds;
        }
        let (low, high) = (&self.knots[at.min(last) - 1], &self.knots[at.min(last)]);
        low.seconds + (tokens - low.tokens) * (high.seconds - low.seconds) / (high.tokens - low.tokens)
    }

    /// Why these numbers cannot be a cost, if they cannot.
    pub(crate) fn flaw(&self) -> Option<String> {
        if self.knots.is_empty() {
            return Some("step.knots is empty".into());
        }
        let rising = self.knots.windows(2).all(|pair| pair[0].tokens < pair[1].tokens);
        if !rising {
            return Some("step.knots must have rising tokens".into());
        }
        let numbers = self.knots.iter().flat_map(|knot| [knot.tokens, knot.seconds]);
        let rates = [self.context_token_s, self.prefill_step_s, self.prefill_token_s];
        let bad = numbers.chain(rates).find(|x| !(x.is_finite() && *x >= 0.0));
        if let Some(bad) = bad {
            return Some(format!("step: {bad} is no cost; all must be finite and at least 0"));
        }
        (self.knots[0].seconds <= 0.0)
            .then(|| "step.knots[0].seconds must be positive, or time would stand still".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost() -> StepCost {
        let knot = |tokens, seconds| Knot { tokens, seconds };
        StepCost {
            knots: vec![knot(1.0, 0.010), knot(101.0, 0.010), knot(201.0, 0.030)],
            context_token_s: 1e-6,
            prefill_step_s: 0.002,
            prefill_token_s: 1e-5,
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
        let step = Composition { prefill_tokens: 100, decode_seqs: 1, context_tokens: 1000 };
        assert!((cost().seconds(&step) - (0.010 + 0.001 + 0.002 + 0.001)).abs() < 1e-12);
    }

    #[test]
    fn impossible_costs_are_named() {
        assert!(cost().flaw().is_none());
        assert!(StepCost { knots: vec![], ..cost() }.flaw().is_some());
        assert!(StepCost { context_token_s: f64::NAN, ..cost() }.flaw().unwrap().contains("NaN"));
        let flat = |tokens| Knot { tokens, seconds: 0.0 };
        assert!(StepCost { knots: vec![flat(1.0)], ..cost() }.flaw().is_some());
        assert!(StepCost { knots: vec![flat(2.0), flat(1.0)], ..cost() }.flaw().is_some());
    }
}
