//! The format's own tables as data: offsets from the types (`ringmq_format::layout`), meanings from `FORMAT.md`, which
//! the format's tests hold to the types. What is added there is known here.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// The specification of every byte.
pub const FORMAT_MD: &str = include_str!("../../../engine/FORMAT.md");

/// A structure at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Structure {
    /// Name of its type.
    pub name: String,
    /// Bytes.
    pub size: usize,
    /// Its fields, ascending.
    pub fields: Vec<Field>,
}

/// A field of a structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// First byte.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
    /// Its name.
    pub name: String,
    /// What FORMAT.md says of it.
    pub meaning: String,
}

static STRUCTURES: LazyLock<Vec<Structure>> = LazyLock::new(read);

/// Every structure, in the order of FORMAT.md.
pub fn structures() -> &'static [Structure] {
    &STRUCTURES
}

/// The structure of this name.
pub fn structure(name: &str) -> Option<&'static Structure> {
    structures().iter().find(|structure| structure.name == name)
}

/// Name of the field that a byte of a structure belongs to.
pub fn field_at(name: &str, byte: usize) -> &'static str {
    let fields = structure(name).map(|structure| &structure.fields[..]).unwrap_or_default();
    fields.iter().rev().find(|field| field.offset <= byte).map_or("?", |field| &field.name)
}

fn read() -> Vec<Structure> {
    let meanings = meanings();
    let mut structures: Vec<Structure> = Vec::new();
    for line in ringmq_format::layout::text().lines() {
        if let Some((name, size)) = line.strip_suffix(" bytes)").and_then(|line| line.split_once(" (")) {
            let name = name.rsplit("::").next().unwrap_or(name).to_owned();
            structures.push(Structure { name, size: size.parse().unwrap_or(0), fields: Vec::new() });
        } else if let Some((offset, name)) =
            line.strip_prefix("  ").and_then(|line| line.trim().split_once("  "))
            && let (Ok(offset), Some(structure)) = (offset.parse::<usize>(), structures.last_mut())
            && (structure.fields.last().is_none_or(|last| last.offset < offset) && offset < structure.size)
        {
            let meaning = meanings.get(&(structure.name.clone(), name.trim().to_owned()));
            structure.fields.push(Field {
                offset,
                size: 0,
                name: name.trim().to_owned(),
                meaning: meaning.cloned().unwrap_or_default(),
            });
        } else if !line.starts_with(' ') {
            break; // kinds and limits follow
        }
    }
    for structure in &mut structures {
        let ends: Vec<usize> = structure.fields.iter().skip(1).map(|field| field.offset).collect();
        for (index, field) in structure.fields.iter_mut().enumerate() {
            field.size = ends.get(index).copied().unwrap_or(structure.size) - field.offset;
        }
    }
    structures
}

/// What the rows of FORMAT.md say, by structure and field.
fn meanings() -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    let mut structure = String::new();
    for line in FORMAT_MD.lines() {
        if line.starts_with('#') {
            structure = line.split('`').nth(1).unwrap_or_default().to_owned();
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if let [_, _, name, meaning] = cells[..]
            && !structure.is_empty()
        {
            found.insert((structure.clone(), name.trim_matches('`').to_owned()), meaning.replace('`', ""));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_bytes_and_a_meaning() {
        assert!(structures().len() >= 17, "{} structures", structures().len());
        for structure in structures() {
            let mut end = 0;
            for field in &structure.fields {
                assert_eq!(field.offset, end, "{} {}", structure.name, field.name);
                assert!(!field.meaning.is_empty(), "{} {} means nothing", structure.name, field.name);
                end += field.size;
            }
            assert_eq!(end, structure.size, "{}", structure.name);
        }
        assert_eq!(field_at("GroupHeader", 25), "durable_lsn");
        assert_eq!(field_at("FrameHeader", 63), "header_crc");
    }
}
