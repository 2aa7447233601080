//! The engine as the rest of the program sees it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use outrank_core::{Counters, Explanation, Placement, RequestId, Score, ServiceModel, Trust};
use tokio::sync::{mpsc, oneshot};

use crate::{EngineStats, GenerateRequest, Model, Output, SubmitError};

/// What the engine thread is asked to do.
pub(crate) enum Command {
    Submit(Box<NewRequest>),
    Score(RequestId, Score),
    Cancel(RequestId),
    Explain(RequestId, oneshot::Sender<Option<Explanation>>),
    /// Finish what has been accepted, accept no more, and answer when done.
    Drain(oneshot::Sender<()>),
    /// Stop now; what runs fails.
    Shutdown,
}

/// A request on its way to the engine thread.
pub(crate) struct NewRequest {
    pub(crate) id: RequestId,
    pub(crate) request: GenerateRequest,
    pub(crate) output: mpsc::UnboundedSender<Output>,
    pub(crate) reply: oneshot::Sender<Result<Placement, SubmitError>>,
}

/// What the engine thread publishes after each step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) counters: Counters,
    pub(crate) stats: EngineStats,
    pub(crate) service: ServiceModel,
    pub(crate) trust: Trust,
}

/// What handles and the engine thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    next_id: AtomicU64,
    snapshot: Mutex<Snapshot>,
    /// Why the engine stopped, once it has.
    stopped: Mutex<Option<String>>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self { next_id: AtomicU64::new(1), snapshot: Mutex::default(), stopped: Mutex::default() }
    }

    pub(crate) fn publish(&self, snapshot: Snapshot) {
        *lock(&self.snapshot) = snapshot;
    }

    pub(crate) fn stop(&self, reason: String) {
        lock(&self.stopped).get_or_insert(reason);
    }

    fn stopped(&self) -> SubmitError {
        let reason = lock(&self.stopped).clone();
        SubmitError::Stopped(reason.unwrap_or_else(|| "its thread ended".into()))
    }
}

/// None of the values behind these locks can be left half-written, so a poisoned lock is still good.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The engine thread. It is stopped and waited for when this is dropped: llama.cpp must not compute while the process
/// exits, because what it uses is destroyed then.
#[derive(Debug)]
pub(crate) struct EngineThread {
    commands: Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl EngineThread {
    pub(crate) fn new(commands: Sender<Command>, thread: JoinHandle<()>) -> Self {
        Self { commands, thread: Mutex::new(Some(thread)) }
    }

    fn stop(&self) {
        // An error means that it has ended by itself.
        let _ = self.commands.send(Command::Shutdown);
        // The lock is held meanwhile: whoever else stops the engine returns no sooner.
        let mut thread = lock(&self.thread);
        if let Some(thread) = thread.take() {
            // A panic of the thread has been reported to every request that it had.
            let _ = thread.join();
        }
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A running engine. Clones refer to the same engine; it stops, after the step that it computes, when
/// [`EngineHandle::shutdown`] is called or the last handle is dropped. Either waits for it.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    pub(crate) commands: Sender<Command>,
    pub(crate) thread: Arc<EngineThread>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) model: Arc<Model>,
    pub(crate) epoch: Instant,
}

impl EngineHandle {
    /// Hands a request to the engine and waits for its place in the queue. Needs no particular runtime; takes
    /// up to one step of the engine. Dropping the future cancels the request.
    ///
    /// # Errors
    /// [`SubmitError`] if a setting is out of range, the queue is full, prompt and output exceed the context, or
    /// the engine drains or has stopped.
    pub async fn submit(&self, request: GenerateRequest) -> Result<Submission, SubmitError> {
        let (submission, reply) = self.enqueue(request)?;
        submission.accepted(reply.await.unwrap_or_else(|_| Err(self.shared.stopped())))
    }

    /// [`EngineHandle::submit`] for threads outside any async runtime.
    ///
    /// # Errors
    /// As [`EngineHandle::submit`].
    ///
    /// # Panics
    /// When called within an async runtime.
    pub fn submit_blocking(&self, request: GenerateRequest) -> Result<Submission, SubmitError> {
        let (submission, reply) = self.enqueue(request)?;
        submission.accepted(reply.blocking_recv().unwrap_or_else(|_| Err(self.shared.stopped())))
    }

