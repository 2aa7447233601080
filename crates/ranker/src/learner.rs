//! Learning beside serving: on a thread that gives way to all others, and for a small part of the time.

use std::sync::Once;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::adapt::Adapted;

/// After learning it rests so many times as long as it took: serving goes first.
pub const MIN_PAUSES: u32 = 10;
/// The niceness of the learning thread: it takes what nobody else wants.
const NICENESS: i32 = 19;

/// Learns one thing at a time.
#[derive(Debug, Default)]
pub struct Learner {
    learning: Option<Receiver<(Option<Adapted>, Duration)>>,
    rested_at: Option<Instant>,
}

impl Learner {
    /// Whether it may start now: it is not learning, and has rested.
    pub fn is_rested(&self) -> bool {
        self.learning.is_none() && self.rested_at.is_none_or(|rested_at| Instant::now() >= rested_at)
    }

    /// Starts to learn, on a thread of its own.
    ///
    /// # Errors
    /// That of the system, where it gives no thread; nothing is learned then.
    pub fn start(&mut self, learn: impl FnOnce() -> Option<Adapted> + Send + 'static) -> std::io::Result<()> {
        let (send, receive) = sync_channel(1);
        let work = move || {
            give_way();
            let started = Instant::now();
            let adapted = learn();
            // Who wanted it may have stopped meanwhile.
            let _ = send.send((adapted, started.elapsed()));
        };
        thread::Builder::new().name("outrank-learner".into()).spawn(work)?;
        self.learning = Some(receive);
        Ok(())
    }

    /// What has been learned since it was asked last, if anything.
    pub fn learned(&mut self) -> Option<Adapted> {
        let (adapted, took) = match self.learning.as_ref()?.try_recv() {
            Ok(learned) => learned,
            Err(TryRecvError::Empty) => return None,
            // It panicked: nothing was learned.
            Err(TryRecvError::Disconnected) => (None, Duration::ZERO),
        };
        self.learning = None;
        self.rested_at = Some(Instant::now() + took * MIN_PAUSES);
        adapted
    }
}

/// Lets the thread that calls, and those that it starts, give way to all others.
pub fn give_way() {
    static REFUSED: Once = Once::new();
    // On Linux a thread has a niceness of its own. Where the system refuses, learning competes as any thread does.
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS) {
        REFUSED.call_once(|| tracing::debug!(%error, "learning cannot give way to serving"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::Ranker;

    fn adapted() -> Adapted {
        Adapted {
            ranker: Ranker::shipped().clone(),
            examples: 7,
            prior_share: 0.0,
            tau_b: 0.0,
            prior_tau_b: 0.0,
        }
    }

    /// Waits until the thread has said something or is gone.
    fn wait(learner: &mut Learner) -> Option<Adapted> {
        while learner.learning.is_some() {
            let learned = learner.learned();
            if learned.is_some() {
                return learned;
            }
            thread::sleep(Duration::from_millis(1));
        }
        None
    }

    #[test]
    fn it_learns_once_at_a_time_and_rests_longer_than_it_learned() {
        let (mut learner, (go, gone)) = (Learner::default(), channel::<()>());
        assert!(learner.is_rested() && learner.learned().is_none());
        let slow = Duration::from_millis(50);
        learner
            .start(move || {
                gone.recv().unwrap();
                thread::sleep(slow);
                Some(adapted())
            })
            .unwrap();
        assert!(!learner.is_rested() && learner.learned().is_none());
        go.send(()).unwrap();
        assert_eq!(wait(&mut learner).map(|adapted| adapted.examples), Some(7));
        assert!(learner.learned().is_none(), "it is told once");
        assert!(
            learner.rested_at.unwrap() > Instant::now() + slow * (MIN_PAUSES / 2) && !learner.is_rested()
        );
    }

    #[test]
    fn a_panic_leaves_it_able_to_learn() {
        let mut learner = Learner::default();
        learner.start(|| panic!("as a test wants it")).unwrap();
        assert!(wait(&mut learner).is_none() && learner.is_rested());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_thread_that_learns_and_those_it_starts_give_way() {
        let own = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
        let (mut learner, (say, said)) = (Learner::default(), channel());
        let before = own();
        learner
            .start(move || {
                say.send((own(), thread::spawn(own).join().unwrap())).unwrap();
                None
            })
            .unwrap();
        assert_eq!(said.recv().unwrap(), (NICENESS, NICENESS));
        assert_eq!(own(), before);
    }
}
