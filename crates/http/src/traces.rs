//! Traces of requests: a span each, in the W3C trace context of its client, sent by OTLP (HTTP, protobuf).
//!
//! Spans that have ended wait in a bounded queue for a thread that sends them in batches; where that is full they are dropped. So
//! neither a token nor a request ever waits for the collector. A span holds times, counts and names; never a prompt, answer or key.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::http::{HeaderMap, Uri};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, Key, KeyValue, Value};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};
use outrank_core::Score;
use thiserror::Error;

use crate::Outcome;

/// How long the collector may take to answer.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long spans that are left at the end may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Name of the instrumentation.
const SCOPE: &str = "outrank";

/// Why traces cannot be sent.
#[derive(Debug, Error)]
#[error(
    "otlp_endpoint {endpoint:?}: {why}: write it as http://host:4318 or https://host:4318; /v1/traces is appended"
)]
pub struct TracesError {
    endpoint: String,
    why: String,
}

/// Where spans go.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    clock: Clock,
}

/// A wall clock that is read once, so that no span ends before it began when somebody sets it.
#[derive(Clone, Copy, Debug)]
struct Clock {
    instant: Instant,
    wall: SystemTime,
}

impl Clock {
    fn at(&self, instant: Instant) -> SystemTime {
        match instant.checked_duration_since(self.instant) {
            Some(later) => self.wall + later,
            None => self.wall - self.instant.duration_since(instant),
        }
    }
}

