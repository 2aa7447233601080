//! Whom the predictor hears of while it learns.

use std::sync::Arc;
use std::time::Duration;

use outrank_core::Score;
use outrank_gateway::UpstreamConfig;
use outrank_http::{Answer, Open, Predictor};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::mock::{Act, Mock};
use crate::support::{Running, config, oracle, start};

/// The prompt, tokens, limit.
type Found = (String, u32, u32);

/// Predicts nothing, and asks at the end of each answer who runs.
#[derive(Clone, Default)]
struct Census(Arc<Mutex<Option<Vec<Found>>>>);

impl Predictor for Census {
    fn score(&self, _: &str) -> Option<Score> {
        None
    }

    fn observe(&self, _: &Answer, running: &dyn Fn() -> Vec<Open>) {
        let word = |open: &Open| open.text.rsplit([' ', '\u{1f}']).next().unwrap_or("").to_owned();
        let found = |open: Open| (word(&open), open.tokens, open.limit_tokens);
        let mut found: Vec<_> = running().into_iter().map(found).collect();
        found.sort_unstable();
        *self.0.lock() = Some(found);
    }
}

impl Census {
    fn predictor(&self) -> Option<Box<dyn Predictor>> {
        Some(Box::new(self.clone()))
    }

    /// Whom it finds when an answer of the model `ends` has come.
    async fn take(&self, gateway: &Running) -> Vec<Found> {
        *self.0.lock() = None;
        let answer = gateway.chat("ends", json!({ "model": "ends", "stream": true })).send().await.unwrap();
        assert!(answer.text().await.unwrap().ends_with("[DONE]\n\n"));
        gateway.until("it has asked", async || self.0.lock().is_some()).await;
        self.0.lock().take().unwrap()
    }

    /// Waits, at most five seconds, until it finds these and no others, twice.
    async fn finds(&self, gateway: &Running, expected: &[(&str, u32, u32)]) {
        let expected: Vec<Found> =
            expected.iter().map(|&(word, so_far, limit)| (word.to_owned(), so_far, limit)).collect();
        for _ in 0..100 {
            if self.take(gateway).await == expected {
                break;
            }
            // So that no answer of a flood is passed over.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(self.take(gateway).await, expected);
    }
}

/// Sends a request in the background.
fn ask(gateway: &Running, text: &str, extra: Value) -> JoinHandle<()> {
    let request = gateway.chat(text, extra);
    // Those that hang end when they are dropped.
    tokio::spawn(async move { drop(request.send().await.unwrap().text().await) })
}

/// Two upstreams: the first does as it is told, the second answers those who ask for the model `ends`.
async fn mocks() -> (Mock, Mock) {
    let (mock, ends) = (Mock::start().await, Mock::start().await);
    ends.serve_models(&["ends"]);
    (mock, ends)
}

#[tokio::test]
async fn requests_at_an_upstream_run_until_they_end_and_those_that_wait_or_must_go_on_do_not_count() {
    let (mock, ends) = mocks().await;
    let census = Census::default();
    let gateway = start(config(&[&mock, &ends], 5), census.predictor()).await;
    census.finds(&gateway, &[]).await;
    let mut asked = Vec::new();
    for (act, text, extra) in [
        (Act::HangAfter(4), "streams", json!({ "stream": true, "max_tokens": 70 })),
        (Act::Hang, "whole", json!({ "max_tokens": 80 })),
        (Act::HangAfter(1), "twice", json!({ "stream": true, "n": 2 })),
        (Act::HangAfter(1), "forced", json!({ "stream": true, "max_tokens": 9, "ignore_eos": true })),
        (Act::HangAfter(2), "leaves", json!({ "stream": true, "max_tokens": 90 })),
    ] {
        mock.script([act]);
        asked.push(ask(&gateway, text, extra));
        gateway.until("it is there", async || mock.running() == asked.len()).await;
    }
    mock.always(Act::Hang);
    asked.push(ask(&gateway, "waits", json!({ "stream": true, "max_tokens": 60 })));
    gateway.until_waiting(1).await;
    census.finds(&gateway, &[("leaves", 2, 90), ("streams", 4, 70), ("whole", 0, 80)]).await;
    // Its client leaves, and the next one has its seat.
    asked.remove(4).abort();
    gateway.until_waiting(0).await;
    census.finds(&gateway, &[("streams", 4, 70), ("waits", 0, 60), ("whole", 0, 80)]).await;
    // Whoever learns anew has not heard of those that have ended beside them.
    let anew = Census::default();
    gateway.handle.reload(config(&[&mock, &ends], 6), anew.predictor(), false).await.unwrap();
    mock.script([Act::HangAfter(3)]);
    asked.push(ask(&gateway, "later", json!({ "stream": true, "max_tokens": 50 })));
    anew.finds(&gateway, &[("later", 3, 50)]).await;
    gateway.handle.reload(config(&[&mock, &ends], 6), oracle(), true).await.unwrap();
    anew.finds(&gateway, &[("later", 3, 50)]).await;
    asked.iter().for_each(JoinHandle::abort);
    anew.finds(&gateway, &[]).await;
}

#[tokio::test]
async fn where_the_upstream_orders_a_request_runs_from_its_first_token_on() {
    let (mock, ends) = mocks().await;
    let stamped: UpstreamConfig = format!("{} mode=stamp", mock.url()).parse().unwrap();
    let mut settings = config(&[&mock, &ends], 1);
    settings.upstreams[0] = stamped;
    let census = Census::default();
    let gateway = start(settings, census.predictor()).await;
    let mut asked = Vec::new();
    for (act, text) in [(Act::Hang, "queued"), (Act::HangAfter(2), "streams")] {
        mock.script([act]);
        asked.push(ask(&gateway, text, json!({ "stream": true, "max_tokens": 70 })));
        gateway.until("it is there", async || mock.running() == asked.len()).await;
    }
    census.finds(&gateway, &[("streams", 2, 70)]).await;
    asked.iter().for_each(JoinHandle::abort);
}