    fn enqueue(&self, request: GenerateRequest) -> Result<(Submission, Reply), SubmitError> {
        request.sampling.validate()?;
        let n_vocab = self.model.n_vocab();
        if let Some(&token) = request.prompt.iter().find(|token| !(0..n_vocab).contains(token)) {
            return Err(SubmitError::InvalidToken { token, n_vocab });
        }
        let id = RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed));
        let (output, outputs) = mpsc::unbounded_channel();
        let (reply, answer) = oneshot::channel();
        let new = NewRequest { id, request, output, reply };
        self.commands.send(Command::Submit(Box::new(new))).map_err(|_| self.shared.stopped())?;
        let ticket = Ticket { id, commands: self.commands.clone(), live: true };
        Ok((
            Submission {
                placement: Placement { position: 0, eta: outrank_core::Eta::default() },
                outputs,
                ticket,
            },
            answer,
        ))
    }

    /// Gives a request its prediction after it was submitted, or a better one. Unknown ids are ignored: the request
    /// may have finished meanwhile.
    pub fn score(&self, id: RequestId, score: Score) {
        let _ = self.commands.send(Command::Score(id, score));
    }

    /// Where a request stands and why; `None` once it has left. Takes up to one step of the engine.
    pub async fn explain(&self, id: RequestId) -> Option<Explanation> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Explain(id, reply)).ok()?;
        answer.await.ok().flatten()
    }

    /// Counts of the scheduler as of the last step.
    pub fn counters(&self) -> Counters {
        lock(&self.shared.snapshot).counters
    }

    /// Counts of the engine as of the last step.
    pub fn stats(&self) -> EngineStats {
        lock(&self.shared.snapshot).stats
    }

    /// Step costs as measured so far.
    pub fn service(&self) -> ServiceModel {
        lock(&self.shared.snapshot).service
    }

    /// The verdict on the scores as of the last step, whether or not the policy follows it.
    pub fn trust(&self) -> Trust {
        lock(&self.shared.snapshot).trust
    }

    /// The model that is served.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The zero of the scheduler's clock.
    pub fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Why the engine stopped; `None` while it runs.
    pub fn stopped(&self) -> Option<String> {
        lock(&self.shared.stopped).clone()
    }

    /// Refuses new requests and returns when all accepted ones have finished.
    pub async fn drain(&self) {
        let (done, wait) = oneshot::channel();
        if self.commands.send(Command::Drain(done)).is_ok() {
            // An error means that the engine has stopped: nothing is left to wait for.
            let _ = wait.await;
        }
    }

    /// Stops the engine after the current step and waits for its thread; requests that it has are failed.
    pub fn shutdown(&self) {
        self.thread.stop();
    }
}

type Reply = oneshot::Receiver<Result<Placement, SubmitError>>;

/// An accepted request: its outputs, and the right to them. Dropping it cancels the request everywhere: queue place,
/// seat and KV are free before the next step.
#[derive(Debug)]
pub struct Submission {
    placement: Placement,
    outputs: mpsc::UnboundedReceiver<Output>,
    ticket: Ticket,
}

impl Submission {
    fn accepted(mut self, reply: Result<Placement, SubmitError>) -> Result<Self, SubmitError> {
        match reply {
            Ok(placement) => {
                self.placement = placement;
                Ok(self)
            }
            Err(error) => {
                self.ticket.live = false;
                Err(error)
            }
        }
    }

    /// Name of the request within the engine.
    pub fn id(&self) -> RequestId {
        self.ticket.id
    }

    /// Where the request stood when it was accepted, and when it was expected to start and finish.
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// The next output; `None` after `Finished` or `Failed`. Cancel-safe.
    pub async fn next(&mut self) -> Option<Output> {
        if !self.ticket.live {
            return None;
        }
        let output = self.outputs.recv().await;
        Some(self.ticket.pass(output))
    }

    /// [`Submission::next`] for threads outside any async runtime.
    ///
    /// # Panics
    /// When called within an async runtime.
    pub fn next_blocking(&mut self) -> Option<Output> {
        if !self.ticket.live {
            return None;
        }
        let output = self.outputs.blocking_recv();
        Some(self.ticket.pass(output))
    }
}

/// Cancels its request when dropped while the request lives.
#[derive(Debug)]
struct Ticket {
    id: RequestId,
    commands: Sender<Command>,
    live: bool,
}

impl Ticket {
    /// Passes an output on and notes when it is the last.
    fn pass(&mut self, output: Option<Output>) -> Output {
        let output = output.unwrap_or_else(|| Output::Failed("the engine has stopped".into()));
        self.live = matches!(output, Output::Token { .. });
        output
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.live {
            // An error means that the engine has stopped, and the request with it.
            let _ = self.commands.send(Command::Cancel(self.id));
        }
    }
}
