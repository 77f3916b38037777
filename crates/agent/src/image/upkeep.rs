//! What goes from the store, and what makes it last: eviction, removal by name, durability.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use super::digest::Digest;
use super::disk::{Disk, Records};
use super::index::{Eviction, Index, RefName};
use super::store::{Collected, Inner};

/// The thread that does upkeep, if there is one.
#[derive(Default)]
pub(super) struct Upkeep {
    running: bool,
    /// It was asked for since the present run began.
    again: bool,
}

impl Inner {
    /// Evicts until `enough`, which is given the index and what was freed so far. Blocks while files are removed.
    pub(super) fn collect(&self, enough: impl Fn(&Index, &Collected) -> bool) -> io::Result<Collected> {
        let mut collected = Collected::default();
        let mut hidden = Vec::new();
        let result = {
            let mut index = self.index();
            loop {
                if enough(&index, &collected) {
                    break Ok(());
                }
                let Some(eviction) = index.next_eviction(&self.pins) else { break Ok(()) };
                if let Err(error) = self.evict(&mut index, eviction, &mut collected, &mut hidden) {
                    break Err(error);
                }
            }
        };
        // Out of sight already; so no lock is needed, and a crash now leaves only what open removes.
        Disk::delete(&hidden);
        if collected != Collected::default() {
            tracing::info!(?collected, "removed images");
        }
        result.map(|()| collected)
    }

    /// One step, first on disk: the index never lacks what the disk has, nor has what it lacks.
    fn evict(
        &self,
        index: &mut Index,
        eviction: Eviction,
        collected: &mut Collected,
        hidden: &mut Vec<PathBuf>,
    ) -> io::Result<()> {
        match eviction {
            Eviction::Layer(id) => {
                hidden.push(self.disk.hide_layer(id)?);
                if let Some(layer) = index.layers.remove(&id) {
                    collected.bytes += layer.record.all_disk_bytes();
                }
                collected.layers += 1;
            }
            Eviction::Image(id) => {
                self.disk.remove(Records::Manifests, &id.hex())?;
                index.images.remove(&id);
            }
            Eviction::Ref(name) => {
                self.disk.remove(Records::Refs, &name.key())?;
                index.refs.remove(&name);
                collected.references += 1;
            }
        }
        Ok(())
    }

    pub(super) fn remove(&self, scope: &str, reference: &str) -> io::Result<Collected> {
        let mut collected = Collected::default();
        let mut hidden = Vec::new();
        let result = self.remove_named(scope, reference, &mut collected, &mut hidden);
        Disk::delete(&hidden);
        result.map(|()| collected)
    }

    fn remove_named(
        &self,
        scope: &str,
        reference: &str,
        collected: &mut Collected,
        hidden: &mut Vec<PathBuf>,
    ) -> io::Result<()> {
        let mut index = self.index();
        let names: Vec<RefName> =
            index.refs.keys().filter(|n| n.scope == scope && n.reference == reference).cloned().collect();
        for name in names {
            let Some(manifest) = index.refs.get(&name).map(|r| r.record.manifest_digest) else { continue };
            self.evict(&mut index, Eviction::Ref(name), collected, hidden)?;
            let named = index.refs.values().any(|r| r.record.manifest_digest == manifest);
            if named || index.is_leased(manifest) {
                continue;
            }
            let Some(image) = index.images.get(&manifest).cloned() else { continue };
            self.evict(&mut index, Eviction::Image(manifest), collected, hidden)?;
            for id in &image.diff_ids {
                let used = index.images.values().any(|other| other.diff_ids.contains(id));
                if !used && !self.pins.holds(id) && index.layers.contains_key(id) {
                    self.evict(&mut index, Eviction::Layer(*id), collected, hidden)?;
                }
            }
        }
        Ok(())
    }

    /// Makes sure that a run of upkeep begins after this call: collection down to the budget, then durability. Returns
    /// at once.
    pub(super) fn upkeep_later(self: &Arc<Self>) {
        let mut upkeep = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        if upkeep.running {
            upkeep.again = true;
            return;
        }
        if !self.needs_upkeep() {
            return;
        }
        let inner = self.clone();
        // The disk may take long, and nobody waits: a thread of its own.
        let thread = std::thread::Builder::new().name("image-upkeep".to_owned()).spawn(move || {
            loop {
                if let Err(error) = inner.collect_to_budget() {
                    tracing::warn!(%error, "cannot remove images");
                }
                if let Err(error) = inner.sync() {
                    tracing::warn!(%error, "cannot make images durable; a power loss would cost their pull");
                }
                let mut upkeep = inner.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
                if !std::mem::take(&mut upkeep.again) {
                    upkeep.running = false;
                    return;
                }
            }
        });
        match thread {
            Ok(_) => upkeep.running = true,
            Err(error) => tracing::warn!(%error, "cannot start a thread for the image store's upkeep"),
        }
    }

    fn needs_upkeep(&self) -> bool {
        let index = self.index();
        index.is_over(self.options.disk_budget_bytes)
            || index.unsynced_records
            || index.layers.values().any(|layer| !layer.record.is_synced())
    }

    pub(super) fn collect_to_budget(&self) -> io::Result<Collected> {
        self.collect(|index, _| !index.is_over(self.options.disk_budget_bytes))
    }

    /// Makes all that is in the store durable. One at a time: who comes while another one runs would take what that one
    /// has begun for done.
    pub(super) fn sync(&self) -> io::Result<()> {
        let _one = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let unsynced: Vec<(Digest, u64, bool)> = {
            let mut index = self.index();
            let layers = index.layers.iter().filter(|(_, layer)| !layer.record.is_synced());
            let layers = layers.map(|(id, layer)| (*id, layer.serial, layer.record.erofs.is_some()));
            let layers: Vec<_> = layers.collect();
            if layers.is_empty() && !index.unsynced_records {
                return Ok(());
            }
            index.unsynced_records = false;
            layers
        };
        let synced = self.disk.sync();
        if synced.is_err() {
            self.index().unsynced_records = true;
            return synced;
        }
        for (id, serial, with_erofs) in &unsynced {
            let mut index = self.index();
            // It may have gone, and even have come again since: that one is not durable yet.
            if let Some(layer) = index.layers.get_mut(id).filter(|layer| layer.serial == *serial) {
                layer.record = self.disk.mark_synced(&layer.record, *with_erofs)?;
            }
        }
        if unsynced.is_empty() { Ok(()) } else { self.disk.sync() }
    }
}
