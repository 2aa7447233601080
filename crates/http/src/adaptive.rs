//! A ranker that learns from the requests that are served.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use outrank_core::Score;
use outrank_ranker::adapt::{Adapter, adapt};
use outrank_ranker::learner::Learner;
use outrank_ranker::{Example, Ranker};

use crate::{Answer, Learned, Predictor};

/// Scores with a ranker, and makes it the served model's own: every so often it learns from the newest answers, on a thread
/// beside the scoring one, and takes over what it learned, mixed with the ranker it started from. It keeps features
/// and lengths, in bounded memory, and no prompt.
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

    fn observe(&mut self, answer: &Answer) {
        self.adapter.observe(&answer.text, answer.tokens, answer.censored);
        self.learned.answers = self.adapter.observed();
        if self.learner.is_rested()
            && let Some(examples) = self.adapter.due()
        {
            self.learn(examples);
        }
    }

    fn learn(&mut self, examples: Vec<Arc<Example>>) {
        let (prior, file) = (self.prior.clone(), self.file.clone());
        let work = move || {
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
        let current = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        Some(current.score(text))
    }

    fn observe(&self, answer: &Answer) {
        let mut pupil = self.pupil.lock().unwrap_or_else(PoisonError::into_inner);
        self.take_over(&mut pupil);
        pupil.observe(answer);
    }

    fn learned(&self) -> Learned {
        self.pupil.lock().unwrap_or_else(PoisonError::into_inner).learned
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn it_learns_the_lengths_of_the_served_model_and_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("learned.outrank");
        let ranker = AdaptiveRanker::new(Ranker::shipped().clone(), Some(file.clone()));
        let asked = |word: &str, index: u32| format!("Item {index}: {word} it, please.");
        for index in 0..60 {
            for (word, tokens) in [("glorp", 12), ("zindle", 700)] {
                let tokens = tokens + index % 7;
                ranker.observe(&Answer { text: asked(word, index).into(), tokens, censored: false });
            }
        }
        let started = Instant::now();
        while ranker.learned().updates == 0 {
            assert!(started.elapsed() < Duration::from_secs(60), "nothing was learned");
            std::thread::sleep(Duration::from_millis(5));
            ranker.score("anything");
        }
        let median = |word| ranker.score(&asked(word, 99)).unwrap().median_tokens();
        let (short, long) = (median("glorp"), median("zindle"));
        assert!(short < 60.0 && long > 200.0, "{short} {long}");
        assert_eq!(ranker.learned().answers, 120);
        let kept = Ranker::load(&file).unwrap();
        assert_eq!(kept.card().command, "learned while serving");
    }
}
