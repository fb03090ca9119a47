use super::*;

fn said(text: &str) -> Said {
    Said::parse(text, "test.toml").unwrap()
}

fn refused(text: &str) -> String {
    match Said::parse(text, "test.toml").and_then(Config::new) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => error.to_string(),
    }
}

const EVERY_KEY: &str = r#"
    dev = false
    data = "/var/lib/ringmq"
    listen = "127.0.0.1:7700"
    admin-listen = "none"
    insecure = false
    shards = 4
    memory = "512M"
    disk-limit = "10G"
    segment-size = 16777216
    retain-time = "7d"
    retain-size = "8G"
    auto-create-topics = true
    connections-max = 100
    delay-max = "7d"
    check-after = "2s"
    check-every = "5s"
    checks-max = 3
    durability = "flush"
    pin = false
    log-level = "debug"
    log-format = "json"
"#;

#[test]
fn every_key_is_read_from_the_file() {
    for key in KEYS {
        assert!(EVERY_KEY.lines().any(|line| line.trim().starts_with(&format!("{key} = "))), "{key}");
    }
    let config = Config::new(said(EVERY_KEY)).unwrap();
    assert_eq!(config.node.shards, Some(4));
    assert_eq!(config.node.memory, 512 << 20);
    assert_eq!(config.node.segment_size, 16 << 20);
    assert_eq!(config.node.retain_time_ms, Some(7 * 86_400_000));
    let timings = crate::shard::Timings { first_ms: 2_000, every_ms: 5_000, checks_max: 3 };
    assert_eq!((config.node.late.timings, config.node.late.delay_max_ms), (timings, 7 * 86_400_000));
    assert_eq!(config.node.durability, Some(Durability::Flush));
    assert_eq!(config.admin_listen, None);
    assert_eq!(config.log_level, LogLevel::Debug);
}

#[test]
fn what_is_said_later_wins() {
    let file = said("data = \"a\"\nmemory = \"512M\"\nretain-time = \"1d\"");
    let flags = Said { memory: Some(Size(1 << 30)), ..Said::default() };
    let config = Config::new(flags.over(file)).unwrap();
    assert_eq!((config.node.memory, config.node.retain_time_ms), (1 << 30, Some(86_400_000)));
    assert_eq!(config.node.data, Path::new("a"));
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    for (key, expected) in [
        ("segmentsize", "'segment-size'"),
        ("Data", "'data'"),
        ("retain_time", "'retain-time'"),
        ("admin-lisen", "'admin-listen'"),
    ] {
        let error = refused(&format!("\n{key} = 1\n"));
        assert!(error.contains(&format!("test.toml, line 2: unknown key '{key}'")), "{error}");
        assert!(error.contains(&format!("did you mean {expected}?")), "{error}");
    }
    assert!(refused("replication-factor = 3").contains("the keys are dev, data"));
    assert!(refused("[server]\ndata = \"a\"").contains("unknown key 'server'"));
}

#[test]
fn wrong_values_name_file_and_line() {
    for text in
        ["data = 5", "data = \"a\"\nmemory = \"lots\"", "data = ", "log-level = \"loud\"", "shards = 70000"]
    {
        let error = refused(text);
        assert!(error.contains("test.toml") && error.contains("line "), "{error}");
    }
}

#[test]
fn relations_are_checked() {
    for (text, part) in [
        ("", "no data directory"),
        ("data = \"\"", "empty"),
        ("dev = true\nlisten = \"0.0.0.0:7700\"\ninsecure = true", "loopback only"),
        ("data = \"a\"\nlisten = \"0.0.0.0:7700\"", "--insecure"),
        ("data = \"a\"\nadmin-listen = \"10.0.0.1:7780\"", "--insecure"),
        ("data = \"a\"\nlisten = \"nowhere\"", "is not an address"),
        ("data = \"a\"\nlisten = \"127.0.0.1:65535\"", "passes 65535"),
        ("data = \"a\"\nlisten = \"127.0.0.1:7779\"", "is one of the ports"),
        ("data = \"a\"\nshards = 0", "between 1 and 64"),
        ("data = \"a\"\nmemory = \"1M\"", "at least 32 MiB"),
        ("data = \"a\"\nshards = 8\nmemory = \"64M\"", "8 shards; at least 256 MiB"),
        ("data = \"a\"\nsegment-size = \"1M\"", "between 4 MiB and 1 GiB"),
        ("data = \"a\"\nsegment-size = 5000001", "multiple of 4K"),
        ("data = \"a\"\ndisk-limit = \"1M\"", "at least 33 MiB"),
        ("data = \"a\"\ndisk-limit = \"1G\"\nretain-size = \"1G\"", "not below disk-limit"),
        ("data = \"a\"\nretain-time = \"0s\"", "keep nothing"),
        ("data = \"a\"\nchecks-max = 0", "checks-max"),
        ("data = \"a\"\ncheck-every = \"2d\"", "check-every"),
        ("data = \"a\"\ndelay-max = \"0s\"", "delay-max"),
        ("data = \"a\"\nconnections-max = 0", "between 1 and"),
    ] {
        let error = refused(text);
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn dev_keeps_to_itself() {
    let config = Config::new(said("dev = true")).unwrap();
    assert_eq!(config.node.data, Path::new(limits::DATA_DEV));
    assert!(config.node.auto_create_topics);
    assert!(config.node.listen.ip().is_loopback());
    assert_eq!(config.node.memory, limits::MEMORY_DEV);
}

#[test]
fn only_some_keys_need_a_restart() {
    let old = Config::new(said("data = \"a\"")).unwrap();
    let new = Config::new(said("data = \"a\"\nmemory = \"2G\"\nretain-time = \"1d\"\nlog-level = \"warn\""))
        .unwrap();
    assert_eq!(old.needs_restart(&new), ["memory"]);
}
