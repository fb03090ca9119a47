//! The layout of every structure at rest, as text: what `FORMAT.md` promises and the golden test pins.

use crate::{
    catalogue, checkpoint, consumer_group, cursor, frame, group, identity, late, limits, record, segment,
    sidecar, superblock,
};
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
            settings,
            revision,
            reserved,
            created_ms,
        }
    );
    table!(out, late::LateExtension { txn, due_ms, check_after_ms, group_len, check });
    table!(
        out,
        late::BindPayload {
            target,
            target_len,
            target_crc,
            first_record,
            reason,
            reserved,
            origin_offset,
            origin_partition,
            detail,
            owner,
        }
    );
    table!(
        out,
        late::TransactionMark {
            txn,
            time_ms,
            participants,
            halves,
            positions,
            attempts,
            parked,
            group_len,
            reserved,
        }
    );
    table!(out, late::TimerItem { identity, due_ms, time_ms });
    table!(
        out,
        catalogue::TopicSettingsItem {
            retention_ms,
            retention_bytes,
            delay_max_ms,
            ttl_ms,
            rate_bytes,
            producer_rate_bytes,
            rate_records,
            record_size_max,
            kind,
            reserved,
        }
    );
    table!(
        out,
        consumer_group::ConsumerGroupHeader {
            group,
            name_len,
            state,
            mode,
            created_ms,
            start_value,
            rate_bytes,
            rate_records,
            concurrency,
            invisible_ms,
            max_attempts,
            backoff_steps,
            subscriptions,
            start,
            ordered,
            reserved,
        }
    );
    table!(out, consumer_group::GroupSubscriptionHeader { topic_len, filter_len });
    table!(out, cursor::CursorHeader { txn, entries, reserved });
    table!(out, cursor::CursorEntry { instance, offset, group, partition });
    table!(out, cursor::AckHeader { entries, reserved });
    table!(out, cursor::AckEntryHeader { group, partition, watermark, ranges, retries, flags, reserved });
    table!(out, cursor::AckRange { start, end });
    table!(out, cursor::RetryEntry { offset, visible_ms, attempt, reserved });
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
    table!(out, cursor::CursorChunkHeader { what, reserved });
    table!(out, cursor::CursorItem { lsn, instance, offset, group, partition });
    table!(out, checkpoint::PendingItem { txn, identity, at, due_ms, partition, len, count, payload_crc });
    table!(
        out,
        checkpoint::TransactionItem {
            txn,
            since_ms,
            decided_ms,
            participants,
            decided_halves,
            decided_positions,
            check_after_ms,
            positions,
            attempts,
            parked,
            group_len,
            reserved,
        }
    );
    table!(out, checkpoint::PositionItem { group, instance, offset, partition, reserved });
    table!(out, checkpoint::BodyItem { identity, at, last_bind, len, payload_crc });
    table!(out, checkpoint::EndedTimerItem { identity, time_ms, end, reserved });
    table!(out, checkpoint::EndedTransactionItem { txn, time_ms, halves, positions, end, reserved });
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
    use super::text;
    use crate::catalogue::TopicEntry;
    use crate::frame::{Codec, Frame, FrameHeader, FrameKind, encode};
    use crate::group::{
        BodyCrc, BodyState, GroupFields, GroupHeader, GroupKind, check_body, encode_empty, group_size,
    };
    use crate::ids::{Epoch, Lsn, Offset, PartitionId, ProducerId, SegmentSeq, ShardId, SlotId, TopicId};
    use crate::limits::{BLOCK_SIZE, GROUP_HEADER_SIZE};
    use crate::record::{FrameBuilder, ProducerStamp, Record};
    use crate::segment::{FIRST_GROUP, SegmentFacts};
    use std::fmt::Write;
    use zerocopy::IntoBytes;

    const FORMAT_MD: &str = include_str!("../../FORMAT.md");

    /// A change here changes what is on users' disks: it needs a new format version and its entry in FORMAT.md.
    #[test]
    fn layout_is_as_it_was() {
        insta::assert_snapshot!(super::text());
    }

    /// Each structure has a heading of its own, and under it each field a row that begins with its offset.
    #[test]
    fn every_field_is_in_format_md_at_its_offset() {
        let mut section = None;
        for line in text().lines().take_while(|line| *line != "frame kinds") {
            if let Some(structure) = line.strip_suffix(" bytes)") {
                let (path, size) = structure.split_once(" (").unwrap();
                let name = path.rsplit("::").next().unwrap();
                let heading = format!("`{name}`, {size} bytes");
                let (_, rest) = FORMAT_MD.split_once(&heading).unwrap_or_else(|| panic!("no '{heading}'"));
                section = Some((name, rest.split("\n#").next().unwrap_or(rest)));
                continue;
            }
            let (name, section) = section.unwrap();
            let mut words = line.split_whitespace();
            let (offset, field) = (words.next().unwrap(), words.next().unwrap());
            let row = format!("| {offset} | ");
            let found = section.lines().any(|line| {
                line.starts_with(&row)
                    && line.split('|').nth(3).is_some_and(|cell| cell.trim() == format!("`{field}`"))
            });
            assert!(found, "{name}: no row for '{field}' at {offset}");
        }
        for line in text().lines().skip_while(|line| *line != "frame kinds") {
            let Some((number, name)) = line.trim().split_once("  ") else { continue };
            let limit = number.parse::<u64>().ok().filter(|_| !name.chars().all(char::is_alphabetic));
            let found = match limit {
                Some(limit) => FORMAT_MD.contains(&format!("| {name} | {limit} |")),
                None => {
                    FORMAT_MD.contains(&format!("| {number} | {name} |"))
                        || FORMAT_MD.contains(&format!("| {name} | {number} |"))
                }
            };
            assert!(found, "no row for '{name}' {number}");
        }
    }

    /// The worked example: a segment with two groups.
    fn example() -> Vec<u8> {
        let facts = SegmentFacts {
            shard: ShardId(0),
            slot: SlotId(0),
            seq: SegmentSeq(1),
            incarnation: 0x1122_3344_5566_7788,
            base: Lsn(0),
            previous_seq: SegmentSeq(0),
            previous_chain: 0,
            capacity: 8 << 20,
            created_ms: 1_795_328_984_000,
            node_id: 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100,
            epoch: Epoch(1),
        };
        let topic = TopicEntry {
            topic: TopicId(1),
            first_partition: PartitionId(1),
            partitions: 1,
            deleted: false,
            created_ms: 1_795_328_984_100,
            name: "hello".to_owned(),
            revision: 0,
            settings: Default::default(),
        };
        let mut payload = Vec::new();
        topic.encode(&mut payload);
        let topic = encode(FrameKind::Topic, 1, &payload);

        let mut builder = FrameBuilder::new(1_795_328_984_119, 4096);
        builder
            .push(&Record { time_ms: 1_795_328_984_119, body: b"first message", ..Record::default() })
            .unwrap();
        let second =
            Record { key: Some(b"k1"), time_ms: 1_795_328_984_121, body: b"second", ..Record::default() };
        builder.push(&second).unwrap();
        let producer = ProducerStamp { id: ProducerId(0xabcd), epoch: 0, base_sequence: 0 };
        let mut data = builder.finish(producer, Codec::None, &mut |_| None);
        let mut header = *FrameHeader::parse(&data).unwrap();
        header.stamp(PartitionId(1), Offset(0), 1_795_328_984_120);
        data[..header.as_bytes().len()].copy_from_slice(header.as_bytes());

        let mut crc = BodyCrc::new(facts.incarnation);
        crc.add(Frame::parse(&topic).unwrap().header);
        crc.add(Frame::parse(&data).unwrap().header);
        let frames = [topic, data].concat();
        let fields = GroupFields {
            segment_seq: facts.seq,
            lsn: Lsn(FIRST_GROUP),
            durable_lsn: Lsn(0),
            used: GROUP_HEADER_SIZE + frames.len(),
            total: group_size(frames.len()),
            frames: 2,
            body_crc: crc.finish(),
            chain: facts.previous_chain,
            epoch: facts.epoch,
            kind: GroupKind::Data,
        };
        let first = GroupHeader::new(&fields, facts.incarnation);
        let mut bytes = facts.encode();
        bytes.extend_from_slice(first.as_bytes());
        bytes.extend_from_slice(&frames);
        bytes.resize(FIRST_GROUP as usize + fields.total, 0);

        let end = fields.lsn.plus(fields.total as u64);
        let heartbeat = GroupFields {
            lsn: end,
            durable_lsn: end,
            total: BLOCK_SIZE,
            frames: 0,
            chain: first.next_chain(),
            kind: GroupKind::Heartbeat,
            ..fields
        };
        let mut block = vec![0; BLOCK_SIZE];
        encode_empty(&heartbeat, facts.incarnation, &mut block);
        bytes.extend_from_slice(&block);
        bytes
    }

    /// As `hexdump` writes it, without lines of zeros.
    fn dump(bytes: &[u8]) -> String {
        let mut out = String::new();
        for (index, row) in bytes.chunks(16).enumerate().filter(|(_, row)| row.iter().any(|byte| *byte != 0))
        {
            let _ = write!(out, "{:05x} ", index * 16);
            row.iter().for_each(|byte| {
                let _ = write!(out, " {byte:02x}");
            });
            out.push('\n');
        }
        out
    }

    #[test]
    fn the_example_of_format_md_is_what_is_written() {
        let bytes = example();
        let facts = SegmentFacts::parse(&bytes).unwrap();
        let group = &bytes[FIRST_GROUP as usize..];
        let header = GroupHeader::parse(group, facts.incarnation, facts.seq, Lsn(FIRST_GROUP)).unwrap();
        assert_eq!(check_body(header, group, facts.incarnation), BodyState::Whole);
        let dumped = dump(&bytes);
        for line in dumped.lines() {
            assert!(
                FORMAT_MD.lines().any(|known| known.starts_with(line)),
                "FORMAT.md lacks\n{line}\nof\n{dumped}"
            );
        }
    }
}
