//! The numbers of a plan by name: what is printed of a seed, what `--with` sets, and what shrinking turns down.

use crate::sim::Plan;
use ringmq_engine::format::superblock::Durability;
use ringmq_engine::ring::sim::Fresh;

/// One number of a plan. Switches are 0 or 1; what may be left out is 0 then.
pub(crate) struct Knob {
    pub(crate) name: &'static str,
    /// With this the run is simplest.
    pub(crate) least: u64,
    pub(crate) get: fn(&Plan) -> u64,
    pub(crate) set: fn(&mut Plan, u64),
}

macro_rules! knobs {
    ($($name:literal $least:literal $($field:ident).+ : $kind:ident;)*) => {
        /// All of them; those that make a run shorter come first.
        pub(crate) const KNOBS: &[Knob] = &[$(Knob {
            name: $name,
            least: $least,
            get: |plan| knobs!(@get plan.$($field).+, $kind),
            set: |plan, value| knobs!(@set plan.$($field).+, value, $kind),
        }),*];
    };
    (@get $place:expr, switch) => { u64::from($place) };
    (@set $place:expr, $value:ident, switch) => { $place = $value != 0 };
    (@get $place:expr, optional) => { $place.unwrap_or(0) };
    (@set $place:expr, $value:ident, optional) => { $place = ($value != 0).then_some($value) };
    (@get $place:expr, fresh) => { u64::from($place == Fresh::Garbage) };
    (@set $place:expr, $value:ident, fresh) => {
        $place = if $value != 0 { Fresh::Garbage } else { Fresh::Zeros }
    };
    (@get $place:expr, durability) => { u64::from($place == Durability::Dsync) };
    (@set $place:expr, $value:ident, durability) => {
        $place = if $value != 0 { Durability::Dsync } else { Durability::Flush }
    };
    (@get $place:expr, signed) => { $place.unsigned_abs() };
    (@set $place:expr, $value:ident, signed) => { $place = $value as i64 };
    (@get $place:expr, $number:ident) => { $place as u64 };
    (@set $place:expr, $value:ident, $number:ident) => { $place = $value as $number };
}

knobs! {
    "lives" 0 lives: u32;
    "life" 1 life: u64;
    "records" 1 records: u64;
    "shards" 1 shards: u16;
    "hostiles" 0 hostiles: u32;
    "transactors" 0 transactors: u32;
    "admins" 0 admins: u32;
    "fetchers" 0 fetchers: u32;
    "subscribers" 0 subscribers: u32;
    "plain-producers" 0 plain_producers: u32;
    "producers" 0 producers: u32;
    "bursts" 0 bursts: switch;
    "breaks" 0 breaks: switch;
    "gives-up" 0 gives_up: switch;
    "retain-size" 0 retain_size: optional;
    "disk-limit" 0 disk_limit: optional;
    "body-max" 1 body_max: u64;
    "errors" 0 errors: switch;
    "sync-errors" 0 sim.disk.faults.sync_error_ppm: u32;
    "write-errors" 0 sim.disk.faults.write_error_ppm: u32;
    "short-reads" 0 sim.disk.faults.read_short_ppm: u32;
    "short-writes" 0 sim.disk.faults.write_short_ppm: u32;
    "write-tails" 0 sim.disk.write.tail_ppm: u32;
    "read-tails" 0 sim.disk.read.tail_ppm: u32;
    "sync-tails" 0 sim.disk.sync.tail_ppm: u32;
    "garbage" 0 sim.disk.fresh: fresh;
    "extents" 0 sim.disk.extent_every: u64;
    "drops" 0 sim.net.drop_ppm: u32;
    "black-holes" 0 sim.net.black_hole_ppm: u32;
    "refusals" 0 sim.net.refuse_ppm: u32;
    "clock-jumps" 0 sim.clock.jump_every_us: u64;
    "clock-offset" 0 sim.clock.offset_ms_max: signed;
    "clock-drift" 0 sim.clock.drift_ppm_max: signed;
    "dsync" 0 durability: durability;
}

/// Sets knobs as `--with` has them: `lives=1,hostiles=0`.
pub(crate) fn apply(plan: &mut Plan, words: &str) -> Result<(), String> {
    for word in words.split(',').filter(|word| !word.is_empty()) {
        let (name, value) = word.split_once('=').ok_or_else(|| format!("'{word}' is not name=number"))?;
        let value = value.parse().map_err(|_| format!("'{value}' is not a number"))?;
        let knob = KNOBS.iter().find(|knob| knob.name == name);
        let knob = knob.ok_or_else(|| {
            let names: Vec<_> = KNOBS.iter().map(|knob| knob.name).collect();
            format!("no '{name}'; there are {}", names.join(", "))
        })?;
        (knob.set)(plan, value);
    }
    Ok(())
}

/// What is different from another plan, as `--with` takes it.
pub(crate) fn difference(plan: &Plan, from: &Plan) -> String {
    let changed = KNOBS.iter().filter(|knob| (knob.get)(plan) != (knob.get)(from));
    changed.map(|knob| format!("{}={}", knob.name, (knob.get)(plan))).collect::<Vec<_>>().join(",")
}

/// What is on in a plan.
pub(crate) fn shown(plan: &Plan) -> String {
    let on = KNOBS.iter().filter(|knob| (knob.get)(plan) != 0);
    on.map(|knob| match (knob.get)(plan) {
        1 if knob.least == 0 => knob.name.to_owned(),
        value => format!("{} {value}", knob.name),
    })
    .collect::<Vec<_>>()
    .join(", ")
}
