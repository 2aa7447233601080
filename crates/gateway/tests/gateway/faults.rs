//! Upstreams that fail in every way, and clients that leave at every stage: nothing is lost, nothing doubled, nothing leaks.

use std::time::Duration;

use futures_util::StreamExt;
use outrank_gateway::{GatewayConfig, Mode};
use serde_json::{Value, json};

use crate::mock::{Act, Mock};
use crate::support::{Answer, config, start};

/// Acts that fail a request before a byte of an answer has come.
const EARLY: [Act; 5] =
    [Act::CloseBeforeHead, Act::CloseAfterHead, Act::Status(500), Act::Status(502), Act::Busy(503, 0)];

#[tokio::test]
async fn a_request_that_fails_before_the_first_byte_is_answered_elsewhere_once() {
    let (bad, good) = (Mock::start().await, Mock::start().await);
    for mode in [Mode::Hold, Mode::Stamp] {
        let gateway = start(GatewayConfig { mode, ..config(&[&bad, &good], 1) }, None).await;
        for act in EARLY {
            bad.script([act.clone()]);
            let before = (bad.seen().len(), good.seen().len());
            // Two at once, so that one of them goes to each.
            let asked: Vec<_> = (0..2).map(|nth| gateway.spawn("Hi", &format!("{act:?}{nth}"))).collect();
            for answer in asked {
                let answer = answer.await.unwrap();
                assert!(answer.is_complete(3), "{act:?}: {answer:?}");
            }
            gateway.idle().await;
            let sent = bad.seen().len() + good.seen().len() - before.0 - before.1;
            assert_eq!(sent, 3, "{act:?}: one was sent twice");
        }
        // A kept connection that closes instead of an answer may have been closed before the request came: that is no failure.
        let retries = gateway.metric("outrank_retries_total").await;
        assert!((4.0..=5.0).contains(&retries), "{retries}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_in_the_middle_says_so_and_is_not_sent_again() {
    let (bad, other) = (Mock::start().await, Mock::start().await);
    let gateway = start(config(&[&bad, &other], 1), None).await;
    bad.always(Act::CloseAfter(2));
    other.always(Act::CloseAfter(2));
    let answer = Answer::of(gateway.stream("Hi").send().await.unwrap()).await;
    assert_eq!((answer.status, answer.content().as_str()), (200, "t0 t1 "));
    assert_eq!(answer.error().as_deref(), Some("upstream_failed"));
    assert!(answer.whole && !answer.text.contains("[DONE]"));
    assert_eq!(bad.seen().len() + other.seen().len(), 1);
    gateway.idle().await;
    assert_eq!(gateway.metric("outrank_requests_total{outcome=\"failed\"}").await, 1.0);
}

#[tokio::test]
async fn an_upstream_that_hangs_is_given_up_before_and_within_an_answer() {
    let mock = Mock::start().await;
    let settings = GatewayConfig {
        first_byte_timeout: Duration::from_millis(150),
        stall_timeout: Duration::from_millis(150),
        max_retries: 1,
        ..config(&[&mock], 2)
    };
    let gateway = start(settings, None).await;
    mock.script([Act::Hang]);
    assert!(gateway.spawn("Hi", "again").await.unwrap().is_complete(3), "the second attempt is answered");
    mock.script([Act::Hang, Act::Hang]);
    let answer = Answer::of(gateway.stream("Hi").send().await.unwrap()).await;
    assert_eq!((answer.status, answer.error().as_deref()), (504, Some("upstream_timeout")));
    mock.script([Act::HangAfter(2)]);
    let answer = Answer::of(gateway.stream("Hi").send().await.unwrap()).await;
    assert_eq!((answer.content().as_str(), answer.error().as_deref()), ("t0 t1 ", Some("upstream_timeout")));
    gateway.idle().await;
    gateway.until("the hung connections are closed", async || mock.running() == 0).await;
}

#[tokio::test]
async fn a_slow_upstream_is_waited_for_as_long_as_something_comes() {
    let mock = Mock::start().await;
    mock.always(Act::Answer { tokens: 8, gap: Duration::from_millis(60) });
    let settings = GatewayConfig { stall_timeout: Duration::from_millis(200), ..config(&[&mock], 2) };
    let gateway = start(settings, None).await;
    assert!(
        gateway.spawn("Hi", "slow").await.unwrap().is_complete(8),
        "it takes longer than one silence may"
    );
}

#[tokio::test]
async fn malformed_streams_pass_as_they_are_and_count_against_the_upstream() {
    let mock = Mock::start().await;
    let gateway = start(config(&[&mock], 2), None).await;
    for text in [
        "garbage\n\nmore garbage\n\n",
        "data: {\"choices\":[{broken\n\n",
        "data: {\"error\":{\"message\":\"oom\"}}\n\n",
    ] {
        mock.script([Act::Stream(text)]);
        let answer = Answer::of(gateway.stream("Hi").send().await.unwrap()).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, text));
    }
    gateway.idle().await;
    assert_eq!(gateway.metric("outrank_malformed_lines_total").await, 2.0);
    assert_eq!(gateway.metric("outrank_requests_total{outcome=\"failed\"}").await, 2.0);
    assert!(gateway.spawn("Hi", "after").await.unwrap().is_complete(3));
}

