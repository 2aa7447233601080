//! The engine thread: commands in, one step after the other, outputs out.

mod switching;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use outrank_core::{Event, Placement, Plan, Request, RequestId, Scheduler, Slice, StepSample, Timestamp};
use tokio::sync::oneshot;

use crate::executor::Executor;
use crate::handle::{Command, NewRequest, Shared, Snapshot};
use crate::job::Job;
use crate::step_log::{StepLog, StepRecord};
use crate::{EngineStats, FinishReason, Model, SubmitError};

/// How often an engine with requests but nothing to do looks again. A correct scheduler never gets it there.
const IDLE_RETRY: Duration = Duration::from_millis(100);

/// Owner of the llama context and of the scheduler.
pub(crate) struct Worker<'m> {
    model: &'m Model,
    executor: Executor<'m>,
    scheduler: Scheduler,
    jobs: HashMap<RequestId, Job>,
    /// Who sits where.
    seats: Vec<Option<RequestId>>,
    /// Whether submissions are refused.
    draining: bool,
    /// Who waits until the engine has drained.
    drain_waiters: Vec<oneshot::Sender<()>>,
    stats: EngineStats,
    log: Option<StepLog>,
    shared: Arc<Shared>,
    epoch: Instant,
}

/// What a step brought a request.
enum Outcome {
    /// One output token; the reason if it was the last.
    Token(Option<FinishReason>),
    /// It cannot go on, for this reason.
    Failed(String),
}

/// Whether the engine goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    Continue,
    Stop,
}

impl<'m> Worker<'m> {
    pub(crate) fn new(
        model: &'m Model,
        executor: Executor<'m>,
        scheduler: Scheduler,
        log: Option<StepLog>,
        shared: Arc<Shared>,
        epoch: Instant,
    ) -> Self {
        let seats = vec![None; executor.seats() as usize];
        let worker = Self {
            model,
            executor,
            scheduler,
            jobs: HashMap::new(),
            seats,
            draining: false,
            drain_waiters: Vec::new(),
            stats: EngineStats::default(),
            log,
            shared,
            epoch,
        };
        worker.publish();
        worker
    }

    /// Serves until it is told to stop or nobody can send commands any more.
    pub(crate) fn run(&mut self, inbox: &Receiver<Command>) {
        let mut plan = Plan::default();
        loop {
            if self.take_commands(inbox) == Flow::Stop {
                return;
            }
            self.answer_drain();
            plan.clone_from(self.scheduler.plan(self.now()));
            if !plan.is_idle() {
                self.execute(&mut plan);
                self.publish();
                continue;
            }
            // What the commands changed must be seen while the engine sleeps.
            self.publish();
            if self.wait(inbox) == Flow::Stop {
                return;
            }
        }
    }

    /// Fails every request that is left.
    pub(crate) fn fail_all(&mut self, reason: &str) {
        for job in self.jobs.values() {
            job.fail(reason);
        }
        self.jobs.clear();
    }

    fn now(&self) -> Timestamp {
        self.at(Instant::now())
    }

    fn at(&self, instant: Instant) -> Timestamp {
        Timestamp::ZERO + instant.saturating_duration_since(self.epoch)
    }

    fn publish(&self) {
        self.shared.publish(Snapshot {
            counters: self.scheduler.counters(),
            stats: self.stats,
            service: self.scheduler.service(),
            trust: self.scheduler.monitor().trust(),
        });
    }

    fn take_commands(&mut self, inbox: &Receiver<Command>) -> Flow {
        loop {
            match inbox.try_recv() {
                Ok(command) => {
                    if self.obey(command) == Flow::Stop {
                        return Flow::Stop;
                    }
                }
                Err(TryRecvError::Empty) => return Flow::Continue,
                // Nobody can submit or listen any more.
                Err(TryRecvError::Disconnected) => return Flow::Stop,
            }
        }
    }

