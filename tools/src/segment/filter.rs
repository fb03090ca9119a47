//! Which frames and records a verb is about.

use super::place::{Place, is_stopped};
use crate::failure::Failure;
use crate::start::From;
use ringmq_format::frame::FrameKind;
use ringmq_format::record::RecordEntry;
use ringmq_segment::directory::Shard;
use ringmq_segment::group::{FrameView, GroupView};
use ringmq_segment::log::{Step, walk};
use ringmq_segment::state::State;
use std::ops::ControlFlow;
use std::str::FromStr;

/// A moment: `2026-11-22T06:29:44Z`, `@SECONDS`, or `-15m` for that long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(pub(crate) i64);

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<From>() {
            Ok(From::Time(ms)) => Ok(Self(ms)),
            _ => Err("not a time: 2026-11-22T06:29:44Z, @SECONDS, or -15m for that long ago".to_owned()),
        }
    }
}

/// Filters. Everything given must hold.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Filters")]
pub(crate) struct Filter {
    /// Only this topic.
    #[arg(long, value_name = "NAME")]
    pub(crate) topic: Option<String>,
    /// Only this partition of the topic; without --topic, this partition id.
    #[arg(long, value_name = "N")]
    pub(crate) partition: Option<u32>,
    /// Only offsets from here on.
    #[arg(long, value_name = "OFFSET")]
    pub(crate) from_offset: Option<u64>,
    /// Only offsets before this one.
    #[arg(long, value_name = "OFFSET")]
    pub(crate) until_offset: Option<u64>,
    /// Only what was appended from then on: a time, @SECONDS, or -15m.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) from_time: Option<Moment>,
    /// Only what was appended before.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) until_time: Option<Moment>,
    /// Only frames at or behind this position of the log.
    #[arg(long, value_name = "LSN")]
    pub(crate) from_lsn: Option<u64>,
    /// Only frames before this position of the log.
    #[arg(long, value_name = "LSN")]
    pub(crate) until_lsn: Option<u64>,
    /// Only records with this key.
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Only records with this tag.
    #[arg(long, value_name = "TAG")]
    pub(crate) tag: Option<String>,
    /// Only frames of this kind: data, half, delay, bind, topic, ...
    #[arg(long = "type", value_name = "KIND", value_parser = kind)]
    pub(crate) kind: Option<FrameKind>,
    /// Only frames of this producer, decimal or with 0x.
    #[arg(long, value_name = "ID", value_parser = number)]
    pub(crate) producer: Option<u64>,
    /// Only frames of this transaction, hexadecimal.
    #[arg(long, value_name = "TXN", value_parser = txn)]
    pub(crate) txn: Option<u128>,
}

fn kind(text: &str) -> Result<FrameKind, String> {
    let known = FrameKind::ALL.into_iter().find(|kind| format!("{kind:?}").eq_ignore_ascii_case(text));
    known.ok_or_else(|| {
        let names: Vec<_> = FrameKind::ALL.iter().map(|kind| format!("{kind:?}").to_lowercase()).collect();
        format!("there are {}", names.join(", "))
    })
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| error.to_string())
}

fn txn(text: &str) -> Result<u128, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text).replace('-', "");
    u128::from_str_radix(&digits, 16).map_err(|error| error.to_string())
}

impl Filter {
    /// Whether a frame may have something that is wanted.
    pub(crate) fn frame(&self, frame: &FrameView<'_>, state: &State) -> bool {
        let header = &frame.header;
        let (first, end, time) = (header.base_offset.get(), frame.end_offset().0, header.timestamp.get());
        let id = header.partition.get();
        let topic = state.topic_of(id);
        let topic_fits =
            self.topic.as_ref().is_none_or(|name| topic.is_some_and(|topic| topic.0.name == *name));
        let partition_fits = self.partition.is_none_or(|wanted| match (&self.topic, topic) {
            (Some(_), Some((_, number))) => number == wanted,
            _ => id == wanted,
        });
        topic_fits
            && partition_fits
            && self.from_offset.is_none_or(|from| end > from)
            && self.until_offset.is_none_or(|until| first < until)
            && self.from_time.is_none_or(|from| time >= from.0)
            && self.until_time.is_none_or(|until| time < until.0)
            && self.from_lsn.is_none_or(|from| frame.lsn.0 >= from)
            && self.until_lsn.is_none_or(|until| frame.lsn.0 < until)
            && self.kind.is_none_or(|kind| header.kind() == kind)
            && self.producer.is_none_or(|producer| header.producer_id.get() == producer)
            && self.txn.is_none_or(|txn| ringmq_segment::late::txn_of(frame) == Some(txn))
    }

    /// Whether a record is wanted whose frame is.
    pub(crate) fn record(&self, offset: Option<u64>, entry: &RecordEntry<'_>) -> bool {
        self.from_offset.is_none_or(|from| offset.is_none_or(|offset| offset >= from))
            && self.until_offset.is_none_or(|until| offset.is_none_or(|offset| offset < until))
            && self.key.as_ref().is_none_or(|key| entry.key == Some(key.as_bytes()))
            && self.tag.as_ref().is_none_or(|tag| entry.tag == Some(tag.as_bytes()))
    }
}

/// Topics of a shard, from its checkpoint; the log's are added as a walk meets them.
pub(crate) fn topics_of(place: &Place, shard: &Shard) -> State {
    let mut state = State::new(super::verify::starts_at_zero(shard));
    let mut faults = Vec::new();
    if place.file.is_none()
        && let Some(checkpoint) = shard.checkpoint(&place.source, &mut faults)
    {
        state.restore(&checkpoint, shard.shard, place.directory.identity.shards);
        state.forget_partitions();
    }
    state
}

/// Takes a group of a shard, with the topics known so far.
pub(crate) type EachGroup<'a> =
    dyn FnMut(&Shard, &State, &GroupView<'_>) -> std::io::Result<ControlFlow<()>> + 'a;

/// What a walk over frames met that is wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Met {
    /// Groups that are not whole, but for a torn tail.
    pub(crate) damaged: u64,
    /// Groups of a torn tail.
    pub(crate) torn: u64,
}

/// Walks over the groups of all shards, with the topics known so far; what is wrong is counted and skipped.
pub(crate) fn each_group(
    place: &Place,
    bar: &indicatif::ProgressBar,
    each: &mut EachGroup<'_>,
) -> Result<Met, Failure> {
    let mut met = Met::default();
    for shard in &place.directory.shards {
        let mut state = topics_of(place, shard);
        let mut failed = None;
        let mut flow = ControlFlow::Continue(());
        walk(&place.source, shard, None, None, &mut |step| {
            match step {
                Step::Group(_, view) => {
                    bar.inc(view.bytes.len() as u64);
                    met.torn += u64::from(view.torn);
                    met.damaged += u64::from(!view.torn && !view.is_whole());
                    if !view.torn {
                        for frame in &view.frames {
                            state.take(frame);
                        }
                        match each(shard, &state, view) {
                            Ok(next) => flow = next,
                            Err(error) => {
                                failed = Some(error);
                                flow = ControlFlow::Break(());
                            }
                        }
                    }
                }
                Step::Missing(..) | Step::Joint(..) | Step::Unreadable(..) => met.damaged += 1,
                Step::Segment(..) | Step::SetAside(..) | Step::End(..) => {}
            }
            if is_stopped() { ControlFlow::Break(()) } else { flow }
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        if flow.is_break() || is_stopped() {
            break;
        }
    }
    Ok(met)
}
