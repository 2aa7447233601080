//! The HTTP client that talks to OpenAI-compatible servers.

use std::sync::Once;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use outrank_ranker::TraceRecord;
use outrank_ranker::trace::Prompt;
use reqwest::Response;
use serde_json::{Value, json};

use crate::error::usage;

/// To establish a connection. Long, because a burst of thousands fills the listener's backlog.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// Of an error body, at most.
const MAX_ERROR_CHARS: usize = 300;
/// Files and sockets that thousands of streams need.
const OPEN_FILES: u64 = 65_536;

/// Where to send requests, and as whom.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    client: reqwest::Client,
    base: String,
    key: Option<String>,
}

/// Which of the two APIs is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
}

impl Endpoint {
    /// Its path below the base URL.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }

    /// A request with the prompt of `record` and nothing else.
    pub(crate) fn body(self, model: &str, record: &TraceRecord) -> Value {
        match (self, &record.prompt) {
            (Self::Chat, Prompt::Text(text)) => {
                json!({"model": model, "messages": [{"role": "user", "content": text}]})
            }
            (Self::Chat, Prompt::Messages(messages)) => json!({"model": model, "messages": messages}),
            (Self::Completions, _) => json!({"model": model, "prompt": record.text()}),
        }
    }
}

impl Api {
    /// A client for the server at `url`, with or without a trailing `/v1`.
    pub(crate) fn new(url: &str, key: Option<String>) -> Result<Self> {
        install_tls();
        let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let parsed = reqwest::Url::parse(&base).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(parsed) = parsed else {
            return Err(usage(format!("--url {url}: expected http://HOST:PORT or https://HOST")));
        };
        allow_many_sockets();
        let builder = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
        let local = matches!(parsed.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
        let builder = if local { builder.no_proxy() } else { builder };
        Ok(Self { client: builder.build().context("HTTP client")?, base, key })
    }

    /// Posts a JSON body.
    pub(crate) async fn post(&self, path: &str, body: &[u8]) -> reqwest::Result<Response> {
        let request = self.client.post(format!("{}{path}", self.base));
        let request = request.header("content-type", "application/json").body(body.to_vec());
        self.authorised(request).send().await
    }

    /// Gets a JSON document.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        let url = format!("{}{path}", self.base);
        let response = self.authorised(self.client.get(&url)).send().await;
        let response = response.map_err(|error| anyhow::anyhow!("{url}: {}", cause(&error)))?;
        if !response.status().is_success() {
            bail!("{url}: {}", refusal(response).await);
        }
        response.json().await.with_context(|| format!("{url}: the answer is not JSON"))
    }

    /// The first model that the server offers.
    pub(crate) async fn first_model(&self) -> Result<String> {
        let models = self.get("/v1/models").await?;
        let id = models["data"][0]["id"].as_str();
        Ok(id.with_context(|| format!("{}/v1/models lists no model; name one", self.base))?.to_owned())
    }

    fn authorised(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }
}

/// A text as one segment of a URL's path: percent-encoded but for letters, digits and `-_.~` (RFC 3986).
pub(crate) fn path_segment(text: &str) -> String {
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}

/// Status and message of an answer that is not a success.
pub(crate) async fn refusal(response: Response) -> String {
    let status = response.status();
    let body = response.text().await.unwrap_or_default();
    let message = serde_json::from_str::<Value>(&body)
        .ok()
        .and_then(|body| body["error"]["message"].as_str().map(str::to_owned))
        .unwrap_or(body);
    format!("HTTP {}: {}", status.as_u16(), message.chars().take(MAX_ERROR_CHARS).collect::<String>())
}

/// The innermost cause of an error, which says more than its outside ("error sending request").
pub(crate) fn cause(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// Raises the limit on open files, for thousands of streams.
pub(crate) fn allow_many_sockets() {
    // Fails only where the hard limit is lower; then fewer streams fit.
    let _ = rlimit::increase_nofile_limit(OPEN_FILES);
}

fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only if a provider is installed already, which then serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_segment_holds_no_character_with_a_meaning() {
        assert_eq!(path_segment("req-4_2.a~"), "req-4_2.a~");
        assert_eq!(path_segment("a/b?c#d%e f:é"), "a%2Fb%3Fc%23d%25e%20f%3A%C3%A9");
    }

    #[test]
    fn a_url_is_accepted_with_and_without_v1_and_refused_without_a_scheme() {
        for url in ["http://127.0.0.1:8000", "http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1/"] {
            assert_eq!(Api::new(url, None).unwrap().base, "http://127.0.0.1:8000");
        }
        assert!(crate::error::is_usage(&Api::new("127.0.0.1:8000", None).unwrap_err()));
    }
}
