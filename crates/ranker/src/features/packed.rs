//! Features of one text as a short line of text, so that a journal can keep what a ranker read and not the words.
//!
//! `VERSION:BASE64`, with [`VERSION`] of the features and base64 as in RFC 4648, section 4, without padding, of:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | a number that is equal for equal texts, little-endian |
//! | 1 | surface facts that follow |
//! | 5 each | which one (the feature's index less [`BUCKETS`]) and its value, 32 bits little-endian |
//! | … | until the end, one run for each value of hashed features: the value, how many features have it (LEB128), and their indices in ascending order, each as the difference to the one before (LEB128) |
//!
//! Values are exact. Counts within a group are few and small, so there are few values, and an index costs one or two bytes.
//! The order in which the words stood is not kept.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::{BUCKETS, DIMENSIONS};

/// Version of the features and of how they are packed. It changes, with that of the ranker file, whenever an index or a
/// value means something else.
pub const VERSION: u32 = 5;

/// Longest packed text, in bytes. English prose of as many bytes as are read needs less than half of it.
pub const MAX_PACKED_BYTES: usize = 48 << 10;

/// Why packed features cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackedError {
    /// Features of another version.
    #[error(
        "features of version {found}, this outrank reads version {VERSION}: learn from lines with prompts, or from what is journalled from now on"
    )]
    Version {
        /// The version there.
        found: u32,
    },
    /// Not what [`crate::Example::pack`] writes.
    #[error("damaged features: {0}")]
    Damaged(&'static str),
}

/// The order in which features are kept and summed: surface facts first, then by value, then by index.
pub(crate) fn sort(features: &mut [(u32, f32)]) {
    features.sort_unstable_by_key(|&(index, value)| {
        let hashed = (index as usize) < BUCKETS;
        (hashed, if hashed { value.to_bits() } else { index }, index, value.to_bits())
    });
}

