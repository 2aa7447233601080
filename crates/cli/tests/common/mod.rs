//! What the tests share: the binary, and an OpenAI server that is not real.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a helper of tests fails its test")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

/// The binary, in `dir`, without settings from the environment.
pub(crate) fn outrank(dir: &Path, args: &[&str]) -> Command {
    without_settings(dir, env!("CARGO_BIN_EXE_outrank"), args)
}

/// A program, in `dir`, without settings from the environment.
pub(crate) fn without_settings(dir: &Path, program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    let settings = std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("OUTRANK_"));
    for name in settings.chain(["OPENAI_API_KEY".into()]) {
        command.env_remove(name);
    }
    command.current_dir(dir).args(args);
    command
}

/// Runs the binary to its end.
pub(crate) fn run(dir: &Path, args: &[&str]) -> Output {
    outrank(dir, args).output().unwrap()
}

/// Runs the binary, which must succeed, and gives the JSON on its stdout.
pub(crate) fn json(dir: &Path, args: &[&str]) -> Value {
    let output = outrank(dir, args).arg("--json").output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Exit code and stderr of a run that must fail.
pub(crate) fn fails(dir: &Path, args: &[&str]) -> (i32, String) {
    let output = run(dir, args);
    assert!(!output.status.success(), "{args:?} succeeded");
    assert!(output.stdout.is_empty() || !args.contains(&"--json"), "a failure prints no JSON");
    (output.status.code().unwrap(), stderr(&output))
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Writes a file below `dir` and gives its path as text.
pub(crate) fn file(dir: &Path, name: &str, content: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A trace of `n` requests whose answers get longer with the number of "very"s in the prompt.
pub(crate) fn trace(n: usize) -> String {
    let line = |i: usize| {
        let prompt = format!("{}long story number {i}", "very ".repeat(i % 7));
        json!({"prompt": prompt, "output_tokens": 4 + 6 * (i % 7), "prompt_tokens": 4}).to_string() + "\n"
    };
    (0..n).map(line).collect()
}

/// The embedded model; its absence fails the test with what to do.
pub(crate) fn model() -> PathBuf {
    if let Some(path) = std::env::var_os("OUTRANK_MODEL") {
        return path.into();
    }
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/models");
    let path = models.join("smollm2-135m-instruct-q4_1.gguf");
    assert!(path.is_file(), "{} is missing: run `make model`", path.display());
    path
}

/// An OpenAI server whose answers are as long as asked for, or as long as the prompt.
pub(crate) struct FakeServer {
    pub(crate) url: String,
    pub(crate) state: Arc<FakeState>,
    _runtime: tokio::runtime::Runtime,
}

/// What the fake server saw, and how it behaves.
#[derive(Default)]
pub(crate) struct FakeState {
    pub(crate) requests: AtomicUsize,
    pub(crate) in_flight: AtomicUsize,
    pub(crate) most_in_flight: AtomicUsize,
    pub(crate) hints: AtomicUsize,
    /// What was asked, in the order in which it came.
    pub(crate) bodies: Mutex<Vec<Value>>,
    /// From this request on, every answer is 503.
    pub(crate) breaks_after: Option<usize>,
    /// Prompts that contain this are refused with 400.
    pub(crate) refuses: Option<&'static str>,
    /// Streams break off after the first token of prompts that contain this.
    pub(crate) cuts: Option<&'static str>,
    pub(crate) token_time: Duration,
}

impl FakeServer {
    pub(crate) fn start(state: FakeState) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let state = Arc::new(state);
        let app = Router::new()
            .route("/v1/models", get(|| async { Json(json!({"object": "list", "data": [{"id": "fake"}]})) }))
            .route("/v1/chat/completions", post(answer))
            .route("/v1/completions", post(answer))
            .route("/v1/outrank/requests/{id}", get(stand))
            .with_state(Arc::clone(&state));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url: format!("http://{address}"), state, _runtime: runtime }
    }
}

/// One segment only: an id with a slash is found if the client encodes it.
async fn stand(axum::extract::Path(id): axum::extract::Path<String>) -> Json<Value> {
    Json(json!({"request_id": id, "status": "in_progress", "choices": []}))
}

async fn answer(State(state): State<Arc<FakeState>>, Json(body): Json<Value>) -> Response {
    let number = state.requests.fetch_add(1, Ordering::SeqCst);
    state.bodies.lock().unwrap().push(body.clone());
    let prompt =
        body["prompt"].as_str().or(body["messages"][0]["content"].as_str()).unwrap_or_default().to_owned();
    if state.refuses.is_some_and(|word| prompt.contains(word)) {
        return refuse(StatusCode::BAD_REQUEST, "this prompt is too long for the context");
    }
    if state.breaks_after.is_some_and(|limit| number >= limit) {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "gone");
    }
    state.hints.fetch_add(usize::from(!body["outrank"].is_null()), Ordering::SeqCst);
    let now = state.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
    state.most_in_flight.fetch_max(now, Ordering::SeqCst);
    let limit = body["max_tokens"].as_u64().unwrap_or(1000);
    let own = prompt.split_whitespace().count() as u64;
    let forced = body["ignore_eos"] == json!(true);
    let tokens = if forced { limit } else { own.min(limit) };
    let reason = if tokens == limit { "length" } else { "stop" };
    let usage = json!({"prompt_tokens": own, "completion_tokens": tokens, "total_tokens": own + tokens});
    if body["stream"] != json!(true) {
        tokio::time::sleep(state.token_time * u32::try_from(tokens).unwrap()).await;
        state.in_flight.fetch_sub(1, Ordering::SeqCst);
        return Json(json!({"model": "fake", "choices": [{"finish_reason": reason}], "usage": usage}))
            .into_response();
    }
    let cut = state.cuts.is_some_and(|word| prompt.contains(word));
    let stream = futures_util::stream::unfold(0, move |sent| {
        let (state, usage) = (Arc::clone(&state), usage.clone());
        async move {
            let chunk = match sent {
                0 => {
                    json!({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": null}]})
                }
                _ if cut && sent == 2 => return None,
                _ if sent <= tokens => {
                    tokio::time::sleep(state.token_time).await;
                    json!({"choices": [{"delta": {"content": "x"}, "finish_reason": null}]})
                }
                _ if sent == tokens + 1 => json!({"choices": [{"delta": {}, "finish_reason": reason}]}),
                _ if sent == tokens + 2 => json!({"choices": [], "usage": usage}),
                _ if sent == tokens + 3 => {
                    state.in_flight.fetch_sub(1, Ordering::SeqCst);
                    return Some((Ok::<_, std::io::Error>("data: [DONE]\n\n".to_owned()), sent + 1));
                }
                _ => return None,
            };
            Some((Ok(format!("data: {chunk}\n\n")), sent + 1))
        }
    });
    ([("content-type", "text/event-stream")], Body::from_stream(stream)).into_response()
}

fn refuse(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({"error": {"message": message, "type": "invalid_request_error"}}))).into_response()
}
