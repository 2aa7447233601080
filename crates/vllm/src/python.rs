//! The module `outrank_vllm._core`: [`crate::Host`] for Python, and what is read of vLLM's objects.

use std::sync::{Mutex, MutexGuard, PoisonError};

use outrank_core::End;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::panic::PanicException;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyDict, PyList};

use crate::{Arrival, Host, Kind, Prompts, Publisher, Registry, Settings};

/// What is read of a `Request` that arrives.
#[derive(FromPyObject)]
struct Arriving<'py> {
    request_id: String,
    num_prompt_tokens: u32,
    prompt_token_ids: Option<Bound<'py, PyAny>>,
    max_tokens: Option<u32>,
}

/// What is read of a `Request` that has a seat.
#[derive(FromPyObject)]
struct Running {
    request_id: String,
    num_output_tokens: u32,
}

/// What is read of a `Request` that leaves.
#[derive(FromPyObject)]
struct Leaving {
    request_id: String,
    num_output_tokens: u32,
    status: Named,
}

/// A `RequestStatus`.
#[derive(FromPyObject)]
struct Named {
    name: String,
}

/// What is read of a `SchedulerOutput` once a step is planned.
#[derive(FromPyObject)]
struct Planned<'py> {
    scheduled_new_reqs: Vec<NewRequest>,
    scheduled_cached_reqs: CachedRequests<'py>,
    total_num_scheduled_tokens: u32,
    preempted_req_ids: Option<Bound<'py, PyAny>>,
}

/// A `NewRequestData`.
#[derive(FromPyObject)]
struct NewRequest {
    req_id: String,
}

/// A `CachedRequestData`.
#[derive(FromPyObject)]
struct CachedRequests<'py> {
    resumed_req_ids: Bound<'py, PyAny>,
}

/// What is read of a `SchedulerOutput` once the step's output has come.
#[derive(FromPyObject)]
struct Executed<'py> {
    num_scheduled_tokens: Bound<'py, PyDict>,
    total_num_scheduled_tokens: u32,
}

/// What a client says for outrank in `extra_args`: `outrank.prompt` (text to score), `outrank.length` (true length, for
/// `oracle`), `outrank.recorded` (true where `max_tokens` is that length and the answer always reaches it). Clients can write what
/// they like there: what is of another type counts as not said.
struct Extra<'py>(Option<Bound<'py, PyDict>>);

impl<'py> Extra<'py> {
    fn of(request: &Bound<'py, PyAny>) -> PyResult<Self> {
        let params = request.getattr(intern!(request.py(), "sampling_params"))?;
        let args = params.getattr_opt(intern!(request.py(), "extra_args"))?;
        Ok(Self(args.and_then(|args| args.cast_into().ok())))
    }

    fn said<T: FromPyObject<'py>>(&self, key: &str) -> Option<T> {
        self.0.as_ref()?.get_item(key).ok()??.extract().ok()
    }

    fn recorded(&self) -> bool {
        self.said("outrank.recorded").unwrap_or(false)
    }
}

/// Order, scores and learning for one vLLM scheduler. Times are seconds on a monotonic clock.
#[pyclass(frozen)]
struct Core {
    state: Mutex<State>,
    prompts: Prompts,
    /// Whether somebody turns token ids back into text.
    tokenized: bool,
}

struct State {
    host: Host,
    requests: Registry<Py<PyAny>>,
    publisher: Publisher,
    /// Whether vLLM has put requests into its queue under a priority that they no longer have.
    misplaced: bool,
}

impl State {
    /// Gives a request another priority.
    fn set(&self, py: Python<'_>, number: u64, priority: i64) -> PyResult<()> {
        let request = self.requests.get(number);
        request.map_or(Ok(()), |request| request.setattr(py, intern!(py, "priority"), priority))
    }

