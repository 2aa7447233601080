//! The features of one prompt while they are gathered: (bucket, value), each bucket once per group.

use std::hint::select_unpredictable;
use std::sync::LazyLock;

use super::{BUCKET_BITS, hash};

/// Bits of a slot's key that say which group took it.
const STAMP_BITS: u32 = u32::BITS - BUCKET_BITS;

/// ln of the counts that are common.
static LOGS: LazyLock<[f32; 64]> =
    LazyLock::new(|| std::array::from_fn(|count| libm::logf((count as f32).max(1.0))));

/// Counts buckets within one feature group, then scales the group to a given Euclidean norm.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) list: Vec<(u32, f32)>,
    /// Occurrences of features of the current group, not counted yet.
    buckets: Vec<u32>,
    /// Open addressing: (key, position in `list`), where a key is a stamp before a bucket. A slot is taken where its stamp
    /// is the current one.
    slots: Vec<(u32, u32)>,
    stamp: u32,
    start: usize,
}

impl Entries {
    /// Empties the list.
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.buckets.clear();
        self.start_group();
    }

    fn start_group(&mut self) {
        self.start = self.list.len();
        self.stamp += 1;
        if self.stamp == 1 << STAMP_BITS {
            self.slots.fill((0, 0));
            self.stamp = 1;
        }
    }

    /// One occurrence of a feature of the current group.
    #[inline]
    pub(super) fn add(&mut self, group: u64, hash: u64) {
        self.buckets.push(hash::bucket(group, hash, BUCKET_BITS));
    }

    /// Appends the buckets that were added and how often each was, in the order in which they first came. No processor can
    /// foresee which buckets come again, so no branch depends on it.
    fn count(&mut self) {
        let Self { list, buckets, slots, stamp, .. } = self;
        let places = (2 * buckets.len()).next_power_of_two();
        if slots.len() < places {
            slots.resize(places, (0, 0));
        }
        let (slots, mask) = (&mut slots[..places], places - 1);
        let mut end = list.len();
        list.resize(end + buckets.len(), (0, 0.0));
        for bucket in buckets.drain(..) {
            let key = *stamp << BUCKET_BITS | bucket;
            // Taken by another bucket of this group: the stamps are the same, and the buckets are not.
            let taken = |slot: (u32, u32)| (1..1 << BUCKET_BITS).contains(&(slot.0 ^ key));
            let mut at = bucket as usize & mask;
            at = (at + usize::from(taken(slots[at]))) & mask;
            while taken(slots[at]) {
                at = (at + 1) & mask;
            }
            let known = slots[at].0 == key;
            let position = select_unpredictable(known, slots[at].1 as usize, end);
            slots[at] = (key, position as u32);
            list[position] = (bucket, list[position].1 + 1.0);
            end += usize::from(!known);
        }
        list.truncate(end);
    }

    /// Leaves what was appended to `list` directly as it is.
    pub(super) fn end_surface(&mut self) {
        self.start_group();
    }

    /// Ends the group: counts become 1 + ln(count), and the group gets the Euclidean norm `norm`.
    pub(super) fn end_group(&mut self, norm: f32) {
        self.count();
        let group = &mut self.list[self.start..];
        let mut squares = 0.0;
        for (_, value) in group.iter_mut() {
            if *value > 1.0 {
                *value = 1.0 + ln(*value);
            }
            squares += *value * *value;
        }
        if squares > 0.0 {
            let scale = norm / squares.sqrt();
            group.iter_mut().for_each(|(_, value)| *value *= scale);
        }
        self.start_group();
    }
}

fn ln(value: f32) -> f32 {
    let whole = value as usize;
    LOGS.get(whole).filter(|_| whole as f32 == value).copied().unwrap_or_else(|| libm::logf(value))
}
