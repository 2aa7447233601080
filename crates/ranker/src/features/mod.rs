//! Prompt -> sparse features: hashed words and characters, and cheap facts about the whole prompt.
//!
//! Five groups of hashed features share [`BUCKETS`] buckets; in each, counts enter as 1 + ln(count) and
//! the group is scaled to a fixed Euclidean norm, so that a long prompt weighs as much as a short one:
//! words (1-grams and 2-grams), characters (4-grams within words and across their edges), the first words, the last words, and the first
//! words of sentences. Surface facts follow the buckets, one index each. Prompts that offer choices to pick from have
//! features of their own (`choices.rs`). Last comes one number: what a small encoder that has read much more than a trace
//! guesses of the length (`encoder`); prompts that offer choices go without it, because the encoder has learned from no exams,
//! and on those the other features do better without (tau-b 0.45 against 0.41 with it, of a ranker that has not seen them
//! either). Nothing is allocated per n-gram: a [`Scratch`] is reused from prompt to prompt.

mod choices;
mod entries;
pub(crate) mod hash;
mod packed;
mod scan;
mod surface;

use entries::Entries;
pub use packed::{MAX_PACKED_BYTES, PackedError, VERSION};
pub(crate) use packed::{pack, sort, unpack};
use scan::{Counts, Kind, Word};
pub use surface::SURFACE;

use crate::encoder::{self, Encoder};
use crate::trace::{CONTEXT_END, split_facts};

/// Hashed buckets: 2^18.
pub const BUCKETS: usize = 1 << BUCKET_BITS;

/// Features in all: the hashed buckets, the surface facts, the surface facts of prompts that offer choices, and what the
/// encoder says.
pub const DIMENSIONS: usize = GUESS + 1;

/// The encoder's guess.
const GUESS: usize = BUCKETS + 2 * SURFACE;

/// Bytes read from the start of the request; what lies between head and tail is not read.
pub const MAX_HEAD_BYTES: usize = 6 << 10;

/// Bytes read from the end of the request, where long prompts often put the instruction.
pub const MAX_TAIL_BYTES: usize = 4 << 10;

/// Bytes read from the end of the earlier turns of a chat.
pub const MAX_CONTEXT_BYTES: usize = 2 << 10;

const BUCKET_BITS: u32 = 18;

const WORDS_NORM: f32 = 1.0;
const CHARS_NORM: f32 = 1.0;
const HEAD_NORM: f32 = 0.7;
const TAIL_NORM: f32 = 0.5;
const SENTENCES_NORM: f32 = 0.7;
const CONTEXT_NORM: f32 = 0.5;
const REQUEST_NORM: f32 = 1.0;

/// Feature groups: the same word in two groups falls in two buckets.
mod group {
    pub(super) const CHARS: u64 = 4;
    pub(super) const WORD: u64 = 10;
    pub(super) const WORD_PAIR: u64 = 11;
    pub(super) const HEAD: u64 = 20;
    pub(super) const TAIL: u64 = 30;
    pub(super) const SENTENCE: u64 = 40;
    pub(super) const CONTEXT: u64 = 50;
    pub(super) const BINS: u64 = 60;
    pub(super) const CHOICES: u64 = 70;
    pub(super) const REQUEST: u64 = 80;
}

/// Room for one prompt's features, reused from prompt to prompt.
#[derive(Debug, Default)]
pub struct Scratch {
    words: Vec<Word>,
    entries: Entries,
    encoder: encoder::Scratch,
}

impl Scratch {
    /// An empty scratch; it grows to the longest prompt that it sees, within the byte limits above.
    pub fn new() -> Self {
        Self::default()
    }

