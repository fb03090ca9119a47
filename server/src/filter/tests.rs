#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::*;
use proptest::prelude::*;
use ringmq_format::frame::{Codec, Frame};
use ringmq_format::record::{FrameBuilder, Payload, ProducerStamp, Record};

/// Whether a record with this tag and these properties is wanted.
fn wanted(filter: &Filter, tag: Option<&str>, properties: &[(&str, &str)]) -> bool {
    let properties: Vec<_> = properties.iter().map(|p| (p.0.as_bytes(), p.1.as_bytes())).collect();
    let mut builder = FrameBuilder::new(0, 1 << 20);
    let tag = tag.map(str::as_bytes);
    builder.push(&Record { tag, properties: &properties, ..Record::default() }).unwrap();
    let bytes = builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None);
    let frame = Frame::parse(&bytes).unwrap();
    let entry = Payload::parse(&frame).unwrap().entries().next().unwrap();
    filter.matches(&entry)
}

fn holds(text: &str, properties: &[(&str, &str)]) -> bool {
    wanted(&Filter::parse(text).unwrap(), Some("red"), properties)
}

fn column(text: &str) -> usize {
    Filter::parse(text).unwrap_err().column
}

#[test]
fn tags_are_exact() {
    for (text, tag, expected) in [
        ("*", None, true),
        ("  ", Some("x"), true),
        ("a || b", Some("b"), true),
        ("a||b", Some("a"), true),
        ("a || b", Some("ab"), false),
        ("a || b", None, false),
        ("TRUE", Some("TRUE"), true),
        ("größe", Some("größe"), true),
    ] {
        assert_eq!(wanted(&Filter::parse(text).unwrap(), tag, &[]), expected, "{text} on {tag:?}");
    }
    assert_eq!((column("a || "), column("a || b c"), column("|| a")), (6, 7, 1));
    assert_eq!(column("a | b"), 3);
}

#[test]
fn conditions_are_those_of_the_standard() {
    let record =
        [("a", "5"), ("b", "it's"), ("c", "true"), ("d", "-2.5"), ("e", ""), ("big", "9007199254740993")];
    for text in [
        "a = 5",
        "a <> 6",
        "A IS NULL",
        "a is not null",
        "a > 4 AND a < 6",
        "a between 5 and 5",
        "a NOT BETWEEN 6 AND 7",
        "b = 'it''s'",
        "b IN ('x', 'it''s')",
        "b NOT IN ('x')",
        "b CONTAINS '''s'",
        "b startswith 'it'",
        "b ENDSWITH 's' -- a comment",
        "b NOT CONTAINS 'zz' /* another */ AND a=5",
        "(c)",
        "c = TRUE",
        "NOT (c = false)",
        "(a = 5) = TRUE",
        "-d = 2.5",
        "d = -25e-1",
        "d < a",
        "a = 5L",
        "a = '5'",
        "TAGS = 'red'",
        "TAGS IN ('red')",
        "big > 9007199254740992.0",
        "big = 9007199254740993",
        "(a) = (5)",
        "NOT a = 6",
        "NOT NOT a = 5",
        "x = 1 OR a = 5",
        "e = ''",
        "e CONTAINS ''",
        "((((a = 5))))",
        "a >= +5",
        "a <= 5.0",
    ] {
        assert!(holds(text, &record), "{text}");
    }
    // False or unknown.
    for text in [
        "a = 6",
        "x = 1",
        "NOT (x = 1)",
        "x <> 1",
        "x = 1 AND a = 5",
        "NOT x CONTAINS 'a'",
        "b > 1",
        "b = 5",
        "b <> 5",
        "x IN ('a')",
        "x NOT IN ('a')",
        "(b)",
        "e = 0",
        "a = TRUE",
        "'a' = 5",
        "big = 9007199254740992",
        "x BETWEEN 1 AND 2",
    ] {
        assert!(!holds(text, &record), "{text}");
    }
}

#[test]
fn errors_say_where() {
    for (text, expected) in [
        ("a =", 4),
        ("a = 5 b", 7),
        ("(a = 5", 7),
        ("a = 'x", 5),
        ("a > 'x'", 5),
        ("'x' < 5", 1),
        ("a IN (1)", 7),
        ("a IN ()", 7),
        ("5 IS NULL", 1),
        ("a = NULL", 5),
        ("a BETWEEN 1 OR 2", 13),
        ("a NOT = 5", 7),
        ("a ? 5 = 1", 3),
        ("(a = 5) AND 7", 13),
        ("a = 99999999999999999999", 5),
        ("a = 1e999", 5),
        ("a = 5x", 5),
        ("a = 1 /* x", 7),
        ("é = 5", 1),
        ("a LIKE 'x'", 3),
        ("a = ''''' AND", 5),
        ("= 5", 1),
        ("a = - TRUE", 7),
    ] {
        assert_eq!(column(text), expected, "{text}");
    }
    let deep = |depth: usize| format!("{}a = 5{}", "(".repeat(depth), ")".repeat(depth));
    assert!(Filter::parse(&deep(DEPTH_MAX)).is_ok());
    assert!(Filter::parse(&deep(DEPTH_MAX + 1)).is_err());
    assert!(Filter::parse(&format!("{} a = 5", "NOT ".repeat(900))).is_err());
    assert!(Filter::parse(&"a".repeat(FILTER_SIZE_MAX + 1)).is_err());
}

