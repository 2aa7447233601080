//! Facts about the whole prompt: its size, its shape, and the length that it asks for.

use super::entries::Entries;
use super::scan::{Counts, Kind, Word};
use super::{BUCKETS, group, hash};

/// Surface facts: indices [`BUCKETS`] to `BUCKETS + SURFACE`.
pub const SURFACE: usize = 40;

/// How much a surface fact counts beside the hashed groups; also the norm of the size bins.
const SURFACE_SCALE: f32 = 0.5;

pub(super) struct Facts<'a> {
    pub(super) counts: &'a Counts,
    pub(super) words: &'a [Word],
    /// Bytes between head and tail.
    pub(super) unread: usize,
    /// Bytes of the earlier turns.
    pub(super) context: usize,
    /// The whole request.
    pub(super) text: &'a str,
}

/// Units in which prompts ask for length, and the tokens that one is worth.
const UNITS: [(u64, usize); 29] = [
    (hash::word("word"), 0),
    (hash::word("words"), 0),
    (hash::word("mots"), 0),
    (hash::word("palabras"), 0),
    (hash::word("sentence"), 1),
    (hash::word("sentences"), 1),
    (hash::word("lines"), 1),
    (hash::word("line"), 1),
    (hash::word("phrases"), 1),
    (hash::word("oraciones"), 1),
    (hash::word("bullet"), 2),
    (hash::word("bullets"), 2),
    (hash::word("points"), 2),
    (hash::word("items"), 2),
    (hash::word("examples"), 2),
    (hash::word("tips"), 2),
    (hash::word("ideas"), 2),
    (hash::word("ways"), 2),
    (hash::word("steps"), 2),
    (hash::word("reasons"), 2),
    (hash::word("questions"), 2),
    (hash::word("things"), 2),
    (hash::word("facts"), 2),
    (hash::word("paragraph"), 3),
    (hash::word("paragraphs"), 3),
    (hash::word("paragraphes"), 3),
    (hash::word("sections"), 3),
    (hash::word("stanzas"), 3),
    (hash::word("pages"), 3),
];

/// Tokens in one word, sentence, item, paragraph: rough, for the sum of what is asked.
const TOKENS_PER_UNIT: [f32; 4] = [1.35, 20.0, 25.0, 90.0];

pub(super) fn add(facts: &Facts<'_>, entries: &mut Entries) {
    let values = values(facts);
    let ln_words = values[1];
    let ln_chars = values[0];
    entries.list.extend(
        values
            .iter()
            .enumerate()
            .filter(|(_, v)| **v != 0.0)
            .map(|(i, v)| ((BUCKETS + i) as u32, v * SURFACE_SCALE)),
    );
    entries.end_surface();
    entries.add(group::BINS, (ln_words * 3.0) as u64);
    entries.add(group::BINS + 1, (ln_chars * 2.0) as u64);
    entries.add(group::BINS + 2, u64::from(facts.counts.newlines.min(40)));
    entries.add(group::BINS + 3, u64::from(facts.counts.questions.min(4)));
    let last = facts.text.trim_end().chars().next_back().unwrap_or(' ');
    entries.add(group::BINS + 4, if last.is_alphanumeric() { 0 } else { u64::from(last as u32) });
    entries.end_group(SURFACE_SCALE);
}

fn values(facts: &Facts<'_>) -> [f32; SURFACE] {
    let c = facts.counts;
    let chars = c.chars.max(1) as f32;
    let share = |n: u32| libm::sqrtf(n as f32 / chars);
    let some = |n: u32| if n > 0 { 1.0 } else { 0.0 };
    let ln = |n: f32| libm::logf(1.0 + n);
    let asked = asked(facts.words);
    let tokens: f32 = asked.iter().zip(TOKENS_PER_UNIT).map(|(n, per)| n * per).sum();
    let mut out = [0.0; SURFACE];
    let list = [
        ln(chars + facts.unread as f32),
        ln(facts.words.len() as f32),
        ln(c.newlines as f32),
        ln(c.questions as f32),
        some(c.questions),
        if c.backticks >= 3 { 1.0 } else { 0.0 },
        ln(c.stops as f32),
        ln(c.commas as f32),
        ln(c.quotes as f32),
        ln(c.code as f32),
        ln(c.maths as f32),
        ln(c.digits as f32),
        ln(c.bullets as f32),
        ln(c.wide as f32),
        ln(c.foreign as f32),
        share(c.upper),
        share(c.digits),
        share(c.code),
        share(c.maths),
        share(c.foreign),
        share(c.wide),
        share(c.newlines),
        share(c.commas),
        share(c.letters),
        chars / (facts.words.len().max(1) as f32) / 10.0,
        ln(facts.context as f32),
        ln(asked[0]),
        ln(asked[1]),
        ln(asked[2]),
        ln(asked[3]),
        some(asked[0] as u32),
        some(asked[1] as u32),
        some(asked[2] as u32),
        some(asked[3] as u32),
        ln(tokens),
        some(tokens as u32),
    ];
    out[..list.len()].copy_from_slice(&list);
    out
}

/// The most asked for in each unit: a number at most two words before the unit's name.
fn asked(words: &[Word]) -> [f32; 4] {
    let mut most = [0.0f32; 4];
    for (index, word) in words.iter().enumerate() {
        let Kind::Number(number) = word.kind else { continue };
        let after = words[index + 1..].iter().take(2);
        let unit = after
            .filter_map(|w| UNITS.iter().find(|(name, _)| *name == w.hash))
            .map(|&(_, unit)| unit)
            .next();
        if let Some(unit) = unit {
            most[unit] = most[unit].max(number.min(1e5));
        }
    }
    most
}
