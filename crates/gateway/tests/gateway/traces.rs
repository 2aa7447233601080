//! Traces: a span for each request, in its client's trace, at a collector.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{Span, status::StatusCode};
use outrank_gateway::GatewayConfig;
use parking_lot::Mutex;
use prost::Message;
use serde_json::json;
use tokio::net::TcpListener;

use crate::mock::{Act, Mock};
use crate::support::{Answer, config, oracle, start};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A collector: what was posted to it, and where.
struct Collector {
    endpoint: String,
    posted: Arc<Mutex<Vec<(String, Bytes)>>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let posted = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&posted);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                let service = service_fn(move |request: Request<Incoming>| {
                    let kept = Arc::clone(&kept);
                    async move {
                        let path = request.uri().path().to_owned();
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        kept.lock().push((path, body));
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { endpoint, posted }
    }

    /// The spans that have come, by the id of their request.
    fn spans(&self) -> Vec<Span> {
        let posted = self.posted.lock();
        let exports = posted.iter().map(|(path, body)| {
            assert_eq!(path, "/v1/traces");
            ExportTraceServiceRequest::decode(body.clone()).unwrap()
        });
        let scopes =
            exports.flat_map(|export| export.resource_spans).flat_map(|resource| resource.scope_spans);
        let mut spans: Vec<Span> = scopes.flat_map(|scope| scope.spans).collect();
        spans.sort_by_key(|span| text(span, "outrank.request_id"));
        spans
    }
}

fn value(span: &Span, key: &str) -> Option<Value> {
    span.attributes.iter().find(|attribute| attribute.key == key)?.value.clone()?.value
}

fn text(span: &Span, key: &str) -> Option<String> {
    value(span, key).map(|value| match value {
        Value::StringValue(text) => text,
        other => panic!("{key}: {other:?}"),
    })
}

fn number(span: &Span, key: &str) -> Option<f64> {
    value(span, key).map(|value| match value {
        Value::DoubleValue(number) => number,
        Value::IntValue(number) => number as f64,
        other => panic!("{key}: {other:?}"),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn every_request_is_a_span_in_its_clients_trace_that_says_how_it_went_and_not_what_was_asked() {
    let (mock, collector) = (Mock::start().await, Collector::start().await);
    let settings = GatewayConfig { otlp_endpoint: Some(collector.endpoint.clone()), ..config(&[&mock], 1) };
    let mut gateway = start(settings, oracle()).await;
    mock.script([Act::Answer { tokens: 4, gap: Duration::from_millis(30) }, Act::tokens(3)]);
    let traced = gateway
        .chat("my-secret-prompt 40", json!({ "stream": true }))
        .header("x-request-id", "a")
        .header("authorization", "Bearer my-secret-key")
        .header("traceparent", format!("00-{TRACE}-{PARENT}-01"));
    let traced = tokio::spawn(async move { Answer::of(traced.send().await.unwrap()).await });
    gateway.until("it is there", async || mock.running() == 1).await;
    let waited = gateway.spawn("my-secret-prompt 50", "b");
    assert!(traced.await.unwrap().is_complete(4) && waited.await.unwrap().is_complete(3));
    mock.always(Act::CloseBeforeHead);
    let failed = gateway.stream("Hi").header("x-request-id", "c").send().await.unwrap();
    assert_eq!(failed.status(), 502);
    let refused = gateway.chat("Hi", json!({ "messages": [] })).send().await.unwrap();
    assert_eq!(refused.status(), 400);
    gateway.signal();
    gateway.ended().await;

    let spans = collector.spans();
    assert_eq!(spans.len(), 4, "one for each request");
    let [refused, traced, waited, failed] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((hex(&traced.trace_id), hex(&traced.parent_span_id)), (TRACE.into(), PARENT.into()));
    let sent_on = format!("00-{TRACE}-{}-01", hex(&traced.span_id));
    assert_eq!(
        mock.seen()[0].header("traceparent"),
        Some(sent_on.as_str()),
        "the upstream's span is its child"
    );
    assert!(hex(&waited.trace_id) != TRACE && waited.parent_span_id.is_empty());
    assert_eq!(traced.name, "chat");
    assert_eq!(text(traced, "gen_ai.request.model").as_deref(), Some("m"));
    assert_eq!(number(traced, "gen_ai.usage.output_tokens"), Some(4.0));
    assert_eq!(number(traced, "http.response.status_code"), Some(200.0));
    assert_eq!(text(traced, "outrank.outcome").as_deref(), Some("completed"));
    assert_eq!(text(traced, "outrank.upstream"), Some(mock.addr.to_string()));
    assert_eq!(number(waited, "outrank.predicted_tokens"), Some(50.0));
    // Four tokens of 30 ms each went before it.
    assert!(number(waited, "gen_ai.latency.time_in_queue").unwrap() > 0.05, "{waited:?}");
    assert!(number(traced, "outrank.upstream_s").unwrap() > 0.08, "{traced:?}");
    let (queue_s, e2e_s) =
        (number(waited, "gen_ai.latency.time_in_queue"), number(waited, "gen_ai.latency.e2e"));
    assert!(queue_s < e2e_s, "{waited:?}");
    assert_eq!(text(failed, "outrank.outcome").as_deref(), Some("failed"));
    assert_eq!(number(failed, "outrank.attempts"), Some(3.0), "all of them");
    assert_eq!(failed.status.as_ref().unwrap().code(), StatusCode::Error);
    assert_eq!(text(refused, "outrank.outcome").as_deref(), Some("rejected"));
    for (_, body) in collector.posted.lock().iter() {
        let body = String::from_utf8_lossy(body);
        assert!(!body.contains("my-secret"), "a prompt or a key has left");
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_span_too() {
    let (mock, collector) = (Mock::start().await, Collector::start().await);
    mock.always(Act::HangAfter(2));
    let settings = GatewayConfig { otlp_endpoint: Some(collector.endpoint.clone()), ..config(&[&mock], 1) };
    let mut gateway = start(settings, None).await;
    let mut answer = gateway.stream("Hi").send().await.unwrap();
    assert!(answer.chunk().await.unwrap().is_some());
    drop(answer);
    gateway.idle().await;
    gateway.signal();
    gateway.ended().await;
    let spans = collector.spans();
    assert_eq!(
        spans.iter().map(|span| text(span, "outrank.outcome").unwrap()).collect::<Vec<_>>(),
        ["cancelled"]
    );
}

#[tokio::test]
async fn a_collector_that_hangs_holds_up_neither_requests_nor_the_end() {
    let mock = Mock::start().await;
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", hanging.local_addr().unwrap());
    let settings = GatewayConfig { otlp_endpoint: Some(endpoint), ..config(&[&mock], 64) };
    let mut gateway = start(settings, None).await;
    let asked: Vec<_> = (0..600).map(|nth| gateway.spawn("Hi", &format!("{nth}"))).collect();
    for answer in asked {
        assert!(answer.await.unwrap().is_complete(3));
    }
    gateway.signal();
    let began = std::time::Instant::now();
    gateway.ended().await;
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}
