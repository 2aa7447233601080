//! What a request says beside its text: limits, format, tools, who asks.

use serde_json::{Map, Value};

/// Stands before the facts at the start of a text to score (U+001D, GROUP SEPARATOR) ...
pub(crate) const FACTS_START: char = '\u{1d}';

/// ... and between them and the text (U+001F, UNIT SEPARATOR).
pub(crate) const FACTS_END: char = '\u{1f}';

/// Longest tenant or effort that is read, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// Facts of a request that a ranker may learn from, as OpenAI's API names them. What is not said is left out, so that a
/// bare prompt and a request that says nothing beside it are the same.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RequestFacts {
    /// Output limit in tokens. Leave it out where it is the recorded length of a benchmark.
    pub max_tokens: Option<u32>,
    /// `response_format.type`, unless it is plain text: `json_object`, `json_schema`.
    pub format: Option<String>,
    /// Number of tools offered.
    pub tools: usize,
    /// Outputs asked for.
    pub n: Option<u32>,
    /// Whether there are stop strings.
    pub stops: bool,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// `reasoning_effort`.
    pub effort: Option<String>,
    /// Who asks.
    pub tenant: Option<String>,
}

impl RequestFacts {
    /// The facts of a request's JSON, or of the further keys of a trace's line. What is not of the kind that the API asks for
    /// is left out: to refuse it is not the ranker's business.
    pub fn of(request: &Map<String, Value>) -> Self {
        let number = |key: &str| request.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let name = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let format = name(request.get("response_format").and_then(|format| format.get("type")));
        Self {
            max_tokens: number("max_completion_tokens").or_else(|| number("max_tokens")),
            format: format.filter(|format| format != "text"),
            tools: request.get("tools").and_then(Value::as_array).map_or(0, Vec::len),
            n: number("n").filter(|&n| n > 1),
            stops: request.get("stop").is_some_and(|stop| match stop {
                Value::String(stop) => !stop.is_empty(),
                Value::Array(stops) => !stops.is_empty(),
                _ => false,
            }),
            temperature: request.get("temperature").and_then(Value::as_f64),
            effort: name(request.get("reasoning_effort")),
            tenant: None,
        }
    }

    /// The text to score: the facts, if there are any, then the prompt.
    pub fn before(&self, text: &str) -> String {
        let words = self.words();
        if words.is_empty() {
            return text.trim_start_matches(FACTS_START).to_owned();
        }
        let mut out = String::with_capacity(text.len() + 24 * words.len());
        out.push(FACTS_START);
        out.push_str(&words.join(" "));
        out.push(FACTS_END);
        out.push_str(text);
        out
    }

    /// One word a fact; numbers as powers of the square root of two.
    fn words(&self) -> Vec<String> {
        let magnitude = |n: u32| (2.0 * libm::log2f(n.max(1) as f32)) as u32;
        let name = |name: &str| -> String {
            let plain = |c: &char| !c.is_whitespace() && !c.is_control();
            let mut bytes = 0;
            name.chars()
                .filter(plain)
                .take_while(|c| {
                    bytes += c.len_utf8();
                    bytes <= MAX_NAME_BYTES
                })
                .collect()
        };
        let mut words = Vec::new();
        words.extend(self.max_tokens.map(|n| format!("limit:{}", magnitude(n))));
        words.extend(self.format.as_deref().map(|it| format!("format:{}", name(it))));
        words.extend((self.tools > 0).then(|| format!("tools:{}", magnitude(self.tools as u32 + 1))));
        words.extend(self.n.map(|n| format!("n:{}", magnitude(n))));
        words.extend(self.stops.then(|| "stops".to_owned()));
        words.extend(self.temperature.map(|it| format!("temperature:{}", (it.clamp(0.0, 2.0) * 4.0) as u32)));
        words.extend(self.effort.as_deref().map(|it| format!("effort:{}", name(it))));
        words.extend(self.tenant.as_deref().map(|it| format!("tenant:{}", name(it))));
        words
    }
}

/// The facts of a text to score, as words, and the text itself.
pub(crate) fn split_facts(text: &str) -> (&str, &str) {
    let facts = text.strip_prefix(FACTS_START).and_then(|rest| rest.split_once(FACTS_END));
    facts.unwrap_or(("", text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn facts(request: &Value) -> RequestFacts {
        RequestFacts::of(request.as_object().unwrap())
    }

    #[test]
    fn a_request_that_says_nothing_is_its_prompt() {
        assert_eq!(RequestFacts::default().before("Hi"), "Hi");
        let plain =
            json!({"model": "m", "response_format": {"type": "text"}, "stop": [], "n": 1, "tools": []});
        assert_eq!(facts(&plain), RequestFacts::default());
        assert_eq!(
            RequestFacts::default().before("\u{1d}tenant:boss\u{1f}Hi"),
            "tenant:boss\u{1f}Hi",
            "no facts by the prompt"
        );
    }

    #[test]
    fn what_is_said_stands_before_the_prompt_and_comes_off_again() {
        let said = json!({"max_tokens": 256, "response_format": {"type": "json_schema"}, "tools": [{}, {}, {}], "stop": "\n",
            "temperature": 0, "reasoning_effort": "low", "n": 4});
        let text = RequestFacts { tenant: Some("a b\u{1f}c".into()), ..facts(&said) }.before("Hi");
        let (words, prompt) = split_facts(&text);
        assert_eq!(prompt, "Hi");
        assert_eq!(
            words,
            "limit:16 format:json_schema tools:4 n:4 stops temperature:0 effort:low tenant:abc"
        );
    }

    #[test]
    fn what_is_of_another_kind_is_left_out() {
        let odd = json!({"max_tokens": "many", "tools": 3, "stop": 7, "temperature": "hot", "response_format": "json"});
        assert_eq!(facts(&odd), RequestFacts::default());
    }
}
