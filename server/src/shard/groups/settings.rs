//! Settings of a group as they were asked for, and what they may be.

use ringmq_format::consumer_group::{GroupOptions, GroupStart, GroupSubscription};
use ringmq_format::name::{NameError, check_topic_name};
use ringmq_protocol::limits::INVISIBLE_MS_MAX;
use ringmq_protocol::{ErrorCode, GroupSettings, JoinGroup};
use zerocopy::little_endian::U32;

use super::work::Refused;

/// See the module. What is `None` stays as it is, or takes its default.
#[derive(Clone, Debug, Default)]
pub(in crate::shard) struct Given {
    max_attempts: Option<u16>,
    backoff_ms: Option<Vec<u32>>,
    invisible_ms: Option<u32>,
    ordered: Option<bool>,
    rate_bytes: Option<u64>,
    rate_records: Option<u32>,
    concurrency: Option<u32>,
    start: Option<GroupStart>,
}

impl Given {
    /// Checks what was asked for; names the setting that cannot be.
    pub(super) fn check(settings: &GroupSettings<'_>) -> Result<Self, Refused> {
        let invalid = |text: &str| Err((ErrorCode::InvalidSettings, text.to_owned()));
        if settings.max_attempts == Some(0) {
            return invalid("max_attempts is at least 1");
        }
        if settings.invisible_default_ms == Some(0) {
            return invalid("invisible_default_ms is at least 1");
        }
        let steps = settings.backoff_ms.unwrap_or_default();
        if steps.iter().any(|step| step.get() > INVISIBLE_MS_MAX) {
            return invalid("backoff_ms: a step is at most 12 hours");
        }
        if matches!(settings.start, Some(GroupStart::Time(time)) if time < 0) {
            return invalid("start: a time is not before 1970");
        }
        // No steps at all are the default ones.
        let default = GroupOptions::default().backoff_ms;
        let or_default = |steps: Vec<u32>| if steps.is_empty() { default } else { steps };
        Ok(Self {
            max_attempts: settings.max_attempts,
            backoff_ms: settings
                .backoff_ms
                .map(|steps| or_default(steps.iter().map(|step| step.get()).collect())),
            invisible_ms: settings.invisible_default_ms.map(|ms| ms.min(INVISIBLE_MS_MAX)),
            ordered: settings.ordered,
            rate_bytes: settings.rate_bytes,
            rate_records: settings.rate_records,
            concurrency: settings.concurrency,
            start: settings.start,
        })
    }

    /// Changes what was given.
    pub(super) fn apply(&self, options: &mut GroupOptions) {
        fn set<T: Clone>(to: &mut T, given: Option<&T>) {
            if let Some(given) = given {
                to.clone_from(given);
            }
        }
        set(&mut options.max_attempts, self.max_attempts.as_ref());
        set(&mut options.backoff_ms, self.backoff_ms.as_ref());
        set(&mut options.invisible_ms, self.invisible_ms.as_ref());
        set(&mut options.ordered, self.ordered.as_ref());
        set(&mut options.rate_bytes, self.rate_bytes.as_ref());
        set(&mut options.rate_records, self.rate_records.as_ref());
        set(&mut options.concurrency, self.concurrency.as_ref());
        set(&mut options.start, self.start.as_ref());
    }
}

/// All settings, as they are answered. `steps` are those of the options.
pub(super) fn wire_settings<'a>(options: &GroupOptions, steps: &'a [U32]) -> GroupSettings<'a> {
    GroupSettings {
        max_attempts: Some(options.max_attempts),
        backoff_ms: Some(steps),
        invisible_default_ms: Some(options.invisible_ms),
        ordered: Some(options.ordered),
        rate_bytes: Some(options.rate_bytes),
        rate_records: Some(options.rate_records),
        concurrency: Some(options.concurrency),
        start: Some(options.start),
    }
}

/// Checks a group's name.
pub(super) fn check_group_name(name: &str) -> Result<(), Refused> {
    match check_topic_name(name.as_bytes()) {
        Ok(_) => Ok(()),
        Err(error) => Err((ErrorCode::InvalidGroupName, why_not(error))),
    }
}

fn why_not(error: NameError) -> String {
    format!("{error}; {}", ErrorCode::InvalidGroupName.text())
}

/// Checks subscriptions. They come out by topic, so that equal ones are equal.
pub(super) fn check_subscriptions(join: &JoinGroup<'_>) -> Result<Vec<GroupSubscription>, Refused> {
    let mut list = Vec::new();
    for one in join.subscriptions.iter() {
        check_topic_name(one.topic.as_bytes()).map_err(|error| {
            (ErrorCode::InvalidTopicName, format!("'{}': {error}", one.topic.escape_debug()))
        })?;
        check_filter(one.filter)?;
        let filter = if one.filter.trim().is_empty() { "*" } else { one.filter };
        list.push(GroupSubscription { topic: one.topic.to_owned(), filter: filter.to_owned() });
    }
    list.sort_unstable();
    if let Some(pair) = list.windows(2).find(|pair| pair[0].topic == pair[1].topic) {
        let text = format!("subscriptions: '{}' is there twice", pair[0].topic);
        return Err((ErrorCode::InvalidSettings, text));
    }
    Ok(list)
}

/// Everything, or a list of tags.
fn check_filter(filter: &str) -> Result<(), Refused> {
    let filter = filter.trim();
    if filter.is_empty() || filter == "*" {
        return Ok(());
    }
    let mut column = 1;
    for tag in filter.split("||") {
        let inner = tag.trim();
        if inner.is_empty() || inner.contains(|c: char| c.is_whitespace() || c == '|') {
            let text = format!("column {column}: a tag is expected, without blanks");
            return Err((ErrorCode::InvalidFilter, text));
        }
        column += tag.chars().count() + 2;
    }
    Ok(())
}