#[tokio::test]
async fn requests_wait_while_the_only_upstream_restarts_and_none_is_lost() {
    let mut mock = Mock::start().await;
    let gateway = start(config(&[&mock], 2), None).await;
    mock.hold();
    let asked: Vec<_> = (0..10).map(|nth| gateway.spawn("Hi", &format!("{nth}"))).collect();
    gateway.until_waiting(8).await;
    mock.kill().await;
    gateway.until("it is noticed", async || gateway.get("/health/ready").await.status() == 503).await;
    let refused = Answer::of(gateway.stream("Hi").send().await.unwrap()).await;
    assert_eq!((refused.status, refused.error().as_deref()), (503, Some("no_upstream")));
    assert!(refused.headers.contains_key("retry-after"));
    mock.release();
    mock.revive().await;
    for answer in asked {
        let answer = answer.await.unwrap();
        assert!(answer.is_complete(3), "{answer:?}");
    }
    assert_eq!(gateway.get("/health/ready").await.status(), 200);
}

#[tokio::test]
async fn requests_that_wait_for_an_upstream_that_does_not_come_back_are_told() {
    let mut mock = Mock::start().await;
    let settings = GatewayConfig { outage_wait: Duration::from_millis(300), ..config(&[&mock], 1) };
    let gateway = start(settings, None).await;
    mock.hold();
    let asked: Vec<_> = (0..4).map(|nth| gateway.spawn("Hi", &format!("{nth}"))).collect();
    gateway.until_waiting(3).await;
    mock.kill().await;
    for answer in asked {
        let answer = answer.await.unwrap();
        assert_eq!((answer.status, answer.error().as_deref()), (503, Some("no_upstream")), "{answer:?}");
    }
    gateway.idle().await;
}

#[tokio::test]
async fn an_upstream_that_always_fails_is_ejected_and_tried_again_later() {
    let (bad, good) = (Mock::start().await, Mock::start().await);
    bad.always(Act::Status(500));
    let gateway = start(config(&[&bad, &good], 8), None).await;
    for nth in 0..60 {
        assert!(gateway.spawn("Hi", &format!("{nth}")).await.unwrap().is_complete(3));
    }
    assert!((5..10).contains(&bad.seen().len()), "{}", bad.seen().len());
    let state = async || -> Value { gateway.get("/v1/outrank/upstreams").await.json().await.unwrap() };
    assert_eq!(state().await["upstreams"][0]["breaker"], "open");
    bad.always(Act::tokens(3));
    gateway
        .until("it is trusted again", async || {
            assert!(gateway.spawn("Hi", "again").await.unwrap().is_complete(3));
            state().await["upstreams"][0]["breaker"] == "closed"
        })
        .await;
}

#[tokio::test]
async fn an_upstream_that_has_too_much_is_left_alone_and_its_requests_wait() {
    let mock = Mock::start().await;
    let gateway = start(config(&[&mock], 4), None).await;
    mock.script((0..5).map(|_| Act::Busy(429, 0)));
    let asked: Vec<_> = (0..4).map(|nth| gateway.spawn("Hi", &format!("{nth}"))).collect();
    for answer in asked {
        assert!(answer.await.unwrap().is_complete(3));
    }
    assert_eq!(mock.seen().len(), 9);
}

#[tokio::test]
async fn what_the_upstream_says_of_a_request_is_passed_on_and_so_is_its_last_word() {
    let mock = Mock::start().await;
    let gateway = start(config(&[&mock], 2), None).await;
    mock.script([Act::Status(400), Act::Status(422)]);
    for status in [400, 422] {
        let answer = Answer::of(gateway.stream("Hi").send().await.unwrap()).await;
        assert_eq!((answer.status, answer.text.as_str()), (status, "{\"error\":{\"message\":\"no\"}}"));
    }
    assert_eq!(mock.seen().len(), 2, "it is not the upstream's fault: nothing is sent again");
    mock.script([Act::Status(500), Act::Status(500), Act::Status(500)]);
    let answer = Answer::of(gateway.stream("Hi").send().await.unwrap()).await;
    assert_eq!((answer.status, answer.text.as_str()), (500, "{\"error\":{\"message\":\"no\"}}"));
    assert_eq!(mock.seen().len(), 5);
    gateway.idle().await;
}

