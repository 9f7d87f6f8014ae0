//! The books in the text format of Prometheus, for `GET /metrics`.

use std::fmt::Write;

use eye_core::accounts::{Ledger, SinkCounts, SourceCounts};

/// Of the text format.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Name, type, help, and where the value is.
type Metric<B> = (&'static str, &'static str, &'static str, fn(&B) -> u64);

const OF_SOURCES: [Metric<SourceCounts>; 5] = [
    ("eye_source_events_received_total", "counter", "Events that could be read.", |book| book.received),
    ("eye_source_events_accepted_total", "counter", "Events that were acknowledged.", |book| book.accepted),
    ("eye_source_events_rejected_total", "counter", "Events that were refused for good.", |book| book.rejected),
    ("eye_source_events_failed_total", "counter", "Events to be sent again.", |book| book.failed),
    ("eye_source_events_waiting", "gauge", "Events whose outcome is not known yet.", |book| book.waiting),
];

const OF_SINKS: [Metric<SinkCounts>; 10] = [
    ("eye_sink_events_taken_total", "counter", "Events that the transport took for it.", |book| book.custody.taken),
    ("eye_sink_events_delivered_total", "counter", "Events that it has.", |book| book.delivered),
    ("eye_sink_events_rejected_total", "counter", "Events that it refused for good.", |book| book.rejected),
    ("eye_sink_events_failed_total", "counter", "Events that were handed back.", |book| book.failed),
    ("eye_sink_events_missing_total", "counter", "Events lost to damage on the disk.", |book| book.custody.missing),
    ("eye_sink_events_duplicate_total", "counter", "Events that it had already.", |book| book.duplicates),
    ("eye_sink_write_retries_total", "counter", "Writes that were tried again.", |book| book.retried),
    ("eye_sink_events_pending", "gauge", "Events that the transport holds for it.", |book| book.custody.pending),
    ("eye_sink_events_at_start", "gauge", "Events that were pending at the start.", |book| book.custody.at_start),
    ("eye_sink_events_in_flight", "gauge", "Events that are being written.", |book| book.in_flight),
];

const REFUSALS: &str = "eye_source_refusals_total";
const IN_STREAM: &str = "eye_sink_messages_in_stream";

/// All of it, as a scraper takes it.
pub(crate) fn text(books: &Ledger) -> String {
    let mut text = String::new();
    for (metric, kind, help, value) in OF_SOURCES {
        head(&mut text, metric, kind, help);
        for (name, book) in &books.sources {
            let _ = writeln!(text, "{metric}{{source=\"{}\"}} {}", escaped(name), value(book));
        }
    }
    head(&mut text, REFUSALS, "counter", "What was wrong with events and bodies that were refused.");
    for (name, book) in &books.sources {
        for (reason, count) in &book.refusals {
            let (name, reason) = (escaped(name), escaped(reason));
            let _ = writeln!(text, "{REFUSALS}{{source=\"{name}\",reason=\"{reason}\"}} {count}");
        }
    }
    for (metric, kind, help, value) in OF_SINKS {
        head(&mut text, metric, kind, help);
        for (name, book) in &books.sinks {
            let _ = writeln!(text, "{metric}{{sink=\"{}\"}} {}", escaped(name), value(book));
        }
    }
    // Known of a shared transport alone, and not always.
    if books.transport.shared {
        head(&mut text, IN_STREAM, "gauge", "Messages that the stream holds for it, for any program.");
        for (name, messages) in books.sinks.iter().filter_map(|(name, book)| Some((name, book.custody.shared_backlog?)))
        {
            let _ = writeln!(text, "{IN_STREAM}{{sink=\"{}\"}} {messages}", escaped(name));
        }
    }
    text
}

fn head(text: &mut String, metric: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {metric} {help}\n# TYPE {metric} {kind}");
}

fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use eye_core::accounts::TransportTraits;

    use super::*;

    #[test]
    fn each_metric_has_its_head_and_a_line_for_each_component() {
        let refusals = [("name: \"\\\n".to_owned(), 2)].into();
        let source = SourceCounts { received: 5, accepted: 3, rejected: 2, refusals, ..SourceCounts::default() };
        let sink = SinkCounts { delivered: 3, ..SinkCounts::default() };
        let sources = [("web".to_owned(), source)].into();
        let sinks = [("a".to_owned(), sink), ("b".to_owned(), sink)].into();
        let text = text(&Ledger { sources, transport: Default::default(), sinks });
        let refused = r#"eye_source_refusals_total{source="web",reason="name: \"\\\n"} 2"#;
        let delivered = "# HELP eye_sink_events_delivered_total Events that it has.\n\
                         # TYPE eye_sink_events_delivered_total counter\n\
                         eye_sink_events_delivered_total{sink=\"a\"} 3\neye_sink_events_delivered_total{sink=\"b\"} 3\n";
        for expected in ["eye_source_events_received_total{source=\"web\"} 5\n", refused, delivered] {
            assert!(text.contains(expected), "{text}");
        }
        assert_eq!(text.lines().filter(|line| line.starts_with("# TYPE")).count(), 16);
    }

    #[test]
    fn what_a_shared_transport_holds_is_there_where_it_is_known() {
        let mut known = SinkCounts::default();
        known.custody.shared_backlog = Some(7);
        let sinks = [("a".to_owned(), known), ("b".to_owned(), SinkCounts::default())].into();
        let transport = TransportTraits { durable: true, shared: true };
        let text = text(&Ledger { sources: Default::default(), transport, sinks });
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(IN_STREAM)).collect();
        assert_eq!(lines, ["eye_sink_messages_in_stream{sink=\"a\"} 7"]);
    }
}
