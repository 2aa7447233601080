//! Learning from the requests that are served, so that a ranker of other models becomes the served model's own.
//!
//! [`Adapter`] remembers the features (never the text) and the lengths of the newest answers, and says when it is worth
//! learning from them; [`adapt`] does so, which takes a second or so per thousand and belongs on a thread of its own.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::features::Scratch;
use crate::ranker::Ranker;
use crate::tau::kendall_tau_b;
use crate::train::{Example, Progress, TrainConfig, learn};

/// Most answers remembered; the oldest go first, so that the ranker follows its traffic.
pub const MAX_EXAMPLES: usize = 4000;

/// Most features remembered over all answers: 8 bytes each.
pub const MAX_FEATURES: usize = 4 << 20;

/// Answers before the first learning.
const FIRST_AT: u64 = 50;

/// From one learning to the next the number of answers seen grows by this factor ...
const GROWTH: f64 = 1.4;

/// ... and by no more than this number.
const MAX_STEP: u64 = 1000;

/// The newest answers, and when to learn from them.
#[derive(Debug)]
pub struct Adapter {
    scratch: Scratch,
    window: VecDeque<Arc<Example>>,
    features: usize,
    observed: u64,
    next_at: u64,
}

impl Default for Adapter {
    fn default() -> Self {
        Self { scratch: Scratch::new(), window: VecDeque::new(), features: 0, observed: 0, next_at: FIRST_AT }
    }
}

impl Adapter {
    /// An answer has ended after `tokens` tokens: by itself, or `censored` by its limit. A censored one that is shorter than
    /// most of those that ended by themselves says nothing and is left out.
    pub fn observe(&mut self, text: &str, tokens: u32, censored: bool) {
        if tokens == 0
            || (censored
                && Example::median_tokens(self.window.iter().map(Arc::as_ref))
                    .is_some_and(|usual| tokens < usual))
        {
            return;
        }
        let example = Example::new(&mut self.scratch, text, tokens, censored);
        self.features += example.features();
        self.window.push_back(Arc::new(example));
        self.observed += 1;
        while self.window.len() > MAX_EXAMPLES || self.features > MAX_FEATURES {
            let Some(oldest) = self.window.pop_front() else { break };
            self.features -= oldest.features();
        }
    }

    /// Answers learned from or to learn from, since the start.
    pub fn observed(&self) -> u64 {
        self.observed
    }

    /// What to learn from now, if it is time to.
    pub fn due(&mut self) -> Option<Vec<Arc<Example>>> {
        if self.observed < self.next_at {
            return None;
        }
        let grown = (self.observed as f64 * GROWTH) as u64;
        self.next_at = grown.min(self.observed + MAX_STEP);
        Some(self.examples())
    }

    /// The newest answers.
    pub fn examples(&self) -> Vec<Arc<Example>> {
        self.window.iter().cloned().collect()
    }
}

/// A ranker that has learned from served requests.
#[derive(Debug, Clone)]
pub struct Adapted {
    /// The ranker.
    pub ranker: Ranker,
    /// Answers that it learned from.
    pub examples: usize,
    /// Share of the prior's order in its own, from 0 to 1.
    pub prior_share: f64,
    /// Its tau-b on answers that it did not learn from, in cross-validation.
    pub tau_b: f64,
    /// Tau-b of the prior on the same answers.
    pub prior_tau_b: f64,
}

/// The settings of learning while serving: fewer folds, penalties and passes than training from a trace, since it is done again and
/// again, and no more than one thread, since others serve meanwhile.
fn config(prior: Option<&Ranker>) -> TrainConfig {
    let usual = TrainConfig::default();
    TrainConfig {
        all: true,
        folds: 3,
        parallel: false,
        penalties: vec![8.0, 2.0, 0.5],
        epochs: 8,
        prior: prior.cloned(),
        licence: prior.map_or(usual.licence, |prior| prior.card().licence.clone()),
        command: "learned while serving".into(),
        ..usual
    }
}

/// Learns from served answers, and mixes what it learned with the ranker of the start ([`TrainConfig::prior`]). `None` where
/// nothing can be learned.
pub fn adapt(prior: &Ranker, examples: &[Arc<Example>]) -> Option<Adapted> {
    let raw: Vec<f64> = examples.iter().map(|example| f64::from(example.raw(prior))).collect();
    let lengths: Vec<f64> = examples.iter().map(|example| f64::from(example.tokens)).collect();
    let prior_tau_b = kendall_tau_b(&raw, &lengths).unwrap_or(0.0);
    let (ranker, report) = learn(&config(Some(prior)), &[examples], &mut |_: Progress| {}).ok()?;
    let (tau_b, prior_share) = (report.validation_tau_b, report.prior_share?);
    Some(Adapted { ranker, examples: examples.len(), prior_share, tau_b, prior_tau_b })
}

