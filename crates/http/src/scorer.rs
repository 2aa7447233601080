//! Scoring off the token path: one thread, a bounded queue, and a deadline for everyone who waits.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use outrank_core::Score;
use outrank_ranker::Ranker;
use tokio::sync::oneshot;

use crate::metrics::Metrics;

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
pub(crate) struct Scorer {
    /// `None` without a ranker.
    jobs: Option<SyncSender<Job>>,
}

#[derive(Debug)]
enum Job {
    Score { text: Arc<str>, asked: Instant, reply: oneshot::Sender<Score> },
    Observe(Answer),
}

impl Scorer {
    /// Starts the thread, if there is something to score with.
    pub(crate) fn start(
        predictor: Option<Box<dyn Predictor>>,
        max_queue: usize,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let Some(predictor) = predictor else { return Ok(Self { jobs: None }) };
        let (jobs, queue) = sync_channel(max_queue);
        std::thread::Builder::new()
            .name("outrank-scorer".into())
            .spawn(move || work(predictor, &queue, &metrics))?;
        Ok(Self { jobs: Some(jobs) })
    }

    /// Asks for the score of a prompt, if it has a text. With a full queue, or a scorer that has died, there will be none.
    pub(crate) fn ask(&self, text: impl FnOnce() -> Option<String>) -> PendingScore {
        let Some(jobs) = &self.jobs else { return PendingScore { text: None, answer: None } };
        let Some(text) = text() else { return PendingScore { text: None, answer: None } };
        let text: Arc<str> = text.into();
        let (reply, answer) = oneshot::channel();
        let job = Job::Score { text: Arc::clone(&text), asked: Instant::now(), reply };
        PendingScore { text: Some(text), answer: jobs.try_send(job).is_ok().then_some(answer) }
    }

    /// Tells the predictor how long an answer was, unless it has too much to do.
    pub(crate) fn tell(&self, answer: Answer) {
        if let Some(jobs) = &self.jobs {
            // A predictor that falls behind misses a lesson, and nothing else.
            let _ = jobs.try_send(Job::Observe(answer));
        }
    }
}

fn work(mut predictor: Box<dyn Predictor>, queue: &Receiver<Job>, metrics: &Metrics) {
    for job in queue {
        match job {
            Job::Score { reply, .. } if reply.is_closed() => {}
            Job::Score { text, asked, reply } => {
                if let Some(score) = predictor.score(&text) {
                    metrics.score_latency.observe(asked.elapsed().as_secs_f64());
                    // The request may have left meanwhile.
                    let _ = reply.send(score);
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
pub(crate) struct PendingScore {
    text: Option<Arc<str>>,
    answer: Option<oneshot::Receiver<Score>>,
}

impl PendingScore {
    /// What is scored, if anything.
    pub(crate) fn text(&self) -> Option<Arc<str>> {
        self.text.clone()
    }

    /// Waits for the score until the deadline. Without one, it may still come ([`Self::late`]).
    pub(crate) async fn by(&mut self, deadline: Instant) -> Option<Score> {
        let answer = self.answer.as_mut()?;
        let answer = tokio::time::timeout_at(deadline.into(), answer).await.ok()?;
        self.answer = None;
        answer.ok()
    }

    /// The score once it comes, if it did not by the deadline and still can.
    pub(crate) fn late(self) -> Option<impl Future<Output = Option<Score>> + Send + 'static> {
        self.answer.map(|answer| async { answer.await.ok() })
    }
}
