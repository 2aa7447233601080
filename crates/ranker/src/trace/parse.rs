//! One JSON object <-> one [`TraceRecord`].

use serde_json::{Map, Value, json};

use super::{Message, Prompt, TraceRecord};

/// Parses one line. The error says which key is wrong and what it should be.
pub(super) fn parse_line(line: &str) -> Result<TraceRecord, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("not valid JSON: {error}"))?;
    let Value::Object(mut map) = value else {
        return Err(format!("expected a JSON object, found {}", kind(&value)));
    };
    let prompt = take_prompt(&mut map)?;
    let output_tokens = take_lengths(&mut map)?;
    let truncated = map.remove("truncated");
    let generated = match take_string(&mut map, "generated")? {
        Some(text) => Some(text),
        None => take_string(&mut map, "response")?,
    };
    // An answer that is given as text is one sample, whose tokens are counted later.
    let samples =
        if output_tokens.is_empty() { usize::from(generated.is_some()) } else { output_tokens.len() };
    Ok(TraceRecord {
        prompt,
        output_tokens,
        truncated: read_truncated(truncated, samples)?,
        generated,
        prompt_tokens: match map.remove("prompt_tokens") {
            None | Some(Value::Null) => None,
            Some(value) => Some(whole(&value, "prompt_tokens")?),
        },
        arrival_s: take_number(&mut map, "arrival_s")?,
        model: take_string(&mut map, "model")?,
        source: take_string(&mut map, "source")?,
        tenant: take_string(&mut map, "tenant")?,
        class: take_string(&mut map, "class")?,
        score: take_number(&mut map, "score")?,
        extra: map,
    })
}

/// Writes one record as a JSON object, unknown keys included.
pub(super) fn to_value(record: &TraceRecord) -> Value {
    let mut map = Map::new();
    match &record.prompt {
        Prompt::Text(text) => map.insert("prompt".into(), json!(text)),
        Prompt::Messages(messages) => map.insert("messages".into(), json!(messages)),
    };
    insert_samples(&mut map, "output_tokens", &record.output_tokens);
    insert_samples(&mut map, "truncated", &record.truncated);
    let optional = [
        ("generated", record.generated.as_ref().map(|v| json!(v))),
        ("prompt_tokens", record.prompt_tokens.map(|v| json!(v))),
        ("arrival_s", record.arrival_s.map(|v| json!(v))),
        ("model", record.model.as_ref().map(|v| json!(v))),
        ("source", record.source.as_ref().map(|v| json!(v))),
        ("tenant", record.tenant.as_ref().map(|v| json!(v))),
        ("class", record.class.as_ref().map(|v| json!(v))),
        ("score", record.score.map(|v| json!(v))),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            map.insert(key.into(), value);
        }
    }
    for (key, value) in &record.extra {
        map.insert(key.clone(), value.clone());
    }
    Value::Object(map)
}

fn insert_samples<T: serde::Serialize>(map: &mut Map<String, Value>, key: &str, samples: &[T]) {
    match samples {
        [] => {}
        [one] => drop(map.insert(key.into(), json!(one))),
        many => drop(map.insert(key.into(), json!(many))),
    }
}

fn take_prompt(map: &mut Map<String, Value>) -> Result<Prompt, String> {
    match (map.remove("prompt"), map.remove("messages")) {
        (Some(_), Some(_)) => Err("has both `prompt` and `messages`; keep one".into()),
        (Some(Value::String(text)), None) => Ok(Prompt::Text(text)),
        (Some(other), None) => Err(format!("`prompt` must be a string, found {}", kind(&other))),
        (None, Some(Value::Array(items))) if !items.is_empty() => {
            items.iter().map(message).collect::<Result<_, _>>().map(Prompt::Messages)
        }
        (None, Some(_)) => Err("`messages` must be a list of at least one {role, content}".into()),
        (None, None) => {
            Err("has neither `prompt` (a string) nor `messages` (a list of {role, content})".into())
        }
    }
}

fn message(value: &Value) -> Result<Message, String> {
    let role = value.get("role").and_then(Value::as_str).ok_or("a message needs a `role` string")?;
    let content = match value.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(Value::Array(parts)) => parts.iter().map(part).collect::<Result<Vec<_>, _>>()?.join("\n"),
        Some(other) => return Err(format!("a message's `content` must be a string, found {}", kind(other))),
    };
    Ok(Message { role: role.to_owned(), content })
}

fn part(value: &Value) -> Result<String, String> {
    let text = value.get("text").and_then(Value::as_str);
    text.map(str::to_owned).ok_or_else(|| "a content part that is not text cannot be ranked".into())
}

fn take_lengths(map: &mut Map<String, Value>) -> Result<Vec<u32>, String> {
    match map.remove("output_tokens") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) if items.is_empty() => Err("`output_tokens` is an empty list".into()),
        Some(Value::Array(items)) => items.iter().map(|item| whole(item, "output_tokens")).collect(),
        Some(value) => Ok(vec![whole(&value, "output_tokens")?]),
    }
}

fn read_truncated(value: Option<Value>, samples: usize) -> Result<Vec<bool>, String> {
    let flags = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Bool(flag)) => vec![flag; samples],
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_bool().ok_or("`truncated` must hold true or false"))
            .collect::<Result<Vec<_>, _>>()?,
        Some(other) => {
            return Err(format!("`truncated` must be true, false or a list of them, found {}", kind(&other)));
        }
    };
    if flags.len() != samples {
        return Err(format!("`truncated` has {} entries for {samples} answers", flags.len()));
    }
    Ok(flags)
}

fn take_string(map: &mut Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match map.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("`{key}` must be a string, found {}", kind(&other))),
    }
}

fn take_number(map: &mut Map<String, Value>, key: &str) -> Result<Option<f64>, String> {
    match map.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(format!("`{key}` must be a number, found {}", kind(&value))),
        },
    }
}

fn whole(value: &Value, key: &str) -> Result<u32, String> {
    let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
    number.ok_or_else(|| format!("`{key}` must be a whole number from 0 to {}, found {value}", u32::MAX))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
