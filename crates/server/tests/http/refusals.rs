//! Bad input: each with its status, code and the field it is about, and nothing reaches the engine.

use outrank_server::ServerConfig;
use reqwest::Method;
use serde_json::{Value, json};

use crate::scripted::{CONTEXT_TOKENS, Script};
use crate::support::{Running, chat_body, error_code, json_of, serve, serve_default};

/// Sends each body and compares code and `param`.
async fn refused(server: &Running, path: &str, cases: Vec<(Value, &str, &str)>) {
    for (body, code, param) in cases {
        let response = server.post(path, &body).send().await.unwrap();
        let status = response.status();
        let answer = json_of(response).await;
        let error = &answer["error"];
        assert_eq!(
            (status.as_u16(), &error["code"], &error["param"]),
            (400, &json!(code), &json!(param)),
            "{body}\n{answer}"
        );
    }
    assert!(server.engine.seen().is_empty(), "something refused was submitted");
}

#[tokio::test]
async fn wrong_values_are_refused_by_name() {
    let server = serve_default().await;
    let cases = [
        (json!({ "temperature": "hot" }), "temperature"),
        (json!({ "temperature": 2.1 }), "temperature"),
        (json!({ "temperature": -0.1 }), "temperature"),
        (json!({ "top_p": 0 }), "top_p"),
        (json!({ "top_p": 1.5 }), "top_p"),
        (json!({ "top_k": 1.5 }), "top_k"),
        (json!({ "min_p": 2 }), "min_p"),
        (json!({ "presence_penalty": 3 }), "presence_penalty"),
        (json!({ "frequency_penalty": [] }), "frequency_penalty"),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "max_tokens": -1 }), "max_tokens"),
        (json!({ "max_tokens": CONTEXT_TOKENS + 1 }), "max_tokens"),
        (json!({ "max_completion_tokens": "9" }), "max_completion_tokens"),
        (json!({ "max_tokens": 1, "max_completion_tokens": 2 }), "max_tokens"),
        (json!({ "n": 0 }), "n"),
        (json!({ "n": 17 }), "n"),
        (json!({ "seed": 1e300 }), "seed"),
        (json!({ "stop": ["a", "b", "c", "d", "e"] }), "stop"),
        (json!({ "stop": [""] }), "stop"),
        (json!({ "stop": 5 }), "stop"),
        (json!({ "stream": "yes" }), "stream"),
        (json!({ "stream_options": { "include_usage": true } }), "stream_options"),
        (json!({ "top_logprobs": 2 }), "top_logprobs"),
        (json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs"),
        (json!({ "model": 5 }), "model"),
        (json!({ "metadata": { "a": 1 } }), "metadata"),
        (json!({ "outrank": { "true_output_tokens": 0 } }), "outrank.true_output_tokens"),
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": "Hi" }), "messages"),
        (json!({ "messages": ["Hi"] }), "messages[0]"),
        (json!({ "messages": [{ "role": "robot", "content": "x" }] }), "messages[0].role"),
        (json!({ "messages": [{ "role": "user", "content": 5 }] }), "messages[0].content"),
        (json!({ "messages": [{ "role": "user", "content": [] }] }), "messages[0].content"),
        (json!({ "messages": [{ "role": "assistant", "content": "I begin" }] }), "messages"),
    ];
    let cases = cases.into_iter().map(|(extra, param)| (chat_body(extra), "invalid_value", param)).collect();
    refused(&server, "/v1/chat/completions", cases).await;
}

