//! How many requests an engine works on at once, where it says so.

use axum::http::StatusCode;
use serde::Deserialize;

use super::Upstream;
use super::health::{self, PROBE_TIMEOUT};

/// Where engines say it: llama.cpp; SGLang, and vLLM in its development mode; older versions of SGLang.
const PATHS: [&str; 3] = ["/props", "/server_info?config_format=json", "/get_server_info"];
/// More than that is a mistake.
const MAX_SEATS: u64 = 65_536;

/// What is read of the answers. Each engine has fields of its own.
#[derive(Deserialize)]
struct Info {
    /// llama.cpp: `--parallel`.
    total_slots: Option<u64>,
    /// SGLang: one for each data-parallel rank.
    #[serde(default)]
    internal_states: Vec<InternalState>,
    vllm_config: Option<VllmConfig>,
}

#[derive(Deserialize)]
struct InternalState {
    effective_max_running_requests_per_dp: u64,
}

#[derive(Deserialize)]
struct VllmConfig {
    scheduler_config: SchedulerConfig,
    parallel_config: ParallelConfig,
}

#[derive(Deserialize)]
struct SchedulerConfig {
    max_num_seqs: u64,
}

#[derive(Deserialize)]
struct ParallelConfig {
    data_parallel_size: u64,
}

/// Asks an engine for its seats. `None` from one that does not say.
pub(crate) async fn ask(upstream: &Upstream) -> Option<u32> {
    let asked = async {
        for path in PATHS {
            if let Ok((StatusCode::OK, body)) = health::get(upstream, path).await
                && let Some(seats) = read(&body)
            {
                return Some(seats);
            }
        }
        None
    };
    tokio::time::timeout(PROBE_TIMEOUT, asked).await.ok().flatten()
}

/// The number in an answer, if it is one that can be.
fn read(body: &[u8]) -> Option<u32> {
    let info: Info = serde_json::from_slice(body).ok()?;
    let sglang = info
        .internal_states
        .iter()
        .fold(0u64, |sum, state| sum.saturating_add(state.effective_max_running_requests_per_dp));
    let vllm = info.vllm_config.map(|config| {
        config.scheduler_config.max_num_seqs.saturating_mul(config.parallel_config.data_parallel_size)
    });
    let seats = info.total_slots.or(vllm).unwrap_or(sglang);
    u32::try_from(seats).ok().filter(|_| (1..=MAX_SEATS).contains(&seats))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_of_three_engines_are_understood() {
        let llama = r#"{"default_generation_settings":{"n_ctx":1536},"total_slots":4,"chat_template":"x"}"#;
        let sglang = r#"{"max_running_requests":null,"internal_states":[
            {"effective_max_running_requests_per_dp":128,"last_gen_throughput":149.5},
            {"effective_max_running_requests_per_dp":128,"memory_usage":{}}],"version":"0.5.18"}"#;
        let vllm = r#"{"vllm_config":{"scheduler_config":{"max_num_seqs":256,"policy":"fcfs"},
            "parallel_config":{"data_parallel_size":2}},"vllm_env":{}}"#;
        for (answer, seats) in [(llama, 4), (sglang, 256), (vllm, 512)] {
            assert_eq!(read(answer.as_bytes()), Some(seats), "{answer}");
        }
    }

    #[test]
    fn what_cannot_be_a_number_of_seats_is_none() {
        for answer in [
            "",
            "ok",
            "[4]",
            "{}",
            r#"{"total_slots":0}"#,
            r#"{"total_slots":-1}"#,
            r#"{"total_slots":"4"}"#,
            r#"{"total_slots":4000000000}"#,
            r#"{"vllm_config":"VllmConfig(max_num_seqs=256)"}"#,
            r#"{"internal_states":[{}]}"#,
        ] {
            assert_eq!(read(answer.as_bytes()), None, "{answer}");
        }
    }
}