    /// The features of a prompt as (index below [`DIMENSIONS`], value) pairs. An index may stand twice
    /// (two n-grams of different groups in one bucket): their values add up. Deterministic; any text will do.
    pub fn extract(&mut self, text: &str) -> &[(u32, f32)] {
        let (said, text) = split_facts(text);
        let (context, request) = text.rsplit_once(CONTEXT_END).unwrap_or(("", text));
        let (head, tail) = head_and_tail(request);
        let context = last_bytes(context, MAX_CONTEXT_BYTES);
        self.entries.clear();
        self.words.clear();
        let mut counts = Counts::default();
        scan::scan(head, &mut self.words, &mut self.entries, &mut counts);
        scan::scan(tail, &mut self.words, &mut self.entries, &mut counts);
        self.entries.end_group(CHARS_NORM);
        self.add_words();
        self.add_positions();
        let unread = request.len() - head.len() - tail.len();
        let facts = surface::Facts {
            counts: &counts,
            words: &self.words,
            unread,
            context: context.len(),
            text: request,
        };
        surface::add(&facts, &mut self.entries);
        let choices = choices::offered(if tail.is_empty() { head } else { tail });
        if choices {
            choices::set_apart(&mut self.entries.list);
        }
        self.add_context(context);
        self.add_request(said);
        if !choices {
            let guess = Encoder::shipped().guess(request, &mut self.encoder);
            self.entries.list.push((GUESS as u32, guess));
        }
        &self.entries.list
    }

    /// Words and pairs of neighbours. A number also counts as its magnitude, and in pairs only so.
    fn add_words(&mut self) {
        let mut previous = None;
        for word in &self.words {
            self.entries.add(group::WORD, word.hash);
            let class = class_of(word);
            if class != word.hash {
                self.entries.add(group::WORD, class);
            }
            if let Some(previous) = previous {
                self.entries.add(group::WORD_PAIR, hash::pair(previous, class));
            }
            previous = Some(class);
        }
        self.entries.end_group(WORDS_NORM);
    }

    /// The words that open the prompt, end it, and open its sentences: where instructions stand.
    fn add_positions(&mut self) {
        let words = &self.words;
        add_opening(&mut self.entries, group::HEAD, words);
        self.entries.end_group(HEAD_NORM);
        let last = &words[words.len().saturating_sub(3)..];
        for (place, word) in last.iter().rev().enumerate() {
            self.entries.add(group::TAIL + place as u64, class_of(word));
        }
        if let [.., first, second] = last {
            self.entries.add(group::TAIL + 5, hash::pair(class_of(first), class_of(second)));
        }
        self.entries.end_group(TAIL_NORM);
        for (index, word) in words.iter().enumerate().filter(|(_, word)| word.starts_sentence) {
            self.entries.add(group::SENTENCE, class_of(word));
            if let Some(next) = words.get(index + 1) {
                self.entries.add(group::SENTENCE + 1, hash::pair(class_of(word), class_of(next)));
            }
        }
        self.entries.end_group(SENTENCES_NORM);
    }

    /// What the request says beside its text, one feature a fact.
    fn add_request(&mut self, facts: &str) {
        facts.split_ascii_whitespace().for_each(|fact| self.entries.add(group::REQUEST, hash::word(fact)));
        self.entries.end_group(REQUEST_NORM);
    }

    /// The earlier turns of a chat, as words of their own kind.
    fn add_context(&mut self, context: &str) {
        if context.is_empty() {
            return;
        }
        self.words.clear();
        scan::scan(context, &mut self.words, &mut Entries::default(), &mut Counts::default());
        for word in &self.words {
            self.entries.add(group::CONTEXT, class_of(word));
        }
        self.entries.end_group(CONTEXT_NORM);
    }
}

fn add_opening(entries: &mut Entries, group: u64, words: &[Word]) {
    for (place, word) in words.iter().take(3).enumerate() {
        entries.add(group + place as u64, class_of(word));
    }
    if let [first, second, ..] = words {
        let two = hash::pair(class_of(first), class_of(second));
        entries.add(group + 4, two);
        if let Some(third) = words.get(2) {
            entries.add(group + 5, hash::pair(two, class_of(third)));
        }
    }
}

/// A number's magnitude (powers of the square root of two), or the word itself.
fn class_of(word: &Word) -> u64 {
    match word.kind {
        Kind::Word => word.hash,
        Kind::Number(value) if value <= 20.0 => hash::pair(hash::word("#"), value as u64),
        Kind::Number(value) => hash::pair(hash::word("##"), (2.0 * libm::log2f(value.min(1e9))) as u64),
    }
}

