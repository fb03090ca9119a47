//! `ringmq topic create`'s settings, `topic alter` and `topic stats`.

use crate::cli::Target;
use crate::failure::Failure;
use crate::format;
use crate::link;
use crate::screen::{Ink, Screen, thousands};
use comfy_table::Cell;
use ringmq_client::limits::RETRY_FOR;
use ringmq_client::{TopicKind, TopicSettings};
use ringmq_server::units::{Size, Span};
use serde_json::{Value, json};

/// What a topic takes.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kind {
    /// Everything.
    Mixed,
    /// Neither delayed nor transactional messages.
    Normal,
    /// Only records with a key; neither delayed nor transactional.
    Fifo,
    /// Delayed ones too.
    Delay,
    /// Transactional ones too.
    Transaction,
}

/// Settings of a topic.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Settings")]
pub(crate) struct SettingsArgs {
    /// Which messages it takes [default: mixed].
    #[arg(long, value_name = "KIND")]
    kind: Option<Kind>,
    /// Longest delay of a message [default: the server's].
    #[arg(long, value_name = "TIME")]
    delay_max: Option<Span>,
    /// Age after which a record is not given to groups any more; 0s: never.
    #[arg(long, value_name = "TIME")]
    ttl: Option<Span>,
    /// Age at which records may go; 0s: the server's.
    #[arg(long, value_name = "TIME")]
    retain_time: Option<Span>,
    /// Size above which the oldest records may go; 0: the server's.
    #[arg(long, value_name = "SIZE")]
    retain_size: Option<Size>,
    /// Bytes a second from all producers; 0 is no limit.
    #[arg(long, value_name = "SIZE")]
    rate_bytes: Option<Size>,
    /// Records a second from all producers; 0 is no limit.
    #[arg(long, value_name = "N")]
    rate_records: Option<u32>,
    /// Bytes a second from one connection; 0 is no limit.
    #[arg(long, value_name = "SIZE")]
    producer_rate_bytes: Option<Size>,
    /// Largest record: body, key, tag and properties; 0 is no limit but the server's.
    #[arg(long, value_name = "SIZE")]
    record_size_max: Option<Size>,
}

impl SettingsArgs {
    pub(crate) fn settings(&self) -> Result<TopicSettings, Failure> {
        let record_size_max = self.record_size_max.map(|size| u32::try_from(size.0)).transpose();
        Ok(TopicSettings {
            kind: self.kind.map(|kind| match kind {
                Kind::Mixed => TopicKind::Mixed,
                Kind::Normal => TopicKind::Normal,
                Kind::Fifo => TopicKind::Fifo,
                Kind::Delay => TopicKind::Delay,
                Kind::Transaction => TopicKind::Transaction,
            }),
            partitions: None,
            retention_ms: self.retain_time.map(|span| span.0),
            retention_bytes: self.retain_size.map(|size| size.0),
            delay_max_ms: self.delay_max.map(|span| span.0),
            ttl_ms: self.ttl.map(|span| span.0),
            rate_bytes: self.rate_bytes.map(|size| size.0),
            rate_records: self.rate_records,
            producer_rate_bytes: self.producer_rate_bytes.map(|size| size.0),
            record_size_max: record_size_max
                .map_err(|_| Failure::wrong_use("--record-size-max is at most 4294967295 bytes"))?,
        })
    }
}

fn kind_text(kind: TopicKind) -> &'static str {
    match kind {
        TopicKind::Mixed => "mixed",
        TopicKind::Normal => "normal",
        TopicKind::Fifo => "fifo",
        TopicKind::Delay => "delay",
        TopicKind::Transaction => "transaction",
    }
}

pub(crate) fn settings_json(settings: &TopicSettings) -> Value {
    json!({
        "kind": settings.kind.map(kind_text),
        "partitions": settings.partitions,
        "retention_ms": settings.retention_ms,
        "retention_bytes": settings.retention_bytes,
        "delay_max_ms": settings.delay_max_ms,
        "ttl_ms": settings.ttl_ms,
        "rate_bytes": settings.rate_bytes,
        "rate_records": settings.rate_records,
        "producer_rate_bytes": settings.producer_rate_bytes,
        "record_size_max": settings.record_size_max,
    })
}

