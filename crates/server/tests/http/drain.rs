//! Start and shutdown.

use std::sync::Arc;
use std::time::Duration;

use outrank_server::{Server, ServerConfig};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::scripted::{Script, Scripted};
use crate::support::{chunks, error_code, events, eventually, serve, serve_default};

#[tokio::test]
async fn shutdown_refuses_new_requests_and_lets_the_running_ones_finish() {
    let mut server = serve_default().await;
    assert_eq!(server.get("/health/ready").await.status(), 200);
    server.engine.hold();
    let running = server.chat(json!({ "stream": true })).await;
    server.signal();
    eventually("it is not ready any more", || async { server.get("/health/ready").await.status() == 503 })
        .await;
    assert_eq!(error_code(server.chat(json!({})).await, 503).await, "shutting_down");
    assert_eq!(server.get("/health/live").await.status(), 200, "it still lives");
    server.engine.release();
    assert_eq!(chunks(running).await.len(), 7);
    assert_eq!(server.ended().await.abandoned_requests, 0);
}

#[tokio::test]
async fn a_request_that_was_being_read_when_the_shutdown_came_is_served() {
    let mut server = serve_default().await;
    let mut client = tokio::net::TcpStream::connect(server.url.trim_start_matches("http://")).await.unwrap();
    let body = json!({ "model": "test", "prompt": "Hi" }).to_string();
    let (first, second) = body.split_at(10);
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{first}",
        body.len()
    );
    client.write_all(head.as_bytes()).await.unwrap();
    // Its headers must have been read before the shutdown.
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.signal();
    eventually("it is not ready any more", || async { server.get("/health/ready").await.status() == 503 })
        .await;
    client.write_all(second.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(server.ended().await.abandoned_requests, 0);
}

#[tokio::test]
async fn requests_that_outlast_the_drain_timeout_are_told_and_given_up() {
    let config = ServerConfig { drain_timeout_s: 0, ..ServerConfig::default() };
    let mut server = serve(Script::default(), config, None).await;
    server.engine.hold();
    let running = server.chat(json!({ "stream": true })).await;
    server.signal();
    let events = events(running).await;
    assert!(events.last().unwrap().contains("shutting_down"), "{events:?}");
    assert_eq!(server.ended().await.abandoned_requests, 1);
}

#[tokio::test]
async fn an_idle_server_shuts_down_at_once_and_frees_its_port() {
    let mut server = serve_default().await;
    let url = server.url.clone();
    assert_eq!(server.get("/health").await.status(), 200);
    server.signal();
    server.ended().await;
    assert!(reqwest::get(format!("{url}/health/live")).await.is_err());
}

#[tokio::test]
async fn a_port_in_use_is_named_with_what_to_do() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let config = ServerConfig { port, ..ServerConfig::default() };
    let engine = Arc::new(Scripted::start(Script::default()));
    let error = Server::bind(config, engine, None).await.err().unwrap().to_string();
    assert!(error.contains(&port.to_string()) && error.contains("choose another port"), "{error}");
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused() {
    for config in [
        ServerConfig { api_keys: vec![String::new()], ..ServerConfig::default() },
        ServerConfig { model_name: String::new(), ..ServerConfig::default() },
        ServerConfig { max_n: 0, ..ServerConfig::default() },
    ] {
        let engine = Arc::new(Scripted::start(Script::default()));
        assert!(Server::bind(ServerConfig { port: 0, ..config }, engine, None).await.is_err());
    }
}
