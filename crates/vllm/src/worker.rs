//! Scoring and learning, off the engine's loop.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use outrank_core::Score;
use outrank_ranker::Ranker;
use outrank_ranker::adapt::{Adapter, Open, adapt, add_open, from_nothing};
use outrank_ranker::learner::Learner;

/// What the worker is asked to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// Score the prompt of a request, and remember it until it ends.
    Score(u64, String),
    /// The request ended: learn from it, unless `None` (tokens, cut short).
    Ended(u64, Option<(u32, bool)>),
    /// Who runs, as [`Said::Asks`] wants to know: number, tokens so far, known limit in tokens.
    Running(Vec<(u64, u32, u32)>),
}

/// What the worker has to say.
#[derive(Debug)]
pub(crate) enum Said {
    /// A score.
    Score(u64, Score),
    /// A ranker was learned; its tau-b on unseen answers.
    Learned(f64),
    /// It is time to learn: who runs? Those who ended are not all ([`add_open`]).
    Asks,
}

/// The thread that scores; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    jobs: Sender<Job>,
    said: Receiver<Said>,
}

impl Worker {
    /// Starts the thread.
    pub(crate) fn start(ranker: Option<Ranker>, learn: bool) -> std::io::Result<Self> {
        let (jobs, inbox) = channel();
        let (outbox, said) = channel();
        let state = State {
            prior: ranker.clone(),
            current: ranker,
            adapter: learn.then(Adapter::default),
            learner: Learner::default(),
            asked: false,
            prompts: HashMap::new(),
            outbox,
        };
        thread::Builder::new().name("outrank-scorer".into()).spawn(move || state.run(&inbox))?;
        Ok(Self { jobs, said })
    }

    /// Hands over a job; lost if the thread has died, which leaves requests unscored.
    pub(crate) fn send(&self, job: Job) {
        let _ = self.jobs.send(job);
    }

    /// What was said since the last call.
    pub(crate) fn heard(&self) -> impl Iterator<Item = Said> + '_ {
        self.said.try_iter()
    }
}

/// What the thread knows.
struct State {
    /// What every learning starts from.
    prior: Option<Ranker>,
    current: Option<Ranker>,
    /// `None` where nothing is to be learned.
    adapter: Option<Adapter>,
    learner: Learner,
    /// Whether it was asked who runs, and no answer has come.
    asked: bool,
    /// Prompts of requests that have not ended: no more than vLLM itself holds.
    prompts: HashMap<u64, Arc<str>>,
    outbox: Sender<Said>,
}

impl State {
    fn run(mut self, inbox: &Receiver<Job>) {
        while let Ok(job) = inbox.recv() {
            self.take_over();
            match job {
                Job::Score(number, prompt) => {
                    if let Some(ranker) = &self.current {
                        let _ = self.outbox.send(Said::Score(number, ranker.score(&prompt)));
                    }
                    if self.adapter.is_some() {
                        self.prompts.insert(number, prompt.into());
                    }
                }
                Job::Ended(number, length) => self.ended(number, length),
                Job::Running(running) => self.learn_beside(&running),
            }
        }
    }

    fn ended(&mut self, number: u64, length: Option<(u32, bool)>) {
        let Some(prompt) = self.prompts.remove(&number) else { return };
        let (Some(adapter), Some((tokens, censored))) = (&mut self.adapter, length) else { return };
        adapter.observe(&prompt, tokens, censored);
        if self.asked || !adapter.is_due() || !self.learner.is_rested() {
            return;
        }
        if self.current.is_some() {
            self.asked = self.outbox.send(Said::Asks).is_ok();
        } else {
            self.learn(Vec::new());
        }
    }

    /// Learns from those who ended, and from these who run.
    fn learn_beside(&mut self, running: &[(u64, u32, u32)]) {
        self.asked = false;
        let open = running.iter().filter_map(|&(number, tokens, limit_tokens)| {
            Some(Open { text: Arc::clone(self.prompts.get(&number)?), tokens, limit_tokens })
        });
        let open = open.collect();
        self.learn(open);
    }

    fn learn(&mut self, open: Vec<Open>) {
        let Some(adapter) = &mut self.adapter else { return };
        let Some(mut examples) = adapter.due() else { return };
        let open = adapter.count_open(open);
        let (prior, current) = (self.prior.clone(), self.current.clone());
        let work = move || {
            if let Some(current) = &current {
                add_open(&mut examples, current, open);
            }
            match &prior {
                Some(prior) => adapt(prior, &examples),
                None => from_nothing(&examples),
            }
        };
        // Without a thread the ranker in force stays.
        let _ = self.learner.start(work);
    }

    /// Takes over what has been learned by now, and scores anew those who wait if they had no score.
    fn take_over(&mut self) {
        let Some(adapted) = self.learner.learned() else { return };
        let _ = self.outbox.send(Said::Learned(adapted.tau_b));
        if self.current.is_none() {
            for (&number, prompt) in &self.prompts {
                let _ = self.outbox.send(Said::Score(number, adapted.ranker.score(prompt)));
            }
        }
        self.current = Some(adapted.ranker);
    }
}
