//! What a client asks for, whichever protocol it speaks.

use outrank_engine::{ChatMessage, SamplingParams, Token};
use outrank_ranker::trace::{Message, RequestFacts, flatten_messages};
use serde_json::Value;

use super::fields::{Fields, wrong_type};
use super::{Wire, inert};
use outrank_http::ApiError;

/// Stop strings of one request, at most, as in the OpenAI API.
const MAX_STOP_STRINGS: usize = 4;

/// One prompt.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Prompt {
    /// A conversation.
    Chat(Vec<ChatMessage>),
    /// A bare text.
    Text(String),
    /// Tokens of the model.
    Tokens(Vec<Token>),
}

impl Prompt {
    /// The text that the ranker reads, if there is one.
    pub(crate) fn ranking_text(&self) -> Option<String> {
        match self {
            Self::Chat(messages) => {
                let message = |m: &ChatMessage| Message { role: m.role.clone(), content: m.content.clone() };
                let messages: Vec<_> = messages.iter().map(message).collect();
                Some(flatten_messages(&messages))
            }
            Self::Text(text) => Some(text.clone()),
            Self::Tokens(_) => None,
        }
    }
}

/// How a stream reports usage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StreamOptions {
    /// A last chunk carries the usage.
    pub(crate) include_usage: bool,
    /// Every chunk carries the usage so far (vLLM's extension).
    pub(crate) continuous_usage: bool,
}

/// A request body, read and checked.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Call {
    /// Start of the id of its completion.
    pub(crate) id_prefix: &'static str,
    pub(crate) model: String,
    pub(crate) prompts: Vec<Prompt>,
    /// Outputs of each prompt.
    pub(crate) n: u32,
    /// How to generate; `max_tokens` in it is not set yet, it depends on the prompt.
    pub(crate) sampling: SamplingParams,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) true_tokens: Option<u32>,
    /// `None` for one whole response.
    pub(crate) stream: Option<StreamOptions>,
}

impl Call {
    /// What the ranker reads beside the prompt. A limit that the answer is meant to reach says nothing of answers.
    pub(crate) fn facts(&self, tenant: Option<&str>) -> RequestFacts {
        let sampling = &self.sampling;
        let unsaid = SamplingParams::default().temperature;
        RequestFacts {
            max_tokens: self.max_tokens.filter(|_| !sampling.ignore_eos),
            n: (self.n > 1).then_some(self.n),
            stops: !sampling.stop.is_empty(),
            temperature: (sampling.temperature != unsaid).then(|| f64::from(sampling.temperature)),
            tenant: tenant.map(str::to_owned),
            ..RequestFacts::default()
        }
    }
}

/// What each protocol reads in its own way.
pub(super) struct OwnFields {
    pub(super) prompts: Vec<Prompt>,
    pub(super) max_tokens: Option<u32>,
    pub(super) logprobs: Option<u8>,
}

/// What a request may ask for at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) context_tokens: u32,
    pub(crate) max_n: u32,
    pub(crate) max_prompts: u32,
}

impl Call {
    /// Reads what both protocols share, and refuses what is left over.
    pub(super) fn read<W: Wire>(
        mut fields: Fields,
        limits: &Limits,
        own: OwnFields,
    ) -> Result<Self, ApiError> {
        let model =
            fields.string("model")?.ok_or_else(|| ApiError::missing("model", "the name of the model"))?;
        let call = Self {
            id_prefix: W::ID_PREFIX,
            model,
            prompts: own.prompts,
            n: fields.count("n", 1..=limits.max_n)?.unwrap_or(1),
            sampling: SamplingParams { logprobs: own.logprobs, ..read_sampling(&mut fields)? },
            max_tokens: own.max_tokens,
            true_tokens: read_extension(&mut fields)?,
            stream: read_stream(&mut fields)?,
        };
        inert::read(&mut fields, &inert::COMMON_INERT)?;
        inert::read_unused(&mut fields)?;
        fields.finish()?;
        Ok(call)
    }

