//! Requests under way, by vLLM's names and by the numbers of the order book.

use std::collections::HashMap;

/// What is kept of each request under way. A number is never used twice, so what comes late for a request that has left meets
/// nobody.
#[derive(Debug)]
pub struct Registry<T> {
    numbers: HashMap<String, u64>,
    kept: HashMap<u64, T>,
    next: u64,
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), kept: HashMap::new(), next: 0 }
    }
}

impl<T> Registry<T> {
    /// A request arrives. Returns its number, or `None` if one of that name is under way.
    pub fn enter(&mut self, name: &str, kept: T) -> Option<u64> {
        if self.numbers.contains_key(name) {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.numbers.insert(name.to_owned(), number);
        self.kept.insert(number, kept);
        Some(number)
    }

    /// A request has left. Returns the number that it had.
    pub fn leave(&mut self, name: &str) -> Option<u64> {
        let number = self.numbers.remove(name)?;
        self.kept.remove(&number);
        Some(number)
    }

    /// Number of a request under way.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.numbers.get(name).copied()
    }

    /// What is kept of a request under way.
    pub fn get(&self, number: u64) -> Option<&T> {
        self.kept.get(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_number_while_it_is_under_way_and_another_when_it_comes_again() {
        let mut requests = Registry::default();
        let first = requests.enter("a", 'x').unwrap();
        assert_eq!(requests.enter("a", 'y'), None);
        assert_eq!((requests.number("a"), requests.get(first)), (Some(first), Some(&'x')));
        assert_eq!(requests.leave("a"), Some(first));
        assert_eq!((requests.leave("a"), requests.number("a"), requests.get(first)), (None, None, None));
        let again = requests.enter("a", 'z').unwrap();
        assert_ne!(again, first);
        assert_eq!(requests.get(again), Some(&'z'));
    }
}
