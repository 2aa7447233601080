//! Scoring off the token path: one thread, a bounded queue, and a deadline for everyone who waits.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use outrank_core::Score;
use outrank_ranker::Ranker;
use tokio::sync::oneshot;

use crate::ScorerMetrics;

/// Predicts output lengths, and hears what they were. It runs on a thread of its own. A closure from prompt to score is one.
pub trait Predictor: Send {
    /// Predicts the output length of a prompt, or declines.
    fn score(&mut self, text: &str) -> Option<Score>;

    /// An answer has ended.
    fn observe(&mut self, _answer: &Answer) {}

    /// What has been learned from answers.
    fn learned(&self) -> Learned {
        Learned::default()
    }
}

impl<F: FnMut(&str) -> Option<Score> + Send> Predictor for F {
    fn score(&mut self, text: &str) -> Option<Score> {
        self(text)
    }
}

/// An answer that has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Its prompt, as it was scored.
    pub text: Arc<str>,
    /// Output tokens.
    pub tokens: u32,
    /// Whether its limit ended it: by itself it would have been longer.
    pub censored: bool,
}

/// What a [`Predictor`] has learned from answers.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Learned {
    /// Answers heard of and remembered or used.
    pub answers: u64,
    /// Times that predictions changed by it.
    pub updates: u64,
    /// Kendall's tau-b of the predictor in force, on answers that it did not learn from.
    pub tau_b: Option<f64>,
}

/// The [`Predictor`] of a trained ranker that stays as it is.
pub fn ranker_scores(ranker: Ranker) -> Box<dyn Predictor> {
    Box::new(move |text: &str| Some(ranker.score(text)))
}

/// Hands prompts to the scoring thread, which ends when this is dropped.
#[derive(Debug)]
pub struct Scorer {
    /// `None` without a ranker.
    jobs: Option<SyncSender<Job>>,
    /// Prompts that wait to be scored.
    pending: Arc<AtomicUsize>,
}

enum Job {
    Score { text: Arc<str>, asked: Instant, reply: Reply },
    Observe(Answer),
}

/// Where a score goes.
enum Reply {
    /// To somebody who waits for it.
    Waiting(oneshot::Sender<Score>),
    /// To whatever does something with it, on the scoring thread.
    Then(Box<dyn FnOnce(Score) + Send>),
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Prompts are never printed.
        f.write_str("Job")
    }
}

impl Scorer {
    /// Starts the thread, if there is something to score with.
    pub fn start(
        predictor: Option<Box<dyn Predictor>>,
        max_queue: usize,
        metrics: ScorerMetrics,
    ) -> std::io::Result<Self> {
        let pending = Arc::new(AtomicUsize::new(0));
        let Some(predictor) = predictor else { return Ok(Self { jobs: None, pending }) };
        let (jobs, queue) = sync_channel(max_queue);
        let still_pending = Arc::clone(&pending);
        std::thread::Builder::new()
            .name("outrank-scorer".into())
            .spawn(move || work(predictor, &queue, &metrics, &still_pending))?;
        Ok(Self { jobs: Some(jobs), pending })
    }

    /// Whether there is something to score with.
    pub fn scores(&self) -> bool {
        self.jobs.is_some()
    }

    /// Whether the scoring thread lives; there is none without something to score with, and none after a panic.
    pub fn is_alive(&self) -> bool {
        // The thread holds the other reference until it ends.
        Arc::strong_count(&self.pending) > 1
    }

    /// Whether nobody waits for a score.
    pub fn is_idle(&self) -> bool {
        self.pending.load(Ordering::Relaxed) == 0
    }

    /// Asks for the score of a prompt, if it has a text. With a full queue, or a scorer that has died, there will be none.
    pub fn ask(&self, text: impl FnOnce() -> Option<String>) -> PendingScore {
        let Some(jobs) = &self.jobs else { return PendingScore { text: None, answer: None } };
        let Some(text) = text() else { return PendingScore { text: None, answer: None } };
        let text: Arc<str> = text.into();
        let (reply, answer) = oneshot::channel();
        let sent = self.send(jobs, Arc::clone(&text), Reply::Waiting(reply));
        PendingScore { text: Some(text), answer: sent.then_some(answer) }
    }

    /// Has a prompt scored, and `then` called with the score on the scoring thread; nobody waits for it. With a full queue, or a
    /// scorer that has died, there will be none.
    pub fn ask_then(&self, text: Arc<str>, then: impl FnOnce(Score) + Send + 'static) {
        if let Some(jobs) = &self.jobs {
            self.send(jobs, text, Reply::Then(Box::new(then)));
        }
    }

    fn send(&self, jobs: &SyncSender<Job>, text: Arc<str>, reply: Reply) -> bool {
        self.pending.fetch_add(1, Ordering::Relaxed);
        let sent = jobs.try_send(Job::Score { text, asked: Instant::now(), reply }).is_ok();
        if !sent {
            self.pending.fetch_sub(1, Ordering::Relaxed);
        }
        sent
    }

    /// Tells the predictor how long an answer was, unless it has too much to do.
    pub fn tell(&self, answer: Answer) {
        if let Some(jobs) = &self.jobs {
            // A predictor that falls behind misses a lesson, and nothing else.
            let _ = jobs.try_send(Job::Observe(answer));
        }
    }
}

fn work(
    mut predictor: Box<dyn Predictor>,
    queue: &Receiver<Job>,
    metrics: &ScorerMetrics,
    pending: &AtomicUsize,
) {
    for job in queue {
        match job {
            Job::Score { text, asked, reply } => {
                pending.fetch_sub(1, Ordering::Relaxed);
                if matches!(&reply, Reply::Waiting(reply) if reply.is_closed()) {
                    continue;
                }
                let Some(score) = predictor.score(&text) else { continue };
                metrics.score_latency.observe(asked.elapsed().as_secs_f64());
                match reply {
                    // The request may have left meanwhile.
                    Reply::Waiting(reply) => drop(reply.send(score)),
                    Reply::Then(then) => then(score),
                }
            }
            Job::Observe(answer) => {
                predictor.observe(&answer);
                metrics.count_learned(&predictor.learned());
            }
        }
    }
}

/// A score that has been asked for.
#[derive(Debug)]
pub struct PendingScore {
    text: Option<Arc<str>>,
    answer: Option<oneshot::Receiver<Score>>,
}

impl PendingScore {
    /// What is scored, if anything.
    pub fn text(&self) -> Option<Arc<str>> {
        self.text.clone()
    }

    /// Waits for the score until the deadline. Without one, it may still come ([`Self::late`]).
    pub async fn by(&mut self, deadline: Instant) -> Option<Score> {
        let answer = self.answer.as_mut()?;
        let answer = tokio::time::timeout_at(deadline.into(), answer).await.ok()?;
        self.answer = None;
        answer.ok()
    }

    /// The score once it comes, if it did not by the deadline and still can.
    pub fn late(self) -> Option<impl Future<Output = Option<Score>> + Send + 'static> {
        self.answer.map(|answer| async { answer.await.ok() })
    }
}
