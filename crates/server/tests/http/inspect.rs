//! `GET /v1/outrank/requests/{id}`.

use outrank_core::Score;
use outrank_server::ServerConfig;
use serde_json::{Value, json};

use crate::scripted::Script;
use crate::support::{chat_body, error_code, eventually, json_of, serve, serve_default};

#[tokio::test]
async fn who_waits_learns_position_prediction_eta_and_why() {
    let score = Box::new(|_: &str| Score::new(20.0, 0.5).ok());
    let config = ServerConfig { score_deadline_ms: 500, ..ServerConfig::default() };
    let server = serve(Script::default(), config, Some(score)).await;
    server.engine.hold();
    let mut open = Vec::new();
    for name in ["first", "second"] {
        let request = server.post("/v1/chat/completions", &chat_body(json!({ "stream": true })));
        open.push(request.header("x-request-id", name).send().await.unwrap());
    }
    let record = json_of(server.get("/v1/outrank/requests/second").await).await;
    assert_eq!((&record["status"], &record["request_id"]), (&json!("in_progress"), &json!("second")));
    let choice = &record["choices"][0];
    assert_eq!((&choice["status"], &choice["schedule"]["position"]), (&json!("waiting"), &json!(1)));
    let predicted = &choice["predicted_tokens"];
    assert_eq!((&predicted["median"], &predicted["probability"]), (&json!(20.0), &json!(0.8)));
    assert!(predicted["low"].as_f64() < Some(20.0) && predicted["high"].as_f64() > Some(20.0));
    assert!(choice["schedule"]["eta_finish_ms"].as_f64() > Some(0.0));
    assert!(!choice["schedule"]["why"].as_str().unwrap().is_empty());

    server.engine.release();
    for response in open {
        response.text().await.unwrap();
    }
    eventually("the record is final", || async {
        status(&json_of(server.get("/v1/outrank/requests/second").await).await) == "finished"
    })
    .await;
    let record =
        json_of(server.get(&format!("/v1/outrank/requests/{}", record["id"].as_str().unwrap())).await).await;
    let choice = &record["choices"][0];
    assert_eq!((&choice["output_tokens"], &choice["predicted_tokens"]["median"]), (&json!(5), &json!(20.0)));
    assert!(choice["timings"]["e2e_ms"].as_f64() > Some(0.0) && choice["schedule"].is_null());
}

#[tokio::test]
async fn a_request_is_found_by_an_id_with_slashes_encoded_or_not() {
    let server = serve_default().await;
    let request = server.post("/v1/chat/completions", &chat_body(json!({})));
    request.header("x-request-id", "team/a:7+b=@c").send().await.unwrap().text().await.unwrap();
    for path in ["team/a:7+b=@c", "team%2Fa%3A7%2Bb%3D%40c"] {
        let record = json_of(server.get(&format!("/v1/outrank/requests/{path}")).await).await;
        assert_eq!(record["request_id"], "team/a:7+b=@c", "{path}");
    }
    assert_eq!(error_code(server.get("/v1/outrank/requests/team/b").await, 404).await, "request_not_found");
}

fn status(record: &Value) -> &str {
    record["status"].as_str().unwrap()
}

#[tokio::test]
async fn a_cancelled_request_is_remembered_as_such_and_unknown_ones_are_not_found() {
    let server = serve_default().await;
    server.engine.hold();
    let request = server.post("/v1/chat/completions", &chat_body(json!({ "stream": true })));
    drop(request.header("x-request-id", "gone").send().await.unwrap());
    eventually("it is cancelled", || async {
        status(&json_of(server.get("/v1/outrank/requests/gone").await).await) == "cancelled"
    })
    .await;
    for id in ["nobody", "%FF", "%00"] {
        let response = server.get(&format!("/v1/outrank/requests/{id}")).await;
        assert_eq!(error_code(response, 404).await, "request_not_found");
    }
}

#[tokio::test]
async fn only_so_many_finished_requests_are_remembered() {
    let config = ServerConfig { max_finished_records: 1, ..ServerConfig::default() };
    let server = serve(Script::default(), config, None).await;
    let ids = [json_of(server.chat(json!({})).await).await, json_of(server.chat(json!({})).await).await];
    let ids = ids.map(|body| body["id"].as_str().unwrap().to_owned());
    assert_eq!(server.get(&format!("/v1/outrank/requests/{}", ids[0])).await.status(), 404);
    assert_eq!(server.get(&format!("/v1/outrank/requests/{}", ids[1])).await.status(), 200);
}