    /// Sampling of the `nth` output of a prompt: each draws differently, and output 0 as if it were alone.
    pub(crate) fn sampling_of(&self, nth: u32, max_tokens: u32) -> SamplingParams {
        let seed = self.sampling.seed.map(|seed| seed.wrapping_add(u64::from(nth)));
        SamplingParams { seed, max_tokens, ..self.sampling.clone() }
    }
}

/// Reads an output limit in tokens.
pub(super) fn read_max_tokens(
    fields: &mut Fields,
    name: &str,
    limits: &Limits,
) -> Result<Option<u32>, ApiError> {
    fields.count(name, 1..=limits.context_tokens)
}

fn read_sampling(fields: &mut Fields) -> Result<SamplingParams, ApiError> {
    let default = SamplingParams::default();
    let top_p = match fields.number("top_p", 0.0..=1.0)? {
        Some(0.0) => {
            return Err(ApiError::invalid(
                "top_p",
                "`top_p` must be above 0: for greedy output send temperature 0",
            ));
        }
        // A positive f64 may be too small for an f32.
        Some(top_p) => (top_p as f32).max(f32::MIN_POSITIVE),
        None => default.top_p,
    };
    Ok(SamplingParams {
        temperature: fields.number("temperature", 0.0..=2.0)?.map_or(default.temperature, |v| v as f32),
        top_p,
        // -1 turns it off, as in vLLM.
        top_k: fields.integer("top_k", -1..=i64::from(i32::MAX))?.map_or(default.top_k, |v| v.max(0) as u32),
        min_p: fields.number("min_p", 0.0..=1.0)?.map_or(default.min_p, |v| v as f32),
        seed: fields.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned),
        presence_penalty: read_penalty(fields, "presence_penalty")?,
        frequency_penalty: read_penalty(fields, "frequency_penalty")?,
        ignore_eos: fields.flag("ignore_eos")?,
        stop: read_stop(fields)?,
        ..default
    })
}

fn read_penalty(fields: &mut Fields, name: &str) -> Result<f32, ApiError> {
    Ok(fields.number(name, -2.0..=2.0)?.map_or(0.0, |v| v as f32))
}

fn read_stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let strings = match fields.value("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(one) => vec![one],
    };
    if strings.len() > MAX_STOP_STRINGS {
        let message = format!("`stop` has {} strings: send at most {MAX_STOP_STRINGS}", strings.len());
        return Err(ApiError::invalid("stop", message));
    }
    let text = |value| match value {
        Value::String(text) if !text.is_empty() => Ok(text),
        other => Err(wrong_type("stop", "a string or an array of strings, none of them empty", &other)),
    };
    strings.into_iter().map(text).collect()
}

fn read_stream(fields: &mut Fields) -> Result<Option<StreamOptions>, ApiError> {
    let stream = fields.flag("stream")?;
    let Some(mut options) = fields.object("stream_options")? else {
        return Ok(stream.then_some(StreamOptions { include_usage: false, continuous_usage: false }));
    };
    if !stream {
        let message = "`stream_options` is only allowed with `stream: true`: set it or remove the options";
        return Err(ApiError::invalid("stream_options", message));
    }
    let include_usage = options.flag("include_usage")?;
    let continuous_usage = options.flag("continuous_usage_stats")?;
    inert::read(&mut options, &[("include_obfuscation", &["false"])])?;
    options.finish()?;
    Ok(Some(StreamOptions { include_usage, continuous_usage: include_usage && continuous_usage }))
}

/// The extension `"outrank": {"true_output_tokens": N}`.
fn read_extension(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let Some(mut extension) = fields.object("outrank")? else { return Ok(None) };
    let true_tokens = extension.count("true_output_tokens", 1..=u32::MAX)?;
    extension.finish()?;
    Ok(true_tokens)
}
