//! Feature hashing: a stable map from words and characters to buckets.
//!
//! A word's hash is FNV-1a (64 bits, one step per lower-cased Unicode scalar). Hashes are combined and
//! finished with the splitmix64 mixer. These choices are part of the ranker file's version: a file's
//! weights mean nothing under another hash.

/// The empty word.
pub(crate) const START: u64 = 0xcbf2_9ce4_8422_2325;

const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// Appends one character to a word's hash.
#[inline]
pub(crate) fn push(hash: u64, c: char) -> u64 {
    (hash ^ u64::from(c as u32)).wrapping_mul(FNV_PRIME)
}

/// The hash of a word known in advance.
pub(super) const fn word(text: &str) -> u64 {
    let bytes = text.as_bytes();
    let mut hash = START;
    let mut index = 0;
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u64).wrapping_mul(FNV_PRIME);
        index += 1;
    }
    hash
}

/// Two hashes into one; the order matters.
#[inline]
pub(super) fn pair(first: u64, second: u64) -> u64 {
    first.rotate_left(23).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ second
}

/// The bucket of a hash within a feature group.
#[inline]
pub(crate) fn bucket(group: u64, hash: u64, bits: u32) -> u32 {
    let mut mixed = hash ^ group.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed >> (64 - bits)) as u32
}