/// A condition as the test knows it.
#[derive(Clone, Debug)]
enum Naive {
    Less(usize, i64),
    Same(usize, String),
    Null(usize),
    Within(usize, i64, i64),
    OneOf(usize, Vec<String>),
    Has(usize, String),
    Not(Box<Naive>),
    Both(Box<Naive>, Box<Naive>),
    Either(Box<Naive>, Box<Naive>),
}

const NAMES: [&str; 3] = ["p", "q_1", "$r"];

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

impl Naive {
    fn text(&self) -> String {
        match self {
            Self::Less(name, number) => format!("{} < {number}", NAMES[*name]),
            Self::Same(name, text) => format!("{}={}", NAMES[*name], quoted(text)),
            Self::Null(name) => format!("{} Is Null", NAMES[*name]),
            Self::Within(name, low, high) => format!("{} between {low} AND {high}", NAMES[*name]),
            Self::OneOf(name, list) => {
                let list: Vec<_> = list.iter().map(|text| quoted(text)).collect();
                format!("{} in ({})", NAMES[*name], list.join(" , "))
            }
            Self::Has(name, text) => format!("{} contains {}", NAMES[*name], quoted(text)),
            Self::Not(inner) => format!("NOT ({})", inner.text()),
            Self::Both(left, right) => format!("({}) AND ({})", left.text(), right.text()),
            Self::Either(left, right) => format!("({}) or ({})", left.text(), right.text()),
        }
    }

    /// Truth as a number: 0, 1, or 2 for unknown.
    fn truth(&self, values: &[Option<String>]) -> u8 {
        let of = |name: usize| values[name].as_deref();
        let number = |name: usize| of(name).and_then(|text| text.parse::<i64>().ok());
        let known = |value: Option<bool>| value.map_or(2, u8::from);
        match self {
            Self::Less(name, right) => known(number(*name).map(|left| left < *right)),
            Self::Same(name, right) => known(of(*name).map(|left| left == right)),
            Self::Null(name) => u8::from(of(*name).is_none()),
            Self::Within(name, low, high) => {
                known(number(*name).map(|value| value >= *low && value <= *high))
            }
            Self::OneOf(name, list) => known(of(*name).map(|left| list.iter().any(|one| one == left))),
            Self::Has(name, text) => known(of(*name).map(|left| left.contains(text.as_str()))),
            Self::Not(inner) => match inner.truth(values) {
                2 => 2,
                other => 1 - other,
            },
            Self::Both(left, right) => match (left.truth(values), right.truth(values)) {
                (0, _) | (_, 0) => 0,
                (1, 1) => 1,
                _ => 2,
            },
            Self::Either(left, right) => match (left.truth(values), right.truth(values)) {
                (1, _) | (_, 1) => 1,
                (0, 0) => 0,
                _ => 2,
            },
        }
    }
}

fn some_text() -> impl Strategy<Value = String> {
    prop_oneof!["[ab'é]{0,3}", "-?[0-9]{1,2}"]
}

fn condition() -> impl Strategy<Value = Naive> {
    let name = 0..NAMES.len();
    let leaf = prop_oneof![
        (name.clone(), -20i64..20).prop_map(|(name, number)| Naive::Less(name, number)),
        (name.clone(), some_text()).prop_map(|(name, text)| Naive::Same(name, text)),
        name.clone().prop_map(Naive::Null),
        (name.clone(), -20i64..20, -20i64..20).prop_map(|(name, low, high)| Naive::Within(name, low, high)),
        (name.clone(), proptest::collection::vec(some_text(), 1..4))
            .prop_map(|(name, list)| Naive::OneOf(name, list)),
        (name, some_text()).prop_map(|(name, text)| Naive::Has(name, text)),
    ];
    leaf.prop_recursive(4, 24, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|inner| Naive::Not(Box::new(inner))),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| Naive::Both(Box::new(a), Box::new(b))),
            (inner.clone(), inner).prop_map(|(a, b)| Naive::Either(Box::new(a), Box::new(b))),
        ]
    })
}

proptest! {
    #[test]
    fn a_condition_is_what_the_naive_evaluator_says(
        condition in condition(),
        values in proptest::collection::vec(proptest::option::of(some_text()), NAMES.len()),
    ) {
        let filter = Filter::parse(&condition.text()).unwrap();
        let properties: Vec<_> = NAMES.iter().zip(&values)
            .filter_map(|(name, value)| value.as_deref().map(|value| (*name, value))).collect();
        prop_assert_eq!(wanted(&filter, None, &properties), condition.truth(&values) == 1, "{}", condition.text());
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,80}") {
        let _ = Filter::parse(&text);
    }

    #[test]
    fn no_order_of_words_makes_it_panic(words in proptest::collection::vec(prop_oneof![
        Just("("), Just(")"), Just("NOT"), Just("AND"), Just("OR"), Just("BETWEEN"), Just("IS"), Just("NULL"),
        Just("a"), Just("'x'"), Just("'"), Just("1"), Just("1."), Just(".5"), Just("1e"), Just("1e+"), Just("-"),
        Just("+"), Just("="), Just("<>"), Just("<"), Just("IN"), Just(","), Just("CONTAINS"), Just("--"), Just("/*"),
        Just("*/"), Just("||"), Just("TRUE"), Just("\n"), Just("é"), Just("9L"),
    ], 0..30), blank: bool) {
        let text = words.join(if blank { " " } else { "" });
        if let Ok(filter) = Filter::parse(&text) {
            wanted(&filter, Some("x"), &[("a", "1")]);
        }
    }
}
