//! Where a message stands in its stream.

/// What the reply subject of a message of a stream says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The consumer that it came by.
    pub consumer: &'a str,
    /// Its number in the stream.
    pub number: u64,
    /// When it was published, in nanoseconds since 1970.
    pub published_ns: u64,
}

impl<'a> Place<'a> {
    /// `$JS.ACK.STREAM.CONSUMER.DELIVERED.NUMBER.NUMBER_OF_CONSUMER.PUBLISHED.PENDING`, since NATS 2.11 with domain and
    /// account before the stream, and maybe more behind. The client library's own reader wants a context beside each
    /// message, which costs more than reading it. `None` for what is no such subject.
    pub fn of(reply: &'a str) -> Option<Self> {
        let tokens = reply.strip_prefix("$JS.ACK.")?.split('.');
        let before = match tokens.clone().count() {
            7 => 0,
            9.. => 2,
            _ => return None,
        };
        let mut tokens = tokens.skip(before + 1);
        let consumer = tokens.next()?;
        let number = tokens.nth(1)?.parse().ok()?;
        let published_ns = tokens.nth(1)?.parse().ok()?;
        Some(Self { consumer, number, published_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_subjects_say_the_same() {
        let place = Some(Place { consumer: "eye", number: 17, published_ns: 1_700_000_000_000_000_001 });
        for reply in [
            "$JS.ACK.EVENTS.eye.1.17.16.1700000000000000001.5",
            "$JS.ACK._.ACCOUNT.EVENTS.eye.1.17.16.1700000000000000001.5",
            "$JS.ACK.domain.ACCOUNT.EVENTS.eye.1.17.16.1700000000000000001.5.token",
        ] {
            assert_eq!(Place::of(reply), place, "{reply}");
        }
    }

    #[test]
    fn what_is_no_such_subject_has_no_place() {
        for reply in [
            "",
            "_INBOX.a.b",
            "$JS.ACK.",
            "$JS.ACK.EVENTS.eye.1.17.16.1700000000000000001",
            "$JS.ACK.ACCOUNT.EVENTS.eye.1.17.16.1700000000000000001.5",
            "$JS.ACK.EVENTS.eye.1.x.16.1700000000000000001.5",
            "$JS.ACK.EVENTS.eye.1.17.16.-1.5",
        ] {
            assert_eq!(Place::of(reply), None, "{reply}");
        }
    }
}