#[tokio::test]
async fn what_would_change_the_output_and_is_not_supported_is_refused_by_name() {
    let server = serve_default().await;
    let image = json!([{ "type": "image_url", "image_url": { "url": "data:" } }]);
    let cases = [
        (json!({ "tools": [{ "type": "function" }] }), "tools"),
        (json!({ "tool_choice": "required" }), "tool_choice"),
        (json!({ "response_format": { "type": "json_object" } }), "response_format"),
        (json!({ "logit_bias": { "50": 1 } }), "logit_bias"),
        (json!({ "modalities": ["text", "audio"] }), "modalities"),
        (json!({ "audio": { "voice": "alloy" } }), "audio"),
        (json!({ "reasoning_effort": "high" }), "reasoning_effort"),
        (json!({ "repetition_penalty": 1.1 }), "repetition_penalty"),
        (json!({ "messages": [{ "role": "tool", "content": "4" }] }), "messages[0].role"),
        (json!({ "messages": [{ "role": "user", "content": image }] }), "messages[0].content[0].type"),
        (json!({ "messages": [{ "role": "user", "content": "x", "name": "Ann" }] }), "messages[0].name"),
    ];
    let cases = cases.into_iter().map(|(extra, param)| (chat_body(extra), "unsupported", param)).collect();
    refused(&server, "/v1/chat/completions", cases).await;
    let completion = |name: &str, value: Value| {
        let mut body = json!({ "model": "test", "prompt": "x" });
        body[name] = value;
        body
    };
    let cases = [("echo", json!(true)), ("suffix", json!("end")), ("best_of", json!(3))];
    let cases =
        cases.into_iter().map(|(name, value)| (completion(name, value), "unsupported", name)).collect();
    refused(&server, "/v1/completions", cases).await;
}

#[tokio::test]
async fn unknown_and_missing_fields_are_refused_by_name() {
    let server = serve_default().await;
    let unknown = "unknown_field";
    let missing = "missing_required_parameter";
    let message = json!([{ "role": "user", "content": "x" }]);
    let cases = vec![
        (chat_body(json!({ "temprature": 1 })), unknown, "temprature"),
        (chat_body(json!({ "prompt": "x" })), unknown, "prompt"),
        (chat_body(json!({ "outrank": { "x": 1 } })), unknown, "outrank.x"),
        (
            chat_body(json!({ "messages": [{ "role": "user", "content": "x", "mood": "good" }] })),
            unknown,
            "messages[0].mood",
        ),
        (json!({ "model": "test" }), missing, "messages"),
        (json!({ "messages": message }), missing, "model"),
        (chat_body(json!({ "messages": [{ "content": "x" }] })), missing, "messages[0].role"),
        (
            chat_body(json!({ "messages": [{ "role": "assistant", "content": null }] })),
            missing,
            "messages[0].content",
        ),
    ];
    refused(&server, "/v1/chat/completions", cases).await;
}

#[tokio::test]
async fn prompts_that_cannot_be_continued_are_refused() {
    let server = serve_default().await;
    let context = CONTEXT_TOKENS as usize;
    let body = |prompt: Value| json!({ "model": "test", "prompt": prompt });
    let with_limit = |limit: u32| json!({ "model": "test", "prompt": "abc", "max_tokens": limit });
    let (invalid, exceeded) = ("invalid_value", "context_length_exceeded");
    let cases = vec![
        (body(json!("")), invalid, "prompt"),
        (body(json!([])), invalid, "prompt"),
        (body(json!([[]])), invalid, "prompt"),
        (body(json!([-1])), invalid, "prompt"),
        (body(json!([1, "a"])), invalid, "prompt"),
        (body(json!({ "text": "a" })), invalid, "prompt"),
        (body(json!(vec!["a"; 65])), invalid, "prompt"),
        (body(json!("a".repeat(context))), exceeded, "prompt"),
        (body(json!("a".repeat(context + 9))), exceeded, "prompt"),
        (with_limit(CONTEXT_TOKENS - 2), exceeded, "max_tokens"),
    ];
    refused(&server, "/v1/completions", cases).await;
    assert_eq!(
        server.complete(json!({ "prompt": "abc", "max_tokens": CONTEXT_TOKENS - 3 })).await.status(),
        200
    );
}

