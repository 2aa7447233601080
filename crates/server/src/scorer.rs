//! Scoring off the token path: one thread, a bounded queue, and a deadline for everyone who waits.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use outrank_core::Score;
use outrank_ranker::Ranker;
use tokio::sync::oneshot;

use crate::metrics::Metrics;

/// Predicts the output length of a prompt, or declines. It runs on a thread of its own.
pub type ScoreFn = Box<dyn FnMut(&str) -> Option<Score> + Send>;

/// The [`ScoreFn`] of a trained ranker.
pub fn ranker_scores(ranker: Ranker) -> ScoreFn {
    Box::new(move |text| Some(ranker.score(text)))
}

/// Hands prompts to the scoring thread, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Scorer {
    /// `None` without a ranker.
    jobs: Option<SyncSender<Job>>,
}

#[derive(Debug)]
struct Job {
    text: String,
    asked: Instant,
    reply: oneshot::Sender<Score>,
}

impl Scorer {
    /// Starts the thread, if there is something to score with.
    pub(crate) fn start(
        score: Option<ScoreFn>,
        max_queue: usize,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let Some(score) = score else { return Ok(Self { jobs: None }) };
        let (jobs, queue) = sync_channel(max_queue);
        std::thread::Builder::new()
            .name("outrank-scorer".into())
            .spawn(move || work(score, &queue, &metrics))?;
        Ok(Self { jobs: Some(jobs) })
    }

    /// Asks for the score of a prompt, if it has a text. With a full queue, or a scorer that has died, there will be none.
    pub(crate) fn ask(&self, text: impl FnOnce() -> Option<String>) -> PendingScore {
        let Some(jobs) = &self.jobs else { return PendingScore(None) };
        let Some(text) = text() else { return PendingScore(None) };
        let (reply, answer) = oneshot::channel();
        let job = Job { text, asked: Instant::now(), reply };
        PendingScore(jobs.try_send(job).is_ok().then_some(answer))
    }
}

fn work(mut score: ScoreFn, queue: &Receiver<Job>, metrics: &Metrics) {
    for job in queue {
        if job.reply.is_closed() {
            continue;
        }
        if let Some(score) = score(&job.text) {
            metrics.score_latency.observe(job.asked.elapsed().as_secs_f64());
            // The request may have left meanwhile.
            let _ = job.reply.send(score);
        }
    }
}

/// A score that has been asked for.
#[derive(Debug)]
pub(crate) struct PendingScore(Option<oneshot::Receiver<Score>>);

impl PendingScore {
    /// Waits for the score until the deadline. Without one, it may still come ([`Self::late`]).
    pub(crate) async fn by(&mut self, deadline: Instant) -> Option<Score> {
        let answer = self.0.as_mut()?;
        let answer = tokio::time::timeout_at(deadline.into(), answer).await.ok()?;
        self.0 = None;
        answer.ok()
    }

    /// The score once it comes, if it did not by the deadline and still can.
    pub(crate) fn late(self) -> Option<impl Future<Output = Option<Score>> + Send + 'static> {
        self.0.map(|answer| async { answer.await.ok() })
    }
}
