//! `/metrics`: the shards' counters and a few facts about the process, as OpenMetrics text.
//!
//! Nothing is kept here: each scrape reads the shards' atomics. Names are a promise to dashboards: add, never
//! rename.

use crate::banner::{STATES, durability_name, state_name};
use crate::node::{NodeFacts, ShardCounters, ShardStatus};
use crate::process;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// What a scrape answers with.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&ShardCounters) -> u64,
}

const fn counter(name: &'static str, help: &'static str, value: fn(&ShardCounters) -> u64) -> Family {
    Family { name, help, kind: MetricType::Counter, value }
}

const fn gauge(name: &'static str, help: &'static str, value: fn(&ShardCounters) -> u64) -> Family {
    Family { name, help, kind: MetricType::Gauge, value }
}

/// One family per counter of a shard. `_total` is added to the names of counters.
const FAMILIES: [Family; 26] = [
    counter("ringmq_records_appended", "Records appended to the log", |c| c.records_appended),
    counter("ringmq_bytes_appended", "Bytes of frames appended to the log", |c| c.bytes_appended),
    counter("ringmq_groups", "Groups written, heartbeats left out", |c| c.groups),
    counter("ringmq_heartbeats", "Heartbeat groups written after idling", |c| c.heartbeats),
    counter("ringmq_acks", "Produce frames acknowledged, durable", |c| c.acks),
    counter("ringmq_syncs", "Flushes completed", |c| c.syncs),
    counter("ringmq_frames_served", "Frames sent to consumers", |c| c.frames_served),
    counter("ringmq_bytes_served", "Bytes of frames sent to consumers", |c| c.bytes_served),
    counter("ringmq_cold_reads", "Reads from the disk for consumers behind the tail", |c| c.cold_reads),
    counter("ringmq_connections", "Connections accepted", |c| c.connections_total),
    counter("ringmq_requests", "Requests answered", |c| c.requests),
    counter("ringmq_request_errors", "Requests answered with an error", |c| c.request_errors),
    counter("ringmq_ring_enters", "System calls into the ring", |c| c.ring_enters),
    counter("ringmq_ring_submitted", "Operations submitted to the ring", |c| c.ring_submitted),
    counter("ringmq_retention_removed_segments", "Segments removed by retention", |c| {
        c.retention_removed_segments
    }),
    counter("ringmq_connections_closed_slow", "Closed: too slow to send a request or to take answers", |c| {
        c.closed_slow
    }),
    counter("ringmq_connections_closed_idle", "Closed: nothing was heard, nothing was outstanding", |c| {
        c.closed_idle
    }),
    counter(
        "ringmq_descriptor_failures",
        "Files not opened, connections not accepted: no descriptor left",
        |c| c.descriptor_failures,
    ),
    gauge("ringmq_connection_bytes", "Bytes held for connections", |c| c.connection_bytes),
    gauge("ringmq_connections_open", "Connections open now", |c| c.connections_open),
    gauge("ringmq_segments_free", "Slots pre-written and free", |c| c.segments_free),
    gauge("ringmq_segments_used", "Slots that hold log", |c| c.segments_used),
    gauge("ringmq_disk_bytes", "Bytes of slot files", |c| c.disk_bytes),
    gauge("ringmq_memory_bytes", "Bytes of the memory budget in use", |c| c.memory_bytes),
    gauge("ringmq_durable_lsn", "End of the durable log", |c| c.durable_lsn),
    gauge("ringmq_poisoned", "1: a write or flush failed, nothing is acknowledged", |c| c.poisoned),
];

/// Everything that `/metrics` reads.
pub struct Metrics {
    registry: Registry,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Reads from `shards` at each scrape.
    pub fn new(shards: &[Arc<ShardStatus>], facts: &NodeFacts, started: Instant) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(NodeCollector {
            shards: shards.to_vec(),
            labels: vec![
                ("version", env!("CARGO_PKG_VERSION").to_owned()),
                ("node_id", format!("{:032x}", facts.node_id)),
                ("filesystem", facts.filesystem.clone()),
                ("kernel", facts.kernel.clone()),
                ("durability", durability_name(facts.durability).to_owned()),
            ],
            started,
        }));
        Self { registry }
    }

    /// The answer to one scrape.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[derive(Debug)]
struct NodeCollector {
    shards: Vec<Arc<ShardStatus>>,
    labels: Vec<(&'static str, String)>,
    started: Instant,
}

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_process(&mut encoder)?;
        self.encode_states(&mut encoder)?;
        let counters = self.shards.iter().map(|shard| shard.counters()).collect::<Vec<_>>();
        for family in &FAMILIES {
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            for (shard, counters) in counters.iter().enumerate() {
                let labels = [("shard", shard.to_string())];
                let mut metric = metric.encode_family(&labels)?;
                let value = (family.value)(counters);
                match family.kind {
                    MetricType::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                    _ => metric.encode_gauge(&value)?,
                }
            }
        }
        Ok(())
    }
}

impl NodeCollector {
    fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        encoder
            .encode_descriptor("ringmq_build", "What runs, and on what", None, MetricType::Info)?
            .encode_info(&self.labels)?;
        let gauges = [
            ("ringmq_uptime_seconds", "Time since the start", Some(self.started.elapsed().as_secs_f64())),
            (
                "process_resident_memory_bytes",
                "Memory in use",
                process::resident_bytes().map(|bytes| bytes as f64),
            ),
            (
                "process_open_fds",
                "File descriptors in use",
                process::open_descriptors().map(|count| count as f64),
            ),
            (
                "process_max_fds",
                "File descriptors that may be in use",
                process::descriptors_max().map(|count| count as f64),
            ),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
            }
        }
        if let Some(seconds) = process::processor_seconds() {
            encoder
                .encode_descriptor(
                    "process_cpu_seconds",
                    "Processor time, user and system",
                    None,
                    MetricType::Counter,
                )?
                .encode_counter::<NoLabelSet, _, u64>(&seconds, None)?;
        }
        Ok(())
    }

    fn encode_states(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(
            "ringmq_shard_state",
            "1 at the state of the shard",
            None,
            MetricType::Gauge,
        )?;
        for (number, shard) in self.shards.iter().enumerate() {
            for state in STATES {
                let labels = [("shard", number.to_string()), ("state", state_name(state).to_owned())];
                metric.encode_family(&labels)?.encode_gauge(&u64::from(shard.state() == state))?;
            }
        }
        for (name, help, part) in [
            ("ringmq_recovery_done_bytes", "Log scanned by recovery", 0),
            ("ringmq_recovery_total_bytes", "Log to scan by recovery", 1),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (number, shard) in self.shards.iter().enumerate() {
                let progress = shard.recovery_progress();
                let value = if part == 0 { progress.0 } else { progress.1 };
                metric.encode_family(&[("shard", number.to_string())])?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}
