//! Bodies of the fuzz targets whose inputs people write: `filter_expression` and `config_file`.

use crate::input::Input;
use crate::memory::{Meter, allocated};
use ringmq_format::frame::{Codec, Frame};
use ringmq_format::limits::{BLOCK_SIZE, FILTER_SIZE_MAX, SHARDS_MAX};
use ringmq_format::record::{FrameBuilder, Payload, ProducerStamp, Record};
use ringmq_server::config::{Config, ConfigError, KEYS, Said};
use ringmq_server::filter::Filter;
use ringmq_server::limits::{CONNECTIONS_MAX, MEMORY_PER_SHARD_MIN};

/// Bytes that the parser of filters may allocate for each byte of text (F1), and for nothing.
const FILTER_MEMORY: (usize, usize) = (256, 4096);
/// Bytes that the parser of configurations may allocate for each byte of text, and for nothing.
const CONFIG_MEMORY: (usize, usize) = (1024, 64 << 10);

/// An expression, a zero byte, then records: `tag piece, properties u8, (name piece, value piece) * properties`.
///
/// Whatever is written, the parser answers with little memory and an error names a place in the text; of a condition
/// and its negation at most one holds, and a condition in parentheses is itself.
pub fn filter_expression(data: &[u8], meter: Meter) {
    let (text, records) = split_text(data);
    let mut parsed = None;
    let memory = allocated(meter, || parsed = Some(Filter::parse(&text)));
    let bound = FILTER_MEMORY.0 * text.len().min(FILTER_SIZE_MAX) + FILTER_MEMORY.1;
    assert!(memory <= bound, "{memory} bytes for {} of text", text.len());
    let filter = match parsed {
        Some(Ok(filter)) => filter,
        Some(Err(error)) => {
            let last = text.chars().count().max(FILTER_SIZE_MAX) + 1;
            assert!((1..=last).contains(&error.column), "{error} in {text:?}");
            assert!(!error.message.is_empty());
            return;
        }
        None => return,
    };
    assert!(text.len() <= FILTER_SIZE_MAX);
    // What is surely a condition; a comment at its end would take the parenthesis with it.
    let is_condition = text.contains(['\'', '(', ')', '=', '<', '>']) && !text.contains("--");
    let wrap = |front: &str| {
        let wrapped = Filter::parse(&format!("{front}({text})"));
        wrapped.ok().filter(|_| is_condition)
    };
    let (negated, again) = (wrap("NOT "), wrap(""));
    let mut input = Input::new(records);
    for _ in 0..64 {
        one_record(&mut input, |entry| {
            let wanted = filter.matches(entry);
            assert!(wanted || !filter.is_all());
            assert!(!wanted || !negated.as_ref().is_some_and(|negated| negated.matches(entry)), "{text:?}");
            assert!(again.as_ref().is_none_or(|again| again.matches(entry) == wanted), "{text:?}");
        });
        if input.is_empty() {
            break;
        }
    }
}

fn one_record(input: &mut Input<'_>, judge: impl Fn(&ringmq_format::record::RecordEntry<'_>)) {
    let tag = input.piece();
    let properties: Vec<_> = (0..input.byte() % 16).map(|_| (input.piece(), input.piece())).collect();
    let mut builder = FrameBuilder::new(0, 1 << 16);
    let tag = (!tag.is_empty()).then_some(tag);
    if builder.push(&Record { tag, properties: &properties, ..Record::default() }).is_err() {
        return;
    }
    let bytes = builder.finish(ProducerStamp::default(), Codec::None, &mut |_| None);
    if let Ok(frame) = Frame::parse(&bytes)
        && let Ok(payload) = Payload::parse(&frame)
    {
        payload.entries().for_each(|entry| judge(&entry));
    }
}

fn split_text(data: &[u8]) -> (String, &[u8]) {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let rest = data.get(end + 1..).unwrap_or(&[]);
    (String::from_utf8_lossy(&data[..end]).into_owned(), rest)
}

/// A configuration, and behind a zero byte the one that it is replaced by when the server is told to read it again.
///
/// What is refused is refused with words; what is taken keeps the bounds that a node relies on (C1).
pub fn config_file(data: &[u8], meter: Meter) {
    let (text, newer) = split_text(data);
    let newer = String::from_utf8_lossy(newer);
    let Ok(said) = read(&text, meter) else { return };
    units(&said);
    let Some(config) = check(said.clone()) else { return };
    assert!(config.needs_restart(&config).is_empty());
    // Flags win over the file.
    let Ok(below) = read(&newer, meter) else { return };
    check(said.over(below.clone()));
    let Some(other) = check(below) else { return };
    let (there, back) = (config.needs_restart(&other), other.needs_restart(&config));
    assert_eq!(there, back);
    assert!(there.iter().all(|key| KEYS.contains(key)));
}

fn read(text: &str, meter: Meter) -> Result<Said, ConfigError> {
    let mut parsed = None;
    let memory = allocated(meter, || parsed = Some(Said::parse(text, "a file")));
    assert!(
        memory <= CONFIG_MEMORY.0 * text.len() + CONFIG_MEMORY.1,
        "{memory} bytes for {} of text",
        text.len()
    );
    let Some(parsed) = parsed else { return Ok(Said::default()) };
    if let Err(error) = &parsed {
        assert!(error.to_string().starts_with("a file"), "{error}");
    }
    parsed
}

