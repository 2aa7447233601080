//! What the gateway needs to know of a request body. The body itself is forwarded as it came.

use std::fmt;
use std::sync::Arc;

use outrank_http::ApiError;
use outrank_ranker::trace::{CONTEXT_END, Message, RequestFacts, flatten_messages};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};
use serde_json::{Map, Value as Json};

/// Bytes of text that a token stands for, where no tokenizer is at hand.
const BYTES_PER_TOKEN: usize = 4;
/// Output limit of requests that name none, in tokens.
const UNLIMITED_TOKENS: u32 = 1 << 20;

/// A generation request, as far as the gateway reads it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) model: String,
    /// The prompt as text; `None` for prompts of token numbers.
    pub(crate) text: Option<Arc<str>>,
    /// What the ranker reads beside it.
    facts: RequestFacts,
    pub(crate) prompt_tokens: u32,
    pub(crate) max_tokens: u32,
    /// The recorded length of the answer, in benchmarks.
    pub(crate) true_tokens: Option<u32>,
    /// Answers that are asked for.
    pub(crate) outputs: u32,
    /// Whether the answer may end by itself: only then its length says something.
    pub(crate) ends_by_itself: bool,
    /// Whether the answer is to be streamed.
    pub(crate) streams: bool,
    pub(crate) user: Option<String>,
    /// Whether the client names a priority of its own.
    pub(crate) has_priority: bool,
}

#[derive(Deserialize)]
struct Body {
    model: Option<String>,
    #[serde(default)]
    messages: Option<Vec<ChatMessage>>,
    #[serde(default)]
    prompt: Prompts,
    max_tokens: Option<f64>,
    max_completion_tokens: Option<f64>,
    stream: Option<bool>,
    n: Option<f64>,
    ignore_eos: Option<bool>,
    user: Option<String>,
    // What only the ranker reads, and nobody refuses.
    response_format: Option<Json>,
    tools: Option<Json>,
    stop: Option<Json>,
    temperature: Option<Json>,
    reasoning_effort: Option<Json>,
    outrank: Option<Extension>,
    #[serde(default, deserialize_with = "is_there")]
    priority: bool,
}

/// The extension of benchmarks: what the oracle reads.
#[derive(Deserialize)]
struct Extension {
    true_output_tokens: Option<u32>,
}

#[derive(Deserialize)]
struct ChatMessage {
    #[serde(default)]
    role: String,
    #[serde(default)]
    content: Content,
}

/// The text of a message: a string, the texts among its parts, or nothing.
#[derive(Default)]
struct Content(String);

/// The prompts of a completion: strings, or token numbers.
#[derive(Default)]
struct Prompts {
    texts: Vec<String>,
    tokens: usize,
    /// Lists of token numbers.
    lists: u32,
}

impl Call {
    /// Reads a body. What is missing or of a wrong type here is refused; everything else is left to the upstream.
    ///
    /// # Errors
    /// [`ApiError`] as the client is told.
    pub(crate) fn read(body: &[u8], chat: bool) -> Result<Self, ApiError> {
        let body: Body =
            serde_json::from_slice(body).map_err(|error| ApiError::broken_json(discreet(&error)))?;
        let model = body.model.ok_or_else(|| ApiError::missing("model", "the name of the model"))?;
        let (text, prompts) = if chat {
            let messages = body.messages.filter(|messages| !messages.is_empty()).ok_or_else(|| {
                ApiError::missing("messages", "an array of messages, each with role and content")
            })?;
            (Some(flatten(messages)), 1)
        } else {
            let Prompts { mut texts, tokens, lists } = body.prompt;
            if texts.is_empty() && tokens == 0 {
                return Err(ApiError::missing("prompt", "a text, or an array of texts"));
            }
            let prompts = (texts.len() as u32).max(lists).max(1);
            let longest = texts.iter().enumerate().max_by_key(|(_, text)| text.len()).map(|(at, _)| at);
            (longest.map(|at| texts.swap_remove(at)), prompts)
        };
        let bytes = text.as_ref().map_or(0, String::len);
        let limit = count("max_completion_tokens", body.max_completion_tokens)?;
        let limit = limit.or(count("max_tokens", body.max_tokens)?);
        let n = count("n", body.n)?;
        let ends_by_itself = !body.ignore_eos.unwrap_or(false);
        let said = [
            ("response_format", body.response_format),
            ("tools", body.tools),
            ("stop", body.stop),
            ("temperature", body.temperature),
            ("reasoning_effort", body.reasoning_effort),
        ];
        let said: Map<String, Json> =
            said.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        let facts = RequestFacts {
            // A limit that the answer is meant to reach says nothing of answers.
            max_tokens: limit.filter(|_| ends_by_itself),
            n: n.filter(|&n| n > 1),
            ..RequestFacts::of(&said)
        };
        Ok(Self {
            model,
            facts,
            prompt_tokens: u32::try_from(bytes / BYTES_PER_TOKEN).unwrap_or(u32::MAX).max(1),
            text: text.map(Arc::from),
            max_tokens: limit.unwrap_or(UNLIMITED_TOKENS).clamp(1, UNLIMITED_TOKENS),
            true_tokens: body.outrank.and_then(|extension| extension.true_output_tokens),
            outputs: prompts.saturating_mul(n.unwrap_or(1).max(1)),
            ends_by_itself,
            streams: body.stream.unwrap_or(false),
            user: body.user,
            has_priority: body.priority,
        })
    }

