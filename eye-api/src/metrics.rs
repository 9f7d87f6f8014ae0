//! `GET /metrics`: the event accounting in Prometheus' text format.
//!
//! `LedgerCollector` reads the ledger at each scrape, so no metric is kept beside the counters of `eye-core`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use eye_core::accounting::{Accounting, Ledger, SinkLedger};
use eye_core::counters::SourceCounts;
use eye_http::mount::{Mount, Scope};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_text::{self, CONTENT_TYPE};
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType::{self, Counter, Gauge};
use prometheus_client::registry::Registry;

/// Returns the mount of `/metrics`.
pub fn mount(accounting: Accounting) -> Mount {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(LedgerCollector(accounting)));
    Mount::new("metrics", "/metrics", Method::GET, Scope::Admin, get(metrics).with_state(Arc::new(registry)))
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], encode_text(&registry)).into_response()
}

fn encode_text(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_text::encode(&mut text, registry).expect("a String takes all text");
    text
}

/// Name, type, help, and the value. The encoder adds `_total` to the name of a counter.
type Metric<C> = (&'static str, MetricType, &'static str, fn(&C) -> u64);

const OF_SOURCES: [Metric<SourceCounts>; 5] = [
    ("eye_source_events_received", Counter, "Events that could be read.", |source| source.received),
    ("eye_source_events_accepted", Counter, "Events that were acknowledged.", |source| source.accepted),
    ("eye_source_events_rejected", Counter, "Events that were refused for good.", |source| source.rejected),
    ("eye_source_events_failed", Counter, "Events to be sent again.", |source| source.failed),
    ("eye_source_events_waiting", Gauge, "Events whose outcome is not known yet.", |source| source.waiting),
];

const OF_SINKS: [Metric<SinkLedger>; 11] = [
    ("eye_sink_events_taken", Counter, "Events that the transport took for it.", |sink| sink.custody.taken),
    ("eye_sink_events_delivered", Counter, "Events that it has.", |sink| sink.counts.delivered),
    ("eye_sink_events_rejected", Counter, "Events that it refused for good.", |sink| sink.counts.rejected),
    ("eye_sink_events_filtered", Counter, "Events that its filter left out.", |sink| sink.counts.filtered),
    ("eye_sink_events_failed", Counter, "Events that could not be stored.", |sink| sink.counts.failed),
    ("eye_sink_events_missing", Counter, "Events lost to damage on the disk.", |sink| sink.custody.missing),
    ("eye_sink_events_duplicate", Counter, "Events that it had already.", |sink| sink.counts.duplicates),
    ("eye_sink_write_retries", Counter, "Writes that were tried again.", |sink| sink.counts.retried),
    ("eye_sink_events_pending", Gauge, "Events that the transport holds for it.", |sink| sink.custody.pending),
    ("eye_sink_events_at_start", Gauge, "Events that were pending at the start.", |sink| sink.custody.at_start),
    ("eye_sink_events_in_flight", Gauge, "Events that are being written.", |sink| sink.counts.in_flight),
];

/// A collector that reads the ledger at each scrape.
struct LedgerCollector(Accounting);

impl fmt::Debug for LedgerCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LedgerCollector")
    }
}

impl Collector for LedgerCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        encode(&self.0.ledger(), encoder)
    }
}

fn encode(ledger: &Ledger, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
    encode_components(&mut encoder, &OF_SOURCES, "source", &ledger.sources)?;
    let help = "What was wrong with events and bodies that were refused.";
    let mut refusals = encoder.encode_descriptor("eye_source_refusals", help, None, Counter)?;
    for (name, source) in &ledger.sources {
        for (reason, count) in &source.refusals {
            let labels = [("source", name.as_str()), ("reason", reason.as_str())];
            encode_value(&mut refusals, Counter, labels, *count)?;
        }
    }
    encode_components(&mut encoder, &OF_SINKS, "sink", &ledger.sinks)?;
    // Only a shared transport has a backlog of messages, and it does not always know how many.
    if ledger.shared {
        let help = "Messages that the stream holds for it, for any program.";
        let mut backlog = encoder.encode_descriptor("eye_sink_messages_in_stream", help, None, Gauge)?;
        for (name, sink) in &ledger.sinks {
            if let Some(messages) = sink.custody.shared_backlog {
                encode_value(&mut backlog, Gauge, [("sink", name.as_str())], messages)?;
            }
        }
    }
    Ok(())
}