    /// A request lost its seat: sets its priority in the queue. False if it had none.
    fn paused(&mut self, py: Python<'_>, now_s: f64, name: &str) -> PyResult<bool> {
        let Some(number) = self.requests.number(name) else { return Ok(false) };
        let Some(priority) = self.host.paused(now_s, number) else { return Ok(false) };
        self.set(py, number, priority)?;
        Ok(true)
    }

    fn started(&mut self, name: &str) {
        if let Some(number) = self.requests.number(name) {
            self.host.started(number);
        }
    }
}

impl Core {
    /// Waits without Python's lock: what is done under this one may let go of that one.
    fn state(&self, py: Python<'_>) -> MutexGuard<'_, State> {
        self.state.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Core {
    /// Starts with settings (a JSON object) for so many seats; raises ValueError where they are wrong. `tokenized` if somebody
    /// takes prompts and gives back texts.
    #[new]
    fn new(settings: &str, seats: u32, tokenized: bool) -> PyResult<Self> {
        let refused = |error: String| PyValueError::new_err(error);
        let settings = Settings::parse(settings).map_err(|error| refused(error.to_string()))?;
        let host = Host::new(&settings, seats).map_err(|error| refused(error.to_string()))?;
        let publisher = Publisher::new(host.status());
        let state = Mutex::new(State { host, requests: Registry::default(), publisher, misplaced: false });
        Ok(Self { state, prompts: Prompts::default(), tokenized })
    }

    /// A request arrives: gives it its priority, and has its prompt scored. Nothing if one of its name is under way.
    fn submit(&self, now_s: f64, request: &Bound<'_, PyAny>) -> PyResult<()> {
        let (it, extra): (Arriving<'_>, _) = (request.extract()?, Extra::of(request)?);
        let mut state = self.state(request.py());
        let Some(number) = state.requests.enter(&it.request_id, request.clone().unbind()) else {
            return Ok(());
        };
        let arrival = Arrival {
            number,
            prompt_tokens: it.num_prompt_tokens,
            max_tokens: it.max_tokens.unwrap_or(1),
            true_tokens: extra.said("outrank.length"),
            limit_is_recorded: extra.recorded(),
        };
        if let Some(priority) = state.host.submit(now_s, &arrival) {
            state.set(request.py(), number, priority)?;
        }
        if !state.host.reads_prompts() {
            return Ok(());
        }
        match (extra.said("outrank.prompt"), it.prompt_token_ids) {
            (Some(text), _) => state.host.score(number, text),
            (None, Some(ids)) if self.tokenized => {
                // What are no token ids stays unscored.
                if let Ok(ids) = ids.extract() {
                    self.prompts.put((number, ids));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Waits for prompts to be turned into text: their requests' numbers, and their token ids. None once closed.
    fn prompts(&self, py: Python<'_>) -> Option<(Vec<u64>, Vec<Vec<u32>>)> {
        let prompts = py.detach(|| self.prompts.take());
        (!prompts.is_empty()).then(|| prompts.into_iter().unzip())
    }

    /// No prompt is turned into text any more.
    fn close(&self) {
        self.prompts.close();
    }

    /// Has the texts of prompts scored, on a thread that needs no GIL.
    #[allow(clippy::needless_pass_by_value, reason = "what PyO3 extracts is owned")]
    fn score(&self, py: Python<'_>, numbers: Vec<u64>, texts: Vec<String>) {
        let state = self.state(py);
        numbers.into_iter().zip(texts).for_each(|(number, text)| state.host.score(number, text));
    }

    /// To be called before every step with those who have a seat: sets the priorities that have changed, of those who wait. A
    /// running request keeps the one that it started with. Returns whether the queue is to be put in order.
    fn order(&self, now_s: f64, running: &Bound<'_, PyList>) -> PyResult<bool> {
        let mut state = self.state(running.py());
        if state.host.reports_due() {
            for request in running {
                let it: Running = request.extract()?;
                if let Some(number) = state.requests.number(&it.request_id) {
                    state.host.generated(number, it.num_output_tokens);
                }
            }
        }
        let changed = state.host.changed(now_s);
        for &(number, priority) in &changed {
            state.set(running.py(), number, priority)?;
        }
        Ok(std::mem::take(&mut state.misplaced) || !changed.is_empty())
    }

    /// Running requests that should lose their seat.
    fn victims(&self, py: Python<'_>, now_s: f64, free_seats: usize) -> Vec<Py<PyAny>> {
        let mut state = self.state(py);
        let victims = state.host.victims(now_s, free_seats);
        victims.into_iter().filter_map(|number| Some(state.requests.get(number)?.clone_ref(py))).collect()
    }

    /// Whether nobody shall take one of these free seats in this step, because seats gather.
    fn gathers(&self, py: Python<'_>, free_seats: usize) -> bool {
        self.state(py).host.gathers(free_seats)
    }

    /// A request lost its seat by advice: sets the priority that it goes back to the queue with.
    fn paused(&self, now_s: f64, request: &Bound<'_, PyAny>) -> PyResult<()> {
        let it: Running = request.extract()?;
        let mut state = self.state(request.py());
        state.paused(request.py(), now_s, &it.request_id).map(drop)
    }

    /// vLLM planned a step: who was evicted, and who took a seat. It has put the evicted ones back into the queue.
    fn planned(&self, now_s: f64, output: &Bound<'_, PyAny>) -> PyResult<()> {
        let it: Planned<'_> = output.extract()?;
        let mut state = self.state(output.py());
        if let Some(names) = it.preempted_req_ids {
            for name in names.try_iter()? {
                state.misplaced |= state.paused(output.py(), now_s, name?.extract()?)?;
            }
        }
        for name in it.scheduled_cached_reqs.resumed_req_ids.try_iter()? {
            state.started(name?.extract()?);
        }
        it.scheduled_new_reqs.iter().for_each(|new| state.started(&new.req_id));
        if it.total_num_scheduled_tokens > 0 {
            state.host.stepped();
        }
        Ok(())
    }

    /// The output of a step has come; `busy` if requests go on running.
    fn measured(&self, now_s: f64, output: &Bound<'_, PyAny>, busy: bool) -> PyResult<()> {
        let it: Executed<'_> = output.extract()?;
        let batch = it.num_scheduled_tokens.len() as u32;
        let prefill_tokens = it.total_num_scheduled_tokens.saturating_sub(batch);
        self.state(output.py()).host.measured(now_s, prefill_tokens, batch, busy);
        Ok(())
    }

    /// A request leaves vLLM.
    fn ended(&self, now_s: f64, request: &Bound<'_, PyAny>) -> PyResult<()> {
        let it: Leaving = request.extract()?;
        let mut state = self.state(request.py());
        let Some(number) = state.requests.leave(&it.request_id) else { return Ok(()) };
        let end = match it.status.name.as_str() {
            "FINISHED_STOPPED" => End::Stopped,
            "FINISHED_LENGTH_CAPPED" if Extra::of(request)?.recorded() => End::Stopped,
            "FINISHED_LENGTH_CAPPED" => End::Capped,
            _ => End::Aborted,
        };
        state.host.ended(now_s, number, it.num_output_tokens, end);
        Ok(())
    }

    /// Figures since the last call, (is a counter, name, help, value) each, and what a person must be told, if anything.
    #[allow(clippy::type_complexity, reason = "a tuple is what Python takes apart")]
    fn publish(&self, py: Python<'_>) -> (Vec<(bool, &str, &str, f64)>, Option<String>) {
        let mut state = self.state(py);
        let status = state.host.status();
        let (figures, told) = state.publisher.publish(status);
        let figures = figures.into_iter().map(|it| (it.kind == Kind::Counter, it.name, it.help, it.value));
        (figures.collect(), told)
    }

    /// Figures as a JSON object.
    fn status(&self, py: Python<'_>) -> String {
        self.state(py).host.status().json()
    }
}

/// The native part of outrank_vllm.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("PanicException", module.py().get_type::<PanicException>())?;
    module.add_class::<Core>()
}
