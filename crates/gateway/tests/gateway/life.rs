//! Draining, reloading, rankers that fail, and the journal.

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use outrank_core::Score;
use outrank_gateway::{GatewayConfig, JournalConfig, TenantConfig};
use outrank_ranker::Example;
use outrank_ranker::features::Scratch;
use serde_json::Value;

use crate::mock::{Act, Mock};
use crate::support::{Answer, config, oracle, start};

#[tokio::test]
async fn a_drain_under_load_finishes_all_that_was_accepted_and_refuses_the_rest() {
    let mock = Mock::start().await;
    mock.always(Act::Answer { tokens: 5, gap: Duration::from_millis(10) });
    let mut gateway = start(config(&[&mock], 4), None).await;
    let asked: Vec<_> = (0..40).map(|nth| gateway.spawn("Hi", &format!("{nth}"))).collect();
    gateway.until("many wait", async || gateway.waiting().await > 20.0).await;
    gateway.signal();
    gateway
        .until("new ones are refused", async || {
            let late = gateway.stream("Hi").send().await;
            late.is_ok_and(|late| late.status() == 503 && late.headers().contains_key("retry-after"))
        })
        .await;
    for answer in asked {
        assert!(answer.await.unwrap().is_complete(5));
    }
    assert_eq!(gateway.ended().await.abandoned_requests, 0);
}

