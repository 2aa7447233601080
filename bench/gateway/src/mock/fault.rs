//! What goes wrong on purpose.

/// One way to fail. Numbers are tokens that come before it, unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `status:CODE`: answers with that code.
    Status(u16),
    /// `reset`: resets the connection before the first byte.
    Reset,
    /// `hang`: takes the request and never answers.
    Hang,
    /// `slow:MS`: so many milliseconds more before the first token.
    Slow(u64),
    /// `cut:N`: resets the connection mid-stream.
    Cut(u32),
    /// `eof:N`: ends the body properly, without finish_reason or `[DONE]`.
    Eof(u32),
    /// `malformed:N`: sends an event that is not JSON, then goes on.
    Malformed(u32),
    /// `stall:N`: sends no more, and keeps the connection.
    Stall(u32),
    /// `garbage`: answers what is not HTTP.
    Garbage,
}

impl Fault {
    /// From its text; nothing if there is no such fault.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (name, number) = text.split_once(':').unwrap_or((text, "0"));
        let number: u32 = number.trim().parse().ok()?;
        Some(match name.trim() {
            "status" => Self::Status(u16::try_from(number).ok().filter(|code| (200..600).contains(code))?),
            "reset" => Self::Reset,
            "hang" => Self::Hang,
            "slow" => Self::Slow(number.into()),
            "cut" => Self::Cut(number),
            "eof" => Self::Eof(number),
            "malformed" => Self::Malformed(number),
            "stall" => Self::Stall(number),
            "garbage" => Self::Garbage,
            _ => return None,
        })
    }
}

/// The fault that is on, and for how many more requests.
#[derive(Debug, Default)]
pub(crate) struct Script {
    fault: Option<Fault>,
    left: Option<u64>,
}

impl Script {
    /// Switches a fault on, for `count` requests or until it is switched off.
    pub(crate) fn set(&mut self, fault: Option<Fault>, count: Option<u64>) {
        *self = Self { fault, left: count };
    }

    /// What the next request suffers.
    pub(crate) fn next(&mut self) -> Option<Fault> {
        match &mut self.left {
            None => self.fault,
            Some(0) => None,
            Some(left) => {
                *left -= 1;
                self.fault
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_have_names_and_numbers() {
        assert_eq!(Fault::parse("status:503"), Some(Fault::Status(503)));
        assert_eq!(Fault::parse("cut: 3"), Some(Fault::Cut(3)));
        assert_eq!(Fault::parse("reset"), Some(Fault::Reset));
        assert!(["status:9", "what", "cut:x", ""].iter().all(|text| Fault::parse(text).is_none()));
    }

    #[test]
    fn a_script_ends_after_its_count() {
        let mut script = Script::default();
        script.set(Some(Fault::Hang), Some(2));
        let seen = [script.next(), script.next(), script.next()];
        assert_eq!(seen, [Some(Fault::Hang), Some(Fault::Hang), None]);
    }
}
