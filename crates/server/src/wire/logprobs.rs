//! Log-probabilities in the shapes of both protocols.

use serde_json::{Map, Value, json};

/// Reported instead of minus infinity, which JSON cannot write; OpenAI's value.
const LEAST_LOGPROB: f32 = -9999.0;

/// A token that was, or could have been, chosen.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct LogprobEntry {
    /// Its bytes, not always whole characters.
    pub(crate) bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub(crate) logprob: f32,
}

/// A chosen token and the likeliest ones in its place.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct TokenLogprob {
    /// The token chosen.
    pub(crate) chosen: LogprobEntry,
    /// The likeliest tokens, most probable first.
    pub(crate) top: Vec<LogprobEntry>,
    /// Characters of output before it.
    pub(crate) offset_chars: usize,
}

impl LogprobEntry {
    fn value(&self) -> f32 {
        self.logprob.max(LEAST_LOGPROB)
    }

    fn chat(&self) -> Map<String, Value> {
        let token = String::from_utf8_lossy(&self.bytes);
        Map::from_iter([
            ("token".to_owned(), json!(token)),
            ("logprob".to_owned(), json!(self.value())),
            ("bytes".to_owned(), json!(self.bytes)),
        ])
    }

    /// The token as completions write it: bytes that are no whole characters as `bytes:\xNN`.
    fn completion_token(&self) -> String {
        match str::from_utf8(&self.bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => {
                self.bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}"))
            }
        }
    }
}

/// `logprobs` of a chat choice.
pub(super) fn chat_logprobs(tokens: &[TokenLogprob]) -> Value {
    let entry = |token: &TokenLogprob| {
        let mut entry = token.chosen.chat();
        entry.insert("top_logprobs".into(), token.top.iter().map(LogprobEntry::chat).collect());
        Value::Object(entry)
    };
    json!({ "content": tokens.iter().map(entry).collect::<Vec<_>>(), "refusal": null })
}

/// `logprobs` of a completion choice.
pub(super) fn completion_logprobs(tokens: &[TokenLogprob]) -> Value {
    let top = |token: &TokenLogprob| {
        token.top.iter().map(|entry| (entry.completion_token(), json!(entry.value()))).collect::<Map<_, _>>()
    };
    json!({
        "tokens": tokens.iter().map(|token| token.chosen.completion_token()).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.chosen.value()).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": tokens.iter().map(|token| token.offset_chars).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(bytes: &[u8], logprob: f32) -> TokenLogprob {
        let chosen = LogprobEntry { bytes: bytes.into(), logprob };
        TokenLogprob { top: vec![chosen.clone()], chosen, offset_chars: 3 }
    }

    #[test]
    fn half_a_character_keeps_its_bytes_in_both_protocols() {
        let tokens = [token(&[0xe2, 0x82], -0.5)];
        assert_eq!(chat_logprobs(&tokens)["content"][0]["bytes"], json!([0xe2, 0x82]));
        assert_eq!(completion_logprobs(&tokens)["tokens"][0], r"bytes:\xe2\x82");
        assert_eq!(completion_logprobs(&tokens)["text_offset"], json!([3]));
    }

    #[test]
    fn an_impossible_token_has_a_number_as_its_log_probability() {
        let tokens = [token(b"x", f32::NEG_INFINITY)];
        assert_eq!(chat_logprobs(&tokens)["content"][0]["logprob"], -9999.0);
        assert_eq!(completion_logprobs(&tokens)["top_logprobs"][0]["x"], -9999.0);
    }
}
