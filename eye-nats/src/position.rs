//! The position of a message in its stream, read from the message's reply subject.

/// Position of a stream's message: the stream sequence and the time at which the stream took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessagePosition<'a> {
    /// The consumer that delivered the message.
    pub consumer: &'a str,
    /// The message's sequence number in the stream.
    pub sequence: u64,
    /// Time of publication in nanoseconds since 1970. With `sequence`, it also tells a recreated stream from the old one.
    pub published_ns: u64,
}

impl<'a> MessagePosition<'a> {
    /// Parses a reply subject; `None` when it is not one of a stream's message.
    ///
    /// The subject is `$JS.ACK.STREAM.CONSUMER.DELIVERED.SEQUENCE.CONSUMER_SEQUENCE.PUBLISHED.PENDING`. NATS 2.11 adds domain and
    /// account before the stream, and may add tokens at the end. The client library's own parser needs a context beside each
    /// message, which costs more than the parsing.
    pub fn from_reply(reply: &'a str) -> Option<Self> {
        let tokens = reply.strip_prefix("$JS.ACK.")?.split('.');
        let extra = match tokens.clone().count() {
            7 => 0,
            9.. => 2,
            _ => return None,
        };
        let mut tokens = tokens.skip(extra + 1);
        let consumer = tokens.next()?;
        let sequence = tokens.nth(1)?.parse().ok()?;
        let published_ns = tokens.nth(1)?.parse().ok()?;
        Some(Self { consumer, sequence, published_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_subject_formats_parse_alike() {
        let position = Some(MessagePosition { consumer: "eye", sequence: 17, published_ns: 1_700_000_000_000_000_001 });
        for reply in [
            "$JS.ACK.EVENTS.eye.1.17.16.1700000000000000001.5",
            "$JS.ACK._.ACCOUNT.EVENTS.eye.1.17.16.1700000000000000001.5",
            "$JS.ACK.domain.ACCOUNT.EVENTS.eye.1.17.16.1700000000000000001.5.token",
        ] {
            assert_eq!(MessagePosition::from_reply(reply), position, "{reply}");
        }
    }

    #[test]
    fn other_subjects_have_no_position() {
        for reply in [
            "",
            "_INBOX.a.b",
            "$JS.ACK.",
            "$JS.ACK.EVENTS.eye.1.17.16.1700000000000000001",
            "$JS.ACK.ACCOUNT.EVENTS.eye.1.17.16.1700000000000000001.5",
            "$JS.ACK.EVENTS.eye.1.x.16.1700000000000000001.5",
            "$JS.ACK.EVENTS.eye.1.17.16.-1.5",
        ] {
            assert_eq!(MessagePosition::from_reply(reply), None, "{reply}");
        }
    }
}
