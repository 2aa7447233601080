//! Starting the engine thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use outrank_core::{Policy, Scheduler};

use crate::executor::{Executor, ExecutorConfig};
use crate::handle::{Command, EngineThread, Shared};
use crate::step_log::StepLog;
use crate::worker::Worker;
use crate::{EngineConfig, EngineError, EngineHandle, Model};

/// Starts engines.
#[derive(Debug)]
pub struct Engine;

impl Engine {
    /// Starts the thread that owns the llama context and the scheduler, and waits until it is ready to serve.
    ///
    /// # Errors
    /// [`EngineError`] if the settings cannot serve what they accept, or for want of memory.
    pub fn start(
        model: Arc<Model>,
        config: &EngineConfig,
        policy: Box<dyn Policy>,
    ) -> Result<EngineHandle, EngineError> {
        check(&model, config)?;
        let scheduler = Scheduler::new(config.scheduler(), policy)?;
        let log = config.step_log.as_deref().map(open_step_log).transpose()?;
        let (commands, inbox) = channel();
        let shared = Arc::new(Shared::new());
        let epoch = Instant::now();
        let (ready, wait) = mpsc::sync_channel(1);
        let start = Start { model: model.clone(), scheduler, log, inbox, shared: shared.clone(), epoch };
        let executor_config = ExecutorConfig {
            seats: config.seats,
            context_tokens: config.context_tokens,
            step_tokens: config.step_tokens,
            threads: config.threads(),
        };
        let thread = std::thread::Builder::new()
            .name("outrank-engine".into())
            .spawn(move || start.run(executor_config, &ready))
            .map_err(|source| EngineError::Io { what: "cannot start the engine thread".into(), source })?;
        let thread = Arc::new(EngineThread::new(commands.clone(), thread));
        let started = wait.recv().unwrap_or_else(|_| {
            Err(EngineError::Start("the engine thread panicked while it started".into()))
        });
        started.map(|()| EngineHandle { commands, thread, shared, model, epoch })
    }
}

fn check(model: &Model, config: &EngineConfig) -> Result<(), EngineError> {
    let (asked, trained) = (config.context_tokens, model.n_ctx_train());
    if trained > 0 && asked > trained {
        let message =
            format!("context_tokens = {asked} exceeds the {trained} tokens that the model was trained for");
        return Err(EngineError::Config(message));
    }
    if !(config.swap_s_per_token >= 0.0 && config.unscored_tokens > 0.0 && config.max_bypass_s >= 0.0) {
        let message = "swap_s_per_token, unscored_tokens and max_bypass_s must be positive numbers";
        return Err(EngineError::Config(message.into()));
    }
    Ok(())
}

fn open_step_log(path: &Path) -> Result<StepLog, EngineError> {
    StepLog::open(path).map_err(|source| {
        let what = format!("cannot open step log {}", path.display());
        EngineError::Io { what, source }
    })
}

/// All that the engine thread needs to start.
struct Start {
    model: Arc<Model>,
    scheduler: Scheduler,
    log: Option<StepLog>,
    inbox: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    epoch: Instant,
}

impl Start {
    /// Body of the engine thread.
    fn run(self, config: ExecutorConfig, ready: &mpsc::SyncSender<Result<(), EngineError>>) {
        let executor = match Executor::new(&self.model, config) {
            Ok(executor) => executor,
            Err(error) => {
                // The starter waits for this answer; if it is gone, nobody is left to tell.
                let _ = ready.send(Err(error));
                return;
            }
        };
        let _ = ready.send(Ok(()));
        let mut worker =
            Worker::new(&self.model, executor, self.scheduler, self.log, self.shared.clone(), self.epoch);
        // After a panic the worker is only used to fail its requests, which reads nothing but their channels.
        let ended = catch_unwind(AssertUnwindSafe(|| worker.run(&self.inbox)));
        let reason = match &ended {
            Ok(()) => "it was shut down".to_owned(),
            Err(panic) => format!("it panicked: {}", panic_message(panic.as_ref())),
        };
        self.shared.stop(reason.clone());
        worker.fail_all(&format!("the engine has stopped: {reason}"));
        if ended.is_err() {
            tracing::error!(reason, "engine stopped");
        }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
