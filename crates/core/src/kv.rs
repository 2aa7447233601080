//! Accounting of KV memory in blocks.

use crate::BLOCK_TOKENS;

/// Blocks that hold `tokens` tokens.
pub fn blocks_for(tokens: u32) -> u32 {
    tokens.div_ceil(BLOCK_TOKENS)
}

/// Who holds how much KV memory: a count of blocks, not their addresses (the host owns those).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KvLedger {
    total_blocks: u32,
    free_blocks: u32,
    watermark_blocks: u32,
}

impl KvLedger {
    /// A ledger of `total_blocks` free blocks, of which admission leaves `watermark_blocks` untouched.
    pub fn new(total_blocks: u32, watermark_blocks: u32) -> Self {
        Self { total_blocks, free_blocks: total_blocks, watermark_blocks }
    }

    /// Blocks not held by anyone.
    pub fn free_blocks(&self) -> u32 {
        self.free_blocks
    }

    /// Blocks held.
    pub fn used_blocks(&self) -> u32 {
        self.total_blocks - self.free_blocks
    }

    /// Blocks in all.
    pub fn total_blocks(&self) -> u32 {
        self.total_blocks
    }

    /// Whether a request that needs `blocks` may be admitted without touching the watermark.
    pub fn admits(&self, blocks: u32) -> bool {
        blocks.saturating_add(self.watermark_blocks) <= self.free_blocks
    }

    /// Takes `blocks`, or takes nothing and returns `false` if fewer are free. Growth of running requests may
    /// use the watermark.
    #[must_use]
    pub fn take(&mut self, blocks: u32) -> bool {
        match self.free_blocks.checked_sub(blocks) {
            Some(left) => {
                self.free_blocks = left;
                true
            }
            None => false,
        }
    }

    /// Gives `blocks` back.
    ///
    /// # Panics
    /// In debug builds, when more is given back than was taken: a leak or double free in the scheduler.
    pub fn give(&mut self, blocks: u32) {
        self.free_blocks += blocks;
        debug_assert!(self.free_blocks <= self.total_blocks, "KV blocks given back twice");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admission_leaves_the_watermark_and_growth_may_use_it() {
        let mut kv = KvLedger::new(10, 2);
        assert!(kv.admits(8) && !kv.admits(9));
        assert!(kv.take(8) && kv.take(2));
        assert!(!kv.take(1), "nothing is left");
        kv.give(10);
        assert_eq!((kv.free_blocks(), kv.used_blocks()), (10, 0));
    }

    #[test]
    fn a_block_holds_sixteen_tokens() {
        assert_eq!([0, 1, 16, 17].map(blocks_for), [0, 1, 1, 2]);
    }
}
