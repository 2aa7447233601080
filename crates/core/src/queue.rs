//! The queue of waiting requests, in order of rank.

use crate::Key;

/// Total order of requests: promoted ones first, then by key, then by order of arrival.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Rank {
    /// 0 for promoted requests, 1 for all others.
    pub band: u8,
    /// Key under the policy.
    pub key: Key,
    /// Arrival number: unique, so that ranks are too.
    pub number: u64,
}

/// What stands in the queue.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Place {
    /// Its rank.
    pub rank: Rank,
    /// The scheduler's slot of the request.
    pub slot: usize,
    /// Expected seconds of service, for estimates of waiting time.
    pub work_s: f64,
}

/// Places per bucket at which it is split in two.
const MAX_BUCKET_PLACES: usize = 512;

/// Waiting requests in order of rank: a sorted list cut into buckets of at most `MAX_BUCKET_PLACES`.
///
/// Insertion and removal by rank cost a binary search over buckets and a move within one; the head is at hand;
/// and, unlike a heap or a B-tree, position and work ahead of any request cost one pass over the buckets' sums.
#[derive(Clone, Debug, Default)]
pub struct RankQueue {
    /// No bucket is empty; ranks rise within and across buckets.
    buckets: Vec<Bucket>,
    len: usize,
}

#[derive(Clone, Debug)]
struct Bucket {
    places: Vec<Place>,
    work_s: f64,
}

impl Bucket {
    fn of(places: Vec<Place>) -> Self {
        let work_s = places.iter().map(|place| place.work_s).sum();
        Self { places, work_s }
    }
}

impl RankQueue {
    /// Number of requests in the queue.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The head of the queue: the smallest rank.
    pub fn first(&self) -> Option<Place> {
        self.buckets.first()?.places.first().copied()
    }

    /// Places in order of rank.
    pub fn iter(&self) -> impl Iterator<Item = &Place> {
        self.buckets.iter().flat_map(|bucket| &bucket.places)
    }

    /// Places of rank above (after) `rank`, in order.
    pub fn iter_after(&self, rank: Rank) -> impl Iterator<Item = &Place> {
        let at = self.bucket_of(rank);
        let tail = self.buckets.get(at..).unwrap_or_default();
        tail.iter().flat_map(|bucket| &bucket.places).skip_while(move |place| place.rank <= rank)
    }

    /// Puts a request in its place. Ranks are unique because arrival numbers are.
    pub fn insert(&mut self, place: Place) {
        self.len += 1;
        if self.buckets.is_empty() {
            self.buckets.push(Bucket::of(vec![place]));
            return;
        }
        let at = self.bucket_of(place.rank).min(self.buckets.len() - 1);
        let bucket = &mut self.buckets[at];
        let within = bucket.places.partition_point(|other| other.rank < place.rank);
        bucket.places.insert(within, place);
        bucket.work_s += place.work_s;
        if bucket.places.len() > MAX_BUCKET_PLACES {
            let upper = bucket.places.split_off(MAX_BUCKET_PLACES / 2);
            *bucket = Bucket::of(std::mem::take(&mut bucket.places));
            self.buckets.insert(at + 1, Bucket::of(upper));
        }
    }

    /// Takes out the request of this rank, if it is in the queue.
    pub fn remove(&mut self, rank: Rank) -> Option<Place> {
        let at = self.bucket_of(rank);
        let bucket = self.buckets.get_mut(at)?;
        let within = bucket.places.binary_search_by(|other| other.rank.cmp(&rank)).ok()?;
        let place = bucket.places.remove(within);
        bucket.work_s -= place.work_s;
        if bucket.places.is_empty() {
            self.buckets.remove(at);
        }
        self.len -= 1;
        Some(place)
    }

    /// Number of requests ahead of `rank`, and their work in seconds.
    pub fn ahead_of(&self, rank: Rank) -> (usize, f64) {
        let at = self.bucket_of(rank);
        let (before, rest) = self.buckets.split_at(at);
        let mut ahead = (before.iter().map(|b| b.places.len()).sum(), before.iter().map(|b| b.work_s).sum());
        if let Some(bucket) = rest.first() {
            let within = bucket.places.partition_point(|other| other.rank < rank);
            ahead.0 += within;
            ahead.1 += bucket.places[..within].iter().map(|place| place.work_s).sum::<f64>();
        }
        ahead
    }

    /// Seconds of work of all who wait.
    pub fn work_s(&self) -> f64 {
        self.buckets.iter().map(|bucket| bucket.work_s).sum()
    }

    /// The first bucket whose last rank is not below `rank`: where it stands or belongs.
    fn bucket_of(&self, rank: Rank) -> usize {
        self.buckets.partition_point(|bucket| bucket.places.last().is_some_and(|last| last.rank < rank))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn place(key: f64, number: u64) -> Place {
        let rank = Rank { band: 1, key: Key::new(key), number };
        Place { rank, slot: number as usize, work_s: key }
    }

    #[test]
    fn promoted_requests_go_first_then_smaller_keys_then_earlier_arrivals() {
        let mut queue = RankQueue::default();
        let promoted = Place { rank: Rank { band: 0, key: Key::new(9.0), number: 3 }, slot: 3, work_s: 1.0 };
        for it in [place(2.0, 0), place(1.0, 2), place(1.0, 1), promoted] {
            queue.insert(it);
        }
        assert_eq!(queue.iter().map(|p| p.slot).collect::<Vec<_>>(), [3, 1, 2, 0]);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_sorted_map(operations in prop::collection::vec((0u8..4, 0u32..50), 0..3000)) {
            let mut queue = RankQueue::default();
            let mut model = BTreeMap::new();
            for (number, (kind, key)) in operations.into_iter().enumerate() {
                if kind == 0 {
                    let nth = model.keys().nth(key as usize).copied();
                    let expected = nth.and_then(|rank| model.remove(&rank));
                    prop_assert_eq!(nth.and_then(|rank| queue.remove(rank)), expected);
                } else {
                    let it = place(f64::from(key), number as u64);
                    queue.insert(it);
                    model.insert(it.rank, it);
                }
            }
            prop_assert_eq!(queue.len(), model.len());
            prop_assert!(queue.iter().eq(model.values()));
            for (position, it) in model.values().enumerate() {
                let (ahead, work_s) = queue.ahead_of(it.rank);
                let expected_s: f64 = model.values().take(position).map(|p| p.work_s).sum();
                prop_assert_eq!(ahead, position);
                prop_assert!((work_s - expected_s).abs() < 1e-6);
                prop_assert_eq!(queue.iter_after(it.rank).count(), model.len() - position - 1);
            }
        }
    }
}
