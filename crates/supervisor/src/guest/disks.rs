//! The machine's disks: one with all layers of the task's images, one for what the task writes.
//!
//! A machine that was restored from a template learns only then how large its disks are, by a
//! configuration interrupt: hence the waiting.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use model::microvm::LAYERS_DEVICE;
use model::sandbox::Layer;

use crate::sys;

/// The unit of `/sys/class/block/*/size`, and the smallest a partition is counted in; bytes.
const SECTOR: u64 = 512;
/// The kernel numbers a disk's partitions below this (`DISK_MAX_PARTS`).
const MAX_PARTITIONS: usize = 255;
/// How long a disk may take to get its size.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// The disk of layers.
#[derive(Default)]
pub struct LayerDisk {
    /// Partition numbers by offset and length, in bytes.
    partitions: BTreeMap<(u64, u64), usize>,
}

impl LayerDisk {
    /// Makes a partition of each layer.
    ///
    /// # Errors
    /// A layer is not on a disk, or beyond its end, or there are more than 255.
    pub fn find<'a>(&mut self, layers: impl Iterator<Item = &'a Layer>) -> Result<()> {
        let mut end = 0;
        for layer in layers {
            let (offset, length) = extent(layer)?;
            end = end.max(offset + length);
            let number = self.partitions.len() + 1;
            self.partitions.entry((offset, length)).or_insert(number);
        }
        if self.partitions.is_empty() {
            return Ok(());
        }
        if self.partitions.len() > MAX_PARTITIONS {
            bail!(
                "the task's images have {} layers; a microVM takes {MAX_PARTITIONS}",
                self.partitions.len()
            );
        }
        wait_for_size(Path::new(LAYERS_DEVICE), end)?;
        let disk = File::open(LAYERS_DEVICE).with_context(|| format!("open {LAYERS_DEVICE}"))?;
        for ((offset, length), number) in &self.partitions {
            sys::add_partition(
                &disk,
                i32::try_from(*number)?,
                i64::try_from(*offset)?,
                i64::try_from(*length)?,
            )
            .with_context(|| format!("make a partition of {length} bytes at {offset}"))?;
        }
        Ok(())
    }

    /// The partition that holds a layer.
    ///
    /// # Errors
    /// It was not among those that were found.
    pub fn device(&self, layer: &Layer) -> Result<PathBuf> {
        let number = self.partitions.get(&extent(layer)?).context("a layer that is not on the disk")?;
        Ok(PathBuf::from(format!("{LAYERS_DEVICE}{number}")))
    }
}

/// Where a layer is: whole sectors.
fn extent(layer: &Layer) -> Result<(u64, u64)> {
    let Layer::Extent { offset, length } = layer else {
        bail!("a microVM has no directories of the host");
    };
    let end = offset.checked_add(*length).and_then(|end| end.checked_next_multiple_of(SECTOR));
    if *length == 0 || !offset.is_multiple_of(SECTOR) || end.is_none_or(|end| i64::try_from(end).is_err()) {
        bail!("a layer of {length} bytes at {offset}");
    }
    Ok((*offset, length.next_multiple_of(SECTOR)))
}

/// Waits for the disk that the task writes to.
///
/// # Errors
/// There is none.
pub fn wait_for_scratch(device: &Path) -> Result<()> {
    wait_for_size(device, 1)
}

fn wait_for_size(device: &Path, least: u64) -> Result<()> {
    let name = device.file_name().context("a disk without a name")?;
    let file = Path::new("/sys/class/block").join(name).join("size");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let sectors = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<u64>().ok());
        if sectors.is_some_and(|sectors| sectors.saturating_mul(SECTOR) >= least) {
            return Ok(());
        }
        if Instant::now() > deadline {
            match sectors {
                None => bail!("there is no disk {}", device.display()),
                Some(sectors) => bail!(
                    "the disk {} has {} bytes, not {least}",
                    device.display(),
                    sectors.saturating_mul(SECTOR)
                ),
            }
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_whole_sectors() {
        let at = |offset, length| extent(&Layer::Extent { offset, length });
        assert_eq!(at(4096, 8192).unwrap(), (4096, 8192));
        assert_eq!(at(0, 1).unwrap(), (0, 512));
        assert!(at(1, 512).is_err() && at(0, 0).is_err());
        assert!(at(u64::MAX - 511, 512).is_err() && at(512, u64::MAX).is_err() && at(0, 1 << 63).is_err());
        assert!(extent(&Layer::Directory { path: "/".into() }).is_err());
    }
}