#[tokio::test]
async fn broken_json_is_refused_and_so_are_numbers_that_are_none() {
    let server = serve_default().await;
    let numbers = |number: &str| format!(r#"{{"model":"test","messages":[],"temperature":{number}}}"#);
    for body in [
        "",
        "{",
        "[]",
        "null",
        r#"{"model": "\ud800"}"#,
        &numbers("NaN"),
        &numbers("1e999"),
        &"[".repeat(10_000),
    ] {
        let request = server.client.post(format!("{}/v1/chat/completions", server.url));
        let response =
            request.header("content-type", "application/json").body(body.to_owned()).send().await.unwrap();
        assert_eq!(error_code(response, 400).await, "invalid_json", "{body:.60}");
    }
}

#[tokio::test]
async fn a_body_of_five_megabytes_is_refused_and_the_limit_can_be_raised() {
    let server = serve_default().await;
    let long = json!({ "model": "test", "prompt": "a".repeat(5_000_000) });
    let response = server.post("/v1/completions", &long).send().await.unwrap();
    assert_eq!(error_code(response, 413).await, "request_too_large");
    let config = ServerConfig { max_body_bytes: 6_000_000, ..ServerConfig::default() };
    let server = serve(Script::default(), config, None).await;
    let response = server.post("/v1/completions", &long).send().await.unwrap();
    assert_eq!(error_code(response, 400).await, "context_length_exceeded");
}

#[tokio::test]
async fn another_model_another_path_another_method_and_another_content_type_are_refused() {
    let server = serve_default().await;
    assert_eq!(error_code(server.chat(json!({ "model": "Test" })).await, 404).await, "model_not_found");
    assert_eq!(error_code(server.get("/v1/models/a/b").await, 404).await, "model_not_found");
    assert_eq!(error_code(server.get("/v1/models/%FF").await, 404).await, "model_not_found");
    assert_eq!(error_code(server.get("/v1/embeddings").await, 404).await, "unknown_url");
    let response = server.get("/v1/chat/completions").await;
    assert_eq!(response.headers()["allow"], "POST");
    assert_eq!(error_code(response, 405).await, "method_not_allowed");
    let response =
        server.client.request(Method::DELETE, format!("{}/health", server.url)).send().await.unwrap();
    assert_eq!(error_code(response, 405).await, "method_not_allowed");
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"] {
        let request =
            server.client.post(format!("{}/v1/completions", server.url)).header("content-type", content_type);
        assert_eq!(
            error_code(request.body("{}").send().await.unwrap(), 415).await,
            "unsupported_content_type"
        );
    }
    let bare = server.client.post(format!("{}/v1/completions", server.url)).body("{}").send().await.unwrap();
    assert_eq!(error_code(bare, 415).await, "unsupported_content_type");
    assert_eq!(server.metric("outrank_rejections_total{reason=\"unsupported_content_type\"}").await, 4.0);
}

#[tokio::test]
async fn without_the_exact_key_nothing_of_v1_is_served() {
    let config = ServerConfig { api_keys: vec!["sk-Secret".into()], ..ServerConfig::default() };
    let server = serve(Script::default(), config, None).await;
    let with = |key: &str| server.post("/v1/chat/completions", &chat_body(json!({}))).bearer_auth(key).send();
    assert_eq!(error_code(server.chat(json!({})).await, 401).await, "invalid_api_key");
    assert_eq!(error_code(with("sk-secret").await.unwrap(), 401).await, "invalid_api_key");
    assert_eq!(error_code(server.get("/v1/models").await, 401).await, "invalid_api_key");
    assert_eq!(with("sk-Secret").await.unwrap().status(), 200);
    assert_eq!(server.engine.seen()[0].tenant.as_deref(), Some("key-0"));
    assert_eq!(server.get("/health/ready").await.status(), 200);
    assert_eq!(server.get("/metrics").await.status(), 200);
}
