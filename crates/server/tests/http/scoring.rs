//! Scores: in time, late, or never, and in no case in the way.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outrank_core::Score;
use outrank_server::{Answer, Learned, Open, Predictor, ServerConfig};
use serde_json::json;

use crate::scripted::Script;
use crate::support::{Running, chat_body, eventually, json_of, serve};

/// Predicts as many tokens as the prompt has characters, after a while.
fn slow_scores(delay: Duration) -> Box<dyn Predictor> {
    Box::new(move |text: &str| {
        std::thread::sleep(delay);
        Score::new(text.chars().count() as f32, 0.5).ok()
    })
}

async fn serve_scored(score: Box<dyn Predictor>) -> Running {
    serve(Script::default(), ServerConfig { score_deadline_ms: 50, ..ServerConfig::default() }, Some(score))
        .await
}

#[tokio::test]
async fn a_score_in_time_goes_with_the_request() {
    let server = serve_scored(slow_scores(Duration::ZERO)).await;
    let response = server.chat(json!({ "messages": [{ "role": "user", "content": "x".repeat(40) }] })).await;
    assert_eq!(response.headers()["x-outrank-predicted-tokens"], "40");
    let score = server.engine.seen()[0].score.unwrap();
    assert_eq!(score.median_tokens(), 40.0);
}

#[tokio::test]
async fn a_slow_score_delays_nobody_and_follows_later() {
    let server = serve_scored(slow_scores(Duration::from_millis(400))).await;
    server.engine.hold();
    let started = Instant::now();
    let request = server.post("/v1/chat/completions", &chat_body(json!({ "stream": true })));
    let response = request.header("x-request-id", "slow").send().await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(300), "{:?}", started.elapsed());
    assert!(!response.headers().contains_key("x-outrank-predicted-tokens"));
    assert_eq!(server.engine.seen()[0].score, None);
    eventually("the score has arrived", || async {
        let record = json_of(server.get("/v1/outrank/requests/slow").await).await;
        record["choices"][0]["predicted_tokens"]["median"] == json!(2.0)
    })
    .await;
}

#[tokio::test]
async fn a_scorer_that_dies_leaves_requests_unscored_and_served() {
    let server = serve_scored(Box::new(|_: &str| panic!("the ranker is broken"))).await;
    for _ in 0..3 {
        let response = server.chat(json!({})).await;
        assert_eq!(response.status(), 200);
        assert!(!response.headers().contains_key("x-outrank-predicted-tokens"));
    }
}

#[tokio::test]
async fn a_short_prediction_passes_longer_ones_that_came_first() {
    let server = serve(
        Script { seats: 1, policy: "outrank", ..Script::default() },
        ServerConfig { score_deadline_ms: 500, ..ServerConfig::default() },
        Some(slow_scores(Duration::ZERO)),
    )
    .await;
    server.engine.hold();
    let mut open = Vec::new();
    for (length, position) in [(300, "0"), (310, "1"), (5, "0")] {
        let prompt = "x".repeat(length);
        open.push(server.complete(json!({ "prompt": prompt, "stream": true, "max_tokens": 150 })).await);
        assert_eq!(open.last().unwrap().headers()["x-outrank-position"], position, "{length}");
    }
}

/// Predicts nothing, and writes down what it hears.
struct Listener(Arc<Mutex<Vec<Answer>>>);

impl Predictor for Listener {
    fn score(&self, _: &str) -> Option<Score> {
        None
    }

    fn observe(&self, answer: &Answer, _: &dyn Fn() -> Vec<Open>) {
        self.0.lock().unwrap().push(answer.clone());
    }

    fn learned(&self) -> Learned {
        Learned { answers: self.0.lock().unwrap().len() as u64, updates: 2, tau_b: Some(0.25) }
    }
}

#[tokio::test]
async fn the_predictor_hears_how_long_answers_were_and_metrics_what_it_learned() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let server = serve_scored(Box::new(Listener(Arc::clone(&heard)))).await;
    for extra in [json!({}), json!({ "max_tokens": 2 }), json!({ "ignore_eos": true, "max_tokens": 3 })] {
        assert_eq!(server.chat(extra).await.status(), 200);
    }
    let answers = || heard.lock().unwrap().iter().map(|a| (a.tokens, a.censored)).collect::<Vec<_>>();
    eventually("both answers were heard of", || async { answers().len() >= 2 }).await;
    assert_eq!(answers(), [(5, false), (2, true)], "one that was made to go on says nothing");
    assert!(heard.lock().unwrap().iter().all(|answer| answer.text.contains("Hi")));
    eventually("the metrics say so", || async {
        server.metric("outrank_learner_answers_total").await == 2.0
    })
    .await;
    assert_eq!(server.metric("outrank_learner_tau_b").await, 0.25);
}

/// Predicts nothing, and asks a little after the end of each answer who runs.
struct Census(Arc<Mutex<Vec<Vec<Open>>>>);

impl Predictor for Census {
    fn score(&self, _: &str) -> Option<Score> {
        None
    }

    fn observe(&self, _: &Answer, running: &dyn Fn() -> Vec<Open>) {
        // By then all have their tokens of this step.
        std::thread::sleep(Duration::from_millis(150));
        self.0.lock().unwrap().push(running());
    }
}

#[tokio::test]
async fn the_predictor_hears_who_runs_and_how_far_they_are() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let script = Script { seats: 4, step: Duration::from_millis(600), ..Script::default() };
    let server = serve(script, ServerConfig::default(), Some(Box::new(Census(Arc::clone(&heard))))).await;
    server.engine.hold();
    let mut open = Vec::new();
    for (prompt, extra) in [
        ("runs", json!({ "max_tokens": 100 })),
        ("must go on", json!({ "max_tokens": 100, "ignore_eos": true })),
        ("ends second", json!({ "max_tokens": 3 })),
        ("ends first", json!({ "max_tokens": 2 })),
        ("waits", json!({ "max_tokens": 40 })),
    ] {
        let mut body = chat_body(json!({ "stream": true }));
        body["messages"][0]["content"] = json!(prompt);
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        open.push(server.post("/v1/chat/completions", &body).send().await.unwrap());
    }
    server.engine.release();
    eventually("two have ended", || async { heard.lock().unwrap().len() == 2 }).await;
    let heard = heard.lock().unwrap().iter().map(|census| of_prompts(census)).collect::<Vec<_>>();
    assert_eq!(heard[0], [("ends second", 2, 3), ("runs", 2, 100)]);
    assert_eq!(heard[1], [("runs", 3, 100), ("waits", 1, 40)]);
}

/// Whom a census found: last words of the prompt, tokens, limit.
fn of_prompts(census: &[Open]) -> Vec<(&'static str, u32, u32)> {
    let prompts = ["runs", "must go on", "ends first", "ends second", "waits"];
    let name = |open: &Open| prompts.into_iter().find(|prompt| open.text.ends_with(prompt)).unwrap();
    let mut found: Vec<_> = census.iter().map(|open| (name(open), open.tokens, open.limit_tokens)).collect();
    found.sort_unstable();
    found
}
