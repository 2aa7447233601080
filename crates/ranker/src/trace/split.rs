//! The split by prompt: which requests a ranker must never learn from.

use sha2::{Digest, Sha256};

use super::{Prompt, TraceRecord};

/// One prompt in this many is held out.
pub const HELD_OUT_DIVISOR: u16 = 5;

const KEY_CHARS: usize = 200;

/// True where the record belongs to the held-out part: the SHA-256 of the prompt's first 200 characters,
/// stripped, lower-cased and with white space folded, read as an integer, is divisible by five. Equal
/// prompts fall on the same side in every file. Of a chat, the user messages count, joined by newlines.
pub fn held_out(record: &TraceRecord) -> bool {
    match &record.prompt {
        Prompt::Text(text) => held_out_text(text),
        Prompt::Messages(messages) => {
            let user: Vec<&str> =
                messages.iter().filter(|m| m.role == "user").map(|m| m.content.as_str()).collect();
            held_out_text(&user.join("\n"))
        }
    }
}

/// [`held_out`] of a bare prompt.
pub fn held_out_text(text: &str) -> bool {
    let digest = Sha256::digest(split_key(text).as_bytes());
    // 256 = 1 (mod 5), so the remainder of the big-endian integer is that of the sum of its bytes.
    let sum: u16 = digest.iter().map(|&byte| u16::from(byte)).sum();
    sum.is_multiple_of(HELD_OUT_DIVISOR)
}

/// `re.sub(r"\s+", " ", text.strip().lower())[:200]` with Python's meaning of white space.
pub(super) fn split_key(text: &str) -> String {
    let lower = text.trim_matches(is_python_space).to_lowercase();
    let mut key = String::with_capacity(KEY_CHARS * 2);
    let mut in_space = false;
    let folded = lower.chars().filter_map(|c| {
        let space = is_python_space(c);
        let repeated = space && in_space;
        in_space = space;
        (!repeated).then_some(if space { ' ' } else { c })
    });
    key.extend(folded.take(KEY_CHARS));
    key
}

/// Python's `str.isspace` also holds for the four ASCII separators.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
