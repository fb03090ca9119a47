//! Newtypes for every number that names something. Conversions are explicit, so that a position can never be
//! passed for an offset.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl $name {
            /// The bare number.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

id! {
    /// A pinned thread with one ring and one log. Numbered from 0; the count is fixed with the directory.
    ShardId(u16)
}
id! {
    /// A topic, once and for all: never reused after deletion. 0 is never given.
    TopicId(u32)
}
id! {
    /// A partition, unique over all topics of a data directory and never reused. 0 is never given.
    /// Its shard is `id mod shards`.
    PartitionId(u32)
}
id! {
    /// A consumer group, unique in a data directory and never reused. 0 is never given.
    /// Its coordinator is shard `id mod shards`.
    GroupId(u32)
}
id! {
    /// Record number in a partition, dense from 0.
    Offset(u64)
}
id! {
    /// Log sequence number: a byte of a shard's log, monotonic over all its segments.
    /// A segment covers `[base, base + capacity)`; what lies behind its seal is never given to anything.
    Lsn(u64)
}
id! {
    /// Number of a segment's life: each activation of a slot file takes the next one. From 1.
    SegmentSeq(u64)
}
id! {
    /// Number of a slot file (`NNN.seg`), which lives many segments.
    SlotId(u32)
}
id! {
    /// Drawn at random by the producer; 0 means "not idempotent".
    ProducerId(u64)
}
id! {
    /// Life of a shard: one more at each start.
    Epoch(u32)
}

impl PartitionId {
    /// The shard that owns this partition in a directory of `shards` shards.
    pub fn shard(self, shards: u16) -> ShardId {
        assert!(shards > 0, "a data directory has at least one shard");
        ShardId((self.0 % u32::from(shards)) as u16)
    }
}

impl GroupId {
    /// The shard that coordinates this group in a directory of `shards` shards.
    pub fn coordinator(self, shards: u16) -> ShardId {
        PartitionId(self.0).shard(shards)
    }
}

impl Offset {
    /// The offset `count` records later.
    #[must_use]
    pub fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

impl Lsn {
    /// The position `bytes` later in the log.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }

    /// Bytes from `earlier` to here.
    pub fn since(self, earlier: Self) -> u64 {
        assert!(self >= earlier, "{self} lies before {earlier}");
        self.0 - earlier.0
    }
}
