//! Prompts on their way to the thread that turns token ids back into text.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Prompts turned into text at once: the thread fights for Python's lock once for all of them.
const MAX_BATCH_PROMPTS: usize = 64;

/// A request's number and the ids of its prompt.
pub type Prompt = (u64, Vec<u32>);

/// A queue that one thread empties. It holds no more than the requests that wait in vLLM itself.
#[derive(Debug)]
pub struct Prompts {
    /// `None` once closed.
    queue: Mutex<Option<VecDeque<Prompt>>>,
    arrived: Condvar,
}

impl Default for Prompts {
    fn default() -> Self {
        Self { queue: Mutex::new(Some(VecDeque::new())), arrived: Condvar::new() }
    }
}

impl Prompts {
    /// Hands over a prompt; one that comes after the end is dropped.
    pub fn put(&self, prompt: Prompt) {
        if let Some(queue) = self.queue().as_mut() {
            queue.push_back(prompt);
            self.arrived.notify_one();
        }
    }

    /// Waits for prompts, and takes the first of them. None are left once closed.
    pub fn take(&self) -> Vec<Prompt> {
        let nothing = |queue: &mut Option<VecDeque<Prompt>>| queue.as_ref().is_some_and(VecDeque::is_empty);
        let queue = self.arrived.wait_while(self.queue(), nothing);
        match queue.unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(queue) => queue.drain(..queue.len().min(MAX_BATCH_PROMPTS)).collect(),
            None => Vec::new(),
        }
    }

    /// Drops what waits, and whatever comes later.
    pub fn close(&self) {
        *self.queue() = None;
        self.arrived.notify_all();
    }

    fn queue(&self) -> MutexGuard<'_, Option<VecDeque<Prompt>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn prompts_come_in_order_and_no_more_than_a_batch_at_once() {
        let prompts = Prompts::default();
        (0..100).for_each(|number| prompts.put((number, vec![7])));
        let (first, rest) = (prompts.take(), prompts.take());
        assert_eq!((first.len(), rest.len()), (MAX_BATCH_PROMPTS, 100 - MAX_BATCH_PROMPTS));
        assert!(first.iter().chain(&rest).map(|it| it.0).eq(0..100));
    }

    #[test]
    fn whoever_waits_is_woken_by_a_prompt_and_by_the_end() {
        let prompts = Arc::new(Prompts::default());
        let there = Arc::clone(&prompts);
        let waiting = thread::spawn(move || (there.take(), there.take()));
        prompts.put((1, vec![7]));
        while !prompts.queue().as_ref().unwrap().is_empty() {
            thread::yield_now();
        }
        prompts.close();
        prompts.put((2, vec![8]));
        assert_eq!(waiting.join().unwrap(), (vec![(1, vec![7])], vec![]));
    }
}
