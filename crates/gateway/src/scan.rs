//! Reading along an answer on its way to the client: how many tokens it has, and how it ends.

use std::sync::LazyLock;

use memchr::memchr;
use memchr::memmem::Finder;

/// Longest line of a stream that is read; longer ones pass unread.
const MAX_LINE_BYTES: usize = 64 << 10;
/// What is read of an answer that is not streamed: its end, where the usage stands.
const MAX_TAIL_BYTES: usize = 64 << 10;

struct Keys {
    choices: Finder<'static>,
    content: Finder<'static>,
    text: Finder<'static>,
    delta: Finder<'static>,
    finish_reason: Finder<'static>,
    usage: Finder<'static>,
    completion_tokens: Finder<'static>,
    prompt_tokens: Finder<'static>,
    error: Finder<'static>,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    choices: Finder::new("\"choices\":"),
    content: Finder::new("\"content\":"),
    text: Finder::new("\"text\":"),
    delta: Finder::new("\"delta\":"),
    finish_reason: Finder::new("\"finish_reason\":"),
    usage: Finder::new("\"usage\":"),
    completion_tokens: Finder::new("\"completion_tokens\":"),
    prompt_tokens: Finder::new("\"prompt_tokens\":"),
    error: Finder::new("\"error\":"),
});

/// How an answer says that it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Finish {
    /// By itself.
    Stop,
    /// At its limit.
    Length,
}

/// What has been read of an answer.
///
/// Keys are looked for in the text as it stands: within a JSON string a quote is escaped, so that `"usage":` cannot be part of
/// what the model said.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    streamed: bool,
    /// The beginning of a line whose end has not come, or the end of an answer that is not streamed.
    rest: Vec<u8>,
    /// The line is too long to be read.
    skipping: bool,
    /// Events with output.
    outputs: u32,
    usage: Option<(u32, u32)>,
    pub(crate) finish: Option<Finish>,
    /// The stream ended as it should.
    pub(crate) done: bool,
    /// The upstream reported an error within the stream.
    pub(crate) failed: bool,
    /// Lines that are neither data, comments nor other fields of the format.
    pub(crate) malformed_lines: u32,
}

impl Scan {
    /// Reads an answer of this kind.
    pub(crate) fn new(streamed: bool) -> Self {
        Self { streamed, ..Self::default() }
    }

    /// Whether it is a stream of events.
    pub(crate) fn is_stream(&self) -> bool {
        self.streamed
    }

    /// Output tokens: as the usage says, or else the events with output.
    pub(crate) fn tokens(&self) -> u32 {
        self.usage.map_or(self.outputs, |(_, output)| output)
    }

    /// Prompt tokens, if the usage said so.
    pub(crate) fn prompt_tokens(&self) -> Option<u32> {
        self.usage.map(|(prompt, _)| prompt).filter(|&tokens| tokens > 0)
    }

    /// Whether a line has begun that has not ended.
    pub(crate) fn is_within_line(&self) -> bool {
        self.skipping || !self.rest.is_empty()
    }

    /// Reads the next piece and tells how many events with output it brought.
    pub(crate) fn feed(&mut self, piece: &[u8]) -> u32 {
        if !self.streamed {
            self.keep_tail(piece);
            return 0;
        }
        let before = self.outputs;
        let mut left = piece;
        while let Some(end) = memchr(b'\n', left) {
            let (line, after) = (&left[..end], &left[end + 1..]);
            left = after;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            if self.rest.is_empty() {
                self.line(line);
            } else {
                let mut whole = std::mem::take(&mut self.rest);
                whole.extend_from_slice(line);
                self.line(&whole);
                whole.clear();
                self.rest = whole;
            }
        }
        if !self.skipping {
            self.rest.extend_from_slice(left);
            if self.rest.len() > MAX_LINE_BYTES {
                self.rest.clear();
                self.skipping = true;
            }
        }
        self.outputs - before
    }

    /// The answer has ended.
    pub(crate) fn end(&mut self) {
        let rest = std::mem::take(&mut self.rest);
        if self.streamed {
            if !rest.is_empty() {
                self.line(&rest);
            }
            return;
        }
        self.read_usage(&rest);
        self.read_finish(&rest);
        self.done = true;
    }

    fn keep_tail(&mut self, piece: &[u8]) {
        let kept = &piece[piece.len().saturating_sub(MAX_TAIL_BYTES)..];
        let too_many = (self.rest.len() + kept.len()).saturating_sub(MAX_TAIL_BYTES);
        self.rest.drain(..too_many);
        self.rest.extend_from_slice(kept);
    }

