//! A paused request that resumes: what its step counts as, and what happens when its KV is lost.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::time::Duration;

use outrank_core::{Event, Plan, Request, RequestId, Scheduler, Score, Timestamp};
use support::{capacity, config, policy};

const LONG: RequestId = RequestId(0);
const SHORT: RequestId = RequestId(1);
const PROMPT_TOKENS: u32 = 20;

/// One seat, on which the long request has decoded and made room for the short one, its KV swapped out.
struct Paused {
    scheduler: Scheduler,
    /// Output tokens of the long request so far.
    generated_tokens: u32,
}

impl Paused {
    fn new() -> Self {
        let mut scheduler = Scheduler::new(config(capacity(1, 40), 40), policy("oracle-srtf")).unwrap();
        submit(&mut scheduler, LONG, PROMPT_TOKENS, 200);
        let mut generated_tokens = 0;
        for _ in 0..5 {
            assert!(plan(&mut scheduler).batch[0].samples);
            scheduler.observe(Timestamp::ZERO, Event::Token(LONG));
            generated_tokens += 1;
        }
        submit(&mut scheduler, SHORT, 30, 1);
        let switched = plan(&mut scheduler);
        assert_eq!((switched.pause[0].id, switched.seat[0].id), (LONG, SHORT));
        Self { scheduler, generated_tokens }
    }

    fn finish_short(&mut self) {
        self.scheduler.observe(Timestamp::ZERO, Event::Token(SHORT));
        self.scheduler.observe(Timestamp::ZERO, Event::Finished(SHORT));
    }

    fn context_tokens(&self) -> u32 {
        PROMPT_TOKENS + self.generated_tokens
    }
}

fn submit(scheduler: &mut Scheduler, id: RequestId, prompt_tokens: u32, tokens: u32) {
    let mut request = Request::new(id.0, Timestamp::ZERO, prompt_tokens, tokens);
    request.true_tokens = Some(tokens);
    scheduler.submit(Timestamp::ZERO, request, Some(Score::new(100.0, 0.5).unwrap())).unwrap();
}

fn plan(scheduler: &mut Scheduler) -> Plan {
    scheduler.plan(Timestamp::ZERO).clone()
}

#[test]
fn the_step_of_a_request_that_was_swapped_in_is_learned_from_as_a_decode() {
    let mut paused = Paused::new();
    paused.finish_short();
    let resumed = plan(&mut paused.scheduler);
    assert!(resumed.seat[0].restore && resumed.batch[0].tokens == 1 && resumed.batch[0].samples);
    let before = paused.scheduler.service();
    paused.scheduler.observe(Timestamp::ZERO, Event::StepTook(Duration::from_secs(1)));
    let after = paused.scheduler.service();
    assert_eq!(after.prefill_s, before.prefill_s, "it prefilled nothing");
    assert!(after.decode_s > before.decode_s);
}

#[test]
fn kv_that_cannot_be_restored_is_computed_again_on_the_seat_and_no_output_is_lost() {
    let mut paused = Paused::new();
    paused.finish_short();
    let resumed = plan(&mut paused.scheduler);
    assert!(resumed.seat[0].restore);
    let before = paused.scheduler.service();
    paused.scheduler.observe(Timestamp::ZERO, Event::SwapLost(LONG));
    paused.scheduler.observe(Timestamp::ZERO, Event::StepTook(Duration::from_secs(1)));
    assert_eq!(paused.scheduler.service(), before, "a step of nothing teaches nothing");

    let again = plan(&mut paused.scheduler);
    assert!(again.pause.is_empty() && again.seat.is_empty(), "it keeps its seat: {again:?}");
    let slice = again.batch[0];
    assert_eq!((slice.id, slice.start, slice.tokens), (LONG, 0, paused.context_tokens()));
    assert!(slice.samples, "the next token follows the output so far");
    // All but the newest token had KV.
    assert_eq!(paused.scheduler.counters().recomputed_tokens, u64::from(paused.context_tokens() - 1));
    paused.scheduler.observe(Timestamp::ZERO, Event::Token(LONG));
    assert_eq!(plan(&mut paused.scheduler).batch[0].start, paused.context_tokens());
    paused.scheduler.observe(Timestamp::ZERO, Event::Finished(LONG));
    assert_eq!(paused.scheduler.counters().kv_used_blocks, 0);
}

#[test]
fn kv_that_cannot_be_swapped_out_is_not_restored() {
    let mut paused = Paused::new();
    let behind = RequestId(2);
    submit(&mut paused.scheduler, behind, 10, 500);
    let start_s = |paused: &Paused| paused.scheduler.explain(Timestamp::ZERO, behind).unwrap().eta.start_s;
    let before_s = start_s(&paused);
    paused.scheduler.observe(Timestamp::ZERO, Event::SwapLost(LONG));
    assert!(start_s(&paused) > before_s, "whoever is behind it waits for its prefill too");
    paused.finish_short();
    let resumed = plan(&mut paused.scheduler);
    assert!(!resumed.seat[0].restore);
    assert_eq!((resumed.batch[0].start, resumed.batch[0].tokens), (0, paused.context_tokens()));
}