/// Packs features, which [`sort`] has put in order. `None` where the text would be too long.
pub(crate) fn pack(features: &[(u32, f32)], number: u64) -> Option<String> {
    let surface = features.partition_point(|&(index, _)| index as usize >= BUCKETS);
    let mut bytes = Vec::with_capacity(64 + 2 * features.len());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.push(u8::try_from(surface).ok()?);
    for &(index, value) in &features[..surface] {
        bytes.push(u8::try_from(index as usize - BUCKETS).ok()?);
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    for run in features[surface..].chunk_by(|a, b| a.1.to_bits() == b.1.to_bits()) {
        bytes.extend_from_slice(&run[0].1.to_le_bytes());
        put_number(&mut bytes, run.len());
        let mut last = 0;
        for &(index, _) in run {
            put_number(&mut bytes, (index - last) as usize);
            last = index;
        }
    }
    let text = format!("{VERSION}:{}", to_base64(&bytes));
    (text.len() <= MAX_PACKED_BYTES).then_some(text)
}

/// The features, in order, and the number of their text.
///
/// # Errors
/// [`PackedError`].
pub(crate) fn unpack(text: &str) -> Result<(Vec<(u32, f32)>, u64), PackedError> {
    use PackedError::Damaged;
    let (version, packed) = text.split_once(':').ok_or(Damaged("no version"))?;
    let found = version.parse().map_err(|_| Damaged("the version is no number"))?;
    if found != VERSION {
        return Err(PackedError::Version { found });
    }
    if text.len() > MAX_PACKED_BYTES {
        return Err(Damaged("too long"));
    }
    let bytes = from_base64(packed).ok_or(Damaged("not base64"))?;
    let mut rest = &bytes[..];
    let number = u64::from_le_bytes(take(&mut rest)?);
    let [surface] = take(&mut rest)?;
    let mut features = Vec::with_capacity(bytes.len());
    for _ in 0..surface {
        let [which] = take(&mut rest)?;
        features.push((BUCKETS as u32 + u32::from(which), take_value(&mut rest)?));
    }
    while !rest.is_empty() {
        let value = take_value(&mut rest)?;
        let count = take_number(&mut rest)?;
        let mut index = 0u32;
        for _ in 0..count {
            index = index.checked_add(take_number(&mut rest)?).ok_or(Damaged("an index is too large"))?;
            if index as usize >= BUCKETS {
                return Err(Damaged("an index is too large"));
            }
            features.push((index, value));
        }
    }
    if features.iter().any(|&(index, _)| index as usize >= DIMENSIONS) {
        return Err(Damaged("an index is too large"));
    }
    sort(&mut features);
    Ok((features, number))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], PackedError> {
    let (taken, left) = rest.split_first_chunk().ok_or(PackedError::Damaged("they end early"))?;
    *rest = left;
    Ok(*taken)
}

fn take_value(rest: &mut &[u8]) -> Result<f32, PackedError> {
    let value = f32::from_le_bytes(take(rest)?);
    if value.is_finite() { Ok(value) } else { Err(PackedError::Damaged("a value is not a finite number")) }
}

fn put_number(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_number(rest: &mut &[u8]) -> Result<u32, PackedError> {
    let mut number = 0;
    for shift in [0, 7, 14, 21] {
        let [byte] = take(rest)?;
        number |= u32::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(PackedError::Damaged("a number is too large"))
}

fn to_base64(bytes: &[u8]) -> String {
    STANDARD_NO_PAD.encode(bytes)
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::features::{MAX_CONTEXT_BYTES, MAX_HEAD_BYTES, MAX_TAIL_BYTES, Scratch};

    fn packed(text: &str) -> Option<String> {
        let mut features = Scratch::new().extract(text).to_vec();
        sort(&mut features);
        pack(&features, 7)
    }

    proptest! {
        #[test]
        fn base64_comes_back(bytes: Vec<u8>) {
            prop_assert_eq!(from_base64(&to_base64(&bytes)), Some(bytes));
        }

        #[test]
        fn what_was_packed_comes_back_to_the_bit(text in "(\\PC{0,40}[ \n]){0,30}", number: u64) {
            let mut features = Scratch::new().extract(&text).to_vec();
            sort(&mut features);
            let packed = pack(&features, number).unwrap();
            prop_assert_eq!(unpack(&packed), Ok((features, number)));
        }

        #[test]
        fn damaged_features_are_refused_and_nothing_worse(at: prop::sample::Index, with in "[A-Za-z0-9+/:= é]") {
            let mut text = packed("Write a poem of 12 lines, please.").unwrap();
            let at = at.index(text.len());
            text.replace_range(at..=at, &with);
            if let Ok((features, _)) = unpack(&text) {
                prop_assert!(features.iter().all(|&(i, v)| (i as usize) < DIMENSIONS && v.is_finite()));
            }
            let _ = unpack(&text[..at]);
        }
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        assert_eq!(
            ["f", "fo", "foo", "foob"].map(|it| to_base64(it.as_bytes())),
            ["Zg", "Zm8", "Zm9v", "Zm9vYg"]
        );
        assert_eq!([from_base64("Z"), from_base64("Zh"), from_base64("Zm9=")], [None, None, None]);
    }

    #[test]
    fn features_of_another_version_are_refused() {
        let text = packed("Hi").unwrap();
        let other = text.replacen(&format!("{VERSION}:"), "1:", 1);
        assert_eq!(unpack(&other), Err(PackedError::Version { found: 1 }));
        assert!(unpack(&other).unwrap_err().to_string().contains("version 1"));
        let (empty, short) = (format!("{VERSION}:"), format!("{VERSION}:AAAA"));
        for damaged in ["", "AAAA", "x:AAAA", &empty, &short, &text[..text.len() - 3], &format!("{text}A")] {
            assert!(matches!(unpack(damaged), Err(PackedError::Damaged(_))), "{damaged}");
        }
    }

    #[test]
    fn the_longest_prose_that_is_read_fits_and_a_short_prompt_is_short() {
        let mut random = fastrand::Rng::with_seed(1);
        // Words at Zipf's frequencies: of 20,000, each of 2 to 9 letters.
        let words: Vec<String> =
            (0..20_000).map(|_| (0..random.usize(2..10)).map(|_| random.lowercase()).collect()).collect();
        let mut prose = |bytes: usize| {
            let mut text = String::new();
            while text.len() < bytes {
                text.push_str(&words[(20_000f64.powf(random.f64()) - 1.0) as usize]);
                text.push(' ');
            }
            text
        };
        let long = format!("{}\u{1e}{}", prose(MAX_CONTEXT_BYTES), prose(MAX_HEAD_BYTES + MAX_TAIL_BYTES));
        let bytes = packed(&long).unwrap().len();
        assert!(bytes < MAX_PACKED_BYTES / 2, "{bytes}");
        let bytes = packed("Write a poem of 12 lines, please.").unwrap().len();
        assert!(bytes < 400, "{bytes}");
    }

    #[test]
    fn what_would_be_too_long_is_not_packed() {
        let many: Vec<(u32, f32)> = (0..20_000).map(|index| (index, 1.0 + index as f32)).collect();
        assert_eq!(pack(&many, 0), None);
    }
}
