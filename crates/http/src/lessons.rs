//! What answers teach, heard on a thread of its own that gives way to all others: to remember an answer takes longer than to forward a
//! request, and nobody waits for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outrank_ranker::adapt::{Open, sample};
use outrank_ranker::learner::give_way;

use crate::{Answer, Census, Predictor, ScorerMetrics};

/// Answers a second that are learned from; a busy host has more than enough of them.
const MAX_LESSONS_PER_S: u32 = 50;

/// Tells a [`Predictor`] of answers, on a thread that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Lessons {
    answers: SyncSender<Answer>,
    /// Requests must have arrived after it to be learned from.
    since: Instant,
    /// Answers to be learned from, if there is time.
    told: Arc<AtomicU64>,
    pace: Mutex<Pace>,
}

impl Lessons {
    /// Starts the thread. So many answers may wait; should the predictor panic, `broken` is called.
    pub(crate) fn start(
        predictor: Arc<dyn Predictor>,
        max_queue: usize,
        since: Instant,
        metrics: ScorerMetrics,
        census: Census,
        broken: impl Fn() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (send, answers) = sync_channel(max_queue);
        let told = Arc::new(AtomicU64::new(0));
        let listener = Listener { predictor, since, told: Arc::clone(&told), learned: 0, census, broken };
        std::thread::Builder::new()
            .name("outrank-lessons".into())
            .spawn(move || listener.listen(&answers, &metrics))?;
        Ok(Self { answers: send, since, told, pace: Mutex::default() })
    }

    /// Tells how long the answer to a request was that arrived then, unless there are too many.
    pub(crate) fn tell(&self, arrival: Instant, answer: Answer) {
        if arrival < self.since {
            return;
        }
        self.told.fetch_add(1, Ordering::Relaxed);
        // No holder leaves it half-changed.
        if self.pace.lock().unwrap_or_else(PoisonError::into_inner).may_learn() {
            // A predictor that falls behind misses a lesson, and nothing else.
            let _ = self.answers.try_send(answer);
        }
    }
}

/// What the thread has.
struct Listener<F: Fn()> {
    predictor: Arc<dyn Predictor>,
    since: Instant,
    told: Arc<AtomicU64>,
    /// Answers that have been learned from.
    learned: u64,
    census: Census,
    broken: F,
}

impl<F: Fn()> Listener<F> {
    fn listen(mut self, answers: &Receiver<Answer>, metrics: &ScorerMetrics) {
        give_way();
        while let Ok(answer) = answers.recv() {
            self.learned += 1;
            self.predictor.observe(&answer, &|| self.running());
            metrics.count_learned(&self.predictor.learned());
        }
    }

    /// Those who run, as many of them as are learned from of those who ended.
    fn running(&self) -> Vec<Open> {
        let running = (self.census)(self.since);
        let share = self.learned as f64 / self.told.load(Ordering::Relaxed).max(1) as f64;
        sample(running, share).collect()
    }
}

impl<F: Fn()> Drop for Listener<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.broken)();
        }
    }
}

/// How fast answers come to be learned from.
#[derive(Debug)]
struct Pace {
    second: Instant,
    in_second: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { second: Instant::now(), in_second: 0 }
    }
}

impl Pace {
    fn may_learn(&mut self) -> bool {
        if self.second.elapsed() >= Duration::from_secs(1) {
            (self.second, self.in_second) = (Instant::now(), 0);
        }
        let may = self.in_second < MAX_LESSONS_PER_S;
        self.in_second += u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use outrank_core::Score;

    use super::*;

    fn answer() -> Answer {
        Answer { text: "x".into(), tokens: 7, censored: false }
    }

    /// Hears answers, the first of them only once it may; says how many run.
    struct Held {
        go: Mutex<Receiver<()>>,
        running: Sender<usize>,
    }

    impl Predictor for Held {
        fn score(&self, _: &str) -> Option<Score> {
            None
        }

        fn observe(&self, _: &Answer, running: &dyn Fn() -> Vec<Open>) {
            // Gone, it holds nobody up.
            let _ = self.go.lock().unwrap().recv();
            self.running.send(running().len()).unwrap();
        }
    }

    #[test]
    fn of_those_who_run_it_hears_the_same_share_as_of_those_who_ended_and_of_none_from_before_it() {
        let ((go, held), (running, told)) = (channel(), channel());
        let before = Instant::now();
        let census = move |since| {
            assert!(since > before);
            vec![Open { text: "x".into(), tokens: 7, limit_tokens: 9 }; 1000]
        };
        let since = Instant::now();
        let predictor = Arc::new(Held { go: held.into(), running });
        let lessons =
            Lessons::start(predictor, 400, since, ScorerMetrics::default(), Box::new(census), || ()).unwrap();
        for _ in 0..200 {
            lessons.tell(before, answer());
            lessons.tell(Instant::now(), answer());
        }
        drop((go, lessons));
        let heard: Vec<_> = told.iter().collect();
        assert!((MAX_LESSONS_PER_S as usize..200).contains(&heard.len()), "{}", heard.len());
        assert!(heard.iter().copied().eq((1..=heard.len()).map(|learned| 1000 * learned / 200)), "{heard:?}");
    }

    #[test]
    fn no_more_answers_wait_than_may() {
        let ((go, held), (running, told)) = (channel(), channel());
        let predictor = Arc::new(Held { go: held.into(), running });
        let nobody = Box::new(|_| Vec::new());
        let lessons =
            Lessons::start(predictor, 4, Instant::now(), ScorerMetrics::default(), nobody, || ()).unwrap();
        (0..40).for_each(|_| lessons.tell(Instant::now(), answer()));
        drop((go, lessons));
        // One may be held already when the others come.
        assert!((4..=5).contains(&told.iter().count()));
    }

    #[test]
    fn of_a_flood_of_answers_a_sample_is_learned_from() {
        let mut pace = Pace::default();
        let learned = (0..10_000).filter(|_| pace.may_learn()).count();
        assert!(
            (MAX_LESSONS_PER_S as usize..=3 * MAX_LESSONS_PER_S as usize).contains(&learned),
            "{learned}"
        );
    }
}
