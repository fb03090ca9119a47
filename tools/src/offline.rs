//! A data directory in our own hands, while no server runs on it: its lock, its identity, its shards.

use crate::failure::Failure;
use ringmq_engine::recovery::OpenOptions;
use ringmq_engine::ring::{Errno, Ring, RingConfig};
use ringmq_format::ShardId;
use ringmq_format::identity::Identity;
use ringmq_server::limits::SEGMENT_SIZE_DEFAULT;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Files of one shard that are open at once, at most: slots, and a few more.
pub(crate) const DESCRIPTORS_MAX: u32 = 16 << 10;

/// A data directory that nobody else has.
pub(crate) struct Offline {
    /// Holds the directory's lock.
    pub(crate) ring: Ring,
    /// What the directory says of itself.
    pub(crate) identity: Identity,
    data: PathBuf,
}

impl Offline {
    /// Locks a data directory that is there.
    pub(crate) fn open(data: &Path) -> Result<Self, Failure> {
        let shown = data.display();
        let path = data.join("identity");
        let bytes = std::fs::read(&path).map_err(|error| {
            Failure::failed(format!("{shown} is no data directory of a server: {}: {error}", path.display()))
                .cure("name the directory that `ringmq server --data` has")
        })?;
        let config = RingConfig { entries: 64, descriptors_max: DESCRIPTORS_MAX, register_buffers: false };
        let mut ring = Ring::uring(config).map_err(|error| {
            Failure::failed(format!("the kernel refuses io_uring: {error}")).cure("`ringmq doctor` tells why")
        })?;
        ring.lock_dir(data).map_err(|error| match error {
            Errno::BUSY | Errno::AGAIN => {
                let who = holder(data).map_or_else(String::new, |pid| format!(" (process {pid})"));
                Failure::failed(format!("{shown} is in use by a server{who}"))
                    .cure("stop it first: SIGTERM drains it")
            }
            error => Failure::failed(format!("cannot lock {shown}: {error}")),
        })?;
        let identity = Identity::parse(&bytes).map_err(|corruption| {
            Failure::damage(format!("{} cannot be read: {corruption}", path.display()))
        })?;
        Ok(Self { ring, identity, data: data.to_owned() })
    }

    /// How each shard is opened, by its number.
    pub(crate) fn shards(&self) -> Vec<OpenOptions> {
        let shard = |number| OpenOptions {
            directory: self.data.join(format!("shard-{number:02}")),
            shard: ShardId(number),
            node_id: self.identity.node_id,
            segment_size: SEGMENT_SIZE_DEFAULT,
            durability: None,
            planted: Default::default(),
        };
        (0..self.identity.shards).map(shard).collect()
    }
}

/// The process that has the lock, as far as the kernel tells.
pub(crate) fn holder(data: &Path) -> Option<u32> {
    let inode = std::fs::metadata(data).ok()?.ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it =
            fields.get(1) == Some(&"FLOCK") && fields.get(5)?.rsplit(':').next() == Some(inode.as_str());
        is_it.then(|| fields.get(4)?.parse().ok())?
    })
}
