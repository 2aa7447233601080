//! Stop strings: the output ends before the first of them.

/// Watches a text for stop strings, and holds back what could be the beginning of one.
#[derive(Debug, Default)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    /// Text not yet passed on: no stop string, but possibly the start of one.
    held: String,
}

impl StopMatcher {
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes new text, appends to `out` what is safe to send, and returns whether a stop string was found. What
    /// follows the stop string is dropped.
    #[must_use]
    pub(crate) fn push(&mut self, text: &str, out: &mut String) -> bool {
        if self.stops.is_empty() {
            out.push_str(text);
            return false;
        }
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            out.push_str(&self.held[..at]);
            self.held.clear();
            return true;
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        out.extend(self.held.drain(..self.held.len() - keep));
        false
    }

    /// Ends the text: what was held back is no stop string after all.
    pub(crate) fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }
}

/// Bytes of the longest end of `text` that is a beginning of `stop`, short of the whole.
fn overlap(text: &str, stop: &str) -> usize {
    let mut lengths = stop.char_indices().rev().map(|(at, _)| at).skip_while(|&len| len > text.len());
    // The last length is 0, which every text ends with.
    lengths.find(|&len| text.ends_with(&stop[..len])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], parts: &[&str]) -> (Vec<String>, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut outs = Vec::new();
        for part in parts {
            let mut out = String::new();
            let stopped = matcher.push(part, &mut out);
            outs.push(out);
            if stopped {
                return (outs, true);
            }
        }
        let mut out = String::new();
        matcher.finish(&mut out);
        outs.push(out);
        (outs, false)
    }

    #[test]
    fn a_stop_string_across_tokens_is_never_sent() {
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), (vec!["a ".into(), "".into(), "".into()], true));
    }

    #[test]
    fn what_turns_out_to_be_no_stop_string_is_sent() {
        let (outs, stopped) = run(&["END"], &["a EN", "E", "x"]);
        assert_eq!((outs.as_slice(), stopped), (["a ", "EN", "Ex", ""].map(String::from).as_slice(), false));
    }

    #[test]
    fn the_earliest_of_several_stops_ends_the_text() {
        assert_eq!(run(&["cd", "b"], &["abcd"]).0, ["a"]);
        assert_eq!(run(&["日本語"], &["x日本", "語"]).0, ["x", ""]);
        assert_eq!(run(&["aab"], &["aa", "ab"]).0, ["", "a"]);
    }

    proptest! {
        #[test]
        fn splitting_never_changes_where_the_text_ends(
            text in "[abc]{0,24}", stops in prop::collection::vec("[abc]{1,4}", 0..3), size in 1_usize..5,
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            // The naive version sees each part arrive and searches all of the text so far.
            let mut expected = text.clone();
            let mut seen = 0;
            while seen < text.len() {
                seen = (seen + size).min(text.len());
                if let Some(at) = stops.iter().filter_map(|stop| text[..seen].find(stop)).min() {
                    expected = text[..at].to_owned();
                    break;
                }
            }
            let parts: Vec<&str> =
                text.as_bytes().chunks(size).map(|part| std::str::from_utf8(part).unwrap()).collect();
            prop_assert_eq!(run(&stops, &parts).0.concat(), expected);
        }
    }
}