    /// What the ranker scores and learns from: the prompt, with what the request says beside it and who asks.
    pub(crate) fn ranked_text(&self, tenant: Option<&str>) -> Option<Arc<str>> {
        let text = self.text.as_ref()?;
        if tenant.is_none() && self.facts == RequestFacts::default() {
            return Some(Arc::clone(text));
        }
        let facts = RequestFacts { tenant: tenant.map(str::to_owned), ..self.facts.clone() };
        Some(facts.before(text).into())
    }
}

/// A whole number; whether 0 makes sense, the upstream knows.
fn count(name: &str, value: Option<f64>) -> Result<Option<u32>, ApiError> {
    match value {
        Some(value) if value < 0.0 || value.fract() != 0.0 => {
            Err(ApiError::invalid(name, format!("`{name}` must be a whole number of at least 1")))
        }
        // A cast saturates.
        value => Ok(value.map(|value| value as u32)),
    }
}

/// What is wrong, without what was sent: it may be part of a prompt.
fn discreet(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(", expected ") {
        Some(at) if error.is_data() => format!("a field has a wrong type{}", &text[at..]),
        _ => text,
    }
}

fn flatten(mut messages: Vec<ChatMessage>) -> String {
    if let [only] = messages.as_mut_slice()
        && only.role == "user"
        && !only.content.0.contains(CONTEXT_END)
    {
        return std::mem::take(&mut only.content.0);
    }
    let message = |it: ChatMessage| Message { role: it.role, content: it.content.0 };
    flatten_messages(&messages.into_iter().map(message).collect::<Vec<_>>())
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, an array of parts, or null")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Content, E> {
                Ok(Content(text))
            }

            fn visit_unit<E>(self) -> Result<Content, E> {
                Ok(Content::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content, A::Error> {
                let mut all = String::new();
                while let Some(Part(text)) = parts.next_element()? {
                    if !all.is_empty() && !text.is_empty() {
                        all.push('\n');
                    }
                    all.push_str(&text);
                }
                Ok(Content(all))
            }
        }
        deserializer.deserialize_any(Texts)
    }
}