impl Traces {
    /// Sends spans to the collector at `endpoint`, in the name of `service` unless `OTEL_SERVICE_NAME` says otherwise. Sampling,
    /// batches, the length of the queue and headers follow the `OTEL_` variables of the OpenTelemetry specification.
    ///
    /// # Errors
    /// [`TracesError`] if the endpoint is no URL. Whether somebody listens there shows when spans are sent, in the log.
    pub fn to(endpoint: &str, service: &'static str) -> Result<Self, TracesError> {
        Self::check(endpoint)?;
        let fail = |why: String| TracesError { endpoint: endpoint.to_owned(), why };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client().map_err(fail)?)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|error| fail(error.to_string()))?;
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(service);
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.with_attribute(version()).build())
            .build();
        let clock = Clock { instant: Instant::now(), wall: SystemTime::now() };
        Ok(Self { tracer: provider.tracer(SCOPE), provider, clock })
    }

    /// Whether an endpoint is a URL that spans can be sent to.
    ///
    /// # Errors
    /// [`TracesError`] if it is not.
    pub fn check(endpoint: &str) -> Result<(), TracesError> {
        let fail = |why: String| TracesError { endpoint: endpoint.to_owned(), why };
        let uri: Uri = endpoint.parse().map_err(|error| fail(format!("{error}")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(fail("neither http:// nor https:// and a host".into()));
        }
        Ok(())
    }

    /// The span of a request that arrived then, in the trace that its headers tell of, or in a new one.
    pub fn begin(&self, headers: &HeaderMap, arrival: Instant, operation: &'static str) -> RequestSpan {
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let span = SpanBuilder::from_name(operation)
            .with_kind(SpanKind::Server)
            .with_start_time(self.clock.at(arrival))
            .with_attributes([KeyValue::new("gen_ai.operation.name", operation)]);
        let span = self.tracer.build_with_context(span, &parent);
        RequestSpan(Some((span, self.clock)))
    }

    /// Sends what is left, within a limit, and nothing after.
    pub async fn finish(self: Arc<Self>) {
        let flushed = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        if let Ok(Err(error)) = flushed.await {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// The client of the thread that sends. It must not be made where async code runs.
fn client() -> Result<reqwest::blocking::Client, String> {
    // An error means that another part of this process has installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let make = || reqwest::blocking::Client::builder().timeout(EXPORT_TIMEOUT).build();
    let made = std::thread::spawn(make).join().map_err(|_| "no HTTP client could be made".to_owned())?;
    made.map_err(|error| error.to_string())
}

fn version() -> KeyValue {
    KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))
}

/// The span of a request, or none where nothing is traced. It ends when it is dropped.
#[derive(Debug, Default)]
pub struct RequestSpan(Option<(Span, Clock)>);

impl RequestSpan {
    /// Whether there is one.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Lets the trace go on with these headers; returns whether there is one.
    pub fn propagate(&self, headers: &mut HeaderMap) -> bool {
        let Some((span, _)) = &self.0 else { return false };
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        TraceContextPropagator::new().inject_context(&context, &mut HeaderInjector(headers));
        true
    }

    /// Says something of the request.
    pub fn set(&mut self, key: impl Into<Key>, value: impl Into<Value>) {
        if let Some((span, _)) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// What was asked for.
    pub fn set_request(&mut self, request_id: &str, model: &str) {
        self.set("outrank.request_id", request_id.to_owned());
        self.set("gen_ai.request.model", model.to_owned());
    }

    /// Seconds since its arrival until it was started, gave its first token, and ended, as far as it came.
    pub fn set_times(&mut self, queue_s: Option<f64>, ttft_s: Option<f64>, e2e_s: Option<f64>) {
        for (key, seconds) in [
            ("gen_ai.latency.time_in_queue", queue_s),
            ("gen_ai.latency.time_to_first_token", ttft_s),
            ("gen_ai.latency.e2e", e2e_s),
        ] {
            if let Some(seconds) = seconds {
                self.set(key, seconds);
            }
        }
    }

    /// Tokens that it had and made.
    pub fn set_tokens(&mut self, prompt_tokens: u64, output_tokens: u64) {
        self.set("gen_ai.usage.input_tokens", prompt_tokens.cast_signed());
        self.set("gen_ai.usage.output_tokens", output_tokens.cast_signed());
    }

    /// What was predicted.
    pub fn set_score(&mut self, score: Option<Score>) {
        if let Some(score) = score {
            self.set("outrank.predicted_tokens", f64::from(score.median_tokens()));
            self.set("outrank.predicted_spread", f64::from(score.spread()));
        }
    }

    /// How it ended.
    pub fn set_outcome(&mut self, outcome: Outcome) {
        self.set("outrank.outcome", outcome.name());
    }

    /// It was not answered as it should be, for a reason of few words that are always the same.
    pub fn fail(&mut self, error: &'static str) {
        if let Some((span, _)) = &mut self.0 {
            span.set_attribute(KeyValue::new("error.type", error));
            span.set_status(Status::error(error));
        }
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        if let Some((span, clock)) = &mut self.0 {
            span.end_with_timestamp(clock.at(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(traceparent: &str) -> HeaderMap {
        HeaderMap::from_iter([("traceparent".parse().unwrap(), traceparent.parse().unwrap())])
    }

    /// A collector that takes one export.
    fn collector() -> (String, std::thread::JoinHandle<(String, ExportTraceServiceRequest)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/", listener.local_addr().unwrap());
        let taken = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
            loop {
                let head = bytes.windows(4).position(|four| four == b"\r\n\r\n");
                let text = String::from_utf8_lossy(&bytes[..head.unwrap_or(0)]).to_lowercase();
                let length: Option<usize> =
                    text.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
                if let (Some(head), Some(length)) = (head, length)
                    && bytes.len() >= head + 4 + length
                {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                    let body = &bytes[head + 4..];
                    return (text, ExportTraceServiceRequest::decode(body).unwrap());
                }
                let read = stream.read(&mut buffer).unwrap();
                bytes.extend_from_slice(&buffer[..read]);
            }
        });
        (endpoint, taken)
    }

    #[tokio::test]
    async fn a_span_reaches_the_collector_with_its_times_and_in_its_trace() {
        let (endpoint, taken) = collector();
        let traces = Arc::new(Traces::to(&endpoint, "outrank-test").unwrap());
        let arrival = Instant::now().checked_sub(Duration::from_millis(250)).unwrap();
        let mut span = traces.begin(&headers(PARENT), arrival, "chat");
        span.set_times(Some(0.25), None, None);
        span.set_score(Score::new(120.0, 0.5).ok());
        span.fail("upstream_failed");
        let mut onward = HeaderMap::new();
        assert!(span.propagate(&mut onward));
        drop(span);
        traces.finish().await;
        let (head, export) = taken.join().unwrap();
        assert!(head.starts_with("post /v1/traces ") && head.contains("application/x-protobuf"), "{head}");
        let resource = &export.resource_spans[0];
        let names = format!("{:?}", resource.resource);
        assert!(names.contains("outrank-test"), "{names}");
        let span = &resource.scope_spans[0].spans[0];
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(&span.trace_id), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(hex(&span.parent_span_id), "b7ad6b7169203331");
        let sent_on = format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id));
        assert_eq!(onward["traceparent"], sent_on.as_str());
        let took_s = (span.end_time_unix_nano - span.start_time_unix_nano) as f64 / 1e9;
        assert!((0.25..5.0).contains(&took_s), "{took_s}");
        let said = format!("{:?}", span.attributes);
        assert!(
            said.contains("gen_ai.latency.time_in_queue") && said.contains("outrank.predicted_tokens"),
            "{said}"
        );
        assert!(format!("{:?}", span.status).contains("upstream_failed"));
    }

    #[tokio::test]
    async fn what_the_client_does_not_want_sampled_is_passed_on_and_not_sent() {
        let (endpoint, taken) = collector();
        let traces = Arc::new(Traces::to(&endpoint, "outrank-test").unwrap());
        let unsampled = PARENT.replace("-01", "-00");
        let span = traces.begin(&headers(&unsampled), Instant::now(), "chat");
        let mut onward = HeaderMap::new();
        span.propagate(&mut onward);
        assert!(onward["traceparent"].to_str().unwrap().ends_with("-00"), "{onward:?}");
        drop(span);
        drop(traces.begin(&HeaderMap::new(), Instant::now(), "text_completion"));
        traces.finish().await;
        let export = taken.join().unwrap().1;
        let spans = &export.resource_spans[0].scope_spans[0].spans;
        assert_eq!(spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), ["text_completion"]);
    }

    #[tokio::test]
    async fn a_collector_that_is_not_there_or_does_not_answer_holds_up_nobody() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", silent.local_addr().unwrap());
        let traces = Arc::new(Traces::to(&endpoint, "outrank-test").unwrap());
        let began = Instant::now();
        for _ in 0..20_000 {
            let mut span = traces.begin(&headers(PARENT), Instant::now(), "chat");
            span.set_times(Some(0.0), Some(0.1), Some(0.2));
        }
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        let began = Instant::now();
        traces.finish().await;
        assert!(began.elapsed() < FLUSH_TIMEOUT + Duration::from_secs(2), "{:?}", began.elapsed());
    }

    #[test]
    fn an_endpoint_that_is_none_is_refused_and_named() {
        for endpoint in ["", "localhost:4318", "ftp://x", "http://", "grpc://x:4317"] {
            let error = Traces::to(endpoint, "outrank-test").unwrap_err().to_string();
            assert!(error.contains("otlp_endpoint") && error.contains("http://host:4318"), "{error}");
        }
    }
}