fn head_and_tail(text: &str) -> (&str, &str) {
    if text.len() <= MAX_HEAD_BYTES + MAX_TAIL_BYTES {
        return (text, "");
    }
    let end = (0..=MAX_HEAD_BYTES).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    (&text[..end], last_bytes(&text[end..], MAX_TAIL_BYTES))
}

fn last_bytes(text: &str, bytes: usize) -> &str {
    let from = text.len().saturating_sub(bytes);
    let start = (from..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(text: &str) -> Vec<(u32, f32)> {
        Scratch::new().extract(text).to_vec()
    }

    #[test]
    fn a_scratch_that_was_used_before_gives_the_same_features() {
        let mut scratch = Scratch::new();
        for text in ["Write 3 lines.", "", "日本の首都は?", "Write 3 lines.", &"long ".repeat(5000), "x"]
        {
            assert_eq!(scratch.extract(text), features(text), "{text}");
        }
    }

    #[test]
    fn the_features_are_the_same_in_every_build() {
        // The file format and journals depend on these indices: when they change, so must `file::VERSION` and `VERSION`.
        let list = features("Write a poem of 12 lines, please.");
        let sum: u64 = list.iter().map(|&(index, _)| u64::from(index)).sum();
        assert_eq!((list.len(), sum), (79, 12_685_775));
        let list = features("Pick one.\nA. red\nB. green\nC. blue");
        let sum: u64 = list.iter().map(|&(index, _)| u64::from(index)).sum();
        assert_eq!((list.len(), sum), (170, 24_841_141));
    }

    #[test]
    fn case_and_white_space_change_no_word() {
        let words = |text: &str| {
            let mut words = Vec::new();
            scan::scan(text, &mut words, &mut Entries::default(), &mut Counts::default());
            words.iter().map(|word| word.hash).collect::<Vec<_>>()
        };
        assert_eq!(words("Write  a\nPOEM"), words("write a poem"));
        assert_eq!(words("日本の").len(), 3, "each character of a script without spaces is a word");
    }

    #[test]
    fn what_a_request_says_beside_its_text_is_seen_and_the_text_stays_the_same() {
        let bare = features("Hi");
        let facts = crate::trace::RequestFacts { tools: 2, tenant: Some("a".into()), ..Default::default() };
        let said = features(&facts.before("Hi"));
        // The encoder's guess comes last.
        let (guess, bare) = bare.split_last().unwrap();
        assert_eq!(said[..bare.len()], bare[..]);
        assert_eq!((said.last(), said.len()), (Some(guess), bare.len() + 3));
    }

    #[test]
    fn an_instruction_at_the_end_of_a_long_prompt_is_read() {
        let document = "The report goes on and on about nothing. ".repeat(2000);
        let one = features(&format!("{document}\nSummarise it in one word."));
        let two = features(&format!("{document}\nRewrite it in full detail."));
        assert_ne!(one, two);
        assert!(one.len() < MAX_HEAD_BYTES + MAX_TAIL_BYTES);
    }

    #[test]
    fn each_group_has_its_norm_whatever_the_length() {
        for words in [1, 30, 1000] {
            let list = features(&"some words that vary ".repeat(words));
            let hashed: f32 = list.iter().filter(|(i, _)| (*i as usize) < BUCKETS).map(|(_, v)| v * v).sum();
            assert!((1.0..4.0).contains(&hashed), "{words}: {hashed}");
            assert!(list.iter().all(|(index, value)| (*index as usize) < DIMENSIONS && value.is_finite()));
        }
    }

    #[test]
    fn a_length_that_is_asked_for_is_seen() {
        let asked = |text: &str| {
            features(text)
                .iter()
                .any(|&(index, _)| index as usize >= BUCKETS + 26 && (index as usize) < BUCKETS + 30)
        };
        assert!(asked("Describe it in 50 words."));
        assert!(asked("Describe it in three short paragraphs."));
        assert!(!asked("Describe the 50 states."));
    }
}
