//! A running server, and a client that talks to it.

use std::sync::Arc;
use std::time::Duration;

use outrank_server::{Backend, Drained, Predictor, Server, ServerConfig};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::client::client;
use crate::scripted::{Script, Scripted};

pub(crate) struct Running {
    pub(crate) url: String,
    pub(crate) engine: Scripted,
    pub(crate) client: Client,
    shutdown: Option<oneshot::Sender<()>>,
    server: JoinHandle<Drained>,
}

/// A server whose engine follows `script`.
pub(crate) async fn serve(
    script: Script,
    config: ServerConfig,
    score: Option<Box<dyn Predictor>>,
) -> Running {
    let engine = Scripted::start(script);
    let config = ServerConfig { port: 0, model_name: "test".into(), ..config };
    let server = Server::bind(config, Arc::new(engine.clone()), score).await.unwrap();
    let url = format!("http://{}", server.local_addr());
    let (shutdown, signal) = oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        // A dropped sender is a test that ended.
        server.run(async { signal.await.unwrap_or(()) }).await.unwrap()
    });
    Running { url, engine, client: client(), shutdown: Some(shutdown), server }
}

/// A server with default settings.
pub(crate) async fn serve_default() -> Running {
    serve(Script::default(), ServerConfig::default(), None).await
}

impl Running {
    pub(crate) fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).json(body)
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap()
    }

    /// The answer to a chat with these fields added.
    pub(crate) async fn chat(&self, extra: Value) -> Response {
        self.post("/v1/chat/completions", &chat_body(extra)).send().await.unwrap()
    }

    pub(crate) async fn complete(&self, extra: Value) -> Response {
        let body = merge(json!({ "model": "test", "prompt": "Hi" }), extra);
        self.post("/v1/completions", &body).send().await.unwrap()
    }

    /// The value of a metric, by its name and labels as rendered; 0 if it is not there.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Tells the server to shut down.
    pub(crate) fn signal(&mut self) {
        self.shutdown.take().unwrap().send(()).unwrap();
    }

    /// Waits until the server has returned.
    pub(crate) async fn ended(self) -> Drained {
        self.server.await.unwrap()
    }

    /// Waits until nothing waits or runs in the engine.
    pub(crate) async fn idle(&self) {
        eventually("the engine is idle", || async {
            let counters = self.engine.counters();
            counters.waiting + counters.running == 0
        })
        .await;
    }
}

pub(crate) fn chat_body(extra: Value) -> Value {
    merge(json!({ "model": "test", "messages": [{ "role": "user", "content": "Hi" }] }), extra)
}

fn merge(mut base: Value, extra: Value) -> Value {
    let Value::Object(extra) = extra else { panic!("extra fields must be an object") };
    base.as_object_mut().unwrap().extend(extra);
    base
}

/// Waits, at most five seconds, until something holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    for _ in 0..500 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came true that {what}");
}

/// The data of the events of a stream.
pub(crate) async fn events(response: Response) -> Vec<String> {
    assert_eq!(response.status(), 200, "{response:?}");
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let text = response.text().await.unwrap();
    text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
}

/// The chunks of a stream, which must end with `[DONE]`.
pub(crate) async fn chunks(response: Response) -> Vec<Value> {
    let mut events = events(response).await;
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
}

pub(crate) async fn json_of(response: Response) -> Value {
    assert_eq!(response.headers()["content-type"], "application/json");
    response.json().await.unwrap()
}

/// The code of an error response, after checking its shape, its request id and its retry header.
pub(crate) async fn error_code(response: Response, status: u16) -> String {
    assert!(response.headers().contains_key("x-request-id"), "errors have a request id too");
    let retry = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    let found = response.status();
    let body = json_of(response).await;
    assert_eq!(found, status, "{body}");
    if matches!(status, 429 | 503) {
        assert!(retry.unwrap().parse::<u64>().unwrap() >= 1, "{body}");
    }
    let error = &body["error"];
    assert!(error["message"].as_str().is_some_and(|message| message.len() > 20), "{body}");
    assert!(error["type"].is_string() && error.get("param").is_some(), "{body}");
    error["code"].as_str().unwrap().to_owned()
}
