//! The module `outrank_vllm._core`: [`crate::Host`] for Python.

use std::sync::{Mutex, MutexGuard, PoisonError};

use outrank_core::End;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::{Arrival, Host, Settings};

/// Order, scores and learning for one vLLM scheduler. Times are seconds on a monotonic clock.
#[pyclass(frozen)]
struct Core(Mutex<Host>);

impl Core {
    fn host(&self) -> MutexGuard<'_, Host> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Core {
    /// Starts with settings (a JSON object) for so many seats; raises ValueError where they are wrong.
    #[new]
    fn new(settings: &str, seats: u32) -> PyResult<Self> {
        let refused = |error: String| PyValueError::new_err(error);
        let settings = Settings::parse(settings).map_err(|error| refused(error.to_string()))?;
        Host::new(&settings, seats)
            .map(|host| Self(Mutex::new(host)))
            .map_err(|error| refused(error.to_string()))
    }

    /// A request arrives; returns its priority, or None if its number is in use.
    #[pyo3(signature = (now_s, number, prompt_tokens, max_tokens, true_tokens, limit_is_recorded))]
    fn submit(
        &self,
        now_s: f64,
        number: u64,
        prompt_tokens: u32,
        max_tokens: u32,
        true_tokens: Option<u32>,
        limit_is_recorded: bool,
    ) -> Option<i64> {
        self.host()
            .submit(now_s, &Arrival { number, prompt_tokens, max_tokens, true_tokens, limit_is_recorded })
    }

    /// Hands a prompt to the scoring thread, which needs no GIL.
    fn score(&self, number: u64, prompt: String) {
        self.host().score(number, prompt);
    }

    /// (number, priority) of requests whose priority changed.
    fn changed(&self, now_s: f64) -> Vec<(u64, i64)> {
        self.host().changed(now_s)
    }

    /// Numbers of running requests that should lose their seat.
    fn victims(&self, now_s: f64, free_seats: usize) -> Vec<u64> {
        self.host().victims(now_s, free_seats)
    }

    /// Requests took a seat.
    #[allow(clippy::needless_pass_by_value, reason = "what PyO3 extracts is owned")]
    fn started(&self, numbers: Vec<u64>) {
        self.host().started(&numbers);
    }

    /// Requests lost their seat; returns their (number, priority) in the queue.
    #[allow(clippy::needless_pass_by_value, reason = "what PyO3 extracts is owned")]
    fn paused(&self, now_s: f64, numbers: Vec<u64>) -> Vec<(u64, i64)> {
        self.host().paused(now_s, &numbers)
    }

    /// (number, output tokens so far) of running requests.
    #[allow(clippy::needless_pass_by_value, reason = "what PyO3 extracts is owned")]
    fn generated(&self, tokens: Vec<(u64, u32)>) {
        self.host().generated(&tokens);
    }

    /// Whether `generated` has to be called before every step.
    fn follows_every_token(&self) -> bool {
        self.host().follows_every_token()
    }

    /// The engine ran a step.
    fn stepped(&self) {
        self.host().stepped();
    }

    /// A step took so many seconds.
    fn step_took(&self, took_s: f64, prefill_tokens: u32, decodes: u32) {
        self.host().step_took(took_s, prefill_tokens, decodes);
    }

    /// A request left: "stopped", "capped", or anything else for one that was given up.
    fn ended(&self, now_s: f64, number: u64, tokens: u32, end: &str) {
        let end = match end {
            "stopped" => End::Stopped,
            "capped" => End::Capped,
            _ => End::Aborted,
        };
        self.host().ended(now_s, number, tokens, end);
    }

    /// Figures as a JSON object.
    fn status(&self) -> PyResult<String> {
        serde_json::to_string(&self.host().status()).map_err(|error| PyValueError::new_err(error.to_string()))
    }
}

/// The native part of outrank_vllm.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Core>()
}