/// The settings that are not the plain ones.
fn settings_text(settings: &TopicSettings) -> String {
    let limit = |number: Option<u64>| number.filter(|number| !matches!(*number, 0 | u64::MAX));
    let mut said = Vec::new();
    said.extend(settings.kind.map(|kind| kind_text(kind).to_owned()));
    said.extend(limit(settings.delay_max_ms).map(|it| format!("delays to {}", Span(it))));
    said.extend(limit(settings.ttl_ms).map(|it| format!("given for {}", Span(it))));
    said.extend(limit(settings.retention_ms).map(|it| format!("kept {}", Span(it))));
    said.extend(limit(settings.retention_bytes).map(|it| format!("kept to {}", Size(it))));
    said.extend(limit(settings.rate_bytes).map(|it| format!("{}/s", Size(it))));
    said.extend(limit(settings.rate_records.map(u64::from)).map(|it| format!("{} records/s", thousands(it))));
    said.extend(limit(settings.producer_rate_bytes).map(|it| format!("{}/s a connection", Size(it))));
    said.extend(limit(settings.record_size_max.map(u64::from)).map(|it| format!("records to {}", Size(it))));
    said.join(" · ")
}

pub(crate) async fn alter(
    name: &str,
    args: &SettingsArgs,
    dry_run: bool,
    target: &Target,
    screen: Screen,
) -> Result<(), Failure> {
    let wanted = args.settings()?;
    if wanted == TopicSettings::default() {
        return Err(Failure::wrong_use("nothing to change was said")
            .cure("`ringmq topic alter --help` lists the settings; `ringmq topic stats` shows them"));
    }
    let client = link::connect(target, RETRY_FOR).await?;
    let failure = |error| link::client_failure(&error, target, Some(name));
    let (_, before) = client.alter_topic(name, false, TopicSettings::default()).await.map_err(failure)?;
    if dry_run {
        if screen.json {
            let (is, wanted) = (settings_json(&before), settings_json(&wanted));
            screen.object(&json!({"topic": name, "settings": is, "wanted": wanted, "altered": false}))?;
        } else {
            screen.line(&format!("{}  is  {}", screen.paint(Ink::Bold, name), settings_text(&before)))?;
            screen.line(&format!("would set  {}", settings_text(&wanted)))?;
        }
        return Ok(());
    }
    let (_, settings) = client.alter_topic(name, false, wanted).await.map_err(failure)?;
    if screen.json {
        screen.object(&json!({"topic": name, "settings": settings_json(&settings), "altered": true}))?;
    } else {
        screen.line(&format!("{}  {}", screen.paint(Ink::Bold, name), settings_text(&settings)))?;
    }
    Ok(())
}

pub(crate) async fn stats(name: &str, target: &Target, screen: Screen) -> Result<(), Failure> {
    let client = link::connect(target, RETRY_FOR).await?;
    let stats = client.topic_stats(name).await;
    let stats = stats.map_err(|error| link::client_failure(&error, target, Some(name)))?;
    let (first, last) = stats.times_ms;
    let time = |ms: i64| (ms != 0).then(|| format::time(ms));
    if screen.json {
        return Ok(screen.object(&json!({
            "topic": name,
            "partitions": stats.topic.partitions,
            "created": format::time(stats.created_ms),
            "settings": settings_json(&stats.settings),
            "records": stats.records,
            "bytes": stats.bytes,
            "first": time(first),
            "last": time(last),
            "appended_records": stats.appended.0,
            "appended_bytes": stats.appended.1,
            "read_bytes": stats.read_bytes,
            "records_per_s": stats.rates.0,
            "bytes_per_s": stats.rates.1,
            "pending_delays": stats.pending_delays,
            "open_halves": stats.open_halves,
            "pinned_bytes": stats.pinned_bytes,
            "throttled": stats.throttled,
            "groups": stats.groups,
        }))?);
    }
    let count = |number: Option<u64>| number.map_or("-".to_owned(), thousands);
    let size = |bytes: Option<u64>| bytes.map_or("-".to_owned(), |bytes| Size(bytes).to_string());
    screen.line(&format!(
        "{}  {} partition{}  {}",
        screen.paint(Ink::Bold, name),
        stats.topic.partitions,
        if stats.topic.partitions == 1 { "" } else { "s" },
        screen.paint(Ink::Dim, &settings_text(&stats.settings))
    ))?;
    let rows = [
        ("records", count(stats.records)),
        ("bytes", size(stats.bytes)),
        ("first", time(first).unwrap_or_else(|| "-".to_owned())),
        ("last", time(last).unwrap_or_else(|| "-".to_owned())),
        ("taken since start", format!("{} records, {}", count(stats.appended.0), size(stats.appended.1))),
        ("read since start", size(stats.read_bytes)),
        ("now", format!("{} records/s, {}/s", count(stats.rates.0), size(stats.rates.1))),
        ("waiting for their time", count(stats.pending_delays)),
        ("half messages open", count(stats.open_halves)),
        ("bytes of both", size(stats.pinned_bytes)),
        ("throttled", count(stats.throttled)),
        ("groups", stats.groups.to_string()),
    ];
    let rows = rows.into_iter().map(|(name, value)| vec![screen.cell(Ink::Dim, name), Cell::new(value)]);
    Ok(screen.table(&[], rows.collect())?)
}
