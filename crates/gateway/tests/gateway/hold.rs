//! Hold mode: requests wait here, in order, and a window of them is at each upstream.

use std::time::Duration;

use outrank_gateway::{GatewayConfig, WindowConfig};
use serde_json::{Value, json};

use crate::mock::{Act, Mock};
use crate::support::{Answer, config, oracle, start};

#[tokio::test]
async fn an_answer_passes_through_byte_for_byte_streamed_and_whole() {
    let mock = Mock::start().await;
    let gateway = start(config(&[&mock], 4), None).await;
    let body = r#"{"model": "m" , "messages":[{"role":"user","content":"Hi é"}],"temperature":0.70,"odd":[1,{"a":null}]}"#;
    let direct = |url: String| {
        let request = gateway.client.post(format!("{url}/v1/chat/completions"));
        request.header("content-type", "application/json").header("x-mine", "kept").body(body)
    };
    let through = Answer::of(direct(gateway.url.clone()).send().await.unwrap()).await;
    let there = Answer::of(direct(mock.url()).send().await.unwrap()).await;
    assert_eq!((through.status, &through.text), (200, &there.text));
    assert_eq!(through.headers["content-type"], "application/json");
    let seen = &mock.seen()[0];
    assert_eq!(seen.raw, body, "the body is not touched");
    assert_eq!(
        (seen.header("x-mine"), seen.header("host")),
        (Some("kept"), Some(mock.addr.to_string().as_str()))
    );
    let through = Answer::of(gateway.stream("Hi").send().await.unwrap()).await;
    assert!(through.is_complete(3), "{through:?}");
    assert_eq!(through.headers["x-accel-buffering"], "no");
    gateway.idle().await;
    assert_eq!(gateway.metric("outrank_requests_total{outcome=\"completed\"}").await, 2.0);
    assert_eq!(gateway.metric("outrank_generation_tokens_total").await, 6.0);
    assert_eq!(gateway.metric("outrank_prompt_tokens_total").await, 4.0, "what the usage said");
}

#[tokio::test]
async fn no_more_than_the_window_are_at_the_upstream_and_all_are_answered() {
    let mock = Mock::start().await;
    mock.always(Act::Answer { tokens: 4, gap: Duration::from_millis(5) });
    let gateway = start(config(&[&mock], 3), None).await;
    let asked: Vec<_> = (0..60).map(|nth| gateway.spawn("Hi", &format!("r{nth}"))).collect();
    for answer in asked {
        assert!(answer.await.unwrap().is_complete(4));
    }
    assert_eq!(mock.most_running(), 3, "no more than the window, and no seat was idle");
    assert_eq!(mock.seen().len(), 60, "nothing lost and nothing doubled");
}

/// What an upstream that can do all at once, and says that it has so many seats, had to do at most of 160 requests, and whether it
/// is still believed.
async fn flooded(slots: Option<u32>, ask_seats: bool, streamed: bool) -> (usize, bool) {
    let mock = Mock::start().await;
    mock.always(Act::Answer { tokens: 4, gap: Duration::from_millis(20) });
    if let Some(slots) = slots {
        mock.say_slots(slots);
    }
    let settings = GatewayConfig { window: WindowConfig::default(), ask_seats, ..config(&[&mock], 1) };
    let gateway = start(settings, None).await;
    let seats = async || -> Value {
        let state: Value = gateway.get("/v1/outrank/upstreams").await.json().await.unwrap();
        state["upstreams"][0]["seats"].clone()
    };
    if slots.is_some() && ask_seats {
        gateway.until("it was asked", async || seats().await == slots.unwrap()).await;
    }
    let asked: Vec<_> =
        (0..160).map(|_| tokio::spawn(gateway.chat("Hi", json!({ "stream": streamed })).send())).collect();
    for answer in asked {
        assert_eq!(Answer::of(answer.await.unwrap().unwrap()).await.status, 200);
    }
    (mock.most_running(), !seats().await.is_null())
}

