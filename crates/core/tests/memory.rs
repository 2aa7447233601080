//! What happens when running requests outgrow the KV memory.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use outrank_core::{Event, Plan, Request, RequestId, Scheduler, Timestamp};
use support::{capacity, config, policy};

/// Plans a step and lets every request in it have its token.
fn step(scheduler: &mut Scheduler) -> Plan {
    let plan = scheduler.plan(Timestamp::ZERO).clone();
    for slice in plan.batch.iter().filter(|slice| slice.samples) {
        scheduler.observe(Timestamp::ZERO, Event::Token(slice.id));
    }
    plan
}

#[test]
fn in_a_step_in_which_memory_runs_out_nobody_is_admitted_to_what_the_evicted_one_leaves() {
    let mut scheduler = Scheduler::new(config(capacity(4, 6), 0), policy("fcfs")).unwrap();
    let (first, second, small) = (RequestId(0), RequestId(1), RequestId(2));
    for (id, prompt_tokens) in [(first, 47), (second, 31), (small, 10)] {
        let request = Request::new(id.0, Timestamp::ZERO, prompt_tokens, 30);
        scheduler.submit(Timestamp::ZERO, request, None).unwrap();
    }
    let seated = |plan: &Plan| plan.seat.iter().map(|seated| seated.id).collect::<Vec<_>>();
    let started = step(&mut scheduler);
    assert_eq!(seated(&started), [first, second], "with a block left free the third does not fit");
    let evicting =
        std::iter::repeat_with(|| step(&mut scheduler)).take(10).find(|plan| !plan.pause.is_empty());
    let evicting = evicting.expect("both outgrow the memory within a block");
    assert_eq!((evicting.pause[0].id, seated(&evicting)), (second, vec![]));
    let next = step(&mut scheduler);
    assert_eq!(
        seated(&next),
        [small],
        "the memory that is left is too little for the evicted one, and enough for it"
    );
}
