//! What the host reports back to the scheduler.

use std::time::Duration;

use crate::{RequestId, Score};

/// Something that happened at the host. Events about a request that has already left are ignored: a client may
/// vanish while its last token is on the way.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Event {
    /// A prediction arrived after the request was submitted, or a better one replaced it.
    Scored(RequestId, Score),
    /// The request produced one output token.
    Token(RequestId),
    /// The request ended by itself: end of text, stop string or output limit.
    Finished(RequestId),
    /// The client left, or the host gave the request up; its place, seat and KV are free at once.
    Cancelled(RequestId),
    /// The KV of a paused request ([`crate::SwitchMethod::Swap`]) could not be kept, or not be restored when the last plan
    /// seated it. Its context is computed anew; the host skips the slice of it in that plan, and reports this before
    /// [`Event::StepTook`].
    SwapLost(RequestId),
    /// The last plan took this long to execute; keeps the cost model true.
    StepTook(Duration),
}
