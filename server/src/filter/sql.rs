//! Conditions, and what they come to for a record: true, false, or unknown.

use ringmq_format::record::{RecordEntry, properties};
use std::cmp::Ordering;

/// A number, exact where it is whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Whole(i128),
    /// Finite.
    Real(f64),
}

impl Number {
    /// From the text of a property: what is not a number in digits is none.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?.trim();
        let plain = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E');
        if text.len() > 64 || !text.bytes().all(plain) {
            return None;
        }
        match text.parse() {
            Ok(whole) => Some(Self::Whole(whole)),
            Err(_) => text.parse().ok().filter(|real: &f64| real.is_finite()).map(Self::Real),
        }
    }

    pub(super) fn negated(self) -> Self {
        match self {
            Self::Whole(whole) => whole.checked_neg().map_or(Self::Real(-(whole as f64)), Self::Whole),
            Self::Real(real) => Self::Real(-real),
        }
    }

    pub(super) fn compare(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Whole(left), Self::Whole(right)) => left.cmp(&right),
            (Self::Real(left), Self::Real(right)) => left.partial_cmp(&right).unwrap_or(Ordering::Equal),
            (Self::Whole(left), Self::Real(right)) => compare_mixed(left, right),
            (Self::Real(left), Self::Whole(right)) => compare_mixed(right, left).reverse(),
        }
    }
}

/// Without rounding the whole one.
fn compare_mixed(whole: i128, real: f64) -> Ordering {
    if real >= 1.7e38 {
        Ordering::Less
    } else if real <= -1.7e38 {
        Ordering::Greater
    } else {
        let part = real.fract().partial_cmp(&0.0).unwrap_or(Ordering::Equal);
        whole.cmp(&(real.trunc() as i128)).then(part.reverse())
    }
}

/// Something that has a value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand {
    Property(Box<[u8]>),
    /// A property with a sign in front: a number, or nothing.
    Signed {
        property: Box<[u8]>,
        negative: bool,
    },
    Text(Box<[u8]>),
    Number(Number),
    Condition(Box<Condition>),
}

/// What an operand comes to.
enum Value<'a> {
    Nothing,
    /// Of a property: it is a number or a truth where it is compared with one.
    Property(&'a [u8]),
    Text(&'a [u8]),
    Number(Number),
    Truth(bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    Contains,
    StartsWith,
    EndsWith,
}

/// What is true, false or unknown.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Condition {
    Constant(bool),
    /// A property that says `true` or `false`.
    Property(Box<[u8]>),
    Not(Box<Condition>),
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Compare(Operand, Comparison, Operand),
    Between(Operand, Operand, Operand),
    In(Box<[u8]>, Vec<Box<[u8]>>),
    Matches(Box<[u8]>, Match, Box<[u8]>),
    IsNull(Box<[u8]>),
}

/// Value of a property; `TAGS` is the tag.
fn property<'a>(record: &RecordEntry<'a>, name: &[u8]) -> Option<&'a [u8]> {
    if name == b"TAGS"
        && let Some(tag) = record.tag
    {
        return Some(tag);
    }
    properties(record.properties).find(|property| property.0 == name).map(|property| property.1)
}

fn truth(text: &[u8]) -> Option<bool> {
    match text {
        _ if text.eq_ignore_ascii_case(b"true") => Some(true),
        _ if text.eq_ignore_ascii_case(b"false") => Some(false),
        _ => None,
    }
}

impl Operand {
    fn value<'a>(&'a self, record: &RecordEntry<'a>) -> Value<'a> {
        match self {
            Self::Property(name) => property(record, name).map_or(Value::Nothing, Value::Property),
            Self::Signed { property: name, negative } => {
                let number = property(record, name).and_then(Number::parse);
                let signed = |number: Number| if *negative { number.negated() } else { number };
                number.map_or(Value::Nothing, |number| Value::Number(signed(number)))
            }
            Self::Text(text) => Value::Text(text),
            Self::Number(number) => Value::Number(*number),
            Self::Condition(condition) => condition.evaluate(record).map_or(Value::Nothing, Value::Truth),
        }
    }
}

impl Value<'_> {
    fn number(&self) -> Option<Number> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Property(text) => Number::parse(text),
            _ => None,
        }
    }
}

impl Comparison {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::NotEqual => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
        }
    }

    fn evaluate(self, left: &Value<'_>, right: &Value<'_>) -> Option<bool> {
        if !matches!(self, Self::Equal | Self::NotEqual) {
            return Some(self.holds(left.number()?.compare(right.number()?)));
        }
        let is_equal = match (left, right) {
            (Value::Number(number), other) | (other, Value::Number(number)) => {
                number.compare(other.number()?).is_eq()
            }
            (Value::Truth(left), Value::Truth(right)) => left == right,
            (Value::Truth(known), Value::Property(text)) | (Value::Property(text), Value::Truth(known)) => {
                truth(text)? == *known
            }
            (Value::Text(left) | Value::Property(left), Value::Text(right) | Value::Property(right)) => {
                left == right
            }
            _ => return None,
        };
        Some(is_equal == (self == Self::Equal))
    }
}

impl Condition {
    /// `None` is unknown.
    pub(super) fn evaluate(&self, record: &RecordEntry<'_>) -> Option<bool> {
        match self {
            Self::Constant(value) => Some(*value),
            Self::Property(name) => truth(property(record, name)?),
            Self::Not(inner) => inner.evaluate(record).map(|value| !value),
            Self::All(list) => combine(list, record, false),
            Self::Any(list) => combine(list, record, true),
            Self::Compare(left, comparison, right) => {
                comparison.evaluate(&left.value(record), &right.value(record))
            }
            Self::Between(value, low, high) => {
                let value = value.value(record);
                let above = Comparison::GreaterOrEqual.evaluate(&value, &low.value(record));
                let below = Comparison::LessOrEqual.evaluate(&value, &high.value(record));
                match (above, below) {
                    (Some(false), _) | (_, Some(false)) => Some(false),
                    (Some(true), Some(true)) => Some(true),
                    _ => None,
                }
            }
            Self::In(name, list) => {
                let value = property(record, name)?;
                Some(list.iter().any(|one| **one == *value))
            }
            Self::Matches(name, how, text) => {
                let value = property(record, name)?;
                Some(match how {
                    Match::StartsWith => value.starts_with(text),
                    Match::EndsWith => value.ends_with(text),
                    Match::Contains => {
                        text.is_empty() || value.windows(text.len()).any(|part| *part == **text)
                    }
                })
            }
            Self::IsNull(name) => Some(property(record, name).is_none()),
        }
    }
}

/// `decides` for one decides for all; otherwise one that is unknown leaves it open.
fn combine(list: &[Condition], record: &RecordEntry<'_>, decides: bool) -> Option<bool> {
    let mut result = Some(!decides);
    for condition in list {
        match condition.evaluate(record) {
            Some(value) if value == decides => return Some(decides),
            Some(_) => {}
            None => result = None,
        }
    }
    result
}
