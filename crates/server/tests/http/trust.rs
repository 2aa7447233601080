//! How far predictions are to be trusted, and what the policy would save, as the metrics say.

use outrank_core::MonitorSettings;
use outrank_core::Score;
use outrank_core::policies::PolicySettings;
use outrank_server::{Predictor, Replay, ServerConfig};
use reqwest::Response;
use serde_json::{Value, json};

use crate::scripted::Script;
use crate::support::{Running, eventually, json_of, serve};

/// Predicts the number at the end of a prompt, give or take half.
fn told() -> Option<Box<dyn Predictor>> {
    Some(Box::new(|text: &str| {
        let median = text.split_whitespace().next_back()?.parse().ok()?;
        Score::new(median, 0.5).ok()?.with_reach(1.5_f32.ln()).ok()
    }))
}

fn config() -> ServerConfig {
    ServerConfig { score_deadline_ms: 2000, ..ServerConfig::default() }
}

/// A request that is predicted `predicted` tokens, and answered by as many as were recorded.
async fn ask(server: &Running, predicted: u32, recorded: u32, extra: Value) -> Response {
    let mut body = json!({
        "prompt": format!("Say {predicted}"), "max_tokens": recorded, "ignore_eos": true,
        "outrank": { "true_output_tokens": recorded },
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let response = server.complete(body).await;
    assert_eq!(response.status(), 200, "{response:?}");
    response
}

#[tokio::test]
async fn the_metrics_tell_how_well_lengths_are_predicted() {
    let server = serve(Script::default(), config(), told()).await;
    for (predicted, recorded) in [(10, 10), (20, 28), (30, 90)] {
        ask(&server, predicted, recorded, json!({})).await;
    }
    assert_eq!(server.metric("outrank_rank_tau").await, 1.0);
    assert_eq!(server.metric("outrank_calibration").await, 2.0 / 3.0, "90 tokens are more than 45");
    // Cut short: how long it would have been is not known, so it is not outside.
    server.complete(json!({ "prompt": "Say 99", "max_tokens": 2 })).await;
    assert_eq!(server.metric("outrank_calibration").await, 3.0 / 4.0);
    // Made to go on, and left: neither says anything.
    server.complete(json!({ "prompt": "Say 3", "max_tokens": 30, "ignore_eos": true })).await;
    drop(ask(&server, 3, 400, json!({ "stream": true })).await);
    server.idle().await;
    assert_eq!(server.metric("outrank_rank_answers").await, 4.0);
    assert_eq!(server.metric("outrank_calibration").await, 3.0 / 4.0);
    // Ends by itself after 5 tokens, and was to be the shortest: still in order. Then one out of order.
    server.complete(json!({ "prompt": "Say 4" })).await;
    assert_eq!(server.metric("outrank_rank_tau").await, 1.0);
    ask(&server, 200, 7, json!({})).await;
    assert_eq!(server.metric("outrank_rank_tau").await, 4.0 / 10.0, "7 of 10 pairs agree");
    assert_eq!(server.metric("outrank_trust_state").await, 1.0);
    assert_eq!(server.metric("outrank_eta_error_seconds_count").await, 7.0, "all that came whole");
}

#[tokio::test]
async fn scores_that_contradict_the_answers_lose_trust_in_shadow_mode_too() {
    let script = Script { policy: "fcfs", ..Script::default() };
    let server = serve(script, config(), told()).await;
    for round in 0..40 {
        let answers = (0..16).map(|nth| {
            let recorded = 1 + (7 * nth + round) % 16;
            ask(&server, 400 / recorded, recorded, json!({}))
        });
        futures_util::future::join_all(answers).await;
    }
    assert_eq!(server.metric("outrank_trust_state").await, 0.0);
    assert_eq!(server.metric("outrank_rank_answers").await, 512.0);
    assert_eq!(server.metric("outrank_rank_tau").await, -1.0);
}

fn replay(policy: &str) -> Option<Replay> {
    Some(Replay {
        policy: policy.into(),
        settings: PolicySettings::default(),
        monitor: MonitorSettings::default(),
        unscored_tokens: 100.0,
        seats: 1,
    })
}

/// Seconds that a request had its seat.
async fn service_s(server: &Running, request_id: &str) -> f64 {
    let record = json_of(server.get(&format!("/v1/outrank/requests/{request_id}")).await).await;
    let timings = &record["choices"][0]["timings"];
    (timings["e2e_ms"].as_f64().unwrap() - timings["queue_ms"].as_f64().unwrap()) / 1000.0
}

#[tokio::test]
async fn in_shadow_mode_requests_go_by_arrival_and_the_metrics_tell_what_the_policy_would_save() {
    let script = Script { policy: "fcfs", seats: 1, ..Script::default() };
    let server = serve(script, ServerConfig { replay: replay("sjf"), ..config() }, told()).await;
    server.engine.hold();
    let mut open = Vec::new();
    for (name, tokens) in [("first", 300_u32), ("long", 100), ("short", 2)] {
        let body = json!({
            "model": "test", "prompt": format!("Say {tokens}"), "max_tokens": tokens, "ignore_eos": true, "stream": true,
            "outrank": { "true_output_tokens": tokens },
        });
        let request = server.post("/v1/completions", &body).header("x-request-id", name);
        open.push(request.send().await.unwrap());
    }
    assert_eq!(server.metric("outrank_shadow_saved_seconds").await, 0.0, "nothing has been served");
    server.engine.release();
    for answer in open {
        answer.text().await.unwrap();
    }
    // The first holds the seat; the short one would then go before the long one.
    let expected_s = service_s(&server, "long").await - service_s(&server, "short").await;
    eventually("what was served is replayed", || async {
        server.metric("outrank_shadow_saved_seconds").await > 0.0
    })
    .await;
    let saved_s = server.metric("outrank_shadow_saved_seconds").await;
    // Both are on a line with the first, but for what steps differ.
    assert!((saved_s / expected_s - 1.0).abs() < 0.3, "{saved_s} s instead of {expected_s} s");
    assert_eq!(server.metric("outrank_overtakes_total").await, 0.0, "nobody was overtaken");
}

#[tokio::test]
async fn without_a_policy_to_compare_with_no_savings_are_told() {
    let server = serve(Script::default(), config(), told()).await;
    ask(&server, 5, 5, json!({})).await;
    let text = server.get("/metrics").await.text().await.unwrap();
    assert!(!text.contains("shadow_saved") && text.contains("outrank_calibration"), "{text}");
}