    /// Sleeps until the next command.
    fn wait(&mut self, inbox: &Receiver<Command>) -> Flow {
        if let Some(log) = &mut self.log {
            log.flush();
        }
        let command = if self.jobs.is_empty() {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(IDLE_RETRY)
        };
        match command {
            Ok(command) => self.obey(command),
            Err(RecvTimeoutError::Timeout) => {
                tracing::warn!(requests = self.jobs.len(), "requests are left, but the plan is empty");
                Flow::Continue
            }
            Err(RecvTimeoutError::Disconnected) => Flow::Stop,
        }
    }

    fn obey(&mut self, command: Command) -> Flow {
        match command {
            Command::Submit(new) => self.submit(*new),
            Command::Score(id, score) => self.scheduler.observe(self.now(), Event::Scored(id, score)),
            Command::Cancel(id) => {
                if self.jobs.contains_key(&id) {
                    self.leave(id, Event::Cancelled(id));
                }
            }
            Command::Explain(id, reply) => {
                // Whoever asked may be gone.
                let _ = reply.send(self.scheduler.explain(self.now(), id));
            }
            Command::Drain(done) => {
                self.draining = true;
                self.drain_waiters.push(done);
            }
            Command::Shutdown => return Flow::Stop,
        }
        Flow::Continue
    }

    fn submit(&mut self, new: NewRequest) {
        let NewRequest { id, request, output, reply } = new;
        let facts = Request {
            id,
            arrival: self.at(request.arrival),
            prompt_tokens: u32::try_from(request.prompt.len()).unwrap_or(u32::MAX),
            max_tokens: request.sampling.max_tokens,
            true_tokens: request.true_tokens,
            limit_is_recorded: request.true_tokens.is_some() && request.sampling.ignore_eos,
            tenant: request.tenant.clone(),
            class: request.class.clone(),
            delay_s: 0.0,
        };
        let accepted: Result<Placement, SubmitError> = if self.draining {
            Err(SubmitError::Draining)
        } else {
            self.scheduler.submit(self.now(), facts, request.score).map_err(SubmitError::from)
        };
        if accepted.is_ok() {
            self.jobs.insert(id, Job::new(request, output));
        }
        // If nobody waits for the answer, the ticket of the request has been dropped and its cancellation is on
        // the way.
        let _ = reply.send(accepted);
    }

    fn answer_drain(&mut self) {
        if self.jobs.is_empty() {
            for done in self.drain_waiters.drain(..) {
                // Whoever waited may be gone.
                let _ = done.send(());
            }
        }
    }

    /// Executes a plan, and takes out of its batch what cannot be: a request whose KV could not be restored.
    fn execute(&mut self, plan: &mut Plan) {
        let started = Instant::now();
        for pause in &plan.pause {
            self.pause(*pause);
        }
        let mut restored = 0;
        for seated in &plan.seat {
            if self.seat(*seated, started) {
                restored += u32::from(seated.restore);
            } else {
                plan.batch.retain(|slice| slice.id != seated.id);
            }
        }
        self.close_gaps();
        let switched = started.elapsed();
        if plan.batch.is_empty() {
            return;
        }
        let sample = self.forward(&plan.batch);
        let Some(log) = &mut self.log else { return };
        log.write(&StepRecord {
            policy: self.scheduler.policy_name().to_owned(),
            step: plan.step,
            sample,
            paused: plan.pause.len() as u32,
            restored,
            switch_s: switched.as_secs_f64(),
            ended_s: self.epoch.elapsed().as_secs_f64(),
        });
    }

    /// One forward pass of the batch, and one token for each sequence at the end of its context.
    fn forward(&mut self, slices: &[Slice]) -> StepSample {
        let started = Instant::now();
        let outcomes = self.decode(slices);
        let took = started.elapsed();
        let now = self.now();
        for (id, outcome) in outcomes {
            match outcome {
                Outcome::Token(reason) => {
                    self.stats.output_tokens += 1;
                    self.scheduler.observe(now, Event::Token(id));
                    if reason.is_some() {
                        self.leave(id, Event::Finished(id));
                    }
                }
                Outcome::Failed(reason) => self.fail(id, &reason),
            }
        }
        self.scheduler.observe(now, Event::StepTook(took));
        let sample = StepSample::new(slices, took);
        self.stats.record_step(&sample);
        sample
    }
}
