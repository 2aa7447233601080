//! The features of one prompt while they are gathered: (bucket, value), each bucket once per group.

use super::{BUCKET_BITS, hash};

/// Counts buckets within one feature group, then scales the group to a given Euclidean norm.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) list: Vec<(u32, f32)>,
    /// Open addressing: (stamp, position in `list`). A slot is taken where its stamp is the current one.
    slots: Vec<(u32, u32)>,
    stamp: u32,
    start: usize,
    mask: usize,
}

impl Entries {
    /// Empties the list and makes room for at most `most` entries a group.
    pub(super) fn clear(&mut self, most: usize) {
        self.list.clear();
        let slots = (2 * most.max(32)).next_power_of_two();
        if self.slots.len() < slots {
            self.slots.resize(slots, (0, 0));
        }
        self.mask = slots - 1;
        self.start_group();
    }

    fn start_group(&mut self) {
        self.start = self.list.len();
        self.stamp = self.stamp.wrapping_add(1);
        if self.stamp == 0 {
            self.slots.fill((0, 0));
            self.stamp = 1;
        }
    }

    /// Counts one occurrence of a feature of the current group.
    #[inline]
    pub(super) fn add(&mut self, group: u64, hash: u64) {
        let bucket = hash::bucket(group, hash, BUCKET_BITS);
        let mut slot = bucket as usize & self.mask;
        loop {
            let (stamp, position) = self.slots[slot];
            if stamp != self.stamp {
                self.slots[slot] = (self.stamp, self.list.len() as u32);
                self.list.push((bucket, 1.0));
                return;
            }
            let entry = &mut self.list[position as usize];
            if entry.0 == bucket {
                entry.1 += 1.0;
                return;
            }
            slot = (slot + 1) & self.mask;
        }
    }

    /// Leaves what was appended to `list` directly as it is.
    pub(super) fn end_surface(&mut self) {
        self.start_group();
    }

    /// Ends the group: counts become 1 + ln(count), and the group gets the Euclidean norm `norm`.
    pub(super) fn end_group(&mut self, norm: f32) {
        let group = &mut self.list[self.start..];
        let mut squares = 0.0;
        for (_, value) in group.iter_mut() {
            if *value > 1.0 {
                *value = 1.0 + libm::logf(*value);
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
