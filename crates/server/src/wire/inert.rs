//! Fields of the OpenAI API (and of vLLM's extensions) that this server does not act on.
//!
//! Such a field is accepted where it cannot change the output, and refused by name everywhere else.

use serde_json::Value;

use super::fields::{Fields, wrong_type};
use outrank_http::ApiError;

/// A field that is accepted only with values that ask for nothing: its name, and those values as compact JSON.
pub(crate) type Inert = (&'static str, &'static [&'static str]);

/// Of both protocols.
pub(crate) const COMMON_INERT: [Inert; 5] = [
    ("logit_bias", &["{}"]),
    ("min_tokens", &["0"]),
    ("repetition_penalty", &["1", "1.0"]),
    ("stop_token_ids", &["[]"]),
    ("use_beam_search", &["false"]),
];

/// Of chat completions.
pub(crate) const CHAT_INERT: [Inert; 13] = [
    ("audio", &[]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("modalities", &["[\"text\"]"]),
    ("moderation", &[]),
    ("prediction", &[]),
    ("prompt_cache_retention", &[]),
    ("reasoning_effort", &[]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("tools", &["[]"]),
    ("verbosity", &[]),
    ("web_search_options", &[]),
];

/// Of completions.
pub(crate) const COMPLETIONS_INERT: [Inert; 4] = [
    ("best_of", &["1"]),
    ("echo", &["false"]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("suffix", &["\"\""]),
];

/// Of a message.
pub(crate) const MESSAGE_INERT: [Inert; 7] = [
    ("annotations", &["[]"]),
    ("audio", &[]),
    ("function_call", &[]),
    ("name", &[]),
    ("refusal", &[]),
    ("tool_call_id", &[]),
    ("tool_calls", &["[]"]),
];

/// Reads inert fields; one with a value that asks for something is refused.
pub(super) fn read(fields: &mut Fields, inert: &[Inert]) -> Result<(), ApiError> {
    for (name, harmless) in inert {
        let Some(value) = fields.value(name) else { continue };
        if harmless.contains(&value.to_string().as_str()) {
            continue;
        }
        let path = fields.path(name);
        let instead = match harmless.first() {
            Some(first) => format!("remove it or send {first}"),
            None => "remove it".into(),
        };
        return Err(ApiError::unsupported(
            &path,
            format!("`{path}` is not supported by this server: {instead}"),
        ));
    }
    Ok(())
}

/// Reads fields that never change an output: they label, store or bill. Their types are still checked.
pub(super) fn read_unused(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["user", "safety_identifier", "prompt_cache_key", "service_tier"] {
        fields.string(name)?;
    }
    for name in ["store", "parallel_tool_calls"] {
        fields.flag(name)?;
    }
    match fields.value("metadata") {
        None => Ok(()),
        Some(Value::Object(labels)) if labels.values().all(Value::is_string) => Ok(()),
        Some(other) => Err(wrong_type("metadata", "an object of strings", &other)),
    }
}