/// Learns from served answers without a ranker to start from. `None` where unseen answers are not ordered clearly better than by
/// chance.
pub fn from_nothing(examples: &[Arc<Example>]) -> Option<Adapted> {
    let (ranker, report) = learn(&config(None), &[examples], &mut |_: Progress| {}).ok()?;
    let tau_b = report.validation_tau_b;
    let clear = tau_b > 0.5 / (examples.len() as f64).sqrt();
    clear.then_some(Adapted { ranker, examples: examples.len(), prior_share: 0.0, tau_b, prior_tau_b: 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers whose length goes with a word that the shipped ranker cannot know.
    fn traffic(count: usize) -> impl Iterator<Item = (String, u32)> {
        let mut random = fastrand::Rng::with_seed(3);
        (0..count).map(move |index| {
            let long = random.bool();
            let topic = ["glorp", "zindle"][usize::from(long)];
            let noise: u32 = random.u32(0..30);
            (
                format!("Request {index}: treat the {topic} of item {}.", random.u32(..)),
                20 + 300 * u32::from(long) + noise,
            )
        })
    }

    #[test]
    fn what_was_served_is_learned() {
        let prior = Ranker::shipped();
        let mut adapter = Adapter::default();
        let mut learned = None;
        for (text, tokens) in traffic(200) {
            adapter.observe(&text, tokens, false);
            if let Some(examples) = adapter.due() {
                learned = adapt(prior, &examples).or(learned);
            }
        }
        let learned = learned.expect("there is something to learn");
        assert!(learned.tau_b > 0.4 && learned.tau_b > learned.prior_tau_b + 0.15, "{learned:?}");
        let median =
            |word: &str| learned.ranker.score(&format!("Please treat the {word} of item 7.")).median_tokens();
        assert!((20.0..80.0).contains(&median("glorp")), "{}", median("glorp"));
        assert!((200.0..500.0).contains(&median("zindle")), "{}", median("zindle"));
    }

    #[test]
    fn a_prior_that_orders_well_keeps_its_order_and_learns_the_lengths() {
        let mut random = fastrand::Rng::with_seed(5);
        let mut adapter = Adapter::default();
        let prior = Ranker::shipped();
        let prompt = |words: u32, index: u32| format!("Write {words} words about {index}");
        // The prior's own order, by a model that says seven times as much.
        for index in 0..150 {
            let text = prompt(random.u32(5..900), index);
            adapter.observe(&text, 7 * prior.score(&text).median_tokens() as u32 + 1, false);
        }
        let learned = adapt(prior, &adapter.examples()).unwrap();
        assert!(learned.prior_tau_b > 0.9 && learned.prior_share > 0.5, "{learned:?}");
        let raws = |ranker: &Ranker| {
            (5..900).map(|words| f64::from(ranker.raw(&prompt(words, 1)))).collect::<Vec<_>>()
        };
        let kept = kendall_tau_b(&raws(prior), &raws(&learned.ranker)).unwrap();
        assert!(kept > 0.9, "{kept}");
        let text = prompt(100, 1);
        let factor = learned.ranker.score(&text).median_tokens() / prior.score(&text).median_tokens();
        assert!((4.0..10.0).contains(&factor), "{factor}");
    }

    #[test]
    fn memory_is_bounded_and_the_newest_are_kept() {
        let mut adapter = Adapter::default();
        for tokens in 1..=u32::try_from(MAX_EXAMPLES).unwrap() + 10 {
            adapter.observe("short", tokens, false);
        }
        let examples = adapter.examples();
        assert_eq!((examples.len(), examples[0].tokens), (MAX_EXAMPLES, 11));
        let long: String = (0..1500).map(|index| format!("word{index} ")).collect();
        let each = Example::new(&mut Scratch::new(), &long, 1, false).features();
        for _ in 0..MAX_FEATURES / each + 5 {
            adapter.observe(&long, 9, false);
        }
        assert!(adapter.features <= MAX_FEATURES);
    }

    #[test]
    fn answers_cut_short_of_the_usual_say_nothing() {
        let mut adapter = Adapter::default();
        (0..9).for_each(|_| adapter.observe("x", 100, false));
        adapter.observe("x", 16, true);
        adapter.observe("x", 0, false);
        assert_eq!(adapter.observed(), 9);
        adapter.observe("x", 200, true);
        assert_eq!(adapter.observed(), 10);
    }

    #[test]
    fn learning_is_due_less_and_less_often() {
        let mut adapter = Adapter::default();
        let mut at = Vec::new();
        for index in 1..=6000 {
            adapter.observe("x", 5, false);
            if adapter.due().is_some() {
                at.push(index);
            }
        }
        assert_eq!(&at[..4], [50, 70, 98, 137]);
        assert!(at.windows(2).all(|pair| pair[1] - pair[0] <= 1000) && at.len() < 20, "{at:?}");
    }
}