/// The text of a part; empty for images and the like.
struct Part(String);

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Part;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object, a part of a message")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Part, A::Error> {
                let mut part = String::new();
                while let Some(name) = fields.next_key::<String>()? {
                    if name == "text" {
                        part = fields.next_value::<Content>()?.0;
                    } else {
                        fields.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Part(part))
            }
        }
        deserializer.deserialize_map(Text)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Prompts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, or an array of strings or token numbers")
            }

            fn visit_str<E>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts { texts: vec![text.to_owned()], ..Prompts::default() })
            }

            fn visit_unit<E>(self) -> Result<Prompts, E> {
                Ok(Prompts::default())
            }

            fn visit_u64<E>(self, _: u64) -> Result<Prompts, E> {
                Ok(Prompts { tokens: 1, ..Prompts::default() })
            }

            /// In JSON, 7.0 is a whole number too.
            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Prompts, E> {
                if number >= 0.0 && number.fract() == 0.0 {
                    return self.visit_u64(number as u64);
                }
                Err(E::invalid_type(Unexpected::Float(number), &self))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Prompts, A::Error> {
                let mut all = Prompts::default();
                while let Some(item) = items.next_element::<Prompts>()? {
                    // A number alone belongs to this list; a list of numbers is a prompt of its own.
                    all.lists += u32::from(item.tokens > 1);
                    all.texts.extend(item.texts);
                    all.tokens += item.tokens;
                }
                Ok(all)
            }
        }
        deserializer.deserialize_any(All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: &str) -> Call {
        Call::read(body.as_bytes(), true).unwrap()
    }

    #[test]
    fn the_ranker_reads_what_a_request_says_beside_its_prompt_unless_it_is_a_recorded_length() {
        let plain = chat(r#"{"model":"m","messages":[{"role":"user","content":"Hi"}],"tools":"odd"}"#);
        assert_eq!(plain.ranked_text(None), plain.text);
        let body = r#"{"model":"m","messages":[{"role":"user","content":"Hi"}],"max_tokens":256,"tools":[{}],
            "response_format":{"type":"json_object"}}"#;
        let said = chat(body).ranked_text(Some("a")).unwrap();
        assert_eq!(&*said, "\u{1d}limit:16 format:json_object tools:2 tenant:a\u{1f}Hi");
        let recorded = body.replacen("{", r#"{"ignore_eos":true,"#, 1);
        assert!(!chat(&recorded).ranked_text(None).unwrap().contains("limit"));
    }

    #[test]
    fn a_chat_is_read_as_the_ranker_was_taught() {
        let call = chat(
            r#"{"model":"m","messages":[{"role":"user","content":"Hi there"}],"stream":true,"max_tokens":7}"#,
        );
        assert_eq!((call.text.as_deref(), call.max_tokens), (Some("Hi there"), 7));
        let call = chat(
            r#"{"model":"m","messages":[{"role":"system","content":"Be brief."},
                {"role":"user","content":[{"type":"text","text":"What is"},{"type":"image_url","image_url":{"url":"x"}},
                {"text":"this?","type":"text"}]},{"role":"assistant","content":null,"tool_calls":[{"a":1}]}],"n":3}"#,
        );
        let same = [("system", "Be brief."), ("user", "What is\nthis?"), ("assistant", "")];
        let same = same.map(|(role, content)| Message { role: role.into(), content: content.into() });
        assert_eq!((call.text.as_deref(), call.outputs), (Some(flatten_messages(&same).as_str()), 3));
    }

    #[test]
    fn prompts_come_alone_in_lists_and_as_numbers() {
        let read = |prompt: &str| {
            let body = format!(r#"{{"model":"m","prompt":{prompt},"priority":3,"ignore_eos":true}}"#);
            let call = Call::read(body.as_bytes(), false).unwrap();
            assert!(call.has_priority && !call.ends_by_itself);
            (call.text.as_deref().map(str::to_owned), call.outputs)
        };
        assert_eq!(read(r#""Hi""#), (Some("Hi".into()), 1));
        assert_eq!(read(r#"["Hi","Hello"]"#), (Some("Hello".into()), 2));
        assert_eq!(read("[1,2,3]"), (None, 1));
        assert_eq!(read("[[1,2],[3,4]]"), (None, 2));
        assert_eq!(read("[[1.0,2.0],[3,4.0]]"), (None, 2), "7.0 is a whole number in JSON");
    }

    #[test]
    fn numbers_that_count_nothing_are_refused_by_name() {
        for (field, value) in
            [("max_tokens", "-1"), ("max_completion_tokens", "1.5"), ("n", "-3"), ("n", "0.1")]
        {
            let body = format!(r#"{{"model":"m","prompt":"Hi","{field}":{value}}}"#);
            let error = Call::read(body.as_bytes(), false).unwrap_err();
            assert_eq!(error.body()["error"]["param"], field);
        }
        let call = Call::read(br#"{"model":"m","prompt":"Hi","max_tokens":5.0,"n":2}"#, false).unwrap();
        assert_eq!((call.max_tokens, call.outputs), (5, 2));
    }

    #[test]
    fn what_cannot_be_read_is_refused_and_the_prompt_is_not_repeated() {
        for (body, chat) in [
            ("", true),
            ("[1]", true),
            ("{\"model\":\"m\"}", true),
            (r#"{"model":"m","messages":[]}"#, true),
            (r#"{"messages":[{"role":"user","content":"secret"}]}"#, true),
            (r#"{"model":"m","messages":[{"role":"user","content":{"secret":1}}]}"#, true),
            (r#"{"model":"m","messages":"secret"}"#, true),
            (r#"{"model":"m"}"#, false),
            (r#"{"model":"m","prompt":{"secret":1}}"#, false),
        ] {
            let error = Call::read(body.as_bytes(), chat).unwrap_err();
            assert!(!error.body().to_string().contains("secret"), "{body}: {}", error.body());
        }
    }
}
