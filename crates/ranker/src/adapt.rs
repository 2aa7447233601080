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

/// Most answers remembered; the oldest go first, so that the ranker follows its traffic. No more are learned from at once.
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
    forgotten: u64,
    next_at: u64,
}

impl Default for Adapter {
    fn default() -> Self {
        let (scratch, window) = (Scratch::new(), VecDeque::new());
        Self { scratch, window, features: 0, observed: 0, forgotten: 0, next_at: FIRST_AT }
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
            self.forgotten += 1;
        }
    }

    /// Answers learned from or to learn from, since the start.
    pub fn observed(&self) -> u64 {
        self.observed
    }

    /// Whether it is time to learn.
    pub fn is_due(&self) -> bool {
        self.observed >= self.next_at
    }

    /// What to learn from now, if it is time to.
    pub fn due(&mut self) -> Option<Vec<Arc<Example>>> {
        if !self.is_due() {
            return None;
        }
        let grown = (self.observed as f64 * GROWTH) as u64;
        self.next_at = grown.min(self.observed + MAX_STEP);
        Some(self.examples())
    }

    /// Those of the requests that run who are to be learned from ([`add_open`]): all, as long as all are remembered who ended. Then each
    /// who was forgotten takes the place of one who runs: of a stream of answers the newest are neither too long nor too short,
    /// because for each long one that has not ended there is one that had begun before them, and those who run at any moment are
    /// the long ones.
    pub fn count_open(&self, running: Vec<Open>) -> Vec<Open> {
        let share = 1.0 - self.forgotten as f64 / running.len().max(1) as f64;
        sample(running, share.max(0.0)).collect()
    }

    /// The newest answers.
    pub fn examples(&self) -> Vec<Arc<Example>> {
        self.window.iter().cloned().collect()
    }
}

/// A request that has not ended when it is time to learn.
#[derive(Debug, Clone, PartialEq)]
pub struct Open {
    /// What was asked, as it is scored.
    pub text: Arc<str>,
    /// Tokens of the answer so far.
    pub tokens: u32,
    /// Its limit in tokens, as far as a prediction may know it.
    pub limit_tokens: u32,
}

/// Adds requests that have not ended to the answers to learn from. Of requests that start together the short ones end first: who
/// learns from ended ones alone takes all for shorter than they are, and is surer of it than is right, the more so the shorter he
/// has served. How long an open one will be is not known, but `ranker` says how likely which length is, and the tokens
/// so far rule out those below: each gets a length from what is left, one after the other from all over it. (That is multiple
/// imputation of a censored length: Rubin, "Multiple Imputation for Nonresponse in Surveys", 1987, with one draw.)
/// Where they are more than [`MAX_EXAMPLES`] in all, the same share of both is kept.
pub fn add_open(examples: &mut Vec<Arc<Example>>, ranker: &Ranker, open: Vec<Open>) {
    /// The golden ratio, less 1: the fractions of its multiples cover 0 to 1 evenly, however many there are.
    const STRIDE: f64 = 0.618_033_988_749_895;
    let share = MAX_EXAMPLES as f64 / (examples.len() + open.len()) as f64;
    if share < 1.0 {
        *examples = sample(std::mem::take(examples), share).collect();
    }
    let mut scratch = Scratch::new();
    for (index, it) in sample(open, share).enumerate() {
        let share = ((index + 1) as f64 * STRIDE).fract();
        let tokens = ranker.score(&it.text).tokens_beyond(it.tokens, share);
        let limit_tokens = it.limit_tokens.max(1);
        let tokens = (tokens.round() as u32).clamp(1, limit_tokens);
        let censored = tokens == limit_tokens;
        examples.push(Arc::new(Example::new(&mut scratch, &it.text, tokens, censored)));
    }
}

