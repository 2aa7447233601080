//! The server with the embedded engine and a real model.

#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests do.

mod client;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::client;
use futures_util::StreamExt;
use outrank_core::Counters;
use outrank_core::policies::{PolicySettings, by_name};
use outrank_engine::{Engine, EngineConfig, EngineHandle, Model, ensure_q8_0};
use outrank_server::{EmbeddedEngine, Server, ServerConfig};
use reqwest::Client;
use serde_json::{Value, json};

/// The requantised test model: `OUTRANK_MODEL`, or what `make model` fetched.
fn model_path() -> PathBuf {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/models");
    let source = std::env::var_os("OUTRANK_MODEL")
        .map_or_else(|| cache.join("smollm2-135m-instruct-q4_1.gguf"), PathBuf::from);
    assert!(
        source.exists(),
        "no model at {}: run `make model`, or name a GGUF file in OUTRANK_MODEL",
        source.display()
    );
    ensure_q8_0(&source, &cache).unwrap()
}

struct Running {
    url: String,
    client: Client,
    engine: EngineHandle,
}

async fn serve() -> Running {
    let model = Arc::new(Model::load(&model_path()).unwrap().with_system_prompt("").unwrap());
    let config = EngineConfig { seats: 4, context_tokens: 512, ..EngineConfig::default() };
    let policy = by_name("outrank", &PolicySettings::default()).unwrap();
    let engine = Engine::start(model, &config, policy).unwrap();
    let backend = EmbeddedEngine::new(engine.clone(), config.context_tokens);
    let server_config = ServerConfig { port: 0, model_name: "test".into(), ..ServerConfig::default() };
    let server = Server::bind(server_config, Arc::new(backend), None).await.unwrap();
    let url = format!("http://{}", server.local_addr());
    tokio::spawn(server.run(std::future::pending()));
    Running { url, client: client(), engine }
}

impl Running {
    async fn chat(&self, question: &str, extra: Value) -> reqwest::Response {
        let mut body = json!({
            "model": "test", "messages": [{ "role": "user", "content": question }], "temperature": 0,
        });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        self.client.post(format!("{}/v1/chat/completions", self.url)).json(&body).send().await.unwrap()
    }

    async fn answer(&self, question: &str, extra: Value) -> Value {
        let response = self.chat(question, extra).await;
        assert_eq!(response.status(), 200);
        response.json().await.unwrap()
    }

    /// Waits until the engine's counters say so, a minute at most: other tests may take all cores.
    async fn until(&self, holds: impl Fn(&Counters) -> bool) {
        for _ in 0..6000 {
            if holds(&self.engine.counters()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}", self.engine.counters());
    }
}

/// All questions go to one engine: loading the model takes longer than answering.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_engine_answers_over_http() {
    let server = serve().await;
    it_knows_a_capital_whole_and_streamed(&server).await;
    it_stops_where_it_is_told_and_counts_its_tokens(&server).await;
    the_same_seed_gives_the_same_outputs_and_n_outputs_differ(&server).await;
    a_vanished_client_frees_its_seat(&server).await;
    server.engine.shutdown();
    let refused = server.chat("Hi", json!({})).await;
    assert_eq!((refused.status().as_u16(), refused.headers().contains_key("retry-after")), (503, true));
}

async fn it_knows_a_capital_whole_and_streamed(server: &Running) {
    let question = "What is the capital of France?";
    let body = server.answer(question, json!({ "max_tokens": 40 })).await;
    let whole = body["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(whole.contains("Paris"), "{body}");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");

    let stream =
        server.chat(question, json!({ "max_tokens": 40, "stream": true })).await.text().await.unwrap();
    let chunks =
        stream.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    let streamed: String = chunks
        .map(|data| serde_json::from_str::<Value>(data).unwrap())
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(streamed, whole);

    let rendered = format!(
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    );
    let body = json!({ "model": "test", "prompt": rendered, "temperature": 0, "max_tokens": 40 });
    let completed = server.client.post(format!("{}/v1/completions", server.url)).json(&body).send().await;
    let completed: Value = completed.unwrap().json().await.unwrap();
    assert_eq!(completed["choices"][0]["text"], whole, "control tokens in the prompt count");
}

async fn it_stops_where_it_is_told_and_counts_its_tokens(server: &Running) {
    let question = "Count from one to ten in words.";
    let full = server.answer(question, json!({ "max_tokens": 60 })).await;
    let text = full["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let stop: String = text.chars().skip(8).take(5).collect();
    let stopped = server.answer(question, json!({ "max_tokens": 60, "stop": stop })).await;
    let before = text.split(&stop).next().unwrap();
    assert_eq!(stopped["choices"][0]["message"]["content"], before);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");

    let extra = json!({ "max_tokens": 7, "ignore_eos": true, "logprobs": true, "top_logprobs": 2 });
    let counted = server.answer(question, extra).await;
    assert_eq!(counted["usage"]["completion_tokens"], 7);
    assert_eq!(counted["choices"][0]["finish_reason"], "length");
    let tokens = counted["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len(), 7);
    for token in tokens {
        let (chosen, likeliest) = (&token["logprob"], &token["top_logprobs"][0]["logprob"]);
        assert!(chosen.as_f64() <= Some(0.0) && chosen == likeliest, "greedy takes the likeliest: {token}");
    }
}

async fn the_same_seed_gives_the_same_outputs_and_n_outputs_differ(server: &Running) {
    let extra = json!({ "max_tokens": 24, "temperature": 1, "seed": 11, "n": 3 });
    let texts = |body: Value| -> Vec<String> {
        let choices = body["choices"].as_array().unwrap();
        choices.iter().map(|choice| choice["message"]["content"].as_str().unwrap().to_owned()).collect()
    };
    let first = texts(server.answer("Tell me a story.", extra.clone()).await);
    let again = texts(server.answer("Tell me a story.", extra).await);
    assert_eq!(first, again);
    assert!(first[0] != first[1] && first[1] != first[2], "{first:?}");
}

async fn a_vanished_client_frees_its_seat(server: &Running) {
    let endless = json!({ "max_tokens": 400, "ignore_eos": true, "stream": true });
    let mut body = server.chat("Go on and on.", endless).await.bytes_stream();
    body.next().await.unwrap().unwrap();
    // The role comes before the first token.
    server.until(|counters| counters.running == 1).await;
    drop(body);
    // An answer that went on to its end would not be among the cancelled ones.
    server.until(|counters| counters.running == 0).await;
    assert_eq!(server.engine.counters().cancelled, 1);
}