#[tokio::test]
async fn a_window_that_is_auto_ends_one_above_the_seats_that_the_engine_says_it_has() {
    assert_eq!(flooded(Some(7), true, false).await, (8, true));
    for (slots, ask_seats) in [(None, true), (Some(7), false)] {
        let (most, believed) = flooded(slots, ask_seats, false).await;
        assert!(most > 8 && !believed, "{slots:?} {ask_seats}: {most}");
    }
}

#[tokio::test]
async fn seats_are_not_believed_where_more_answers_are_streamed_at_once() {
    let (most, believed) = flooded(Some(7), true, true).await;
    assert!(most > 8 && !believed, "{most}");
}

#[tokio::test]
async fn short_answers_go_before_long_ones_that_came_first() {
    let mock = Mock::start().await;
    let gateway = start(config(&[&mock], 1), oracle()).await;
    mock.hold();
    let mut asked = vec![gateway.spawn("first 10", "first")];
    gateway.until("one is at the upstream", async || mock.running() == 1).await;
    for (nth, tokens) in [900, 800, 5, 700, 6].into_iter().enumerate() {
        asked.push(gateway.spawn(&format!("Say {tokens}"), &format!("{tokens}")));
        gateway.until_waiting(nth + 1).await;
    }
    gateway
        .until("all are scored", async || gateway.metric("outrank_score_latency_seconds_count").await == 6.0)
        .await;
    mock.release();
    for answer in asked {
        assert!(answer.await.unwrap().is_complete(3));
    }
    let users = mock.users();
    assert_eq!(users[0], "first");
    let place = |user: &str| users.iter().position(|it| it == user).unwrap();
    assert!(place("5") <= 2 && place("6") <= 2, "{users:?}");
    assert!(place("700") < place("800") && place("800") < place("900"), "{users:?}");
}

