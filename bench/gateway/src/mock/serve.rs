//! One connection of a client.

use std::io::Result;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

use outrank_gateway_bench::wire::{Reader, RequestHead};

use crate::fault::Fault;
use crate::generate::{Asked, Kind, answer};
use crate::state::{Mock, add};

/// Bytes of a request body, at most.
const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;
/// How long a hanging request hangs.
pub(crate) const FOREVER: Duration = Duration::from_secs(3600);

/// The two halves of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) reader: Reader,
    pub(crate) writer: OwnedWriteHalf,
}

/// Answers the requests of a connection, one after the other, until the client closes it.
pub(crate) async fn connection(mock: &Mock, stream: TcpStream) -> Result<()> {
    let (reader, writer) = stream.into_split();
    let mut connection = Connection { reader: Reader::new(reader), writer };
    add(&mock.counts.connections, 1);
    while let Some(head) = connection.reader.request().await? {
        let Some(body) = read_body(&mut connection, &head).await? else { return Ok(()) };
        let kind = match head.path.split('?').next().unwrap_or_default() {
            "/v1/chat/completions" if head.post => Some(Kind::Chat),
            "/v1/completions" if head.post => Some(Kind::Completions),
            _ => None,
        };
        let Some(kind) = kind else {
            let (status, text) = other(mock, &head, &body);
            respond(&mut connection.writer, status, &text).await?;
            continue;
        };
        let Ok(asked) = serde_json::from_slice::<Asked>(&body) else {
            let text = error(400, "the body is not a request");
            respond(&mut connection.writer, 400, &text).await?;
            continue;
        };
        let fault = head.fault.as_deref().and_then(Fault::parse).or_else(|| mock.next_fault());
        if !answer(mock, &mut connection, kind, &asked, fault).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// The body of a request; nothing if it is too long.
async fn read_body(connection: &mut Connection, head: &RequestHead) -> Result<Option<Vec<u8>>> {
    if head.expects_continue {
        connection.writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let (mut left, mut body) = (head.left, Vec::new());
    while connection.reader.piece(&mut left, &mut body).await? {
        if body.len() > MAX_BODY_BYTES {
            return Ok(None);
        }
    }
    Ok(Some(body))
}

/// Whatever is not a generation request.
fn other(mock: &Mock, head: &RequestHead, body: &[u8]) -> (u16, String) {
    let model = &mock.args.model;
    let text = match (head.post, head.path.split('?').next().unwrap_or_default()) {
        (false, "/health" | "/health_generate" | "/ping") => "{}".to_owned(),
        (false, "/v1/models") => {
            json!({"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": "mock",
                "max_model_len": 32768}]})
            .to_string()
        }
        (false, "/metrics") => mock.metrics(),
        (false, "/version") => json!({"version": "0.33.0"}).to_string(),
        (false, "/get_model_info" | "/model_info" | "/get_server_info" | "/server_info") => {
            let mut info =
                json!({"model_path": model, "served_model_name": model, "is_generation": true, "dp_size": 1});
            if mock.args.says_seats {
                info["internal_states"] = json!([{"effective_max_running_requests_per_dp": mock.args.seats}]);
            }
            info.to_string()
        }
        (false, "/mock/stats") => mock.stats().to_string(),
        (false, "/mock/log") => mock.logged().to_string(),
        (true, "/mock/reset") => {
            mock.reset();
            "{}".to_owned()
        }
        (true, "/mock/fault") => {
            let asked: anyhow::Result<Value> = serde_json::from_slice(body).context("the script is not JSON");
            match asked {
                Ok(asked) if mock.set_script(&asked) => "{}".to_owned(),
                _ => return (400, error(400, "no such fault")),
            }
        }
        (_, path) => return (404, error(404, &format!("no route {path}"))),
    };
    (200, text)
}

/// An error as OpenAI's servers send it.
pub(crate) fn error(status: u16, message: &str) -> String {
    json!({"error": {"message": message, "type": "mock_error", "param": null, "code": status}}).to_string()
}

/// Sends a whole response with a JSON body.
pub(crate) async fn respond(writer: &mut OwnedWriteHalf, status: u16, body: &str) -> Result<()> {
    let retry = if matches!(status, 429 | 503) { "retry-after: 1\r\n" } else { "" };
    let length = body.len();
    let response = format!(
        "HTTP/1.1 {status} Mock\r\ncontent-type: application/json\r\n{retry}content-length: {length}\r\n\r\n{body}"
    );
    writer.write_all(response.as_bytes()).await
}
