//! A running gateway, and clients of it.

use std::time::Duration;

use outrank_core::Score;
use outrank_gateway::{Drained, Gateway, GatewayConfig, Handle, WindowConfig};
use outrank_http::Predictor;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::mock::{Mock, token};

pub(crate) struct Running {
    pub(crate) url: String,
    pub(crate) client: Client,
    pub(crate) handle: Handle,
    shutdown: Option<oneshot::Sender<()>>,
    gateway: JoinHandle<Drained>,
}

/// Settings for upstreams that hold so many requests, quick to notice things.
pub(crate) fn config(mocks: &[&Mock], window: u32) -> GatewayConfig {
    GatewayConfig {
        port: 0,
        upstreams: mocks.iter().map(|mock| mock.url().parse().unwrap()).collect(),
        window: WindowConfig::Fixed(window),
        health_interval: Duration::from_millis(50),
        drain_timeout: Duration::from_secs(5),
        ..GatewayConfig::default()
    }
}

/// Predicts the number that a prompt ends with.
pub(crate) fn oracle() -> Option<Box<dyn Predictor>> {
    Some(Box::new(|text: &str| {
        let number = text.rsplit(' ').next()?.parse::<f32>().ok()?;
        Score::new(number, 0.3).ok()
    }))
}

pub(crate) async fn start(config: GatewayConfig, predictor: Option<Box<dyn Predictor>>) -> Running {
    start_with_key(config, predictor, "none").await
}

pub(crate) async fn start_with_key(
    config: GatewayConfig,
    predictor: Option<Box<dyn Predictor>>,
    key: &str,
) -> Running {
    let gateway = Gateway::bind(config, predictor).await.unwrap();
    let url = format!("http://{}", gateway.local_addr());
    let handle = gateway.handle();
    let (shutdown, signal) = oneshot::channel::<()>();
    let gateway = tokio::spawn(async move {
        // A dropped sender is a test that ended.
        gateway.run(async { signal.await.unwrap_or(()) }).await
    });
    let running = Running { url, client: client(), handle, shutdown: Some(shutdown), gateway };
    running
        .until("the upstreams have been looked at", async || {
            let asked = running.client.get(format!("{}/v1/models", running.url)).bearer_auth(key).send();
            asked.await.unwrap().text().await.unwrap().contains("\"m\"")
        })
        .await;
    running
}

pub(crate) fn client() -> Client {
    // An error means that another test of this process has installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().build().unwrap()
}

impl Running {
    /// A chat of this text with these fields.
    pub(crate) fn chat(&self, text: &str, extra: Value) -> RequestBuilder {
        let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": text }] });
        let Value::Object(extra) = extra else { panic!("extra fields must be an object") };
        body.as_object_mut().unwrap().extend(extra);
        self.client.post(format!("{}/v1/chat/completions", self.url)).json(&body)
    }

    /// A streamed chat.
    pub(crate) fn stream(&self, text: &str) -> RequestBuilder {
        self.chat(text, json!({ "stream": true }))
    }

    /// A streamed chat that names itself, sent in the background.
    pub(crate) fn spawn(&self, text: &str, user: &str) -> JoinHandle<Answer> {
        let request = self.chat(text, json!({ "stream": true, "user": user })).header("x-request-id", user);
        tokio::spawn(async move { Answer::of(request.send().await.unwrap()).await })
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap()
    }

    /// The value of a metric, by its name and labels as rendered; 0 if it is not there.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Requests that wait.
    pub(crate) async fn waiting(&self) -> f64 {
        self.metric("outrank_queue_depth{class=\"default\"}").await
    }

    /// Waits until so many requests wait.
    pub(crate) async fn until_waiting(&self, requests: usize) {
        self.until(&format!("{requests} wait"), async || self.waiting().await == requests as f64).await;
    }

    /// Waits until nothing waits, runs, or is counted anywhere.
    pub(crate) async fn idle(&self) {
        self.until("nothing is left", async || {
            self.waiting().await == 0.0 && self.metric("outrank_running").await == 0.0
        })
        .await;
    }

    /// Waits, at most ten seconds, until something holds.
    pub(crate) async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        eventually(what, holds).await;
    }

    /// Tells the gateway to shut down.
    pub(crate) fn signal(&mut self) {
        self.shutdown.take().unwrap().send(()).unwrap();
    }

    /// Waits until the gateway has returned.
    pub(crate) async fn ended(self) -> Drained {
        self.gateway.await.unwrap()
    }
}

/// Waits, at most ten seconds, until something holds.
pub(crate) async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..1000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came true that {what}");
}

/// What a client got.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) text: String,
    pub(crate) headers: reqwest::header::HeaderMap,
    /// Whether the body came to its end.
    pub(crate) whole: bool,
}

impl Answer {
    pub(crate) async fn of(mut response: Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let (mut text, mut whole) = (String::new(), true);
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => text.push_str(std::str::from_utf8(&chunk).unwrap()),
                Ok(None) => break,
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        Self { status, text, headers, whole }
    }

    /// The texts of the tokens of a stream, joined.
    pub(crate) fn content(&self) -> String {
        let data = self.text.lines().filter_map(|line| line.strip_prefix("data: "));
        let chunks = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
        chunks
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect()
    }

    /// Whether it is a stream of exactly so many tokens, each once and in order, that ended as it should.
    pub(crate) fn is_complete(&self, tokens: usize) -> bool {
        let expected: String = (0..tokens).map(token).collect();
        self.status == 200
            && self.whole
            && self.content() == expected
            && self.text.trim_end().ends_with("[DONE]")
    }

    /// The code of the error that it is or ends with.
    pub(crate) fn error(&self) -> Option<String> {
        let last = self.text.trim_end().rsplit("\n\n").next()?;
        let body: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap_or(last)).ok()?;
        body["error"]["code"].as_str().map(str::to_owned)
    }
}
