//! Asks a model file one question: `cargo run --release -p outrank-engine --example ask -- MODEL.gguf "QUESTION"`.

use std::io::Write;
use std::sync::Arc;

use outrank_core::policies::Fcfs;
use outrank_engine::{ChatMessage, Engine, EngineConfig, GenerateRequest, Model, Output, SamplingParams};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(question)) = (args.next(), args.next()) else {
        return Err("usage: ask MODEL.gguf QUESTION".into());
    };
    let model = Arc::new(Model::load(path.as_ref())?);
    let prompt = model.chat_prompt(&[ChatMessage::new("user", question)])?;
    let config = EngineConfig { seats: 1, ..EngineConfig::default() };
    let engine = Engine::start(model, &config, Box::new(Fcfs))?;
    let mut answer = engine.submit_blocking(GenerateRequest::new(prompt, SamplingParams::greedy(256)))?;
    let mut out = std::io::stdout();
    while let Some(output) = answer.next_blocking() {
        match output {
            Output::Token { text, .. } => write!(out, "{text}")?,
            Output::Finished { reason, usage, timings } => {
                write!(out, "\n\n{reason:?} {usage:?} {timings:?}\n")?;
            }
            Output::Failed(reason) => return Err(reason.into()),
        }
        out.flush()?;
    }
    Ok(())
}
