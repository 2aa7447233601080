//! Answers to generation requests.

use std::fmt::Write as _;
use std::io::Result;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, sleep_until};

use outrank_gateway_bench::clock::now_ns;

use crate::fault::Fault;
use crate::serve::{Connection, FOREVER, error, respond};
use crate::state::{Logged, Mock, add};

/// Tokens of an answer, at most: what the context holds.
const MAX_TOKENS: u32 = 32_768;
const STREAM_HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";

/// Which API is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completions,
}

/// The parts of a request that matter here.
#[derive(Debug, Deserialize)]
pub(crate) struct Asked {
    model: Option<String>,
    max_tokens: Option<f64>,
    max_completion_tokens: Option<f64>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    user: Option<String>,
    priority: Option<i64>,
    outrank: Option<Recorded>,
}

/// The length at which the answer ends by itself, as traces recorded it.
#[derive(Debug, Deserialize)]
struct Recorded {
    true_output_tokens: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// An answer in the making.
struct Answer<'a> {
    mock: &'a Mock,
    kind: Kind,
    asked: &'a Asked,
    fault: Option<Fault>,
    id: u64,
    tokens: u32,
    finish: &'static str,
}

/// How an answer ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    /// Failed on purpose; the connection goes on.
    Failed,
    /// Failed on purpose, and so that the connection must be reset.
    Reset,
}

/// Answers a request. False if the connection is over.
pub(crate) async fn answer(
    mock: &Mock,
    connection: &mut Connection,
    kind: Kind,
    asked: &Asked,
    fault: Option<Fault>,
) -> Result<bool> {
    let id = mock.counts.received.fetch_add(1, Ordering::Relaxed);
    let asked_for = asked.max_completion_tokens.or(asked.max_tokens);
    let limit = asked_for.map(|count| (count as u32).min(MAX_TOKENS)); // A cast saturates.
    let recorded = asked.outrank.as_ref().and_then(|outrank| outrank.true_output_tokens);
    let (tokens, finish) = match recorded {
        Some(recorded) if recorded <= limit.unwrap_or(MAX_TOKENS) => (recorded, "stop"),
        _ => (limit.unwrap_or(mock.args.tokens.min(MAX_TOKENS)), "length"),
    };
    if tokens == 0 {
        add(&mock.counts.failed, 1);
        let text = error(400, "max_tokens must be at least 1");
        respond(&mut connection.writer, 400, &text).await?;
        return Ok(true);
    }
    if asked.model.as_ref().is_some_and(|model| *model != mock.args.model) {
        add(&mock.counts.failed, 1);
        respond(&mut connection.writer, 404, &error(404, "no such model")).await?;
        return Ok(true);
    }
    let arrived_ns = now_ns();
    let mut seated_ns = 0;
    let answer = Answer { mock, kind, asked, fault, id, tokens, finish };
    let Connection { reader, writer } = connection;
    let end = tokio::select! {
        biased;
        end = answer.run(writer, &mut seated_ns) => end,
        // Watches for a client that leaves. More requests may come early; they stay in the buffer.
        () = async { while matches!(reader.fill().await, Ok(true)) {} } => Err(std::io::ErrorKind::ConnectionAborted.into()),
    };
    let (counter, outcome) = match end {
        Ok(End::Finished) => (&mock.counts.finished, "finished"),
        Ok(End::Failed | End::Reset) => (&mock.counts.failed, "failed"),
        Err(_) => (&mock.counts.left, "left"),
    };
    add(counter, 1);
    if let Some(user) = &asked.user {
        let (user, priority, ended_ns) = (user.clone(), asked.priority, now_ns());
        mock.log(Logged { user, priority, arrived_ns, seated_ns, ended_ns, outcome });
    }
    if matches!(end, Ok(End::Reset)) {
        let stream: &tokio::net::TcpStream = connection.writer.as_ref();
        stream.set_zero_linger()?;
        return Ok(false);
    }
    end.map(|_| true)
}

