//! Stamp mode: requests go at once, with their deadline as the priority that the engine orders by.

use std::time::Duration;

use outrank_gateway::{GatewayConfig, Mode, UpstreamConfig};
use serde_json::json;

use crate::mock::{Act, Mock};
use crate::support::{config, oracle, start};

fn stamping(mock: &Mock, settings: &str) -> GatewayConfig {
    let upstream: UpstreamConfig = format!("{} mode=stamp {settings}", mock.url()).parse().unwrap();
    GatewayConfig {
        upstreams: vec![upstream],
        mode: Mode::Stamp,
        score_deadline: Duration::from_secs(2),
        ..config(&[mock], 1)
    }
}

#[tokio::test]
async fn everything_is_forwarded_at_once_and_shorter_answers_get_the_better_priority() {
    for (settings, sign) in [("stamp=body", 1), ("stamp=body-higher-first", -1), ("stamp=header", 1)] {
        let mock = Mock::start().await;
        mock.hold();
        let gateway = start(stamping(&mock, settings), oracle()).await;
        let mut asked = Vec::new();
        for (nth, tokens) in [900, 800, 700, 600, 5].into_iter().enumerate() {
            asked.push(gateway.spawn(&format!("Say {tokens}"), &format!("{tokens}")));
            gateway.until("it is there", async || mock.running() == nth + 1).await;
        }
        let seen = mock.seen();
        let priority = |user: &str| -> i64 {
            let seen = seen.iter().find(|seen| seen.body["user"] == user).unwrap();
            let stamped = match settings {
                "stamp=header" => seen.header("x-vllm-priority").map(|value| value.parse().unwrap()),
                _ => seen.body["priority"].as_i64(),
            };
            sign * stamped.unwrap()
        };
        assert!(priority("5") < priority("600"), "{settings}: the short one goes first");
        assert!(priority("900") > priority("5"), "{settings}");
        let now_ms = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
        assert!((priority("5") - now_ms).abs() < 3_600_000, "{settings}: milliseconds of the Unix epoch");
        mock.release();
        for answer in asked {
            assert!(answer.await.unwrap().is_complete(3));
        }
        gateway.idle().await;
    }
}

#[tokio::test]
async fn a_flood_beyond_what_scoring_may_take_goes_by_arrival_unscored_and_counted() {
    const FLOOD: usize = 40;
    let mock = Mock::start().await;
    mock.hold();
    // What is left is spent by the first score.
    let settings = GatewayConfig { max_scoring_cpu_share: f64::MIN_POSITIVE, ..stamping(&mock, "") };
    let gateway = start(settings, oracle()).await;
    let mut asked = Vec::new();
    for nth in 0..=FLOOD {
        // Ever shorter: by their scores the last would go first.
        asked.push(gateway.spawn(&format!("Say {}", 900 - 20 * nth), &format!("{nth}")));
        gateway.until("it is there", async || mock.running() == nth + 1).await;
    }
    let priorities: Vec<i64> =
        mock.seen().iter().map(|seen| seen.body["priority"].as_i64().unwrap()).collect();
    assert!(priorities[1..].is_sorted(), "{priorities:?}");
    mock.release();
    for (nth, answer) in asked.into_iter().enumerate() {
        let answer = answer.await.unwrap();
        assert!(answer.is_complete(3), "{answer:?}");
        assert_eq!(answer.headers.contains_key("x-outrank-predicted-tokens"), nth == 0, "{nth}");
    }
    gateway.idle().await;
    assert_eq!(gateway.metric("outrank_score_latency_seconds_count").await, 1.0);
    assert_eq!(gateway.metric("outrank_unscored_total{reason=\"budget\"}").await, FLOOD as f64);
    for other in ["deadline", "queue_full", "busy"] {
        assert_eq!(
            gateway.metric(&format!("outrank_unscored_total{{reason=\"{other}\"}}")).await,
            0.0,
            "{other}"
        );
    }
}

#[tokio::test]
async fn a_priority_of_the_client_is_replaced() {
    let mock = Mock::start().await;
    let gateway = start(stamping(&mock, "stamp=body"), None).await;
    gateway.chat("Hi", json!({ "priority": -1_000_000_000_000_000_i64 })).send().await.unwrap();
    assert!(mock.seen()[0].body["priority"].as_i64().unwrap() > 0);
    assert_eq!(mock.seen()[0].raw.matches("priority").count(), 1);
    assert_eq!(mock.seen()[0].body["messages"][0]["content"], "Hi");
}

#[tokio::test]
async fn what_the_upstream_orders_can_be_explained_and_is_limited_where_wanted() {
    let mock = Mock::start().await;
    mock.hold();
    let gateway = start(stamping(&mock, "limit=2"), None).await;
    let asked: Vec<_> = (0..2).map(|nth| gateway.spawn("Hi", &format!("{nth}"))).collect();
    gateway.until("both are there", async || mock.running() == 2).await;
    let known: serde_json::Value = gateway.get("/v1/outrank/requests/0").await.json().await.unwrap();
    assert_eq!(known["choices"][0]["status"], "forwarded", "{known}");
    mock.release();
    for answer in asked {
        assert!(answer.await.unwrap().is_complete(3));
    }
    mock.script([Act::CloseBeforeHead, Act::CloseBeforeHead]);
    assert!(gateway.spawn("Hi", "again").await.unwrap().is_complete(3));
    gateway.idle().await;
}