/// A share (from 0 to 1, which is all) of the items, evenly from among them.
pub fn sample<T>(items: impl IntoIterator<Item = T>, share: f64) -> impl Iterator<Item = T> {
    let before = move |index: usize| (index as f64 * share.min(1.0)).floor();
    let kept = move |&(index, _): &(usize, T)| before(index + 1) > before(index);
    items.into_iter().enumerate().filter(kept).map(|(_, item)| item)
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
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

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
    fn those_who_have_not_ended_make_up_for_the_short_ones_that_end_first() {
        let ranker = Ranker::shipped();
        let texts: Vec<String> = traffic(400).map(|(text, _)| text).collect();
        // Lengths as the ranker says; after 150 steps the short half has ended.
        let length = |index: usize, text: &str| {
            let share = (index as f64 + 0.5) * 0.618_034 % 1.0;
            ranker.score(text).tokens_beyond(0, share) as u32 + 1
        };
        let step = 150;
        let mut adapter = Adapter::default();
        let mut open = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            match length(index, text) {
                tokens if tokens <= step => adapter.observe(text, tokens, false),
                _ => open.push(Open { text: text.as_str().into(), tokens: step, limit_tokens: 100_000 }),
            }
        }
        assert!(adapter.is_due() && open.len() > 50, "{}", open.len());
        let mean_ln = |lengths: &[u32]| {
            lengths.iter().map(|&tokens| f64::from(tokens).ln()).sum::<f64>() / lengths.len() as f64
        };
        let truth: Vec<u32> = texts.iter().enumerate().map(|(index, text)| length(index, text)).collect();
        let mut examples = adapter.examples();
        let of = |examples: &[Arc<Example>]| {
            mean_ln(&examples.iter().map(|example| example.tokens).collect::<Vec<_>>())
        };
        assert!(of(&examples) < mean_ln(&truth) - 0.2, "the ended ones are the short ones");
        add_open(&mut examples, ranker, open);
        assert!((of(&examples) - mean_ln(&truth)).abs() < 0.05, "{} {}", of(&examples), mean_ln(&truth));
        add_open(&mut examples, ranker, vec![Open { text: "x".into(), tokens: 7, limit_tokens: 8 }]);
        assert!((7..=8).contains(&examples.last().unwrap().tokens));
    }

    #[test]
    fn those_who_run_count_until_those_who_ended_are_a_fair_sample_by_themselves() {
        // A thousand seats that are always taken, and lengths of e^5 tokens, more or less.
        let mut random = fastrand::Rng::with_seed(7);
        let mut length = move || {
            let normal = (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
            (5.0 + normal).exp().max(1.0) as u32
        };
        let mut running: BinaryHeap<_> =
            std::iter::repeat_with(&mut length).take(1000).map(|tokens| Reverse((tokens, tokens))).collect();
        let mut adapter = Adapter::default();
        for answers in 1..=9000 {
            let Reverse((now, tokens)) = running.pop().unwrap();
            adapter.observe("x", tokens, false);
            let next = length();
            running.push(Reverse((now + next, next)));
            if ![50, 1000, 4000, 4500, 9000].contains(&answers) {
                continue;
            }
            let open = |&Reverse((_, tokens)): &Reverse<(u32, u32)>| Open {
                text: "x".into(),
                tokens,
                limit_tokens: u32::MAX,
            };
            let open = adapter.count_open(running.iter().map(open).collect());
            let ended = adapter.examples();
            let lengths = ended.iter().map(|it| it.tokens).chain(open.iter().map(|it| it.tokens));
            let mean_ln =
                lengths.map(|tokens| f64::from(tokens).ln()).sum::<f64>() / (ended.len() + open.len()) as f64;
            assert!((mean_ln - 5.0).abs() < 0.12, "{answers}: {mean_ln}");
        }
    }

    #[test]
    fn of_more_than_can_be_learned_from_the_same_share_of_both_is_kept() {
        let example = |tokens| Arc::new(Example::new(&mut Scratch::new(), "x", tokens, false));
        let mut examples = vec![example(3); MAX_EXAMPLES / 2];
        let open = vec![Open { text: "x".into(), tokens: 7, limit_tokens: 900 }; 3 * MAX_EXAMPLES / 2];
        add_open(&mut examples, Ranker::shipped(), open);
        let ended = examples.iter().filter(|example| example.tokens == 3).count();
        assert_eq!((ended, examples.len()), (MAX_EXAMPLES / 4, MAX_EXAMPLES));
        let kept: Vec<u32> = sample(0..10, 0.3).collect();
        assert_eq!(kept, [3, 6, 9]);
        assert_eq!((sample(0..10, 1.0).count(), sample(0..10, 0.0).count()), (10, 0));
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
