//! Lists of things of different length, as they stand in own fields: counted, one behind the other, checked once
//! when the message is decoded and walked without allocating.

use crate::fields::Fields;
use std::fmt;
use std::marker::PhantomData;

/// Something that stands in a list of own fields. Implemented in this crate only.
pub trait Item<'a>: Copy {
    /// Takes one off the front of `fields`, if it is well-formed.
    fn take(fields: &mut Fields<'a>) -> Option<Self>;
    /// Appends one.
    fn put(&self, out: &mut Vec<u8>);
}

/// A list of items, each checked to be well-formed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Items<'a, T> {
    count: u32,
    bytes: &'a [u8],
    of: PhantomData<T>,
}

impl<'a, T> Items<'a, T> {
    pub(crate) fn new(count: u32, bytes: &'a [u8]) -> Self {
        Self { count, bytes, of: PhantomData }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.bytes);
    }
}

impl<'a, T: Item<'a>> Items<'a, T> {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = T> + use<'a, T> {
        let mut fields = Fields(self.bytes);
        (0..self.count).map_while(move |_| T::take(&mut fields))
    }
}

impl<T> Default for Items<'_, T> {
    fn default() -> Self {
        Self::new(0, &[])
    }
}

impl<'a, T: Item<'a> + fmt::Debug> fmt::Debug for Items<'a, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Items being collected for a message. Collect things of one kind: what is asked for by [`ItemsBuf::items`] has to
/// be what was pushed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemsBuf {
    count: u32,
    bytes: Vec<u8>,
}

impl ItemsBuf {
    /// Adds an item.
    pub fn push<'a>(&mut self, item: &impl Item<'a>) {
        item.put(&mut self.bytes);
        self.count += 1;
    }

    /// How many so far.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// None so far.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes so far, to end a page before it is too long.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// For a message.
    pub fn items<'a, T: Item<'a>>(&'a self) -> Items<'a, T> {
        Items::new(self.count, &self.bytes)
    }
}

impl<'a, T: Item<'a>> FromIterator<T> for ItemsBuf {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut buf = Self::default();
        items.into_iter().for_each(|item| buf.push(&item));
        buf
    }
}
