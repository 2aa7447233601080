//! A ranker that learns from the requests that are served.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use outrank_core::Score;
use outrank_ranker::adapt::{Adapter, Open, adapt, add_open};
use outrank_ranker::learner::Learner;
use outrank_ranker::{Example, Ranker};

use crate::{Answer, Learned, Predictor};

/// Scores with a ranker, and makes it the served model's own: every so often it learns from the newest answers and from the requests
/// that run ([`add_open`]), on a thread beside the scoring one, and takes over what it learned, mixed with the ranker it
/// started from. It keeps features and lengths, in bounded memory, and no prompt.
#[derive(Debug)]
pub struct AdaptiveRanker {
    /// In force; changed where the pupil has learned, and held for the length of a clone.
    current: RwLock<Arc<Ranker>>,
    /// Held while an answer is remembered. Who scores does not wait for it.
    pupil: Mutex<Pupil>,
}

/// What learns.
#[derive(Debug)]
struct Pupil {
    /// What every learning starts from.
    prior: Ranker,
    adapter: Adapter,
    learner: Learner,
    /// Where a learned ranker is kept, if anywhere.
    file: Option<PathBuf>,
    learned: Learned,
}

impl AdaptiveRanker {
    /// Starts from a ranker; `file` is written whenever something was learned.
    pub fn new(ranker: Ranker, file: Option<PathBuf>) -> Self {
        let pupil = Pupil {
            prior: ranker.clone(),
            adapter: Adapter::default(),
            learner: Learner::default(),
            file,
            learned: Learned::default(),
        };
        Self { current: RwLock::new(Arc::new(ranker)), pupil: Mutex::new(pupil) }
    }

    fn in_force(&self) -> Arc<Ranker> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over what has been learned by now.
    fn take_over(&self, pupil: &mut Pupil) {
        if let Some(ranker) = pupil.learned_by_now() {
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ranker);
        }
    }
}

impl Pupil {
    fn learned_by_now(&mut self) -> Option<Ranker> {
        let adapted = self.learner.learned()?;
        tracing::info!(
            examples = adapted.examples,
            prior_share = adapted.prior_share,
            tau_b = adapted.tau_b,
            prior_tau_b = adapted.prior_tau_b,
            "the ranker has learned from served requests"
        );
        self.learned.updates += 1;
        self.learned.tau_b = Some(adapted.tau_b);
        Some(adapted.ranker)
    }

    fn observe(&mut self, answer: &Answer, current: Arc<Ranker>, running: &dyn Fn() -> Vec<Open>) {
        self.adapter.observe(&answer.text, answer.tokens, answer.censored);
        self.learned.answers = self.adapter.observed();
        if self.learner.is_rested()
            && let Some(examples) = self.adapter.due()
        {
            self.learn(examples, current, running());
        }
    }

    fn learn(&mut self, mut examples: Vec<Arc<Example>>, current: Arc<Ranker>, running: Vec<Open>) {
        let (prior, file) = (self.prior.clone(), self.file.clone());
        let open = self.adapter.count_open(running);
        let work = move || {
            add_open(&mut examples, &current, open);
            let adapted = adapt(&prior, &examples)?;
            if let Some(file) = file
                && let Err(error) = adapted.ranker.save(&file)
            {
                tracing::warn!(%error, "cannot keep what was learned");
            }
            Some(adapted)
        };
        if let Err(error) = self.learner.start(work) {
            tracing::warn!(%error, "cannot start the learning thread");
        }
    }
}

impl Predictor for AdaptiveRanker {
    fn score(&self, text: &str) -> Option<Score> {
        if let Ok(mut pupil) = self.pupil.try_lock() {
            self.take_over(&mut pupil);
        }
        Some(self.in_force().score(text))
    }

    fn observe(&self, answer: &Answer, running: &dyn Fn() -> Vec<Open>) {
        let mut pupil = self.pupil.lock().unwrap_or_else(PoisonError::into_inner);
        self.take_over(&mut pupil);
        pupil.observe(answer, self.in_force(), running);
    }

    fn learned(&self) -> Learned {
        self.pupil.lock().unwrap_or_else(PoisonError::into_inner).learned
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    fn answer(text: &str, tokens: u32) -> Answer {
        Answer { text: text.into(), tokens, censored: false }
    }

    /// Waits until it has learned.
    fn until_learned(ranker: &AdaptiveRanker) {
        let started = Instant::now();
        while ranker.learned().updates == 0 {
            assert!(started.elapsed() < Duration::from_secs(60), "nothing was learned");
            std::thread::sleep(Duration::from_millis(5));
            ranker.score("anything");
        }
    }

    #[test]
    fn it_learns_the_lengths_of_the_served_model_and_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("learned.outrank");
        let ranker = AdaptiveRanker::new(Ranker::shipped().clone(), Some(file.clone()));
        let asked = |word: &str, index: u32| format!("Item {index}: {word} it, please.");
        for index in 0..60 {
            for (word, tokens) in [("glorp", 12), ("zindle", 700)] {
                let tokens = tokens + index % 7;
                ranker.observe(&answer(&asked(word, index), tokens), &Vec::new);
            }
        }
        until_learned(&ranker);
        let median = |word| ranker.score(&asked(word, 99)).unwrap().median_tokens();
        let (short, long) = (median("glorp"), median("zindle"));
        assert!(short < 60.0 && long > 200.0, "{short} {long}");
        assert_eq!(ranker.learned().answers, 120);
        let kept = Ranker::load(&file).unwrap();
        assert_eq!(kept.card().command, "learned while serving");
    }

    #[test]
    fn those_who_run_are_asked_for_when_it_is_time_to_learn_and_count_then() {
        // Fifty requests ended after 20 to 90 tokens; of a hundred like them that run, if any do, each has 500 by now.
        let asked =
            |index: u32| format!("Item {index}: {} it, please.", ["glorp", "zindle"][index as usize % 2]);
        let predicted = |running: Vec<Open>| {
            let ranker = AdaptiveRanker::new(Ranker::shipped().clone(), None);
            let times_asked = AtomicU32::new(0);
            let running = || {
                times_asked.fetch_add(1, Ordering::Relaxed);
                running.clone()
            };
            for index in 0..60 {
                assert_eq!(times_asked.load(Ordering::Relaxed), u32::from(index >= 50), "{index}");
                ranker.observe(&answer(&asked(index), 20 + 60 * (index % 2) + index % 7), &running);
            }
            until_learned(&ranker);
            ranker.score(&asked(99)).unwrap().median_tokens()
        };
        let open = |index| Open { text: asked(index).into(), tokens: 500, limit_tokens: 900 };
        let (beside, alone) = (predicted((60..160).map(open).collect()), predicted(Vec::new()));
        assert!(beside > 1.5 * alone, "{beside} {alone}");
    }
}
