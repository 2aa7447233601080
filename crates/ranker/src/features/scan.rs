//! One pass over the characters of a prompt: words, character 4-grams and counts.

use super::entries::Entries;
use super::{group, hash};

/// What a word is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Word,
    Number(f32),
}

/// One word of the prompt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    pub(super) hash: u64,
    pub(super) kind: Kind,
    /// First of the text, of a line, or after `.`, `!`, `?`, `:` or `;`.
    pub(super) starts_sentence: bool,
}

/// Counts of characters, gathered on the way.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) chars: u32,
    pub(super) letters: u32,
    pub(super) upper: u32,
    pub(super) digits: u32,
    pub(super) spaces: u32,
    pub(super) newlines: u32,
    pub(super) questions: u32,
    pub(super) stops: u32,
    pub(super) commas: u32,
    pub(super) quotes: u32,
    pub(super) code: u32,
    pub(super) maths: u32,
    pub(super) backticks: u32,
    pub(super) bullets: u32,
    pub(super) wide: u32,
    pub(super) foreign: u32,
}

/// Reads `text`, appending words, character 4-grams (one space between words) and counts.
pub(super) fn scan(text: &str, words: &mut Vec<Word>, grams: &mut Entries, counts: &mut Counts) {
    let mut word = Open::default();
    let mut window = Window::new();
    let mut sentence = true;
    for c in text.chars() {
        counts.chars += 1;
        let (lower, wide) =
            if c.is_ascii() { (c.to_ascii_lowercase(), false) } else { (fold(c), is_wide(c)) };
        if lower.is_alphanumeric() || lower == '\'' && word.length > 0 {
            count_letter(c, wide, counts);
            if wide {
                word.close(words, &mut sentence);
            }
            word.push(lower);
            window.push(lower, grams);
            if wide {
                word.close(words, &mut sentence);
            }
            continue;
        }
        if word.length > 0 {
            word.close(words, &mut sentence);
            window.push(' ', grams);
        }
        count_other(c, counts);
        if !c.is_whitespace() {
            window.push(lower, grams);
        }
        sentence |= matches!(c, '\n' | '.' | '!' | '?' | ':' | ';' | '。' | '？' | '！');
    }
    if word.length > 0 {
        word.close(words, &mut sentence);
        window.push(' ', grams);
    }
}

/// Hashes of the last one, two and three characters.
struct Window {
    one: u64,
    two: u64,
    three: u64,
}

impl Window {
    /// Nothing but spaces.
    fn new() -> Self {
        let one = u64::from(b' ');
        let two = hash::pair(one, one);
        Self { one, two, three: hash::pair(two, one) }
    }

    /// Shifts a character in and appends the 4-gram that ends with it.
    #[inline]
    fn push(&mut self, c: char, grams: &mut Entries) {
        let c = u64::from(c as u32);
        grams.add(group::CHARS, hash::pair(self.three, c));
        self.three = hash::pair(self.two, c);
        self.two = hash::pair(self.one, c);
        self.one = c;
    }
}

#[derive(Default)]
struct Open {
    hash: u64,
    length: u32,
    number: Option<f32>,
}

impl Open {
    #[inline]
    fn push(&mut self, c: char) {
        if self.length == 0 {
            self.hash = hash::START;
            self.number = Some(0.0);
        }
        self.hash = hash::push(self.hash, c);
        self.length += 1;
        self.number = self.number.and_then(|value| Some(value * 10.0 + c.to_digit(10)? as f32));
    }

    #[inline]
    fn close(&mut self, words: &mut Vec<Word>, sentence: &mut bool) {
        if self.length == 0 {
            return;
        }
        let kind = self.number.or_else(|| spelled(self.hash)).map_or(Kind::Word, Kind::Number);
        words.push(Word { hash: self.hash, kind, starts_sentence: std::mem::take(sentence) });
        self.length = 0;
    }
}

/// Numbers that prompts spell out.
fn spelled(hash: u64) -> Option<f32> {
    const NAMES: [(u64, f32); 13] = [
        (hash::word("one"), 1.0),
        (hash::word("two"), 2.0),
        (hash::word("three"), 3.0),
        (hash::word("four"), 4.0),
        (hash::word("five"), 5.0),
        (hash::word("six"), 6.0),
        (hash::word("seven"), 7.0),
        (hash::word("eight"), 8.0),
        (hash::word("nine"), 9.0),
        (hash::word("ten"), 10.0),
        (hash::word("twelve"), 12.0),
        (hash::word("twenty"), 20.0),
        (hash::word("hundred"), 100.0),
    ];
    NAMES.iter().find(|(name, _)| *name == hash).map(|&(_, value)| value)
}

fn fold(c: char) -> char {
    c.to_lowercase().next().unwrap_or(c)
}

/// Scripts written without spaces: Han, kana, Thai, Lao, Khmer, Burmese.
fn is_wide(c: char) -> bool {
    matches!(c as u32, 0x3040..=0x30ff | 0x3400..=0x9fff | 0xf900..=0xfaff | 0xff66..=0xff9d
        | 0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x20000..=0x3ffff)
}

#[inline]
fn count_letter(c: char, wide: bool, counts: &mut Counts) {
    counts.letters += 1;
    counts.wide += u32::from(wide);
    if c.is_ascii() {
        counts.upper += u32::from(c.is_ascii_uppercase());
        counts.digits += u32::from(c.is_ascii_digit());
    } else {
        counts.foreign += 1;
    }
}

#[inline]
fn count_other(c: char, counts: &mut Counts) {
    match c {
        '\n' => counts.newlines += 1,
        ' ' | '\t' => counts.spaces += 1,
        '?' | '？' => counts.questions += 1,
        '.' | '!' | '。' | '！' => counts.stops += 1,
        ',' | '、' | '，' => counts.commas += 1,
        '"' | '“' | '”' | '「' => counts.quotes += 1,
        '{' | '}' | '(' | ')' | '[' | ']' | ';' | '<' | '>' | '_' | '#' => counts.code += 1,
        '=' | '+' | '*' | '/' | '^' | '$' | '\\' | '%' => counts.maths += 1,
        '`' => counts.backticks += 1,
        '-' | '•' => counts.bullets += 1,
        _ => counts.foreign += u32::from(!c.is_ascii()),
    }
}