#[tokio::test]
async fn a_client_that_vanishes_while_it_waits_leaves_the_queue_and_is_never_sent() {
    let mock = Mock::start().await;
    let gateway = start(config(&[&mock], 1), None).await;
    mock.hold();
    let first = gateway.spawn("Hi", "first");
    gateway.until("one is at the upstream", async || mock.running() == 1).await;
    let waiting: Vec<_> = (0..5).map(|nth| gateway.spawn("Hi", &format!("gone{nth}"))).collect();
    gateway.until_waiting(5).await;
    waiting.into_iter().for_each(|waiting| waiting.abort());
    gateway.until_waiting(0).await;
    mock.release();
    assert!(first.await.unwrap().is_complete(3));
    assert_eq!(mock.users(), ["first"]);
    assert_eq!(gateway.metric("outrank_requests_total{outcome=\"cancelled\"}").await, 5.0);
}

#[tokio::test]
async fn a_client_that_vanishes_before_the_first_byte_frees_its_seat_here_and_there() {
    let mock = Mock::start().await;
    let gateway = start(config(&[&mock], 1), None).await;
    mock.script([Act::Hang]);
    let gone = gateway.spawn("Hi", "gone");
    gateway.until("it is at the upstream", async || mock.running() == 1).await;
    gone.abort();
    gateway.until("the upstream is told", async || mock.running() == 0 && mock.abandoned() == 1).await;
    assert!(gateway.spawn("Hi", "next").await.unwrap().is_complete(3), "the seat is free");
    gateway.idle().await;
}

#[tokio::test]
async fn a_client_that_vanishes_in_mid_stream_frees_its_seat_here_and_there() {
    let mock = Mock::start().await;
    let gateway = start(config(&[&mock], 1), None).await;
    mock.script([Act::Answer { tokens: 10_000, gap: Duration::from_millis(5) }]);
    let mut body = gateway.stream("Hi").send().await.unwrap().bytes_stream();
    body.next().await.unwrap().unwrap();
    drop(body);
    gateway.until("the upstream is told", async || mock.running() == 0 && mock.abandoned() == 1).await;
    assert!(gateway.spawn("Hi", "next").await.unwrap().is_complete(3), "the seat is free");
    assert_eq!(gateway.metric("outrank_requests_total{outcome=\"cancelled\"}").await, 1.0);
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_disconnected_and_frees_its_seat() {
    let mock = Mock::start().await;
    let settings = GatewayConfig { client_timeout: Duration::from_millis(300), ..config(&[&mock], 1) };
    let gateway = start(settings, None).await;
    // More than all buffers between here and there hold.
    mock.script([Act::tokens(400_000)]);
    let response = gateway.stream("Hi").send().await.unwrap();
    gateway.until("the upstream is told", async || mock.running() == 0 && mock.abandoned() == 1).await;
    assert!(gateway.spawn("Hi", "next").await.unwrap().is_complete(3), "the seat is free");
    drop(response);
}

#[tokio::test]
async fn connections_that_the_upstream_closed_meanwhile_cost_no_attempt() {
    let mut mock = Mock::start().await;
    let settings =
        GatewayConfig { max_retries: 0, health_interval: Duration::from_secs(60), ..config(&[&mock], 4) };
    let gateway = start(settings, None).await;
    for round in 0..5 {
        let asked: Vec<_> = (0..4).map(|nth| gateway.spawn("Hi", &format!("{round}{nth}"))).collect();
        for answer in asked {
            assert!(answer.await.unwrap().is_complete(3));
        }
        mock.kill().await;
        mock.revive().await;
    }
    assert_eq!(mock.seen().len(), 20);
}

#[tokio::test]
async fn nothing_is_left_of_a_thousand_requests_of_all_fates() {
    let (one, two) = (Mock::start().await, Mock::start().await);
    let gateway = start(config(&[&one, &two], 4), None).await;
    let fine = Act::tokens(3);
    let acts = [
        fine.clone(),
        Act::CloseAfter(1),
        fine.clone(),
        Act::tokens(9),
        Act::Status(500),
        fine.clone(),
        Act::Status(400),
        Act::CloseBeforeHead,
        fine.clone(),
        fine,
    ];
    for mock in [&one, &two] {
        mock.script(acts.iter().cycle().take(600).cloned());
    }
    let mut asked = Vec::new();
    for nth in 0..1000 {
        let asking = gateway.spawn("Hi", &format!("{nth}"));
        match nth % 7 {
            3 => asking.abort(),
            _ => asked.push(asking),
        }
        if nth % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for asking in asked {
        let answer = asking.await.unwrap();
        assert!(answer.status != 200 || answer.whole, "{answer:?}");
    }
    gateway.idle().await;
    let state: Value = gateway.get("/v1/outrank/upstreams").await.json().await.unwrap();
    for upstream in state["upstreams"].as_array().unwrap() {
        assert_eq!((&upstream["in_flight"], &upstream["work_tokens"]), (&json!(0), &json!(0.0)), "{state}");
    }
    let outcomes = ["completed", "failed", "cancelled", "rejected"]
        .map(|outcome| format!("outrank_requests_total{{outcome=\"{outcome}\"}}"));
    let mut all = 0.0;
    for outcome in &outcomes {
        all += gateway.metric(outcome).await;
    }
    assert!((850.0..=1000.0).contains(&all), "each is counted once: {all}");
}
