//! Who may score a prompt by itself, instead of handing it to the scoring thread and waiting for what comes back.
//!
//! For a short prompt the two wake-ups that the thread costs take longer than the score. But a worker of the runtime that scores
//! relays no tokens. Therefore one worker is always left to: of `n` workers `n - 1` may score at once. What waits for them is
//! taken over by the one that is left. Nor may a score take long: only short prompts are scored so, and only by a predictor whose
//! latest scores, wherever they were made, took no longer than a few wake-ups do. With one worker there are no spots.
//!
//! A worker that is busy does not look what comes over the network, and the runtime may let the others sleep meanwhile. To wake one for
//! every score would take half as long as the score; so the scoring thread, which looks for work every few milliseconds, wakes one where
//! it finds the same score under way as the last time ([`Spots::look`]). A score that hangs holds others up for two such looks.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

/// The longest prompt, in bytes: twice what an encoder of 128 pieces reads of ordinary text.
const MAX_TEXT_BYTES: usize = 2 << 10;
/// What a score may take.
const MAX_SCORE: Duration = Duration::from_micros(200);
/// Scores in a row that took no longer, before there are spots; and twice as many are remembered.
const MIN_FAST_SCORES: u32 = 16;

/// Spots for scoring.
#[derive(Debug, Default)]
pub(crate) struct Spots {
    taken: AtomicUsize,
    /// Spots that have been taken since the start.
    takes: AtomicU64,
    /// The runtime whose workers take them.
    runtime: OnceLock<Handle>,
    /// Scores that were fast; each slow one halves it.
    fast: AtomicU32,
}

/// A spot that is taken until it is dropped.
#[derive(Debug)]
pub(crate) struct Spot<'a>(&'a Spots);

impl Spots {
    /// A spot for a prompt of so many bytes, if the caller may have one.
    pub(crate) fn take(&self, text_bytes: usize) -> Option<Spot<'_>> {
        if text_bytes > MAX_TEXT_BYTES || self.fast.load(Ordering::Relaxed) < MIN_FAST_SCORES {
            return None;
        }
        let runtime = Handle::try_current().ok()?;
        let workers = runtime.metrics().num_workers();
        let more = |taken| (taken + 1 < workers).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        self.runtime.get_or_init(|| runtime);
        self.takes.fetch_add(1, Ordering::SeqCst);
        Some(Spot(self))
    }

    /// Spots that have been taken since the start.
    pub(crate) fn takes(&self) -> u64 {
        self.takes.load(Ordering::SeqCst)
    }

    /// Wakes a worker where a spot is taken and none has been since somebody looked and found so many `takes`. Tells what it is now.
    pub(crate) fn look(&self, takes: u64) -> u64 {
        let now = self.takes();
        // Where spots are taken all the time, a worker is awake.
        if now == takes
            && self.taken.load(Ordering::Relaxed) > 0
            && let Some(runtime) = self.runtime.get()
        {
            drop(runtime.spawn(std::future::ready(())));
        }
        now
    }

    /// The score of a prompt of so many bytes took so long.
    pub(crate) fn took(&self, text_bytes: usize, time: Duration) {
        if text_bytes <= MAX_TEXT_BYTES {
            let fast = self.fast.load(Ordering::Relaxed);
            let now = if time <= MAX_SCORE { (fast + 1).min(2 * MIN_FAST_SCORES) } else { fast / 2 };
            // Of two at once one may be forgotten.
            self.fast.store(now, Ordering::Relaxed);
        }
    }
}

