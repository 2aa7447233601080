//! Several upstreams: who gets what, who comes and goes, and how they are reached.

use std::time::Duration;

use outrank_gateway::{Affinity, GatewayConfig, TlsConfig};
use serde_json::{Value, json};

use crate::mock::{Act, Mock};
use crate::support::{Answer, config, oracle, start};

#[tokio::test]
async fn a_request_goes_where_the_least_work_is_left_and_not_where_the_fewest_requests_are() {
    let (one, two) = (Mock::start().await, Mock::start().await);
    for mock in [&one, &two] {
        mock.hold();
    }
    let gateway = start(config(&[&one, &two], 100), oracle()).await;
    let there = async |requests: usize| {
        gateway.until("it is there", async || one.running() + two.running() == requests).await;
        // Its score comes beside it, and the work is counted anew after a while.
        tokio::time::sleep(Duration::from_millis(80)).await;
    };
    let mut asked = vec![gateway.spawn("Say 2000", "long")];
    there(1).await;
    for nth in 0..6 {
        asked.push(gateway.spawn("Say 20", &format!("{nth}")));
        there(nth + 2).await;
    }
    let mut counts = [one.running(), two.running()];
    counts.sort_unstable();
    assert_eq!(counts, [1, 6], "the long one is alone");
    for mock in [&one, &two] {
        mock.release();
    }
    for answer in asked {
        assert!(answer.await.unwrap().is_complete(3));
    }
}

#[tokio::test]
async fn weights_are_shares_of_the_work() {
    let (one, two) = (Mock::start().await, Mock::start().await);
    for mock in [&one, &two] {
        mock.hold();
    }
    let mut settings = config(&[&one, &two], 100);
    settings.upstreams[1].weight = 3.0;
    let gateway = start(settings, None).await;
    let asked: Vec<_> = (0..40).map(|nth| gateway.spawn("Hi", &format!("{nth}"))).collect();
    gateway.until("all are there", async || one.running() + two.running() == 40).await;
    assert!((29..=31).contains(&two.running()), "{}", two.running());
    for mock in [&one, &two] {
        mock.release();
    }
    for answer in asked {
        assert!(answer.await.unwrap().is_complete(3));
    }
}

#[tokio::test]
async fn a_conversation_stays_with_its_replica_while_that_is_not_much_busier() {
    for affinity in [Affinity::Session, Affinity::Prefix] {
        let mocks = [Mock::start().await, Mock::start().await, Mock::start().await];
        let gateway =
            start(GatewayConfig { affinity, ..config(&[&mocks[0], &mocks[1], &mocks[2]], 4) }, None).await;
        for session in 0..6 {
            let before: Vec<usize> = mocks.iter().map(|mock| mock.seen().len()).collect();
            for _ in 0..4 {
                let request =
                    gateway.chat(&format!("conversation {session}"), json!({ "user": format!("{session}") }));
                assert_eq!(request.send().await.unwrap().status(), 200);
            }
            let news: Vec<usize> =
                mocks.iter().zip(before).map(|(mock, before)| mock.seen().len() - before).collect();
            assert_eq!(news.iter().max(), Some(&4), "{affinity:?}: {news:?}");
        }
        assert!(mocks.iter().filter(|mock| !mock.seen().is_empty()).count() >= 2, "not all in one place");
    }
}

#[tokio::test]
async fn a_watched_file_brings_upstreams_and_takes_them_away() {
    let (one, two) = (Mock::start().await, Mock::start().await);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("upstreams");
    std::fs::write(&path, format!("{}\n", one.url())).unwrap();
    let settings =
        GatewayConfig { upstreams: Vec::new(), upstreams_file: Some(path.clone()), ..config(&[], 4) };
    let gateway = start(settings, None).await;
    assert!(gateway.spawn("Hi", "1").await.unwrap().is_complete(3));
    one.script([Act::Answer { tokens: 30, gap: Duration::from_millis(100) }]);
    let long = gateway.spawn("Hi", "long");
    gateway.until("it is there", async || one.running() == 1).await;
    std::fs::write(&path, "nonsense\n").unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(gateway.spawn("Hi", "2").await.unwrap().is_complete(3), "a broken file changes nothing");
    std::fs::write(&path, format!("# moved\n{} weight=2\n", two.url())).unwrap();
    gateway
        .until("the new one is served by", async || {
            assert!(gateway.spawn("Hi", "3").await.unwrap().is_complete(3));
            !two.seen().is_empty()
        })
        .await;
    assert!(long.await.unwrap().is_complete(30), "what ran at the old one may end");
}

#[tokio::test]
async fn a_name_stands_for_all_its_addresses() {
    let mock = Mock::start().await;
    let mut settings = config(&[&mock], 4);
    settings.upstreams = vec![format!("http://localhost:{} dns=yes", mock.addr.port()).parse().unwrap()];
    let gateway = start(settings, None).await;
    let state: Value = gateway.get("/v1/outrank/upstreams").await.json().await.unwrap();
    let names: Vec<&str> =
        state["upstreams"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert!(names.iter().any(|name| name.ends_with("@127.0.0.1")), "{names:?}");
    assert!(gateway.spawn("Hi", "1").await.unwrap().is_complete(3));
    assert_eq!(mock.seen()[0].header("host"), Some(format!("localhost:{}", mock.addr.port()).as_str()));
}

#[tokio::test]
async fn clients_may_come_over_tls() {
    let mock = Mock::start().await;
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let settings = GatewayConfig { tls: Some(TlsConfig { cert, key: key.clone() }), ..config(&[&mock], 4) };
    let gateway = outrank_gateway::Gateway::bind(settings.clone(), None).await.unwrap();
    let port = gateway.local_addr().port();
    let running = tokio::spawn(gateway.run(std::future::pending()));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let trusted = reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([trusted]).build().unwrap();
    let body = json!({ "model": "m", "stream": true, "messages": [{ "role": "user", "content": "Hi" }] });
    let ask = |url: String| client.post(format!("{url}/v1/chat/completions")).json(&body).send();
    let answer = Answer::of(ask(format!("https://localhost:{port}")).await.unwrap()).await;
    assert!(answer.is_complete(3), "{answer:?}");
    assert!(ask(format!("http://localhost:{port}")).await.is_err(), "plain text is not answered");
    running.abort();
    let missing = TlsConfig { cert: dir.path().join("none.pem"), key };
    let refused =
        outrank_gateway::Gateway::bind(GatewayConfig { tls: Some(missing), ..settings }, None).await;
    assert!(refused.err().unwrap().to_string().contains("none.pem"));
}

#[tokio::test]
async fn the_trace_of_a_client_goes_on_to_the_upstream() {
    let mock = Mock::start().await;
    let gateway = start(config(&[&mock], 1), None).await;
    let came = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    gateway.stream("Hi").header("traceparent", came).header("tracestate", "a=b").send().await.unwrap();
    let seen = &mock.seen()[0];
    let sent = seen.header("traceparent").unwrap();
    assert!(
        sent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && sent.ends_with("-01") && sent != came
    );
    assert_eq!(seen.header("tracestate"), Some("a=b"));
}
