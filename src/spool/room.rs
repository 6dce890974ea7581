//! Room of the spool: the sums of everything that counts against its bounds, and the reservations of
//! pushes that are not stored yet.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::{Attempt, NewItem, StoreError};
use crate::bounds::{SPOOL_ATTEMPT_BYTES, SPOOL_BLOCK, SPOOL_ITEM_BYTES};
use crate::policy::SpoolShare;
use crate::sync::lock;

/// Client whose share a push counts against.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PushAccount {
    /// Name of the client, or `None` for a caller that is no configured client.
    pub client: Option<Arc<str>>,
    /// Bounds of this client. The default has none.
    pub share: SpoolShare,
}

impl PushAccount {
    /// Returns the name under which a store counts the items. It is empty without a client.
    pub(super) fn owner(&self) -> Arc<str> {
        self.client.clone().unwrap_or_default()
    }
}

/// Number of items with the bytes that they count for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of items in any state.
    pub items: u64,
    /// Bytes of their requests, bodies, attempts and stored responses.
    pub bytes: u64,
}

impl Usage {
    const fn plus(self, other: Self) -> Self {
        Self {
            items: self.items.saturating_add(other.items),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    const fn minus(self, other: Self) -> Self {
        Self {
            items: self.items.saturating_sub(other.items),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

/// Use of the whole spool, as metrics, `status` and refusals show it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpoolUsage {
    /// Bound in bytes, `spool.max`.
    pub max: u64,
    /// Bytes in use, counted like the bound.
    pub used: u64,
    /// Bytes that pushes may still take.
    pub free: u64,
    /// Use of each client that has items, in the order of their names. Items without a client are
    /// listed under an empty name.
    pub clients: Vec<(Arc<str>, Usage)>,
}

impl SpoolUsage {
    /// Returns this use on a file system that has only `free` bytes left for pushes.
    pub(super) fn within(self, free: u64) -> Self {
        Self {
            free: self.free.min(free),
            ..self
        }
    }
}

/// Returns the bytes that a new item counts for, whose request is `request` bytes of JSON.
pub(super) const fn item_bytes(request: usize, body: usize, is_large: bool) -> u64 {
    let body = match is_large {
        true => file_bytes(body as u64),
        false => body as u64,
    };
    SPOOL_ITEM_BYTES + request as u64 + body
}

/// Returns the bytes that a file of this length occupies on disk.
pub(super) const fn file_bytes(size: u64) -> u64 {
    size.div_ceil(SPOOL_BLOCK) * SPOOL_BLOCK
}

/// Returns the bytes that an attempt counts for, with its response of `headers` bytes of JSON.
pub(super) fn attempt_bytes(attempt: &Attempt, headers: Option<&str>) -> u64 {
    let error = attempt.error.as_ref().map_or(0, String::len);
    let body = attempt.response.as_ref().map_or(0, |kept| kept.body.len());
    SPOOL_ATTEMPT_BYTES + (error + body + headers.map_or(0, str::len)) as u64
}

/// Returns the bytes in use above which pushes are refused. The rest is for outcomes.
pub(super) const fn push_max(max: u64) -> u64 {
    max / 10 * 9
}

/// Room of one store in this process.
#[derive(Debug, Default)]
pub(super) struct Room {
    max: u64,
    /// True while the ballast has been released, so that its bytes must stay free.
    lacks_ballast: AtomicBool,
    state: Mutex<RoomState>,
}

#[derive(Debug, Default)]
struct RoomState {
    /// Bytes in use as of the latest commit, or of the latest look at a database.
    used: u64,
    /// Bytes of free pages in the database file, which bodies with their own files cannot use.
    unused_pages: u64,
    clients: HashMap<Arc<str>, Usage>,
    reserved: u64,
    reserved_by: HashMap<Arc<str>, Usage>,
}

/// Room of a push that is not stored yet. It is released when this value is dropped.
#[derive(Debug)]
pub(super) struct RoomReservation {
    room: Arc<Room>,
    owner: Arc<str>,
    adds: Usage,
}

impl Drop for RoomReservation {
    fn drop(&mut self) {
        let mut state = lock(&self.room.state);
        state.reserved = state.reserved.saturating_sub(self.adds.bytes);
        let Some(known) = state.reserved_by.get_mut(&self.owner) else {
            return;
        };
        *known = known.minus(self.adds);
        if known.items == 0 {
            state.reserved_by.remove(&self.owner);
        }
    }
}

impl Room {
    pub(super) fn new(max: u64) -> Arc<Self> {
        Arc::new(Self {
            max,
            ..Self::default()
        })
    }

    /// Reserves the room for a push. `in_files` of its bytes are for body files.
    ///
    /// # Errors
    /// [`StoreError::Full`] if the spool has no room, [`StoreError::ShareFull`] if the client's
    /// share has none.
    pub(super) fn reserve(
        self: &Arc<Self>,
        account: &PushAccount,
        adds: Usage,
        in_files: u64,
    ) -> Result<RoomReservation, StoreError> {
        let owner = account.owner();
        let mut state = lock(&self.state);
        let max = push_max(self.max);
        let used = state.used + state.reserved;
        let unusable = if in_files > 0 { state.unused_pages } else { 0 };
        if used.saturating_add(unusable).saturating_add(adds.bytes) > max {
            return Err(StoreError::Full { used, max });
        }
        if let Some(client) = &account.client {
            let stored = state.clients.get(client).copied().unwrap_or_default();
            let reserved = state.reserved_by.get(client).copied().unwrap_or_default();
            check_share(client, account.share, stored.plus(reserved), adds)?;
        }
        state.reserved += adds.bytes;
        let known = state.reserved_by.entry(Arc::clone(&owner)).or_default();
        *known = known.plus(adds);
        drop(state);
        Ok(RoomReservation {
            room: Arc::clone(self),
            owner,
            adds,
        })
    }

    /// Checks that a buffer of this size leaves the room that is for outcomes.
    pub(super) fn must_hold(&self, bytes: u64) -> Result<(), StoreError> {
        let state = lock(&self.state);
        let (used, max) = (state.used + state.reserved, push_max(self.max));
        match used + bytes > max {
            true => Err(StoreError::Full { used, max }),
            false => Ok(()),
        }
    }

    /// Adds what a push added to a database, until the next look reads the exact sums.
    pub(super) fn pushed(&self, account: &PushAccount, adds: Usage) {
        let mut state = lock(&self.state);
        state.used += adds.bytes;
        let known = state.clients.entry(account.owner()).or_default();
        *known = known.plus(adds);
    }

    /// Notes if the ballast is in place.
    pub(super) fn set_ballast(&self, is_there: bool) {
        self.lacks_ballast.store(!is_there, Ordering::Relaxed);
    }

    pub(super) fn lacks_ballast(&self) -> bool {
        self.lacks_ballast.load(Ordering::Relaxed)
    }

    /// Returns the bytes of free pages in the database file.
    pub(super) fn unused_pages(&self) -> u64 {
        lock(&self.state).unused_pages
    }

    /// Returns the bytes that are reserved for pushes which are not stored yet.
    pub(super) fn reserved(&self) -> u64 {
        lock(&self.state).reserved
    }

    /// Sets the bytes in use after a commit, and the new sums of the clients whose items changed.
    pub(super) fn committed(&self, used: u64, unused_pages: u64, changed: &ClientChanges) {
        let mut state = lock(&self.state);
        (state.used, state.unused_pages) = (used, unused_pages);
        for (owner, change) in &changed.0 {
            let known = state.clients.entry(Arc::clone(owner)).or_default();
            *known = change.applied(*known);
            if known.items == 0 {
                state.clients.remove(owner);
            }
        }
    }

    /// Replaces all sums by those that were read from the store.
    pub(super) fn loaded(&self, used: u64, clients: HashMap<Arc<str>, Usage>) {
        let mut state = lock(&self.state);
        (state.used, state.clients) = (used, clients);
    }

    /// Returns the use of the spool without the reservations.
    pub(super) fn usage(&self) -> SpoolUsage {
        let state = lock(&self.state);
        let clients = state.clients.iter();
        let mut clients: Vec<_> = clients
            .map(|(name, use_)| (Arc::clone(name), *use_))
            .collect();
        clients.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        SpoolUsage {
            max: self.max,
            used: state.used,
            free: push_max(self.max).saturating_sub(state.used),
            clients,
        }
    }
}

fn check_share(
    client: &Arc<str>,
    share: SpoolShare,
    known: Usage,
    adds: Usage,
) -> Result<(), StoreError> {
    let full = |used, max, unit| StoreError::ShareFull {
        client: Arc::clone(client),
        used,
        max,
        unit,
    };
    let sum = known.plus(adds);
    if let Some(max) = share.max.filter(|max| sum.bytes > *max) {
        return Err(full(known.bytes, max, "bytes"));
    }
    match share.items.filter(|max| sum.items > *max) {
        Some(max) => Err(full(known.items, max, "items")),
        None => Ok(()),
    }
}

/// Changes of the sums of clients by one transaction.
#[derive(Debug, Default)]
pub(super) struct ClientChanges(pub(super) HashMap<Arc<str>, UsageChange>);

/// Change of the sums of one client, which may be negative.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct UsageChange {
    pub(super) items: i64,
    pub(super) bytes: i64,
}

impl UsageChange {
    const fn applied(self, known: Usage) -> Usage {
        Usage {
            items: known.items.saturating_add_signed(self.items),
            bytes: known.bytes.saturating_add_signed(self.bytes),
        }
    }
}

impl ClientChanges {
    pub(super) fn add(&mut self, owner: &Arc<str>, items: i64, bytes: i64) {
        let known = self.0.entry(Arc::clone(owner)).or_default();
        known.items += items;
        known.bytes += bytes;
    }
}

/// Returns the room that a push needs, and the part of it that is for body files. Bodies above
/// `inline` have files.
pub(super) fn needed(items: &[NewItem], inline: u64) -> (Usage, u64) {
    let (mut sum, mut in_files) = (Usage::default(), 0);
    for item in items {
        let size = item.body.len();
        let is_large = size as u64 > inline;
        let request = super::rows::json(&item.request).len();
        sum = sum.plus(Usage {
            items: 1,
            bytes: item_bytes(request, size, is_large),
        });
        in_files += if is_large { file_bytes(size as u64) } else { 0 };
    }
    (sum, in_files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(share: SpoolShare) -> PushAccount {
        PushAccount {
            client: Some("a".into()),
            share,
        }
    }

    const ONE: Usage = Usage {
        items: 1,
        bytes: 100,
    };

    #[test]
    fn p13_reservations_count_until_they_are_dropped() {
        let room = Room::new(1000);
        let free = SpoolShare::default();
        let held: Vec<_> = (0..9)
            .map(|_| room.reserve(&account(free), ONE, 0).unwrap())
            .collect();
        let full = room.reserve(&account(free), ONE, 0).unwrap_err();
        assert_eq!(
            full,
            StoreError::Full {
                used: 900,
                max: 900
            }
        );
        drop(held);
        assert_eq!(room.reserved(), 0);
        room.reserve(&account(free), ONE, 0).unwrap();
        // A body with its own file cannot use free pages of the database file.
        room.committed(0, 850, &ClientChanges::default());
        room.reserve(&account(free), ONE, 0).unwrap();
        room.reserve(&account(free), ONE, 100).unwrap_err();
    }

    #[test]
    fn p13_a_share_bounds_one_client_in_bytes_and_items() {
        let room = Room::new(10_000);
        for share in [
            SpoolShare {
                max: Some(250),
                items: None,
            },
            SpoolShare {
                max: None,
                items: Some(2),
            },
        ] {
            let one = account(share);
            let mut changes = ClientChanges::default();
            changes.add(&one.owner(), 1, 100);
            room.committed(100, 0, &changes);
            let _held = room.reserve(&one, ONE, 0).unwrap();
            let full = room.reserve(&one, ONE, 0).unwrap_err();
            assert!(matches!(full, StoreError::ShareFull { .. }), "{full}");
            let other = PushAccount {
                client: Some("b".into()),
                share,
            };
            room.reserve(&other, ONE, 0).unwrap();
            changes.add(&one.owner(), -2, -200);
            room.committed(0, 0, &changes);
            assert_eq!(room.usage().clients, []);
        }
    }
}
