//! From the bytes of tokens to text that may be sent: whole characters only.

/// Joins characters that are split across tokens. Bytes that can never become a character are U+FFFD, one for each
/// maximal invalid run, as `String::from_utf8_lossy` does.
#[derive(Debug, Default)]
pub(crate) struct Utf8Stream {
    /// Start of a character, at most 3 bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Appends to `text` what `bytes` complete.
    pub(crate) fn push(&mut self, bytes: &[u8], text: &mut String) {
        if self.pending.is_empty()
            && let Ok(whole) = std::str::from_utf8(bytes)
        {
            text.push_str(whole);
            return;
        }
        self.pending.extend_from_slice(bytes);
        let joined = std::mem::take(&mut self.pending);
        let mut rest = joined.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, invalid) = rest.split_at(error.valid_up_to());
            text.push_str(&String::from_utf8_lossy(valid));
            let Some(len) = error.error_len() else {
                self.pending.extend_from_slice(invalid);
                return;
            };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &invalid[len..];
        }
        text.push_str(&String::from_utf8_lossy(rest));
    }

    /// Ends the stream: an incomplete character becomes U+FFFD.
    pub(crate) fn finish(&mut self, text: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(parts: &[&[u8]]) -> (Vec<String>, String) {
        let (mut utf8, mut whole) = (Utf8Stream::default(), String::new());
        let mut texts = Vec::new();
        for part in parts {
            let mut text = String::new();
            utf8.push(part, &mut text);
            whole.push_str(&text);
            texts.push(text);
        }
        utf8.finish(&mut whole);
        (texts, whole)
    }

    #[test]
    fn a_character_split_across_tokens_appears_with_its_last_byte() {
        let (texts, _) = stream(&[b"a\xF0\x9F", b"\x98", b"\x80b"]);
        assert_eq!(texts, ["a", "", "\u{1F600}b"]);
    }

    #[test]
    fn bytes_that_never_become_a_character_are_replaced() {
        assert_eq!(stream(&[b"a\xF0\x9F", b"b"]).1, "a\u{FFFD}b");
        assert_eq!(stream(&[b"a\xC3"]).1, "a\u{FFFD}");
        assert_eq!(stream(&[b"\xFF\xFE"]).1, "\u{FFFD}\u{FFFD}");
    }

    proptest! {
        #[test]
        fn splitting_never_changes_the_text(bytes: Vec<u8>, cuts in prop::collection::vec(0_usize..64, 0..8)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(stream(&parts).1, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}
