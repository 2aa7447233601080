//! `gwmock`: a scripted stand-in for an LLM server, far cheaper than any gateway before it.
//!
//! Answers /v1/chat/completions and /v1/completions, streaming or whole, with as many tokens as `max_tokens` asks for, or
//! as `outrank.true_output_tokens` says that a recorded answer had, if that is fewer; each token carries the time when it was sent. A number of seats with a first-come-first-served queue (or by `priority`, lower
//! first, as vLLM has it) stands for the continuous batch. Faults come by the header `x-mock-fault` or by
//! `POST /mock/fault {"fault": "status:500", "count": 3}`; `GET /mock/stats` and `/mock/log` tell what it saw.

mod fault;
mod generate;
mod seats;
mod serve;
mod state;

use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use tokio::net::{TcpListener, TcpSocket};

use state::Mock;

/// Open files that thousands of streams need.
const OPEN_FILES: u64 = 65_536;
/// Connections that wait to be accepted, at most.
const BACKLOG: u32 = 8_192;

/// A scripted stand-in for an LLM server.
#[derive(Debug, Clone, Parser)]
pub(crate) struct Args {
    /// Port on 127.0.0.1; 0 takes a free one and prints it
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Milliseconds from a seat to the first token
    #[arg(long, default_value_t = 0.0)]
    ttft_ms: f64,
    /// Milliseconds from token to token
    #[arg(long, default_value_t = 0.0)]
    itl_ms: f64,
    /// Requests that run at once; the others queue. 0: no limit
    #[arg(long, default_value_t = 0)]
    seats: usize,
    /// Say how many seats there are, as SGLang does
    #[arg(long)]
    says_seats: bool,
    /// With more than so many requests running, all slow down in proportion. 0: never
    #[arg(long, default_value_t = 0)]
    knee: usize,
    /// Requests that queue, at most; more get 503. 0: no limit
    #[arg(long, default_value_t = 0)]
    max_queue: usize,
    /// Serve the queue by the body's `priority`, lower first
    #[arg(long)]
    by_priority: bool,
    /// Tokens of an answer to a request without max_tokens
    #[arg(long, default_value_t = 16)]
    tokens: u32,
    /// Name of the model
    #[arg(long, default_value = "mock")]
    model: String,
    /// Threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    // Fails only where the hard limit is lower; then fewer streams fit.
    let _ = rlimit::increase_nofile_limit(OPEN_FILES);
    let mut builder = match args.threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime =
        builder.worker_threads(args.threads.max(1)).enable_all().build().context("async runtime")?;
    runtime.block_on(accept(args))
}

async fn accept(args: Args) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(([127, 0, 0, 1], args.port).into()).context("bind")?;
    let listener: TcpListener = socket.listen(BACKLOG)?;
    announce(listener.local_addr()?.port());
    let mock = Arc::new(Mock::new(args));
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let mock = Arc::clone(&mock);
        tokio::spawn(async move {
            // An error is a client that left or sent what is not HTTP: its connection ends, nobody else is concerned.
            let _ = serve::connection(&mock, stream).await;
        });
    }
}

#[expect(clippy::print_stdout, reason = "scripts read the port from there")]
fn announce(port: u16) {
    println!("http://127.0.0.1:{port}");
}