#[tokio::test]
async fn without_a_ranker_or_with_fcfs_the_order_is_that_of_arrival() {
    for (policy, predictor) in [("outrank", None), ("fcfs", oracle())] {
        let mock = Mock::start().await;
        let settings = GatewayConfig { policy: policy.into(), ..config(&[&mock], 1) };
        let gateway = start(settings, predictor).await;
        mock.hold();
        let mut asked = vec![gateway.spawn("first 10", "first")];
        gateway.until("one is at the upstream", async || mock.running() == 1).await;
        for nth in 0..8usize {
            asked.push(gateway.spawn(&format!("Say {}", 900 - 100 * nth), &format!("{nth}")));
            gateway.until_waiting(nth + 1).await;
        }
        mock.release();
        for answer in asked {
            assert!(answer.await.unwrap().is_complete(3));
        }
        assert_eq!(mock.users()[1..], ["0", "1", "2", "3", "4", "5", "6", "7"].map(String::from), "{policy}");
    }
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_says_when_to_come_again() {
    let mock = Mock::start().await;
    let gateway = start(GatewayConfig { max_queue_requests: 2, ..config(&[&mock], 1) }, None).await;
    mock.hold();
    let accepted: Vec<_> = (0..3).map(|nth| gateway.spawn("Hi", &format!("{nth}"))).collect();
    gateway.until_waiting(2).await;
    let refused = gateway.stream("Hi").send().await.unwrap();
    let retry: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    let refused = Answer::of(refused).await;
    assert_eq!((refused.status, refused.error().as_deref()), (429, Some("queue_full")));
    assert!((1..=60).contains(&retry));
    mock.release();
    for answer in accepted {
        assert!(answer.await.unwrap().is_complete(3), "what was accepted is answered");
    }
    assert_eq!(gateway.metric("outrank_rejections_total{reason=\"queue_full\"}").await, 1.0);
}

#[tokio::test]
async fn a_request_is_told_where_it_stands_and_why() {
    let mock = Mock::start().await;
    let gateway = start(config(&[&mock], 1), oracle()).await;
    mock.hold();
    let first = gateway.spawn("first 10", "first");
    gateway.until("one is at the upstream", async || mock.running() == 1).await;
    let second = gateway.spawn("Say 50", "second/one");
    gateway.until_waiting(1).await;
    let known = async |id: &str| -> Value {
        gateway.get(&format!("/v1/outrank/requests/{id}")).await.json().await.unwrap()
    };
    gateway
        .until("it is scored", async || {
            !known("second/one").await["choices"][0]["predicted_tokens"].is_null()
        })
        .await;
    let waiting = known("second%2Fone").await;
    let choice = &waiting["choices"][0];
    assert_eq!((&choice["status"], &choice["predicted_tokens"]["median"]), (&json!("waiting"), &json!(50.0)));
    assert!(choice["schedule"]["why"].as_str().unwrap().contains("predicted to come"), "{waiting}");
    assert!(choice["schedule"]["eta_finish_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(known("first").await["choices"][0]["status"], "running");
    mock.release();
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert!(first.is_complete(3) && second.is_complete(3));
    assert_eq!(
        (&first.headers["x-outrank-position"], &second.headers["x-outrank-position"]),
        (&"0".parse().unwrap(), &"0".parse().unwrap())
    );
    assert_eq!(second.headers["x-outrank-predicted-tokens"], "50");
    assert_eq!(second.headers["x-request-id"], "second/one");
    let ended = known("second/one").await;
    assert_eq!((&ended["status"], &ended["choices"][0]["output_tokens"]), (&json!("finished"), &json!(3)));
    assert_eq!(gateway.get("/v1/outrank/requests/nobody").await.status(), 404);
}

#[tokio::test]
async fn a_deadline_ends_a_request_that_still_waits_and_one_that_runs() {
    let mock = Mock::start().await;
    let gateway = start(config(&[&mock], 1), None).await;
    mock.hold();
    let running = gateway.spawn("Hi", "running");
    gateway.until("one is at the upstream", async || mock.running() == 1).await;
    let waiting = gateway.stream("Hi").header("x-outrank-timeout-ms", "100").send().await.unwrap();
    let waiting = Answer::of(waiting).await;
    assert_eq!((waiting.status, waiting.error().as_deref()), (504, Some("deadline_exceeded")));
    assert_eq!(gateway.waiting().await, 0.0);
    mock.release();
    assert!(running.await.unwrap().is_complete(3));
    mock.script([Act::HangAfter(2)]);
    let cut = gateway.stream("Hi").header("x-outrank-timeout-ms", "200").send().await.unwrap();
    let cut = Answer::of(cut).await;
    assert_eq!((cut.content().as_str(), cut.error().as_deref()), ("t0 t1 ", Some("deadline_exceeded")));
    let odd = gateway.stream("Hi").header("x-outrank-timeout-ms", "soon").send().await.unwrap();
    assert_eq!(odd.status(), 400);
    gateway.idle().await;
}

#[tokio::test]
async fn models_are_those_of_the_upstreams_and_requests_go_where_theirs_is_served() {
    let (one, two) = (Mock::start().await, Mock::start().await);
    two.serve_models(&["other/model"]);
    let gateway = start(config(&[&one, &two], 4), None).await;
    gateway
        .until("both are known", async || {
            let models: Value = gateway.get("/v1/models").await.json().await.unwrap();
            models["data"].as_array().unwrap().len() == 2
        })
        .await;
    for _ in 0..5 {
        assert_eq!(gateway.stream("Hi").send().await.unwrap().status(), 200);
        let other = gateway.chat("Hi", json!({ "model": "other/model" })).send().await.unwrap();
        assert_eq!(other.status(), 200);
    }
    assert_eq!((one.seen().len(), two.seen().len()), (5, 5));
    assert!(two.seen().iter().all(|seen| seen.body["model"] == "other/model"));
    assert_eq!(gateway.get("/v1/models/other%2Fmodel").await.status(), 200);
    assert_eq!(gateway.get("/v1/models/none").await.status(), 404);
}
