//! `outrank trace count` and `outrank trace convert`: tokens by the model's own tokenizer.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use outrank_ranker::TraceRecord;
use outrank_ranker::trace::{Lengths, TraceWriter, approximate_tokens};
use serde::Serialize;

use crate::error::usage;
use crate::files;
use crate::host::ModelFile;
use crate::output::{Output, note, plural};
use crate::progress::Progress;
use crate::settings::{EngineSettings, FileSettings};

/// Count prompt tokens, and answer tokens where only the text is there
///
/// Counts that the input has are kept: `prompt_tokens` unless --overwrite, `output_tokens` always. A count is of the bare
/// text, without what a chat template adds.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outrank trace count log.jsonl --out counted.jsonl.gz --tokenizer model.gguf"
)]
pub(crate) struct CountArgs {
    #[command(flatten)]
    files: Files,
}

/// Turn {"prompt", "generated"} lines into a trace with lengths, without the texts of the answers
///
/// Counts that the input has are kept: `prompt_tokens` unless --overwrite, `output_tokens` always.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outrank trace convert paper.jsonl --out trace.jsonl.gz")]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    files: Files,
    /// Keep the texts of the answers
    #[arg(long)]
    keep_text: bool,
}

#[derive(Debug, Args)]
struct Files {
    /// Trace to read
    #[arg(value_name = "FILE")]
    input: PathBuf,
    /// Trace to write; a name in .gz is compressed
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// GGUF file whose tokenizer counts [default: the embedded engine's model]
    #[arg(long, value_name = "FILE", conflicts_with = "approximate")]
    tokenizer: Option<PathBuf>,
    /// Guess from words and bytes instead of counting; up to a third off
    #[arg(long)]
    approximate: bool,
    /// Count prompts anew where the input has `prompt_tokens` already
    #[arg(long)]
    overwrite: bool,
}

#[derive(Serialize)]
struct Report {
    out: String,
    requests: usize,
    /// Prompts whose tokens were counted; the others had `prompt_tokens`.
    counted_prompts: usize,
    /// Answers whose tokens were counted from their text.
    counted_answers: usize,
}

type Counter = Box<dyn Fn(&str) -> u32>;

/// Runs `count`.
pub(crate) fn count(args: &CountArgs, file: FileSettings, output: &Output) -> Result<()> {
    args.files.check()?;
    let counter = args.files.counter(file)?;
    args.files.rewrite(&counter, output, |record| {
        let text = record.generated.as_ref().filter(|_| record.output_tokens.is_empty());
        let tokens = text.map(|text| counter(text));
        record.output_tokens.extend(tokens);
        Ok(tokens.is_some())
    })
}

/// Runs `convert`.
pub(crate) fn convert(args: &ConvertArgs, file: FileSettings, output: &Output) -> Result<()> {
    args.files.check()?;
    let counter = args.files.counter(file)?;
    args.files.rewrite(&counter, output, |record| {
        let text = if args.keep_text { record.generated.clone() } else { record.generated.take() };
        if !record.output_tokens.is_empty() {
            return Ok(false);
        }
        match text {
            Some(text) => record.output_tokens = vec![counter(&text)],
            None => {
                bail!("has neither `output_tokens` nor `generated`: nothing to convert; use `trace collect`")
            }
        }
        Ok(true)
    })
}

impl Files {
    fn check(&self) -> Result<()> {
        if self.input == self.out {
            return Err(usage("--out names the input; write to another file"));
        }
        files::check_out(&self.out)
    }

    fn counter(&self, file: FileSettings) -> Result<Counter> {
        if self.approximate {
            return Ok(Box::new(approximate_tokens));
        }
        let engine = EngineSettings { model: self.tokenizer.clone(), ..EngineSettings::default() };
        let model = ModelFile::open(&engine.or(file.engine))?;
        note(&format!("counting with the tokenizer of {}", model.name()));
        Ok(Box::new(move |text| model.count_tokens(text)))
    }

    /// Reads every record, fills in its prompt tokens where they are missing or to be overwritten, lets `change` do the rest, and writes it.
    fn rewrite(
        &self,
        counter: &Counter,
        output: &Output,
        mut change: impl FnMut(&mut TraceRecord) -> Result<bool>,
    ) -> Result<()> {
        let records = files::placed(&self.input, Lengths::Optional)?;
        let mut writer = TraceWriter::create(&self.out)?;
        let (mut counted_prompts, mut counted_answers) = (0, 0);
        let progress = Progress::new(files::name(&self.input), records.len());
        let requests = records.len();
        for (place, mut record) in records {
            if self.overwrite || record.prompt_tokens.is_none() {
                record.prompt_tokens = Some(counter(&record.text()));
                counted_prompts += 1;
            }
            let counted = change(&mut record).with_context(|| place.to_string())?;
            counted_answers += usize::from(counted);
            writer.write(&record)?;
            progress.step();
        }
        drop(progress);
        writer.finish()?;
        let out = self.out.display().to_string();
        let text = format!(
            "{out}: {}; counted {} (the others had their tokens) and {} from their text",
            plural(requests, "request"),
            plural(counted_prompts, "prompt"),
            plural(counted_answers, "answer"),
        );
        output.result(&Report { out, requests, counted_prompts, counted_answers }, &text)
    }
}
