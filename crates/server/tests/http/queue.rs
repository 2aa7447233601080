//! The bounded queue, and clients that vanish.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use outrank_server::{Backend, ServerConfig};
use serde_json::json;

use crate::scripted::{REPLY, Script};
use crate::support::{error_code, eventually, json_of, serve, serve_default};

/// Prompts in one request of the test of the long queue.
const BATCH: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_more_than_ten_thousand_requests_the_queue_takes_its_fill_and_loses_none() {
    // While the engine is held, the queue also holds those whom the free seats will take.
    let script = Script { max_queue_requests: 10_000 - 64, seats: 64, ..Script::default() };
    let server = serve(script, ServerConfig::default(), None).await;
    server.engine.hold();
    let batch = json!({ "prompt": vec!["Hi"; BATCH] });
    let accepted: Vec<_> = (0..10_000 / BATCH).map(|_| server.complete(batch.clone())).collect();
    let accepted = join_all(accepted);
    let test = async {
        eventually("the queue is full", || async { server.engine.counters().waiting == 10_000 }).await;
        for extra in [json!({}), batch.clone(), json!({ "stream": true })] {
            assert_eq!(error_code(server.complete(extra).await, 429).await, "queue_full");
        }
        assert_eq!(server.engine.counters().waiting, 10_000, "a refused batch leaves nothing behind");
        assert_eq!(server.metric("outrank_queue_depth").await, 10_000.0);
        server.engine.release();
    };
    let (responses, ()) = tokio::join!(accepted, test);
    for response in responses {
        let body = json_of(response).await;
        let choices = body["choices"].as_array().unwrap();
        assert!(
            choices.len() == BATCH && choices.iter().all(|choice| choice["text"] == REPLY.concat()),
            "{body}"
        );
    }
    server.idle().await;
    assert_eq!(server.metric("outrank_requests_total{outcome=\"completed\"}").await, (10_000 / BATCH) as f64);
    assert_eq!(server.metric("outrank_rejections_total{reason=\"queue_full\"}").await, 3.0);
}

#[tokio::test]
async fn a_batch_that_does_not_fit_the_queue_is_refused_whole() {
    let script = Script { max_queue_requests: 6, seats: 4, ..Script::default() };
    let server = serve(script, ServerConfig::default(), None).await;
    server.engine.hold();
    assert_eq!(error_code(server.complete(json!({ "n": 11 })).await, 429).await, "queue_full");
    assert_eq!(server.engine.counters().waiting, 0);
}

#[tokio::test]
async fn a_client_that_vanishes_in_mid_stream_frees_its_seat_at_once() {
    let server = serve_default().await;
    let endless = json!({ "stream": true, "ignore_eos": true, "max_tokens": 500, "n": 2 });
    let mut body = server.chat(endless).await.bytes_stream();
    body.next().await.unwrap().unwrap();
    assert_eq!(server.engine.counters().running, 2);
    drop(body);
    server.idle().await;
    assert_eq!(server.engine.counters().cancelled, 2, "they were cancelled, not finished");
    assert_eq!(server.metric("outrank_running").await, 0.0);
    assert_eq!(server.metric("outrank_requests_total{outcome=\"cancelled\"}").await, 1.0);
}

#[tokio::test]
async fn a_client_that_gives_up_waiting_leaves_the_queue() {
    let server = serve_default().await;
    server.engine.hold();
    for stream in [false, true] {
        let waiting = server.chat(json!({ "stream": stream }));
        let body = async { waiting.await.text().await };
        assert!(
            tokio::time::timeout(Duration::from_millis(200), body).await.is_err(),
            "nothing is answered yet"
        );
        eventually("the queue is empty", || async { server.engine.counters().waiting == 0 }).await;
    }
    assert_eq!(server.engine.counters().cancelled, 2);
    assert_eq!(server.metric("outrank_requests_total{outcome=\"cancelled\"}").await, 2.0);
}
