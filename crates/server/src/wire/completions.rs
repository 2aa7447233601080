//! `/v1/completions`.

use outrank_engine::{FinishReason, Token};
use serde_json::{Value, json};

use super::call::{Call, Limits, OwnFields, Prompt, read_max_tokens};
use super::fields::{Fields, whole, wrong_type};
use super::logprobs::{TokenLogprob, completion_logprobs};
use super::{Wire, finish_word, inert};
use outrank_http::ApiError;

/// Alternatives reported for one token, at most, as in the OpenAI API.
const MAX_LOGPROBS: u32 = 5;

/// The completions protocol.
pub(crate) struct Completions;

impl Wire for Completions {
    const PROMPT: &'static str = "prompt";
    const ID_PREFIX: &'static str = "cmpl-";
    const OPERATION: &'static str = "text_completion";
    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";

    fn read(mut fields: Fields, limits: &Limits) -> Result<Call, ApiError> {
        let prompts = read_prompts(&mut fields, limits)?;
        let max_tokens = read_max_tokens(&mut fields, "max_tokens", limits)?;
        let logprobs = fields.count("logprobs", 0..=MAX_LOGPROBS)?.map(|top| top as u8);
        inert::read(&mut fields, &inert::COMPLETIONS_INERT)?;
        Call::read::<Self>(fields, limits, OwnFields { prompts, max_tokens, logprobs })
    }

    fn opening(_index: usize) -> Option<Value> {
        None
    }

    fn delta(index: usize, text: &str, logprob: Option<&TokenLogprob>) -> Value {
        let logprobs = logprob.map(|one| completion_logprobs(std::slice::from_ref(one)));
        json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": null })
    }

    fn closing(index: usize, reason: FinishReason) -> Value {
        json!({ "index": index, "text": "", "logprobs": null, "finish_reason": finish_word(reason) })
    }

    fn choice(index: usize, text: &str, logprobs: Option<&[TokenLogprob]>, reason: FinishReason) -> Value {
        json!({
            "index": index,
            "text": text,
            "logprobs": logprobs.map(completion_logprobs),
            "finish_reason": finish_word(reason),
        })
    }
}

const PROMPT_TYPES: &str = "a string, an array of strings, an array of token ids, or an array of such arrays";

/// One prompt or several, each a text or an array of token ids.
fn read_prompts(fields: &mut Fields, limits: &Limits) -> Result<Vec<Prompt>, ApiError> {
    let items = match fields.value("prompt") {
        None => return Err(ApiError::missing("prompt", PROMPT_TYPES)),
        Some(Value::String(text)) => return Ok(vec![read_text(text)?]),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong_type("prompt", PROMPT_TYPES, &other)),
    };
    if items.is_empty() {
        return Err(ApiError::invalid("prompt", "`prompt` is empty: send at least one prompt"));
    }
    if items.iter().all(Value::is_number) {
        return Ok(vec![read_tokens(&items)?]);
    }
    if items.len() > limits.max_prompts as usize {
        let (have, most) = (items.len(), limits.max_prompts);
        return Err(ApiError::invalid(
            "prompt",
            format!("`prompt` has {have} prompts: send at most {most} at once"),
        ));
    }
    let read = |item| match item {
        Value::String(text) => read_text(text),
        Value::Array(tokens) => read_tokens(&tokens),
        other => Err(wrong_type("prompt", PROMPT_TYPES, &other)),
    };
    items.into_iter().map(read).collect()
}

fn read_text(text: String) -> Result<Prompt, ApiError> {
    if text.is_empty() {
        return Err(ApiError::invalid("prompt", "`prompt` is empty: send at least one character"));
    }
    Ok(Prompt::Text(text))
}

fn read_tokens(items: &[Value]) -> Result<Prompt, ApiError> {
    let token = |item: &Value| {
        let id = whole(item).and_then(|id| Token::try_from(id).ok()).filter(|&id| id >= 0);
        id.ok_or_else(|| wrong_type("prompt", "made of token ids of the model", item))
    };
    if items.is_empty() {
        return Err(ApiError::invalid("prompt", "`prompt` holds an empty array: send at least one token id"));
    }
    Ok(Prompt::Tokens(items.iter().map(token).collect::<Result<_, _>>()?))
}
