//! Walks own fields: fixed zerocopy parts, then strings of a u16 length and UTF-8 bytes.

use crate::items::{Item, Items};
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Own fields that are being decoded. Reachable only because [`crate::items::Item`] names it; the room is private.
#[derive(Debug)]
pub struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take<T>(&mut self) -> Option<&'a T>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        let (value, rest) = T::ref_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(value)
    }

    pub(crate) fn slice<T>(&mut self, count: usize) -> Option<&'a [T]>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        let (values, rest) = <[T]>::ref_from_prefix_with_elems(self.0, count).ok()?;
        self.0 = rest;
        Some(values)
    }

    pub(crate) fn string(&mut self, max: usize) -> Option<&'a str> {
        let len = usize::from(self.take::<U16>()?.get());
        self.text(len, max)
    }

    pub(crate) fn text(&mut self, len: usize, max: usize) -> Option<&'a str> {
        if len > max {
            return None;
        }
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }

    /// A list of items that follow each other, every one checked.
    pub(crate) fn items<T: Item<'a>>(&mut self, count: u32, max: usize) -> Option<Items<'a, T>> {
        let bytes = self.0;
        if count as usize > max {
            return None;
        }
        for _ in 0..count {
            T::take(self)?;
        }
        Some(Items::new(count, &bytes[..bytes.len() - self.0.len()]))
    }

    pub(crate) fn end<T>(self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

pub(crate) fn put(out: &mut Vec<u8>, value: &(impl IntoBytes + Immutable + ?Sized)) {
    out.extend_from_slice(value.as_bytes());
}

pub(crate) fn put_string(out: &mut Vec<u8>, text: &str, max: usize) {
    let text = clip(text, max);
    put(out, &U16::new(text.len() as u16));
    out.extend_from_slice(text.as_bytes());
}

/// The longest front of `text` of at most `max` bytes that is whole characters.
pub(crate) fn clip(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let cut = (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..cut]
}