/// Writes each metric with one sample a component.
fn encode_components<C>(
    encoder: &mut DescriptorEncoder<'_>,
    metrics: &[Metric<C>],
    label: &str,
    components: &BTreeMap<String, C>,
) -> fmt::Result {
    for (metric, kind, help, value) in metrics {
        let mut samples = encoder.encode_descriptor(metric, help, None, *kind)?;
        for (name, component) in components {
            encode_value(&mut samples, *kind, [(label, name.as_str())], value(component))?;
        }
    }
    Ok(())
}

fn encode_value<const N: usize>(
    samples: &mut MetricEncoder<'_>,
    kind: MetricType,
    labels: [(&str, &str); N],
    value: u64,
) -> fmt::Result {
    let mut sample = samples.encode_family(&labels)?;
    match kind {
        Counter => sample.encode_counter::<NoLabelSet, _, u64>(&value, None),
        _ => sample.encode_gauge(&value),
    }
}

#[cfg(test)]
mod tests {
    use eye_core::counters::SinkCounts;

    use super::*;

    #[derive(Debug)]
    struct Fixed(Ledger);

    impl Collector for Fixed {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
            encode(&self.0, encoder)
        }
    }

    fn text(ledger: Ledger) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Fixed(ledger)));
        encode_text(&registry)
    }

    #[test]
    fn each_metric_has_its_head_and_a_sample_a_component() {
        let refusals = [("name: \"\\\n".to_owned(), 2)].into();
        let source = SourceCounts { received: 5, accepted: 3, rejected: 2, refusals, ..SourceCounts::default() };
        let counts = SinkCounts { delivered: 3, ..SinkCounts::default() };
        let sink = SinkLedger { counts, ..SinkLedger::default() };
        let sources = [("web".to_owned(), source)].into();
        let sinks = [("a".to_owned(), sink), ("b".to_owned(), sink)].into();
        let text = text(Ledger { sources, sinks, ..Ledger::default() });
        let refused = r#"eye_source_refusals_total{source="web",reason="name: \"\\\n"} 2"#;
        let delivered = "# HELP eye_sink_events_delivered_total Events that it has.\n\
                         # TYPE eye_sink_events_delivered_total counter\n\
                         eye_sink_events_delivered_total{sink=\"a\"} 3\neye_sink_events_delivered_total{sink=\"b\"} 3\n";
        let waiting = "# TYPE eye_source_events_waiting gauge\neye_source_events_waiting{source=\"web\"} 0\n";
        for expected in ["eye_source_events_received_total{source=\"web\"} 5\n", refused, delivered, waiting] {
            assert!(text.contains(expected), "{text}");
        }
        assert_eq!(text.lines().filter(|line| line.starts_with("# TYPE")).count(), 17);
        assert!(
            text.lines().all(|line| line.starts_with("# HELP ") || line.starts_with("# TYPE ") || line.contains('{'))
        );
    }

    #[test]
    fn shared_backlog_is_shown_where_it_is_known() {
        let mut known = SinkLedger::default();
        known.custody.shared_backlog = Some(7);
        let sinks = [("a".to_owned(), known), ("b".to_owned(), SinkLedger::default())].into();
        let text = text(Ledger { shared: true, sinks, ..Ledger::default() });
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("eye_sink_messages_in_stream")).collect();
        assert_eq!(lines, ["eye_sink_messages_in_stream{sink=\"a\"} 7"]);
    }
}