    fn line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(data) = line.strip_prefix(b"data:") else {
            let known = line.is_empty()
                || [&b":"[..], b"event:", b"id:", b"retry:"].iter().any(|it| line.starts_with(it));
            self.malformed_lines += u32::from(!known);
            return;
        };
        let data = data.strip_prefix(b" ").unwrap_or(data);
        if data == b"[DONE]" {
            self.done = true;
            return;
        }
        if data.first() != Some(&b'{') {
            self.malformed_lines += 1;
            return;
        }
        self.event(data);
    }

    fn event(&mut self, data: &[u8]) {
        let keys = &*KEYS;
        if value(&keys.usage, data).is_some_and(|usage| usage.first() == Some(&b'{')) {
            self.read_usage(data);
        }
        self.read_finish(data);
        let Some(choices) = value(&keys.choices, data) else {
            self.failed |= value(&keys.error, data).is_some();
            return;
        };
        let empty = |key, what: &[u8]| value(key, choices).is_some_and(|value| value.starts_with(what));
        let nothing = choices.starts_with(b"[]")
            || empty(&keys.delta, b"{}")
            || empty(&keys.content, b"\"\"")
            || empty(&keys.text, b"\"\"");
        self.outputs += u32::from(!nothing);
    }

    fn read_usage(&mut self, text: &[u8]) {
        let number = |key| value(key, text).and_then(number);
        if let Some(output) = number(&KEYS.completion_tokens) {
            self.usage = Some((number(&KEYS.prompt_tokens).unwrap_or(0), output));
        }
    }

    fn read_finish(&mut self, text: &[u8]) {
        if let Some(reason) = value(&KEYS.finish_reason, text).and_then(|value| value.strip_prefix(b"\"")) {
            let length = reason.starts_with(b"length\"");
            self.finish = Some(if length { Finish::Length } else { Finish::Stop });
        }
    }
}

/// What follows a key, without the space that some servers write.
fn value<'a>(key: &Finder<'_>, text: &'a [u8]) -> Option<&'a [u8]> {
    let at = key.find(text)? + key.needle().len();
    Some(text[at..].trim_ascii_start())
}

fn number(text: &[u8]) -> Option<u32> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&text[..digits]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        ": keep alive\n\n",
        "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n",
        "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi \\\"usage\\\": {\"},\"finish_reason\":null}]}\r\n\r\n",
        "data: {\"id\": \"c\", \"choices\": [{\"index\": 0, \"delta\": {\"content\": \"you\"}, \"finish_reason\": null}], \"usage\": null}\n\n",
        "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n",
    );
    const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":42,\"total_tokens\":53}}\n\n";

    #[test]
    fn outputs_are_counted_however_the_stream_is_cut() {
        let text = format!("{STREAM}{USAGE}data: [DONE]\n\n");
        for size in [1, 2, 7, 64, 10_000] {
            let (mut scan, mut outputs) = (Scan::new(true), 0);
            for piece in text.as_bytes().chunks(size) {
                outputs += scan.feed(piece);
            }
            scan.end();
            assert_eq!((outputs, scan.tokens(), scan.prompt_tokens()), (2, 42, Some(11)), "{size}");
            assert_eq!((scan.finish, scan.done, scan.failed), (Some(Finish::Length), true, false));
            assert_eq!(scan.malformed_lines, 0);
        }
    }

    #[test]
    fn without_usage_the_events_with_output_count() {
        let mut scan = Scan::new(true);
        scan.feed(STREAM.as_bytes());
        assert_eq!((scan.tokens(), scan.done), (2, false));
    }

    #[test]
    fn errors_and_garbage_are_noticed_and_endless_lines_are_not_kept() {
        let mut scan = Scan::new(true);
        scan.feed(b"data: {\"error\":{\"message\":\"out of memory\"}}\n\ngarbage\n\ndata: {broken\n\ndata: oops\n\n");
        assert!(scan.failed && scan.malformed_lines == 2, "{scan:?}");
        let mut scan = Scan::new(true);
        (0..1000).for_each(|_| {
            scan.feed(&[b'x'; 1000]);
        });
        assert!(scan.rest.len() <= MAX_LINE_BYTES && scan.is_within_line());
        scan.feed(b"\n");
        scan.feed(STREAM.as_bytes());
        assert_eq!(scan.tokens(), 2);
    }

    #[test]
    fn the_usage_of_a_whole_answer_is_at_its_end() {
        let content = "\\\"completion_tokens\\\": 7 ".repeat(10_000);
        let body = format!(
            "{{\"choices\":[{{\"message\":{{\"content\":\"{content}\"}},\"finish_reason\":\"stop\"}}],\"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":9}}}}"
        );
        for size in [100, 5000, 1 << 20] {
            let mut scan = Scan::new(false);
            body.as_bytes().chunks(size).for_each(|piece| {
                scan.feed(piece);
            });
            scan.end();
            assert_eq!((scan.tokens(), scan.prompt_tokens(), scan.finish), (9, Some(5), Some(Finish::Stop)));
        }
    }
}
