//! Runs and answers as files.

use anyhow::{Context, Result};
use outrank_core::Summary;
use serde_json::json;

use crate::simulate::run::Run;

/// One line a run.
pub(crate) fn render(runs: &[Run]) -> String {
    let mut text =
        String::from("policy,profile,arrivals,load,seed,requests,duration_s,tokens_per_s,preemptions");
    for metric in ["s_per_token", "ttft_s", "e2e_s", "tpot_s", "max_waiting_s"] {
        for figure in ["mean", "p50", "p90", "p99", "max"] {
            text.push_str(&format!(",{metric}_{figure}"));
        }
    }
    text.push('\n');
    for run in runs {
        let facts = &run.facts;
        let cell = |value: &str| format!("\"{}\"", value.replace('"', "\"\""));
        let load = facts.load.map(|load| load.to_string()).unwrap_or_default();
        text.push_str(&format!(
            "{},{},{},{load},{},{},{},{},{}",
            cell(&facts.policy),
            cell(&facts.profile),
            cell(&facts.arrivals),
            facts.seed,
            run.requests,
            run.duration_s,
            run.tokens_per_s,
            run.preemptions
        ));
        let m = &run.metrics;
        for summary in [m.s_per_token, m.ttft_s, m.e2e_s, m.tpot_s, m.max_waiting_s] {
            let Summary { mean, p50, p90, p99, max } = summary.unwrap_or_default();
            text.push_str(&format!(",{mean},{p50},{p90},{p99},{max}"));
        }
        text.push('\n');
    }
    text
}

/// One JSON line an answer.
pub(crate) fn answers(runs: &[Run]) -> Result<String> {
    let mut text = String::new();
    for (index, run) in runs.iter().enumerate() {
        for answer in &run.answers {
            let mut line = json!(answer);
            line["run"] = json!(index);
            text.push_str(&serde_json::to_string(&line).context("writing an answer")?);
            text.push('\n');
        }
    }
    Ok(text)
}
