use serde::{Deserialize, Serialize};

use crate::{Key, Load, Policy, Preemption, RequestView, Starvation};

/// Perception only, a baseline of the paper ("Efficient LLM Scheduling by Learning to Rank", NeurIPS 2024, arXiv
/// 2408.15792) after "Response Length Perception and Sequence Scheduling" (Zheng et al., NeurIPS 2023, arXiv
/// 2305.13144): the length is known only once the request has run for some tokens.
///
/// ```text
/// key = -1               until `perceive_tokens` tokens have come: ahead of all whose length is known, FCFS among them
/// key = predicted median afterwards
/// ```
///
/// It optimises what shortest-job-first does, and the time to first token, since everyone runs at once for a few
/// tokens; it hurts with a seat and a switch for every arrival, which displaces even a request that is nearly done.
///
/// Where it differs: there the model itself is asked for the length of its answer, in 15 tokens that the client
/// never sees, before it answers; here the first 15 tokens are those of the answer, at no extra cost, and the
/// length is the ranker's. So it measures what *late* knowledge costs, not how well a model perceives. Preemption
/// and starvation prevention are those of [`Ltr`](super::Ltr). A request without a score has nothing to perceive:
/// it is taken for one of the mean length from the start, in order of arrival.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Po {
    /// Output tokens after which the length is known (15 in the paper).
    pub perceive_tokens: u32,
    /// Steps out of the batch after which a request is promoted, as in `ltr`.
    pub threshold_steps: u64,
    /// Steps in the batch that a promotion lasts, as in `ltr`.
    pub quantum_steps: u32,
}

/// Below every length.
const UNPERCEIVED: f64 = -1.0;

impl Default for Po {
    fn default() -> Self {
        let super::Ltr { threshold_steps, quantum_steps } = super::Ltr::default();
        Self { perceive_tokens: 15, threshold_steps, quantum_steps }
    }
}

impl Policy for Po {
    fn name(&self) -> &'static str {
        "po"
    }

    fn key(&self, view: &RequestView<'_>) -> Key {
        Key::new(match view.score {
            None => view.unscored.tokens,
            Some(_) if view.generated_tokens < self.perceive_tokens => UNPERCEIVED,
            Some(score) => f64::from(score.median_tokens()),
        })
    }

    fn preemption(&self, _load: Load) -> Preemption {
        Preemption::Always
    }

    fn starvation(&self) -> Option<Starvation> {
        Some(Starvation { threshold_steps: self.threshold_steps, quantum_steps: self.quantum_steps })
    }

    fn why(&self, view: &RequestView<'_>) -> String {
        let key = self.key(view).value();
        if key < 0.0 {
            return format!(
                "its length is not known before {} tokens have come: ahead of all whose length is, in order of arrival",
                self.perceive_tokens
            );
        }
        format!(
            "shortest perceived answer first: {key:.0} tokens; promoted after {} steps without a turn",
            self.threshold_steps
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Facts, UNSCORED};
    use super::*;

    #[test]
    fn a_request_goes_ahead_of_all_that_are_known_until_it_is_known_itself() {
        let po = Po::default();
        let after = |generated_tokens, median| {
            Facts { generated_tokens, median: Some(median), ..Facts::default() }.key(&po)
        };
        assert_eq!(after(0, 900.0), after(14, 3.0), "the unknown are equals");
        assert!(after(14, 900.0) < after(15, 0.01));
        assert_eq!((after(15, 900.0), after(800, 900.0)), (900.0, 900.0));
    }

    #[test]
    fn a_request_without_score_has_nothing_to_perceive() {
        let po = Po::default();
        for generated_tokens in [0, 15, 100] {
            let facts = Facts { generated_tokens, ..Facts::default() };
            assert_eq!(facts.key(&po), UNSCORED.tokens);
        }
    }
}
