use serde::{Deserialize, Serialize};

use crate::{Key, Load, Policy, Preemption, RequestView, Starvation};

/// The paper's classification baseline ("Efficient LLM Scheduling by Learning to Rank", NeurIPS 2024, arXiv
/// 2408.15792): the predicted length falls into a class, shorter classes first, first come first served within a
/// class.
///
/// ```text
/// fixed:      key = floor(median / width)
/// geometric:  key = max(0, 1 + floor(ln(median / base) / ln(ratio)))
/// ```
///
/// It approximates shortest-job-first as far as the classes tell lengths apart, and is FCFS within each: where one
/// class holds most requests (with a width of 820 tokens, 93-97 % of LMSYS chats) little is left but FCFS. It hurts
/// long requests as [`Ltr`](super::Ltr) does. Preemption and starvation prevention are those of `ltr`: the paper
/// runs its baselines in one scheduler.
///
/// Where it differs: the paper trains a classifier for each set of classes (10 classes of 820 tokens in its burst
/// table, and widths of 100, 10 and 1); here the ranker's median is put into the class, so that only the resolution
/// of the order differs from `ltr`, not the model. Geometric classes stand in for classes of equal share
/// (percentiles), which would have to be learned: the lengths of answers are about log-normal, so equal steps of
/// their logarithm come near. Requests without a score stand in the class of the mean length, in order of arrival.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Class {
    /// How lengths are cut into classes.
    pub classes: Classes,
    /// Fixed classes: tokens per class, at least 1 (820 in the paper's burst table; 100, 10 and 1 elsewhere).
    pub width_tokens: f64,
    /// Geometric classes: lengths below it are the first class, in tokens.
    pub base_tokens: f64,
    /// Geometric classes: each class ends at this multiple of where it begins; above 1.
    pub ratio: f64,
    /// Steps out of the batch after which a request is promoted, as in `ltr`.
    pub threshold_steps: u64,
    /// Steps in the batch that a promotion lasts, as in `ltr`.
    pub quantum_steps: u32,
}

/// How [`Class`] cuts lengths into classes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Classes {
    /// Of equal width in tokens.
    #[default]
    Fixed,
    /// Of equal width in the logarithm of tokens.
    Geometric,
}

/// Least ratio of geometric classes; closer to 1 the logarithm of the ratio vanishes.
const MIN_RATIO: f64 = 1.001;

impl Default for Class {
    fn default() -> Self {
        let super::Ltr { threshold_steps, quantum_steps } = super::Ltr::default();
        Self {
            classes: Classes::Fixed,
            width_tokens: 820.0,
            base_tokens: 16.0,
            ratio: 1.5,
            threshold_steps,
            quantum_steps,
        }
    }
}

impl Class {
    fn class_of(&self, tokens: f64) -> f64 {
        match self.classes {
            Classes::Fixed => (tokens / self.width_tokens.max(1.0)).floor(),
            Classes::Geometric => {
                let steps = (tokens / self.base_tokens.max(1.0)).ln() / self.ratio.max(MIN_RATIO).ln();
                (1.0 + steps.floor()).max(0.0)
            }
        }
    }
}

impl Policy for Class {
    fn name(&self) -> &'static str {
        "class"
    }

    fn key(&self, view: &RequestView<'_>) -> Key {
        let tokens = view.score.map_or(view.unscored.tokens, |score| f64::from(score.median_tokens()));
        Key::new(self.class_of(tokens))
    }

    fn preemption(&self, _load: Load) -> Preemption {
        Preemption::Always
    }

    fn starvation(&self) -> Option<Starvation> {
        Some(Starvation { threshold_steps: self.threshold_steps, quantum_steps: self.quantum_steps })
    }

    fn why(&self, view: &RequestView<'_>) -> String {
        format!(
            "shortest class of predicted answers first, in order of arrival within it: class {:.0}; promoted after {} \
             steps without a turn",
            self.key(view).value(),
            self.threshold_steps
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Facts;
    use super::*;

    fn class(policy: Class, median: f32) -> f64 {
        Facts { median: Some(median), ..Facts::default() }.key(&policy)
    }

    #[test]
    fn a_class_of_fixed_width_holds_lengths_from_its_start_to_its_end() {
        let wide = Class::default();
        assert_eq!([1.0, 819.9, 820.0, 8199.0].map(|median| class(wide, median)), [0.0, 0.0, 1.0, 9.0]);
        let narrow = Class { width_tokens: 10.0, ..wide };
        assert_eq!([9.0, 10.0, 25.0].map(|median| class(narrow, median)), [0.0, 1.0, 2.0]);
    }

    #[test]
    fn geometric_classes_widen_with_the_length() {
        let policy = Class { classes: Classes::Geometric, base_tokens: 10.0, ratio: 2.0, ..Class::default() };
        let medians = [0.1, 9.9, 10.1, 19.9, 20.1, 39.9, 40.1, 700.0];
        assert_eq!(medians.map(|median| class(policy, median)), [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 7.0]);
    }

    #[test]
    fn settings_that_make_no_classes_still_order_by_length() {
        for policy in [
            Class { width_tokens: 0.0, ..Class::default() },
            Class { width_tokens: f64::NAN, ..Class::default() },
            Class { classes: Classes::Geometric, base_tokens: -1.0, ratio: 1.0, ..Class::default() },
        ] {
            let (short, long) = (class(policy, 3.0), class(policy, 300.0));
            assert!(short < long && long.is_finite(), "{policy:?}: {short} {long}");
        }
    }

    #[test]
    fn the_classes_are_named_in_settings() {
        let read: Class = serde_json::from_str(r#"{"classes": "geometric", "ratio": 3}"#).unwrap();
        assert_eq!((read.classes, read.ratio, read.width_tokens), (Classes::Geometric, 3.0, 820.0));
        assert!(serde_json::from_str::<Class>(r#"{"clases": "fixed"}"#).is_err());
    }
}
