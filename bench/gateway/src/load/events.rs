//! What a streamed answer says, read as it comes.

use outrank_gateway_bench::clock::now_ns;

/// Counts the tokens of a stream, and how long each took from the mock to here.
#[derive(Debug, Default)]
pub(crate) struct Events {
    read: usize,
    pub(crate) tokens: u32,
    pub(crate) done: bool,
}

impl Events {
    /// Reads the events that are complete in `body`, which grows from call to call.
    pub(crate) fn read(&mut self, body: &[u8], transit_us: &mut Vec<u32>) {
        let now = now_ns();
        while let Some(length) = find(&body[self.read..], b"\n\n") {
            let event = &body[self.read..self.read + length];
            self.read += length + 2;
            if let Some(sent) = stamp(event) {
                self.tokens += 1;
                transit_us.push(u32::try_from(now.saturating_sub(sent) / 1000).unwrap_or(u32::MAX));
            } else if find(event, b"[DONE]").is_some() {
                self.done = true;
            }
        }
    }
}

/// The time that the mock wrote into a token.
fn stamp(event: &[u8]) -> Option<u64> {
    let start = find(event, b"t=1")? + 2;
    let digits = event[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&event[start..start + digits]).ok()?.parse().ok()
}

/// Where `needle` begins.
pub(crate) fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_once_however_the_stream_is_cut() {
        let stream = b"data: {\"content\":\"t=1700000000000000000 \"}\n\ndata: {\"content\":\"t=1700000000000000001 \"}\n\ndata: [DONE]\n\n";
        for cut in 0..stream.len() {
            let (mut events, mut transit) = (Events::default(), Vec::new());
            events.read(&stream[..cut], &mut transit);
            events.read(stream, &mut transit);
            assert_eq!((events.tokens, events.done, transit.len()), (2, true, 2), "cut at {cut}");
        }
    }
}
