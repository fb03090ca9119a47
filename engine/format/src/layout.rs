//! The layout of every structure at rest, as text: what `FORMAT.md` promises and the golden test pins.

use crate::{catalogue, checkpoint, frame, group, identity, limits, record, segment, sidecar, superblock};
use std::fmt::Write;

macro_rules! table {
    ($out:ident, $type:path { $($field:ident),+ $(,)? }) => {{
        use $type as Type;
        let _ = writeln!($out, "{} ({} bytes)", stringify!($type), size_of::<Type>());
        $( let _ = writeln!($out, "  {:>5}  {}", std::mem::offset_of!(Type, $field), stringify!($field)); )+
    }};
}

/// Every structure with the offset of every field, every number that is for ever, and every limit that bytes at
/// rest depend on.
pub fn text() -> String {
    let mut out = String::new();
    table!(
        out,
        identity::IdentityBlock { magic, version, shards, reserved_low, node_id, created_ms, reserved, crc }
    );
    table!(
        out,
        superblock::SuperblockCopy {
            magic,
            version,
            shard,
            copy,
            durability,
            clean,
            checkpoint_file,
            sequence,
            node_id,
            epoch,
            quarantined,
            durable_lsn,
            log_start,
            log_start_seq,
            checkpoint_sequence,
            active_seq,
            active_base,
            quarantine,
            reserved,
            crc,
        }
    );
    table!(out, superblock::QuarantineEntry { start, end, chain });
    table!(
        out,
        segment::SegmentHeader {
            magic,
            version,
            shard,
            block_size,
            segment_seq,
            incarnation,
            base_lsn,
            previous_seq,
            previous_chain,
            capacity,
            created_ms,
            node_id,
            epoch,
            slot,
            reserved,
            crc,
        }
    );
    table!(
        out,
        group::GroupHeader {
            magic,
            header_crc,
            segment_seq,
            lsn,
            durable_lsn,
            used,
            total,
            frames,
            body_crc,
            chain,
            epoch,
            kind,
            flags,
            reserved,
        }
    );
    table!(
        out,
        frame::FrameHeader {
            len,
            kind,
            codec,
            flags,
            base_offset,
            partition,
            count,
            producer_id,
            producer_epoch,
            extension_len,
            base_sequence,
            timestamp,
            aux,
            payload_crc,
            header_crc,
        }
    );
    table!(out, record::PayloadHeader { base_time, table_len, blocks, bodies_len, reserved });
    table!(out, record::BlockHeader { raw_len, stored_len, records });
    table!(
        out,
        catalogue::TopicEntryHeader {
            topic,
            first_partition,
            partitions,
            name_len,
            state,
            reserved,
            created_ms,
        }
    );
    table!(
        out,
        sidecar::SidecarHeader {
            magic,
            version,
            reserved_low,
            segment_seq,
            incarnation,
            base_lsn,
            end_lsn,
            entries,
            blocks,
            reserved,
            crc,
        }
    );
    table!(out, sidecar::SidecarBlockHeader { magic, crc, segment_seq, index, count, reserved });
    table!(out, sidecar::IndexEntry { partition, len, first_offset, timestamp, position, count });
    table!(
        out,
        checkpoint::CheckpointHeader {
            magic,
            version,
            shard,
            chunks,
            sequence,
            scan_start,
            scan_chain,
            scan_seq,
            durable_lsn,
            total,
            reserved,
            crc,
        }
    );
    table!(
        out,
        checkpoint::ChunkHeader {
            magic,
            header_crc,
            sequence,
            index,
            items,
            len,
            payload_crc,
            stamp,
            kind,
            reserved,
            first_key,
            last_key,
            reserved_high,
        }
    );
    table!(
        out,
        checkpoint::SegmentItem { slot, has_sidecar, reserved, segment_seq, end_lsn, last_time, frame_bytes }
    );
    table!(
        out,
        checkpoint::PartitionItemHeader {
            partition,
            segments,
            producers,
            reserved,
            start_offset,
            next_offset,
            last_time,
        }
    );
    table!(out, checkpoint::SegmentRef { first_offset, segment, entry });
    table!(out, checkpoint::ProducerItem { producer, epoch, filled, next_sequence, last_time, window });
    table!(out, checkpoint::ProducerFrame { base_sequence, count, base_offset, timestamp });
    out.push_str("frame kinds\n");
    for kind in frame::FrameKind::ALL {
        let _ = writeln!(out, "  {:>5}  {kind:?}", kind as u8);
    }
    out.push_str("group kinds\n");
    for kind in group::GroupKind::ALL {
        let _ = writeln!(out, "  {:>5}  {kind:?}", kind as u8);
    }
    out.push_str("limits\n");
    for (name, value) in [
        ("block", limits::BLOCK_SIZE),
        ("frame, largest", limits::FRAME_SIZE_MAX),
        ("frame extension, largest", limits::FRAME_EXTENSION_MAX),
        ("records of a frame", limits::FRAME_RECORDS_MAX),
        ("group, largest", limits::GROUP_SIZE_MAX),
        ("key", limits::KEY_SIZE_MAX),
        ("tag", limits::TAG_SIZE_MAX),
        ("properties", limits::PROPERTIES_SIZE_MAX),
        ("topic name", limits::TOPIC_NAME_MAX),
        ("producer window", limits::PRODUCER_WINDOW),
        ("first group of a segment", segment::FIRST_GROUP as usize),
    ] {
        let _ = writeln!(out, "  {value:>9}  {name}");
    }
    let _ = writeln!(out, "segment sizes {:?}", limits::SEGMENT_SIZES);
    out
}

#[cfg(test)]
mod tests {
    /// A change here changes what is on users' disks: it needs a new format version and its entry in FORMAT.md.
    #[test]
    fn layout_is_as_it_was() {
        insta::assert_snapshot!(super::text());
    }
}
