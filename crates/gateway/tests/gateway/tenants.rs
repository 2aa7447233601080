//! Who may ask, how much, and how tenants share.

use std::time::{Duration, Instant};

use outrank_gateway::{Class, GatewayConfig, TenantConfig};
use serde_json::json;

use crate::mock::{Act, Mock};
use crate::support::{Answer, Running, config, oracle, start};

async fn start_with(tenants: Vec<TenantConfig>, mock: &Mock, window: u32) -> Running {
    let settings = GatewayConfig { tenants, ..config(&[mock], window) };
    crate::support::start_with_key(settings, oracle(), "key-a").await
}

fn two() -> Vec<TenantConfig> {
    vec![TenantConfig::with_key("a", "key-a"), TenantConfig::with_key("b", "key-b")]
}

fn ask(gateway: &Running, key: &str, text: &str, user: &str) -> tokio::task::JoinHandle<Answer> {
    let request = gateway.chat(text, json!({ "stream": true, "user": user })).bearer_auth(key);
    tokio::spawn(async move { Answer::of(request.send().await.unwrap()).await })
}

#[tokio::test]
async fn only_those_with_a_key_are_served_and_the_upstream_never_sees_it() {
    let mock = Mock::start().await;
    let gateway = start_with(two(), &mock, 4).await;
    for wrong in ["key-A", "key-", "key-a x", "key-aa", "", &"x".repeat(4000)] {
        let answer = ask(&gateway, wrong, "Hi", "x").await.unwrap();
        assert_eq!((answer.status, answer.error().as_deref()), (401, Some("invalid_api_key")), "{wrong}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
    }
    let none = gateway.client.post(format!("{}/v1/chat/completions", gateway.url)).send().await.unwrap();
    assert_eq!(none.status(), 401);
    for path in ["/v1/models", "/v1/outrank/requests/x", "/v1/outrank/upstreams"] {
        assert_eq!(
            gateway.client.get(format!("{}{path}", gateway.url)).send().await.unwrap().status(),
            401,
            "{path}"
        );
    }
    assert!(ask(&gateway, "key-b", "Hi", "b").await.unwrap().is_complete(3));
    assert_eq!(mock.seen().len(), 1);
    assert_eq!(mock.seen()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_with_or_without_a_right_key() {
    let mock = Mock::start().await;
    let settings = GatewayConfig { tenants: two(), max_body_bytes: 1000, ..config(&[&mock], 1) };
    let gateway = crate::support::start_with_key(settings, None, "key-a").await;
    let long = "x".repeat(2000);
    assert_eq!(ask(&gateway, "key-a", &long, "a").await.unwrap().status, 413);
    assert_eq!(ask(&gateway, "wrong", &long, "a").await.unwrap().status, 401);
    assert!(mock.seen().is_empty());
}

#[tokio::test]
async fn limits_are_those_of_the_tenant_alone() {
    let mock = Mock::start().await;
    let limited = TenantConfig { max_requests_per_minute: Some(3), ..TenantConfig::with_key("a", "key-a") };
    let narrow = TenantConfig { max_concurrent_requests: Some(2), ..TenantConfig::with_key("b", "key-b") };
    let gateway = start_with(vec![limited, narrow, TenantConfig::with_key("c", "key-c")], &mock, 8).await;
    for nth in 0..5 {
        let answer = ask(&gateway, "key-a", "Hi", "a").await.unwrap();
        let expected = if nth < 3 { 200 } else { 429 };
        assert_eq!(answer.status, expected, "{answer:?}");
        assert_eq!(answer.headers.contains_key("retry-after"), expected == 429);
    }
    mock.hold();
    let held: Vec<_> = (0..2).map(|_| ask(&gateway, "key-b", "Hi", "b")).collect();
    gateway.until("both are there", async || mock.running() == 2).await;
    let answer = ask(&gateway, "key-b", "Hi", "b").await.unwrap();
    assert_eq!((answer.status, answer.error().as_deref()), (429, Some("too_many_at_once")));
    let other = ask(&gateway, "key-c", "Hi", "c");
    gateway.until("the other tenant is served", async || mock.running() == 3).await;
    mock.release();
    for answer in held.into_iter().chain([other]) {
        assert!(answer.await.unwrap().is_complete(3));
    }
    assert!(ask(&gateway, "key-b", "Hi", "b").await.unwrap().is_complete(3), "its requests have ended");
}

#[tokio::test]
async fn a_tenant_that_sends_ten_times_as_much_does_not_slow_the_other() {
    let mock = Mock::start().await;
    mock.always(Act::Answer { tokens: 4, gap: Duration::from_millis(5) });
    let gateway = start_with(two(), &mock, 4).await;
    // What the quiet tenant has alone, with half the seats.
    let alone = async |flood: usize| {
        let floods: Vec<_> =
            (0..flood).map(|nth| ask(&gateway, "key-a", "Say 4", &format!("a{nth}"))).collect();
        if flood > 0 {
            gateway.until("the flood is here", async || gateway.waiting().await > flood as f64 / 2.0).await;
        }
        let started = Instant::now();
        let mut quiet = Vec::new();
        for round in 0..10 {
            let pair: Vec<_> =
                (0..2).map(|nth| ask(&gateway, "key-b", "Say 4", &format!("b{round}{nth}"))).collect();
            for answer in pair {
                assert!(answer.await.unwrap().is_complete(4));
            }
            quiet.push(started.elapsed());
        }
        let took = started.elapsed();
        for flood in floods {
            assert!(flood.await.unwrap().is_complete(4));
        }
        took.as_secs_f64()
    };
    let quiet_s = alone(0).await;
    let flooded_s = alone(400).await;
    // In the worst case each of its requests waits for one of the other's to end: twice as long, and not a hundred times.
    assert!(flooded_s < 2.6 * quiet_s, "{quiet_s} alone, {flooded_s} beside the flood");
}

#[tokio::test]
async fn the_flood_of_one_tenant_leaves_room_in_the_queue_for_the_other() {
    let mock = Mock::start().await;
    let settings = GatewayConfig { tenants: two(), max_queue_requests: 12, ..config(&[&mock], 1) };
    let gateway = crate::support::start_with_key(settings, None, "key-a").await;
    mock.hold();
    let flood: Vec<_> = (0..30).map(|nth| ask(&gateway, "key-a", "Hi", &format!("a{nth}"))).collect();
    gateway
        .until("some are refused", async || {
            gateway.metric("outrank_rejections_total{reason=\"tenant_queue_full\"}").await > 15.0
        })
        .await;
    let other = ask(&gateway, "key-b", "Hi", "b");
    gateway.until("the other waits too", async || gateway.waiting().await >= 9.0).await;
    mock.release();
    assert!(other.await.unwrap().is_complete(3));
    for answer in flood {
        let answer = answer.await.unwrap();
        assert!(
            answer.is_complete(3) || answer.error().as_deref() == Some("tenant_queue_full"),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn batch_work_lets_others_by_and_a_tenant_gets_no_better_class_than_it_may() {
    let mock = Mock::start().await;
    let bulk = TenantConfig {
        class: Class::Batch,
        best_class: Class::Batch,
        ..TenantConfig::with_key("a", "key-a")
    };
    let settings = GatewayConfig {
        tenants: vec![bulk],
        batch_delay_s: 60.0,
        policy: "fcfs".into(),
        ..config(&[&mock], 1)
    };
    let gateway = crate::support::start_with_key(settings, None, "key-a").await;
    mock.hold();
    let send = |user: &str, class: &str| {
        let request = gateway.chat("Hi", json!({ "stream": true, "user": user })).bearer_auth("key-a");
        let request = request.header("x-outrank-class", class).header("x-request-id", user);
        tokio::spawn(async move { Answer::of(request.send().await.unwrap()).await })
    };
    let mut asked = vec![send("first", "batch")];
    gateway.until("one is there", async || mock.running() == 1).await;
    for (nth, (user, class)) in
        [("1", "interactive"), ("2", "batch"), ("3", "default")].into_iter().enumerate()
    {
        asked.push(send(user, class));
        let batch = "outrank_queue_depth{class=\"batch\"}";
        gateway
            .until("it waits as batch work", async || gateway.metric(batch).await == (nth + 1) as f64)
            .await;
    }
    mock.release();
    for answer in asked {
        assert!(answer.await.unwrap().is_complete(3));
    }
    assert_eq!(mock.users(), ["first", "1", "2", "3"], "asking for a better class gains nothing");
    let odd = gateway
        .chat("Hi", json!({}))
        .bearer_auth("key-a")
        .header("x-outrank-class", "vip")
        .send()
        .await
        .unwrap();
    assert_eq!(odd.status(), 400);
}

#[tokio::test]
async fn interactive_requests_pass_batch_work_that_came_first() {
    let mock = Mock::start().await;
    let gateway = start(GatewayConfig { batch_delay_s: 60.0, ..config(&[&mock], 1) }, None).await;
    mock.hold();
    let send = |user: &str, class: &str| {
        let request =
            gateway.chat("Hi", json!({ "stream": true, "user": user })).header("x-outrank-class", class);
        tokio::spawn(async move { Answer::of(request.send().await.unwrap()).await })
    };
    let mut asked = vec![send("first", "batch")];
    gateway.until("one is there", async || mock.running() == 1).await;
    asked.push(send("bulk", "batch"));
    gateway
        .until("it waits", async || gateway.metric("outrank_queue_depth{class=\"batch\"}").await == 1.0)
        .await;
    asked.push(send("person", "interactive"));
    gateway
        .until("it waits", async || gateway.metric("outrank_queue_depth{class=\"interactive\"}").await == 1.0)
        .await;
    mock.release();
    for answer in asked {
        assert!(answer.await.unwrap().is_complete(3));
    }
    assert_eq!(mock.users(), ["first", "person", "bulk"]);
}
