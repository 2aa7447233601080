//! A ranker that learns during a run, as it does in the hosts.

use std::collections::BTreeMap;

use outrank_core::Score;
use outrank_ranker::Ranker;
use outrank_ranker::adapt::{Adapted, Adapter, Open, adapt, add_open};
use outrank_ranker::learner::MIN_PAUSES;
use outrank_sim::{Answer, Job, Watch};

use crate::simulate::Case;
use crate::simulate::args::Learn;

/// Virtual seconds that learning from one answer takes, as [`adapt`] says.
const LEARN_S: f64 = 0.001;

/// Scores requests with what has been learned by then, and learns from the answers.
pub(crate) struct Learning<'a> {
    case: &'a Case<'a>,
    prior: &'a Ranker,
    from: Learn,
    adapter: Adapter,
    /// Tokens so far of those who run, by their index.
    running: BTreeMap<usize, u32>,
    /// `None` until something was learned.
    current: Option<Ranker>,
    /// What is being learned, and when it will be, in virtual seconds.
    coming: Option<(f64, Option<Adapted>)>,
    rested_at_s: f64,
    answers: &'a mut Vec<Answer>,
}

impl<'a> Learning<'a> {
    /// Starts from `prior`, and appends the answers to `answers`.
    pub(crate) fn new(
        case: &'a Case<'_>,
        prior: &'a Ranker,
        from: Learn,
        answers: &'a mut Vec<Answer>,
    ) -> Self {
        let (adapter, running, current, coming) = (Adapter::default(), BTreeMap::new(), None, None);
        Self { case, prior, from, adapter, running, current, coming, rested_at_s: 0.0, answers }
    }

    fn text(&self, index: usize) -> String {
        self.case.workload.text(self.case.times[index].record)
    }

    /// Takes over what has been learned by now.
    fn take_over(&mut self, now_s: f64) {
        if let Some((_, adapted)) = self.coming.take_if(|(at_s, _)| *at_s <= now_s) {
            self.current = adapted.map(|adapted| adapted.ranker).or(self.current.take());
        }
    }

    /// Starts to learn if it is time to.
    fn learn(&mut self, now_s: f64) {
        if self.coming.is_some() || now_s < self.rested_at_s {
            return;
        }
        let Some(mut examples) = self.adapter.due() else { return };
        if self.from == Learn::Running {
            let open = self.running.iter().map(|(&index, &tokens)| Open {
                text: self.text(index).into(),
                tokens,
                limit_tokens: self.case.jobs[index].max_tokens.unwrap_or(u32::MAX),
            });
            let ranker = self.current.as_ref().unwrap_or(self.prior);
            add_open(&mut examples, ranker, self.adapter.count_open(open.collect()));
        }
        let takes_s = LEARN_S * examples.len() as f64;
        self.coming = Some((now_s + takes_s, adapt(self.prior, &examples)));
        self.rested_at_s = now_s + takes_s * f64::from(1 + MIN_PAUSES);
    }
}

impl Watch for Learning<'_> {
    fn score(&mut self, arrival_s: f64, index: usize, job: &Job) -> Option<Score> {
        self.take_over(arrival_s);
        self.current.as_ref().map_or(job.score, |ranker| Some(ranker.score(&self.text(index))))
    }

    fn token(&mut self, index: usize) {
        *self.running.entry(index).or_default() += 1;
    }

    fn answered(&mut self, answer: Answer) {
        let now_s = answer.arrival_s + answer.e2e_s;
        self.take_over(now_s);
        let (index, tokens) = (answer.index, answer.output_tokens);
        let censored = self.case.jobs[index].max_tokens == Some(tokens);
        self.running.remove(&index);
        self.adapter.observe(&self.text(index), tokens, censored);
        self.learn(now_s);
        self.answers.push(answer);
    }
}
