//! The OpenAPI document against the server that it describes, and the metrics.

use outrank_server::ServerConfig;
use serde_json::{Value, json};

use crate::scripted::{CONTEXT_TOKENS, Script};
use crate::support::{Running, json_of, serve, serve_default};

async fn document(server: &Running) -> Value {
    json_of(server.get("/openapi.json").await).await
}

#[tokio::test]
async fn every_documented_operation_is_served_and_every_reference_leads_somewhere() {
    let server = serve_default().await;
    let document = document(&server).await;
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 10);
    for (path, operations) in paths {
        for method in operations.as_object().unwrap().keys() {
            let url = format!("{}{}", server.url, path.replace("{id}", "test"));
            let method = method.to_uppercase().parse().unwrap();
            let response = server.client.request(method, url).send().await.unwrap();
            let status = response.status().as_u16().to_string();
            let documented = &operations.as_object().unwrap().values().next().unwrap()["responses"];
            assert!(documented.get(&status).is_some(), "{path} answers {status}");
            assert!(!response.text().await.unwrap().contains("unknown_url"), "{path}");
        }
    }
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn every_documented_field_is_known_with_every_value_that_the_document_lists() {
    let server = serve_default().await;
    let schemas = &document(&server).await["components"]["schemas"];
    for (schema, path) in [("ChatRequest", "/v1/chat/completions"), ("CompletionRequest", "/v1/completions")]
    {
        let example = &schemas[schema]["examples"][0];
        for (name, field) in schemas[schema]["properties"].as_object().unwrap() {
            let values = field["enum"].as_array().cloned().unwrap_or_else(|| vec![Value::Null]);
            for value in values {
                let mut body = example.clone();
                body["model"] = json!("test");
                if !matches!(name.as_str(), "model" | "messages" | "prompt") {
                    body[name] = value;
                }
                let response = server.post(path, &body).send().await.unwrap();
                assert_eq!(response.status(), 200, "{name}: {}", response.text().await.unwrap());
            }
        }
    }
}

#[tokio::test]
async fn the_document_tells_the_limits_and_keys_of_this_server() {
    let open = document(&serve_default().await).await;
    assert_eq!(open["components"]["schemas"]["OutputLimit"]["maximum"], CONTEXT_TOKENS);
    assert!(open.pointer("/paths/~1v1~1models/get/security").is_none());
    let config = ServerConfig { api_keys: vec!["k".into()], max_n: 3, ..ServerConfig::default() };
    let guarded = document(&serve(Script::default(), config, None).await).await;
    assert!(guarded.pointer("/paths/~1v1~1models/get/security").is_some());
    assert_eq!(guarded["components"]["schemas"]["OutputCount"]["maximum"], 3);
}

#[tokio::test]
async fn metrics_have_their_names_and_count_what_happened() {
    let server = serve_default().await;
    json_of(server.chat(json!({ "n": 2 })).await).await;
    let text = server.get("/metrics").await.text().await.unwrap();
    for name in [
        "requests_total",
        "queue_depth",
        "running",
        "queue_wait_seconds",
        "ttft_seconds",
        "itl_seconds",
        "e2e_seconds",
        "score_latency_seconds",
        "unscored_total",
        "preemptions_total",
        "promotions_total",
        "overtakes_total",
        "kv_used_blocks",
        "kv_total_blocks",
        "eta_error_seconds",
        "prompt_tokens_total",
        "generation_tokens_total",
    ] {
        assert!(text.lines().any(|line| line.starts_with(&format!("outrank_{name}"))), "{name}\n{text}");
    }
    for (name, value) in [
        ("outrank_requests_total{outcome=\"completed\"}", 1.0),
        ("outrank_ttft_seconds_count", 2.0),
        ("outrank_itl_seconds_count", 8.0),
        ("outrank_e2e_seconds_count", 1.0),
        ("outrank_generation_tokens_total", 10.0),
        ("outrank_prompt_tokens_total", 8.0),
    ] {
        assert_eq!(server.metric(name).await, value, "{name}");
    }
}