#[tokio::test]
async fn a_drain_that_takes_too_long_gives_up_the_rest_and_tells_their_clients() {
    let mock = Mock::start().await;
    mock.always(Act::HangAfter(1));
    let settings = GatewayConfig { drain_timeout: Duration::from_millis(300), ..config(&[&mock], 2) };
    let mut gateway = start(settings, None).await;
    let asked: Vec<_> = (0..5).map(|nth| gateway.spawn("Hi", &format!("{nth}"))).collect();
    gateway.until_waiting(3).await;
    gateway.until("two run", async || mock.running() == 2).await;
    let started = Instant::now();
    gateway.signal();
    for answer in asked {
        let answer = answer.await.unwrap();
        assert_eq!(answer.error().as_deref(), Some("shutting_down"), "{answer:?}");
        assert!(answer.status == 503 || (answer.status == 200 && answer.content() == "t0 "));
    }
    assert_eq!(gateway.ended().await.abandoned_requests, 5);
    assert!(started.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn reloads_under_load_change_keys_and_upstreams_and_drop_nothing() {
    let (one, two) = (Mock::start().await, Mock::start().await);
    for mock in [&one, &two] {
        mock.always(Act::Answer { tokens: 5, gap: Duration::from_millis(4) });
    }
    let with_key = |key: &str, mock: &Mock| GatewayConfig {
        tenants: vec![TenantConfig::with_key("a", key), TenantConfig::with_key("b", "stays")],
        ..config(&[mock], 4)
    };
    let gateway = crate::support::start_with_key(with_key("old", &one), oracle(), "old").await;
    let ask = |key: &str| {
        let request = gateway.stream("Say 5").bearer_auth(key);
        tokio::spawn(async move { Answer::of(request.send().await.unwrap()).await })
    };
    let mut asked: Vec<_> = (0..40).map(|_| ask("stays")).collect();
    gateway.until("many wait", async || gateway.waiting().await > 20.0).await;
    for round in 0..6 {
        let (key, mock) = if round % 2 == 0 { ("new", &two) } else { ("old", &one) };
        gateway.handle.reload(with_key(key, mock), oracle(), false).await.unwrap();
        asked.extend((0..10).map(|_| ask("stays")));
        let (right, wrong) = if round % 2 == 0 { ("new", "old") } else { ("old", "new") };
        assert_eq!(ask(wrong).await.unwrap().status, 401, "a revoked key is refused at once");
        assert!(ask(right).await.unwrap().is_complete(5), "its lane is empty, so its turn comes soon");
    }
    for answer in asked {
        let answer = answer.await.unwrap();
        assert!(answer.is_complete(5), "{answer:?}");
    }
    assert_eq!(one.seen().len() + two.seen().len(), 40 + 60 + 6);
    assert!(!one.seen().is_empty() && !two.seen().is_empty());
}

#[tokio::test]
async fn settings_that_cannot_be_used_change_nothing() {
    let mock = Mock::start().await;
    let gateway = start(config(&[&mock], 1), None).await;
    let bad = GatewayConfig { policy: "lottery".into(), ..config(&[&mock], 1) };
    assert!(gateway.handle.reload(bad, None, false).await.unwrap_err().to_string().contains("lottery"));
    let bad = GatewayConfig { upstreams_file: Some("/nonexistent".into()), ..config(&[&mock], 1) };
    assert!(gateway.handle.reload(bad, None, false).await.is_err());
    assert!(gateway.spawn("Hi", "after").await.unwrap().is_complete(3));
}

#[tokio::test]
async fn a_slow_ranker_delays_nobody_and_a_panicking_one_fails_nobody() {
    let slow = |_: &str| {
        std::thread::sleep(Duration::from_secs(2));
        Score::new(9.0, 0.5).ok()
    };
    let panicking = |_: &str| -> Option<Score> { panic!("the ranker is broken") };
    for predictor in [Box::new(slow) as Box<dyn outrank_http::Predictor>, Box::new(panicking)] {
        let mock = Mock::start().await;
        let gateway = start(config(&[&mock], 2), Some(predictor)).await;
        let started = Instant::now();
        let asked: Vec<_> = (0..20).map(|nth| gateway.spawn("Hi", &format!("{nth}"))).collect();
        for answer in asked {
            assert!(answer.await.unwrap().is_complete(3));
        }
        assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
        // A reload puts a new one in the place of a dead one, whatever is asked to be kept.
        gateway.handle.reload(config(&[&mock], 2), oracle(), true).await.unwrap();
    }
}

/// A journal with features and without prompts.
fn journal_at(path: &Path) -> JournalConfig {
    JournalConfig {
        path: path.to_owned(),
        max_file_bytes: 1 << 20,
        max_files: 2,
        prompts: false,
        features: true,
    }
}

#[tokio::test]
async fn every_answer_is_a_line_of_the_journal_and_prompts_only_where_wanted() {
    for prompts in [false, true] {
        let (mock, dir) = (Mock::start().await, tempfile::tempdir().unwrap());
        let path = dir.path().join("journal.jsonl");
        let journal = JournalConfig { prompts, features: !prompts, ..journal_at(&path) };
        let gateway = start(GatewayConfig { journal: Some(journal), ..config(&[&mock], 2) }, oracle()).await;
        for nth in 0..4 {
            assert!(gateway.spawn("my secret 77", &format!("{nth}")).await.unwrap().is_complete(3));
        }
        gateway
            .until("all are written", async || gateway.metric("outrank_journal_lines_total").await == 4.0)
            .await;
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!((text.lines().count(), text.contains("secret")), (4, prompts));
        let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(
            (&line["output_tokens"], &line["outcome"], &line["class"]),
            (&3.into(), &"completed".into(), &"default".into())
        );
        assert!(line["e2e_s"].as_f64().unwrap() > 0.0 && line["arrival_s"].as_f64().unwrap() > 1.7e9);
        let features =
            line.get("features").map(|it| Example::unpack(it.as_str().unwrap(), 3, false).unwrap());
        let scored = Example::new(&mut Scratch::new(), "my secret 77", 3, false);
        assert_eq!(features, (!prompts).then_some(scored));
    }
}

#[tokio::test]
async fn a_client_that_leaves_within_its_answer_is_a_line_that_says_how_far_it_came() {
    let (mock, dir) = (Mock::start().await, tempfile::tempdir().unwrap());
    let path = dir.path().join("journal.jsonl");
    let gateway =
        start(GatewayConfig { journal: Some(journal_at(&path)), ..config(&[&mock], 2) }, oracle()).await;
    mock.script([Act::Answer { tokens: 10_000, gap: Duration::from_millis(5) }]);
    let mut body = gateway.stream("Hi").send().await.unwrap().bytes_stream();
    for _ in 0..3 {
        body.next().await.unwrap().unwrap();
    }
    drop(body);
    gateway.until("it is written", async || gateway.metric("outrank_journal_lines_total").await == 1.0).await;
    let line: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!((&line["outcome"], &line["truncated"]), (&"cancelled".into(), &false.into()));
    assert!((2..1000).contains(&line["output_tokens"].as_u64().unwrap()), "{line}");
    assert!(line["features"].is_string());
}

#[tokio::test]
async fn a_full_disk_costs_the_journal_its_lines_and_nobody_an_answer() {
    let mock = Mock::start().await;
    let journal = JournalConfig {
        path: "/dev/full".into(),
        max_file_bytes: 1 << 30,
        max_files: 1,
        prompts: false,
        features: true,
    };
    let gateway = start(GatewayConfig { journal: Some(journal), ..config(&[&mock], 2) }, None).await;
    for nth in 0..5 {
        assert!(gateway.spawn("Hi", &format!("{nth}")).await.unwrap().is_complete(3));
    }
    gateway
        .until("it is counted", async || gateway.metric("outrank_journal_errors_total").await >= 2.0)
        .await;
    assert_eq!(gateway.metric("outrank_journal_lines_total").await, 0.0);
}

#[tokio::test]
async fn in_shadow_mode_the_order_is_that_of_arrival_and_savings_are_counted() {
    let mock = Mock::start().await;
    // What is said of the lengths is far too much.
    let max_wait = Duration::from_secs(3600);
    let gateway = start(GatewayConfig { shadow: true, max_wait, ..config(&[&mock], 1) }, oracle()).await;
    mock.hold();
    let mut asked = vec![gateway.spawn("first 10", "first")];
    gateway.until("one is at the upstream", async || mock.running() == 1).await;
    for (nth, tokens) in [900, 5].into_iter().enumerate() {
        asked.push(gateway.spawn(&format!("Say {tokens}"), &format!("{tokens}")));
        gateway.until_waiting(nth + 1).await;
    }
    mock.release();
    for answer in asked {
        assert!(answer.await.unwrap().is_complete(3));
    }
    assert_eq!(mock.users(), ["first", "900", "5"]);
    // A batch to replay: long ones first, each 12 ms on one seat.
    mock.always(Act::Answer { tokens: 3, gap: Duration::from_millis(1) });
    let asked: Vec<_> = (0..600)
        .map(|nth| gateway.spawn(&format!("Say {}", if nth % 5 == 0 { 900 } else { 4 }), &format!("{nth}")))
        .collect();
    for answer in asked {
        assert!(answer.await.unwrap().is_complete(3));
    }
    let saved = async || gateway.metric("outrank_shadow_saved_seconds").await;
    gateway.until("a batch has been replayed", async || saved().await != 0.0).await;
}
