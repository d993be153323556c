//! Keyset pages (rule G6).

use crate::Limit;

/// Which page of a list: the rows after a key, up to a limit.
///
/// The key is that of the last row seen, in the list's own order, so a page neither skips nor
/// repeats a row that was there all along, whatever is inserted or deleted meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRequest<K> {
    /// Start after this key; from the beginning if `None`.
    pub after: Option<K>,
    /// At most so many rows.
    pub limit: Limit,
}

impl<K> PageRequest<K> {
    /// The first page.
    #[must_use]
    pub const fn first(limit: Limit) -> Self {
        Self { after: None, limit }
    }

    /// The page after this key.
    #[must_use]
    pub const fn after(key: K, limit: Limit) -> Self {
        Self { after: Some(key), limit }
    }
}

/// The first page, of a hundred rows.
impl<K> Default for PageRequest<K> {
    fn default() -> Self {
        Self::first(Limit::default())
    }
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page<T, K> {
    /// The rows, in the list's order.
    pub items: Vec<T>,
    /// The key to ask for the next page with; `None` when there were no more rows.
    pub next: Option<K>,
}

impl<T, K> Page<T, K> {
    /// These rows, and the key to go on after.
    #[must_use]
    pub const fn new(items: Vec<T>, next: Option<K>) -> Self {
        Self { items, next }
    }

    /// Makes a page of up to `limit + 1` rows that a backend read: the row too many, if it came, is
    /// dropped and shows that there is a next page.
    #[must_use]
    pub fn from_rows(mut rows: Vec<T>, limit: Limit, key: impl FnOnce(&T) -> K) -> Self {
        let more = rows.len() > limit.get();
        rows.truncate(limit.get());
        let next = rows.last().filter(|_| more).map(key);
        Self { items: rows, next }
    }
}