fn check(said: Said) -> Option<Config> {
    let config = match Config::new(said) {
        Ok(config) => config,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return None;
        }
    };
    let node = &config.node;
    let shards = node.shards.unwrap_or(1);
    assert!((1..=SHARDS_MAX).contains(&shards));
    assert!(node.memory >= MEMORY_PER_SHARD_MIN * u64::from(shards));
    assert!(node.segment_size.is_multiple_of(BLOCK_SIZE as u64));
    assert!((1..=CONNECTIONS_MAX).contains(&node.connections_max));
    assert!(node.listen.port() == 0 || node.listen.port().checked_add(shards).is_some());
    assert!(node.retain_size != Some(0) && node.retain_time_ms != Some(0));
    if let (Some(kept), Some(limit)) = (node.retain_size, node.disk_limit) {
        assert!(kept < limit);
    }
    let outside = |address: std::net::SocketAddr| config.dev && !address.ip().is_loopback();
    assert!(!outside(node.listen) && !config.admin_listen.is_some_and(outside));
    Some(config)
}

/// What is printed of a size or a span can be read back.
fn units(said: &Said) {
    for size in [said.memory, said.disk_limit, said.segment_size, said.retain_size].into_iter().flatten() {
        let shown = size.to_string();
        // A size that is no whole number of its unit is shown with one decimal, for people only.
        assert!(shown.contains('.') || shown.parse() == Ok(size), "{shown}");
    }
    for span in [said.retain_time, said.delay_max, said.check_after, said.check_every].into_iter().flatten() {
        assert_eq!(span.to_string().parse(), Ok(span));
    }
}

/// Where the corpora start.
pub(crate) fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let record = b"\0\x03red\x02\x01a\x015\x01b\x04it's\0\x01\x01a\x02-2";
    let deep = format!("{}a = 5{}", "(".repeat(64), ")".repeat(64));
    let signs = format!("({}5) = 5", "-".repeat(500));
    let ors = "a = 1 OR ".repeat(400) + "a = 5";
    for (name, text) in [
        ("all", "*"),
        ("tags", "red || blue"),
        ("compare", "a > 4 AND a <= 5.0 OR b <> 'x'"),
        ("between", "a NOT BETWEEN -3 AND +7.5e0"),
        ("in", "b IN ('x', 'it''s') AND TAGS NOT IN ('red')"),
        ("words", "b startswith 'it' and not (b contains 'zz' or b EndsWith 's')"),
        ("null", "x IS NULL AND a IS NOT NULL"),
        ("truth", "(a = 5) = TRUE AND NOT ((x) = FALSE)"),
        ("comments", "a = 5 /* so */ -- and so"),
        ("deep", &deep),
        ("signs", &signs),
        ("wide", &ors),
        ("large_numbers", "a < 99999999999999999999 OR a = 1e308 OR -a = 9223372036854775808"),
        ("no_end", "b = 'it''"),
        ("too_deep", &format!("({deep})")),
    ] {
        let bytes = [text.as_bytes(), record].concat();
        seeds.push(("filter_expression", name.to_owned(), bytes));
    }
    let dev = "dev = true\n";
    let nested = format!("data = {}{}", "[".repeat(300), "]".repeat(300));
    let all = "data = \"/var/lib/ringmq\"\nlisten = \"127.0.0.1:7700\"\nadmin-listen = \"none\"\nshards = 2\n\
               memory = \"256M\"\ndisk-limit = \"20G\"\nsegment-size = \"128MiB\"\nretain-time = \"7d12h\"\n\
               retain-size = 1073741824\nauto-create-topics = false\nconnections-max = 1000\ndelay-max = \"40d\"\n\
               check-after = \"6s\"\ncheck-every = \"1m\"\nchecks-max = 15\ndurability = \"dsync\"\npin = false\n\
               log-level = \"debug\"\nlog-format = \"json\"\ninsecure = false\n";
    for (name, text) in [
        ("dev", dev),
        ("all_keys", all),
        ("reload", "dev = true\nlog-level = \"warn\"\0dev = true\nretain-size = \"2G\"\n"),
        ("unknown_key", "dev = true\nlissten = \"[::1]:7700\"\n"),
        ("outside", "dev = false\ndata = \"d\"\nlisten = \"0.0.0.0:7700\"\n"),
        ("ports", "dev = true\nlisten = \"localhost:65535\"\nshards = 64\n"),
        ("wrong_type", "shards = \"two\"\n"),
        ("negative", "dev = true\nmemory = -1\n"),
        ("twice", "dev = true\ndev = true\n"),
        ("table", "[dev]\nlisten = { a = [1, 2], b = 1979-05-27T07:32:00Z }\n"),
        ("nested", &nested),
        ("no_end", "data = \"\"\"\n"),
        ("escapes", "data = \"\\u00e9\\U0001F600\"\ndev = true # so\n"),
    ] {
        seeds.push(("config_file", name.to_owned(), text.as_bytes().to_vec()));
    }
    seeds
}
