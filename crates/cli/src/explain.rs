//! `outrank explain`.

use anyhow::Result;
use clap::Args;
use outrank_ranker::Ranker;
use serde::Serialize;
use serde_json::Value;

use crate::error::usage;
use crate::http::{Api, path_segment};
use crate::output::{Output, Table, number};
use crate::settings::{FileSettings, RankerSettings};

/// Words whose effect is measured, at most: each costs one more score.
const MAX_WORDS: usize = 400;
/// Words listed.
const LISTED_WORDS: usize = 8;
/// A word that changes the prediction by less than this is not listed.
const LEAST_EFFECT: f64 = 0.01;

/// Say where a request stands, or what the ranker makes of a prompt
///
/// With an ID, asks a running outrank server about a request that waits or runs: its position, predicted length, ETA and
/// why it stands where it does. The server names each request in the header x-request-id.
///
/// With --prompt, shows the length that the ranker predicts, and the words that matter most: by how much the prediction
/// would be longer or shorter without them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    outrank explain --url http://127.0.0.1:8000 req-42\n  \
    outrank explain --prompt 'Write a story about a fox.' --ranker my.outrank")]
pub(crate) struct ExplainArgs {
    /// Request to ask about
    #[arg(value_name = "ID", conflicts_with = "prompt", required_unless_present = "prompt")]
    id: Option<String>,
    /// Server that has the request
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// Key of the server
    #[arg(long, env = "OUTRANK_API_KEY", value_name = "KEY", hide_env_values = true)]
    url_key: Option<String>,
    /// Prompt to score
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    #[command(flatten)]
    ranker: RankerSettings,
}

/// Runs the command.
pub(crate) fn run(args: &ExplainArgs, file: FileSettings, output: &Output) -> Result<()> {
    match (&args.prompt, &args.id) {
        (Some(prompt), _) => {
            let ranker = args.ranker.clone().or(file.ranker).load()?;
            let ranker = ranker.ok_or_else(|| usage("--prompt needs a ranker: leave --no-ranker away"))?;
            let prediction = Prediction::of(&ranker, prompt);
            output.result(&prediction, &prediction.text())
        }
        (None, Some(id)) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let api = Api::new(&args.url, args.url_key.clone())?;
            let answer = runtime.block_on(api.get(&format!("/v1/outrank/requests/{}", path_segment(id))))?;
            output.result(&answer, &request_text(&answer))
        }
        (None, None) => Err(usage("name a request, or give a --prompt")),
    }
}

/// What a word does to the prediction.
#[derive(Debug, Serialize)]
struct WordEffect {
    word: String,
    /// Predicted length with the word over that without it.
    factor: f64,
}

/// What the ranker makes of a prompt.
#[derive(Debug, Serialize)]
struct Prediction {
    /// Median of the predicted length.
    predicted_tokens: f32,
    /// Central interval that should hold the length in 80 of 100 cases.
    interval_80: (f32, f32),
    /// The words that matter most, and what they do.
    words: Vec<WordEffect>,
}

impl Prediction {
    fn of(ranker: &Ranker, prompt: &str) -> Self {
        let score = ranker.score(prompt);
        let mut words = effects(ranker, prompt);
        words.retain(|effect| effect.factor.ln().abs() >= LEAST_EFFECT);
        words.sort_by(|a, b| b.factor.ln().abs().total_cmp(&a.factor.ln().abs()));
        words.truncate(LISTED_WORDS);
        Self { predicted_tokens: score.median_tokens(), interval_80: score.interval(), words }
    }

    fn text(&self) -> String {
        let (low, high) = self.interval_80;
        let tokens = self.predicted_tokens;
        let mut text = format!("predicted answer: {tokens:.0} tokens, 80 % between {low:.0} and {high:.0}\n");
        if self.words.is_empty() {
            text.push_str("no single word matters much\n");
            return text;
        }
        let mut table = Table::new(["word", "makes it longer by"]);
        for effect in &self.words {
            table.row([effect.word.clone(), format!("x{:.2}", effect.factor)]);
        }
        text.push_str(&table.render());
        text
    }
}

/// For each different word, the prediction with it over the prediction without any occurrence of it.
fn effects(ranker: &Ranker, prompt: &str) -> Vec<WordEffect> {
    let whole = f64::from(ranker.score(prompt).median_tokens());
    let mut seen: Vec<&str> = Vec::new();
    for word in prompt.split_whitespace() {
        if !seen.contains(&word) && seen.len() < MAX_WORDS {
            seen.push(word);
        }
    }
    let effect = |word: &str| {
        let without: Vec<&str> = prompt.split_whitespace().filter(|part| *part != word).collect();
        let without = f64::from(ranker.score(&without.join(" ")).median_tokens());
        WordEffect { word: word.to_owned(), factor: whole / without }
    };
    seen.into_iter().map(effect).collect()
}

/// The server's explanation, one fact a line: first of the request, then of each of its outputs, whose reason is last.
fn request_text(answer: &Value) -> String {
    let mut text = facts_text(answer);
    for choice in answer["choices"].as_array().into_iter().flatten() {
        text.push('\n');
        text.push_str(&facts_text(choice));
        if let Some(why) = choice["schedule"]["why"].as_str() {
            text.push_str(why);
            text.push('\n');
        }
    }
    text
}

/// The facts of an object and of the objects in it; lists and what is not known are left out.
fn facts_text(object: &Value) -> String {
    fn add(table: &mut Table, object: &Value) {
        for (name, value) in object.as_object().into_iter().flatten() {
            let cell = match value {
                Value::Null | Value::Array(_) => continue,
                Value::Object(_) => {
                    add(table, value);
                    continue;
                }
                Value::String(_) if name == "why" => continue,
                Value::String(text) => text.clone(),
                Value::Number(value) => value.as_f64().map_or_else(|| value.to_string(), tidy),
                Value::Bool(value) => value.to_string(),
            };
            table.row([name.replace('_', " "), cell]);
        }
    }
    let mut table = Table::new([]);
    add(&mut table, object);
    table.render().trim_start_matches('\n').to_owned()
}

fn tidy(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { number(value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_reason_comes_last_and_what_is_not_known_is_left_out() {
        // The shape that `GET /v1/outrank/requests/{id}` has.
        let schedule =
            json!({"policy": "outrank", "position": 3, "waited_ms": 1234.567, "why": "short first"});
        let choice = json!({"index": 0, "status": "waiting", "predicted_tokens": null, "schedule": schedule, "timings": null});
        let answer = json!({"id": "chatcmpl-1", "status": "waiting", "choices": [choice]});
        let text = request_text(&answer);
        assert!(text.contains("position") && text.contains("waited ms") && text.contains("1235"), "{text}");
        assert!(text.ends_with("short first\n") && text.starts_with("id "), "{text}");
        assert!(!text.contains("predicted") && !text.contains("choices") && !text.contains('{'), "{text}");
    }
}