impl Answer<'_> {
    async fn run(&self, writer: &mut tokio::net::tcp::OwnedWriteHalf, seated_ns: &mut u64) -> Result<End> {
        let args = &self.mock.args;
        match self.fault {
            Some(Fault::Reset) => return Ok(End::Reset),
            Some(Fault::Status(code)) => {
                respond(writer, code, &error(code, "as the script says")).await?;
                return Ok(End::Failed);
            }
            Some(Fault::Garbage) => {
                writer.write_all(b"NOT HTTP AT ALL\r\n\r\n").await?;
                return Ok(End::Reset);
            }
            Some(Fault::Hang) => sleep(FOREVER).await,
            Some(Fault::Slow(ms)) => sleep(Duration::from_millis(ms)).await,
            _ => {}
        }
        if args.max_queue > 0 && self.mock.seats.occupancy().waiting >= args.max_queue {
            respond(writer, 503, &error(503, "the queue is full")).await?;
            return Ok(End::Failed);
        }
        let priority = if args.by_priority { self.asked.priority.unwrap_or(0) } else { 0 };
        let _seat = self.mock.seats.take(priority).await;
        *seated_ns = now_ns();
        if self.asked.stream.unwrap_or(false) { self.stream(writer).await } else { self.whole(writer).await }
    }

    async fn whole(&self, writer: &mut tokio::net::tcp::OwnedWriteHalf) -> Result<End> {
        let mut clock = Clock::start(self.mock);
        clock.first().await;
        for _ in 1..self.tokens {
            clock.next().await;
        }
        add(&self.mock.counts.tokens, self.tokens.into());
        respond(writer, 200, &self.whole_body()).await?;
        Ok(End::Finished)
    }

    async fn stream(&self, writer: &mut tokio::net::tcp::OwnedWriteHalf) -> Result<End> {
        let mut clock = Clock::start(self.mock);
        let mut out = Vec::with_capacity(1024);
        out.extend_from_slice(STREAM_HEAD);
        for index in 0..self.tokens {
            if index == 0 {
                clock.first().await;
            } else {
                clock.next().await;
            }
            match self.fault {
                Some(Fault::Cut(after)) if after == index => {
                    writer.write_all(&out).await?;
                    return Ok(End::Reset);
                }
                Some(Fault::Eof(after)) if after == index => {
                    out.extend_from_slice(b"0\r\n\r\n");
                    writer.write_all(&out).await?;
                    return Ok(End::Failed);
                }
                Some(Fault::Stall(after)) if after == index => {
                    writer.write_all(&out).await?;
                    out.clear();
                    sleep(FOREVER).await;
                }
                Some(Fault::Malformed(after)) if after == index => {
                    chunk(&mut out, "data: {\"choices\": [{\n\n");
                }
                _ => {}
            }
            chunk(&mut out, &self.event(index));
            writer.write_all(&out).await?;
            out.clear();
            add(&self.mock.counts.tokens, 1);
        }
        chunk(&mut out, &self.last_events());
        out.extend_from_slice(b"0\r\n\r\n");
        writer.write_all(&out).await?;
        Ok(End::Finished)
    }

    /// The event of one token, with the time when it is sent.
    fn event(&self, index: u32) -> String {
        let (id, model, now) = (self.id, &self.mock.args.model, now_ns());
        match self.kind {
            Kind::Chat => {
                let role = if index == 0 { "\"role\":\"assistant\"," } else { "" };
                format!(
                    "data: {{\"id\":\"chatcmpl-{id}\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"{model}\",\
                     \"choices\":[{{\"index\":0,\"delta\":{{{role}\"content\":\"t={now} \"}},\"logprobs\":null,\"finish_reason\":null}}]}}\n\n"
                )
            }
            Kind::Completions => format!(
                "data: {{\"id\":\"cmpl-{id}\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":\"{model}\",\
                 \"choices\":[{{\"index\":0,\"text\":\"t={now} \",\"logprobs\":null,\"finish_reason\":null}}]}}\n\n"
            ),
        }
    }

    /// The reason for the end, usage if asked for, and `[DONE]`.
    fn last_events(&self) -> String {
        let (id, model) = (self.id, &self.mock.args.model);
        let (prefix, object, content) = match self.kind {
            Kind::Chat => ("chatcmpl", "chat.completion.chunk", "\"delta\":{}"),
            Kind::Completions => ("cmpl", "text_completion", "\"text\":\"\""),
        };
        let head = format!(
            "data: {{\"id\":\"{prefix}-{id}\",\"object\":\"{object}\",\"created\":1700000000,\"model\":\"{model}\",\"choices\":["
        );
        let finish = self.finish;
        let mut events = format!(
            "{head}{{\"index\":0,{content},\"logprobs\":null,\"finish_reason\":\"{finish}\"}}]}}\n\n"
        );
        if self.asked.stream_options.as_ref().is_some_and(|options| options.include_usage) {
            // Writing to a string does not fail.
            let _ = write!(events, "{head}],\"usage\":{}}}\n\n", self.usage());
        }
        events.push_str("data: [DONE]\n\n");
        events
    }

    fn usage(&self) -> String {
        let tokens = self.tokens;
        format!("{{\"prompt_tokens\":8,\"completion_tokens\":{tokens},\"total_tokens\":{}}}", tokens + 8)
    }

    fn whole_body(&self) -> String {
        let (id, model, usage, finish) = (self.id, &self.mock.args.model, self.usage(), self.finish);
        let text = "word ".repeat(self.tokens as usize);
        match self.kind {
            Kind::Chat => format!(
                "{{\"id\":\"chatcmpl-{id}\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"{model}\",\"choices\":[{{\"index\":0,\
                 \"message\":{{\"role\":\"assistant\",\"content\":\"{text}\"}},\"logprobs\":null,\"finish_reason\":\"{finish}\"}}],\"usage\":{usage}}}"
            ),
            Kind::Completions => format!(
                "{{\"id\":\"cmpl-{id}\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":\"{model}\",\"choices\":[{{\"index\":0,\
                 \"text\":\"{text}\",\"logprobs\":null,\"finish_reason\":\"{finish}\"}}],\"usage\":{usage}}}"
            ),
        }
    }
}

/// Appends one chunk of a chunked body.
fn chunk(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(format!("{:x}\r\n", text.len()).as_bytes());
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// When the tokens of one answer come.
struct Clock<'a> {
    mock: &'a Mock,
    next: Instant,
}

impl<'a> Clock<'a> {
    fn start(mock: &'a Mock) -> Self {
        Self { mock, next: Instant::now() }
    }

    async fn first(&mut self) {
        self.wait(self.mock.args.ttft_ms).await;
    }

    async fn next(&mut self) {
        self.wait(self.mock.args.itl_ms).await;
    }

    async fn wait(&mut self, ms: f64) {
        if ms <= 0.0 {
            return;
        }
        let knee = self.mock.args.knee;
        let slower = match knee {
            0 => 1.0,
            _ => (self.mock.seats.occupancy().running as f64 / knee as f64).max(1.0),
        };
        self.next += Duration::from_secs_f64(ms * slower / 1e3);
        sleep_until(self.next).await;
    }
}
