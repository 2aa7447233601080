//! `/v1/chat/completions`.

use outrank_engine::{ChatMessage, FinishReason};
use serde_json::{Value, json};

use super::call::{Call, Limits, OwnFields, Prompt, read_max_tokens};
use super::fields::{Fields, wrong_type};
use super::logprobs::{TokenLogprob, chat_logprobs};
use super::{Wire, finish_word, inert};
use outrank_http::ApiError;

/// Alternatives reported for one token, at most, as in the OpenAI API.
const MAX_TOP_LOGPROBS: u32 = 20;

/// The chat protocol.
pub(crate) struct Chat;

impl Wire for Chat {
    const PROMPT: &'static str = "messages";
    const ID_PREFIX: &'static str = "chatcmpl-";
    const OPERATION: &'static str = "chat";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";

    fn read(mut fields: Fields, limits: &Limits) -> Result<Call, ApiError> {
        let messages = read_messages(&mut fields)?;
        let max_tokens = read_output_limit(&mut fields, limits)?;
        let logprobs = read_logprobs(&mut fields)?;
        inert::read(&mut fields, &inert::CHAT_INERT)?;
        let prompts = vec![Prompt::Chat(messages)];
        Call::read::<Self>(fields, limits, OwnFields { prompts, max_tokens, logprobs })
    }

    fn opening(index: usize) -> Option<Value> {
        let delta = json!({ "role": "assistant", "content": "" });
        Some(json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null }))
    }

    fn delta(index: usize, text: &str, logprob: Option<&TokenLogprob>) -> Value {
        let logprobs = logprob.map(|one| chat_logprobs(std::slice::from_ref(one)));
        json!({ "index": index, "delta": { "content": text }, "logprobs": logprobs, "finish_reason": null })
    }

    fn closing(index: usize, reason: FinishReason) -> Value {
        json!({ "index": index, "delta": {}, "logprobs": null, "finish_reason": finish_word(reason) })
    }

    fn choice(index: usize, text: &str, logprobs: Option<&[TokenLogprob]>, reason: FinishReason) -> Value {
        json!({
            "index": index,
            "message": { "role": "assistant", "content": text, "refusal": null },
            "logprobs": logprobs.map(chat_logprobs),
            "finish_reason": finish_word(reason),
        })
    }
}

fn read_messages(fields: &mut Fields) -> Result<Vec<ChatMessage>, ApiError> {
    let messages = fields
        .array("messages")?
        .ok_or_else(|| ApiError::missing("messages", "an array of messages, each with role and content"))?;
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` is empty: send at least one message"));
    }
    let read = |(index, value)| read_message(Fields::within(value, &format!("messages[{index}]"))?);
    messages.into_iter().enumerate().map(read).collect()
}

fn read_message(mut fields: Fields) -> Result<ChatMessage, ApiError> {
    let path = fields.path("role");
    let role = fields.string("role")?.ok_or_else(|| ApiError::missing(&path, "system, user or assistant"))?;
    let role = match role.as_str() {
        // OpenAI's newer name of the same role.
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" | "function" => {
            let message =
                format!("`{path}` is `{role}`, but this server does not call tools: use user or assistant");
            return Err(ApiError::unsupported(path, message));
        }
        _ => {
            let message = format!("`{path}` is unknown: use system, developer, user or assistant");
            return Err(ApiError::invalid(path, message));
        }
    };
    let content = read_content(&mut fields)?;
    inert::read(&mut fields, &inert::MESSAGE_INERT)?;
    fields.finish()?;
    Ok(ChatMessage { role: role.into(), content })
}

/// A text, or an array of text parts, which are joined by line breaks (as vLLM does).
fn read_content(fields: &mut Fields) -> Result<String, ApiError> {
    let path = fields.path("content");
    match fields.value("content") {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) if !parts.is_empty() => {
            let read = |(index, part)| read_part(Fields::within(part, &format!("{path}[{index}]"))?);
            let texts: Vec<String> = parts.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
            Ok(texts.join("\n"))
        }
        Some(other) => Err(wrong_type(&path, "a string or an array of text parts", &other)),
        None => Err(ApiError::missing(path, "a string or an array of text parts")),
    }
}

fn read_part(mut part: Fields) -> Result<String, ApiError> {
    let path = part.path("type");
    let kind = part.string("type")?.ok_or_else(|| ApiError::missing(&path, "text"))?;
    if kind != "text" {
        let message =
            format!("`{path}` is `{kind}`, but this server reads text only: send parts of type text");
        return Err(ApiError::unsupported(path, message));
    }
    let path = part.path("text");
    let text = part.string("text")?.ok_or_else(|| ApiError::missing(path, "the text of the part"))?;
    part.finish()?;
    Ok(text)
}

/// `max_completion_tokens`, or its older name.
fn read_output_limit(fields: &mut Fields, limits: &Limits) -> Result<Option<u32>, ApiError> {
    let newer = read_max_tokens(fields, "max_completion_tokens", limits)?;
    let older = read_max_tokens(fields, "max_tokens", limits)?;
    match (newer, older) {
        (Some(newer), Some(older)) if newer != older => {
            let message =
                "`max_tokens` and `max_completion_tokens` are the same setting with two values: send one";
            Err(ApiError::invalid("max_tokens", message))
        }
        _ => Ok(newer.or(older)),
    }
}

fn read_logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = fields.flag("logprobs")?;
    let top = fields.count("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    if !wanted && top.is_some_and(|top| top > 0) {
        let message = "`top_logprobs` needs `logprobs: true`: set it or remove top_logprobs";
        return Err(ApiError::invalid("top_logprobs", message));
    }
    Ok(wanted.then(|| top.unwrap_or(0) as u8))
}