impl Drop for Spot<'_> {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    use outrank_core::Score;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;
    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::{Scorer, ScorerLimits, ScorerMetrics};

    const WORKERS: usize = 2;

    fn runtime() -> Runtime {
        Builder::new_multi_thread().worker_threads(WORKERS).enable_time().build().unwrap()
    }

    const LIMITS: ScorerLimits =
        ScorerLimits { max_queue: 64, max_cpu_share: ScorerLimits::DEFAULT_MAX_CPU_SHARE };

    fn scorer(predictor: impl Fn(&str) -> Option<Score> + Send + Sync + 'static) -> Arc<Scorer> {
        counted(predictor, ScorerMetrics::default())
    }

    fn counted(
        predictor: impl Fn(&str) -> Option<Score> + Send + Sync + 'static,
        metrics: ScorerMetrics,
    ) -> Arc<Scorer> {
        let nobody = Box::new(|_| Vec::new());
        Arc::new(Scorer::start(Some(Box::new(predictor)), LIMITS, metrics, nobody).unwrap())
    }

    /// Whether the scoring thread calls.
    fn on_scoring_thread() -> bool {
        std::thread::current().name() == Some("outrank-scorer")
    }

    /// A predictor that tells who called it: a median of 1 token is said by the scoring thread, one of 2 by others.
    fn who(_: &str) -> Option<Score> {
        Score::new(if on_scoring_thread() { 1.0 } else { 2.0 }, 0.5).ok()
    }

    /// A predictor whose scores of "hold" on workers tell when they begin, and wait until they may go on.
    fn holding() -> (impl Fn(&str) -> Option<Score> + Send + Sync + 'static, Receiver<()>, Sender<()>) {
        let ((begun, first_began), (go, held)) = (channel(), channel());
        let held = Mutex::new(held);
        let holding = move |text: &str| {
            if text == "hold" && !on_scoring_thread() {
                begun.send(()).unwrap();
                held.lock().unwrap().recv().unwrap();
            }
            who(text)
        };
        (holding, first_began, go)
    }

    /// Asks on a worker for a score.
    fn ask(runtime: &Runtime, scorer: &Arc<Scorer>, text: &str) -> Option<f64> {
        let (scorer, text) = (Arc::clone(scorer), Arc::from(text));
        let deadline = Instant::now() + Duration::from_secs(5);
        let asked = async move { scorer.score_by(text, deadline).await };
        runtime.block_on(runtime.spawn(asked)).unwrap().map(|score| f64::from(score.median_tokens()))
    }

    /// Asks until the caller scores by itself.
    fn warm_up(runtime: &Runtime, scorer: &Arc<Scorer>) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while ask(runtime, scorer, "warm up") != Some(2.0) {
            assert!(Instant::now() < deadline, "the predictor never counts as fast");
        }
    }

    #[test]
    fn who_asks_scores_short_prompts_once_the_predictor_has_proved_fast() {
        let (runtime, scorer) = (runtime(), scorer(who));
        assert_eq!(ask(&runtime, &scorer, "first"), Some(1.0));
        warm_up(&runtime, &scorer);
        let long = "long ".repeat(MAX_TEXT_BYTES);
        assert_eq!(ask(&runtime, &scorer, &long), Some(1.0), "a long prompt would hold the worker up");
    }

    #[test]
    fn after_the_deadline_nobody_begins_to_score_by_itself() {
        let (runtime, scorer) = (runtime(), scorer(who));
        warm_up(&runtime, &scorer);
        let deadline = Instant::now();
        let asked = async move { scorer.score_by("x".into(), deadline).await };
        let score = runtime.block_on(runtime.spawn(asked)).unwrap();
        assert!(score.is_none_or(|score| score.median_tokens() == 1.0), "{score:?}");
    }

    #[test]
    fn a_prompt_that_the_predictor_declines_counts_as_no_score() {
        let (runtime, metrics) = (runtime(), ScorerMetrics::default());
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let predictor = |text: &str| if text == "decline" { None } else { who(text) };
        let scorer = counted(predictor, metrics);
        warm_up(&runtime, &scorer);
        let scores = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text.lines().find(|line| line.starts_with("score_latency_seconds_count")).unwrap().to_owned()
        };
        let before = scores();
        assert_eq!(ask(&runtime, &scorer, "decline"), None);
        assert_eq!(scores(), before);
        ask(&runtime, &scorer, "x");
        assert_ne!(scores(), before);
    }

    #[test]
    fn a_slow_predictor_is_left_to_its_thread() {
        let slow = |text: &str| {
            std::thread::sleep(2 * MAX_SCORE);
            who(text)
        };
        let (runtime, scorer) = (runtime(), scorer(slow));
        for _ in 0..3 * MIN_FAST_SCORES {
            assert_eq!(ask(&runtime, &scorer, "x"), Some(1.0));
        }
    }

    #[test]
    fn one_that_becomes_slow_loses_its_spots_and_gets_them_back() {
        let spots = Spots::default();
        let may = || spots.fast.load(Ordering::Relaxed) >= MIN_FAST_SCORES;
        (0..100).for_each(|_| spots.took(1, MAX_SCORE));
        spots.took(1, 2 * MAX_SCORE);
        assert!(may(), "a slow one now and then is the machine's fault");
        spots.took(MAX_TEXT_BYTES + 1, 9 * MAX_SCORE);
        assert!(may(), "a long prompt says nothing of short ones");
        spots.took(1, 2 * MAX_SCORE);
        assert!(!may());
        (0..MIN_FAST_SCORES).for_each(|_| spots.took(1, MAX_SCORE));
        assert!(may());
    }

    #[test]
    fn one_worker_is_always_left_and_without_a_second_there_are_no_spots() {
        let spots = Spots::default();
        (0..MIN_FAST_SCORES).for_each(|_| spots.took(1, Duration::ZERO));
        assert!(spots.take(1).is_none(), "no runtime");
        let single = Builder::new_current_thread().build().unwrap();
        assert!(single.block_on(async { spots.take(1).is_none() }), "one worker");
        runtime().block_on(async {
            let taken: Vec<_> = (1..WORKERS).map(|_| spots.take(1).unwrap()).collect();
            assert!(spots.take(1).is_none(), "the last worker");
            drop(taken);
            assert!(spots.take(1).is_some());
        });
    }

    #[test]
    fn while_every_spot_is_taken_the_thread_scores() {
        let (holding, first_began, go) = holding();
        let (runtime, scorer) = (runtime(), scorer(holding));
        warm_up(&runtime, &scorer);
        let held = Arc::clone(&scorer);
        let deadline = Instant::now() + Duration::from_secs(30);
        let held = runtime.spawn(async move { held.score_by("hold".into(), deadline).await });
        first_began.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(ask(&runtime, &scorer, "x"), Some(1.0));
        go.send(()).unwrap();
        assert!(runtime.block_on(held).unwrap().is_some());
    }

    #[test]
    fn while_one_worker_scores_the_network_is_looked_after() {
        use std::io::{Read, Write};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let (holding, first_began, go) = holding();
        let runtime = Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().unwrap();
        let scorer = scorer(holding);
        let again = Arc::clone(&scorer);
        warm_up(&runtime, &scorer);
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let scorer = Arc::clone(&scorer);
                tokio::spawn(async move {
                    while let Ok(what) = stream.read_u8().await {
                        if what == b's' {
                            scorer.score_by("hold".into(), Instant::now() + Duration::from_secs(60)).await;
                        }
                        stream.write_all(&[what]).await.unwrap();
                    }
                });
            }
        });
        let connect = || {
            let stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream
        };
        let (mut scored, mut other) = (connect(), connect());
        let mut echo = [0];
        for round in 0..20 {
            other.write_all(b"x").unwrap();
            other.read_exact(&mut echo).unwrap();
            // Everything sleeps, and the network wakes the one that will score.
            std::thread::sleep(Duration::from_millis(5));
            scored.write_all(b"s").unwrap();
            first_began.recv_timeout(Duration::from_secs(30)).unwrap();
            other.write_all(b"x").unwrap();
            other.read_exact(&mut echo).unwrap_or_else(|error| panic!("round {round}: {error}"));
            go.send(()).unwrap();
            scored.read_exact(&mut echo).unwrap();
            // A score that was held counts as slow.
            warm_up(&runtime, &again);
        }
    }

    #[test]
    fn a_panic_of_who_scores_by_itself_is_the_predictors_end_and_nobody_elses() {
        let runtime = runtime();
        let scorer = scorer(|text| if text == "panic" { panic!("broken") } else { who(text) });
        warm_up(&runtime, &scorer);
        assert_eq!(ask(&runtime, &scorer, "panic"), None);
        assert!(!scorer.is_alive());
        assert_eq!(ask(&runtime, &scorer, "x"), None);
    }
}
