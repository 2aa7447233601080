//! A task that goes on at once where it has woken itself.
//!
//! The task of a client's connection drives the connection to the upstream too, so the two halves of an exchange, which tell each
//! other through wakers what has come, wake the very task that runs. The runtime would put such a task at the end of its queue and wake
//! another worker to take it: two calls into the kernel, and a core that finds nothing of the request in its caches, two times a request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Times that a task goes on by itself before others have their turn.
const MAX_ROUNDS: usize = 16;

/// Nobody runs the task, and who wakes it tells the runtime.
const RESTS: u8 = 0;
/// It runs.
const RUNS: u8 = 1;
/// It runs, and has been woken meanwhile.
const WOKEN: u8 = 2;

/// Runs a future again as long as it was woken while it ran.
pub(crate) struct Unbroken<F> {
    inner: Pin<Box<F>>,
    state: Arc<State>,
    waker: Waker,
}

#[derive(Default)]
struct State {
    phase: AtomicU8,
    /// The task, as the runtime knows it.
    task: AtomicWaker,
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let found = self.phase.compare_exchange(RUNS, WOKEN, Ordering::AcqRel, Ordering::Acquire);
        if found == Err(RESTS) {
            self.task.wake();
        }
    }
}

impl<F: Future> Unbroken<F> {
    pub(crate) fn new(inner: F) -> Self {
        let state = Arc::<State>::default();
        Self { inner: Box::pin(inner), waker: Arc::clone(&state).into(), state }
    }
}

impl<F: Future> Future for Unbroken<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { inner, state, waker } = self.get_mut();
        state.task.register(cx.waker());
        for _ in 0..MAX_ROUNDS {
            state.phase.swap(RUNS, Ordering::AcqRel);
            if let Poll::Ready(output) = inner.as_mut().poll(&mut Context::from_waker(waker)) {
                return Poll::Ready(output);
            }
            if state.phase.compare_exchange(RUNS, RESTS, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return Poll::Pending;
            }
        }
        state.phase.swap(RESTS, Ordering::AcqRel);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    #[derive(Default)]
    struct Told(AtomicUsize);

    impl Wake for Told {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Polls a future that wakes itself so many times; how often it was polled, and whether the runtime heard of it.
    fn run(wakes: usize) -> (usize, usize) {
        let told = Arc::new(Told::default());
        let polls = AtomicUsize::new(0);
        let mut task = Unbroken::new(poll_fn(|cx| -> Poll<()> {
            if polls.fetch_add(1, Ordering::SeqCst) < wakes {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        }));
        let waker = Waker::from(Arc::clone(&told));
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
        drop(task);
        (polls.load(Ordering::SeqCst), told.0.load(Ordering::SeqCst))
    }

    #[test]
    fn what_wakes_itself_goes_on_and_the_runtime_hears_nothing_until_it_has_had_its_rounds() {
        assert_eq!(run(0), (1, 0));
        assert_eq!(run(3), (4, 0));
        assert_eq!(run(usize::MAX), (MAX_ROUNDS, 1), "others have their turn, and it is not forgotten");
    }

    #[test]
    fn what_is_woken_while_it_rests_is_woken_once_by_the_runtime() {
        let told = Arc::new(Told::default());
        let waker = Waker::from(Arc::clone(&told));
        let mut inside = None;
        let mut task = Unbroken::new(poll_fn(|cx| -> Poll<()> {
            inside = Some(cx.waker().clone());
            Poll::Pending
        }));
        let _ = Pin::new(&mut task).poll(&mut Context::from_waker(&waker));
        drop(task);
        let inside = inside.unwrap();
        assert_eq!(told.0.load(Ordering::SeqCst), 0);
        inside.wake_by_ref();
        inside.wake();
        assert_eq!(told.0.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_of_another_thread_is_lost() {
        const MESSAGES: u32 = 100_000;
        let (send, mut receive) = tokio::sync::mpsc::channel(1);
        std::thread::spawn(move || (0..MESSAGES).for_each(|n| send.blocking_send(n).unwrap()));
        let counted = tokio::spawn(Unbroken::new(async move {
            let mut next = 0;
            while let Some(n) = receive.recv().await {
                assert_eq!(n, next);
                next += 1;
            }
            next
        }));
        let counted = tokio::time::timeout(Duration::from_secs(60), counted).await;
        assert_eq!(counted.unwrap().unwrap(), MESSAGES);
    }
}
