//! The virtio devices of a machine, each with its end at the host. Their order is the order in which
//! the guest finds them: disks first, so that their names do not depend on what else there is.

use crate::status::Failure;
use crate::vsock;
use mimeo_backends::{RawDisk, host_entropy};
use mimeo_devices::virtio::VirtioDevice;
use mimeo_devices::virtio::block::VirtioBlock;
use mimeo_devices::virtio::rng::VirtioRng;
use mimeo_machines::MachineSpec;
use mimeo_machines::spec::DiskSpec;
use std::io;
use std::sync::Arc;

/// Makes the devices that `spec` names.
pub fn insert(spec: &MachineSpec) -> Result<Vec<Box<dyn VirtioDevice>>, Failure> {
    let mut cards: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for (i, disk) in spec.disks.iter().enumerate() {
        cards.push(Box::new(open_disk(i, disk, spec.cpus)?));
    }
    if spec.rng {
        cards.push(Box::new(VirtioRng::new(Box::new(host_entropy))));
    }
    if let Some(spec) = &spec.vsock {
        cards.push(Box::new(vsock::card(spec, vsock::Reach::Sockets)?));
    }
    Ok(cards)
}

/// Opens a disk image: with a queue for each of up to four CPUs. Failures of the host while the
/// machine runs are told once for each kind.
fn open_disk(index: usize, spec: &DiskSpec, cpus: u32) -> Result<VirtioBlock, Failure> {
    let name = spec.file.display().to_string();
    let told =
        move |e: &io::Error| eprintln!("\nmimeo: the disk {name}: {e}; the guest sees I/O errors");
    let disk = RawDisk::open(&spec.file, spec.read_only, Box::new(told)).map_err(Failure::usage)?;
    let queues = cpus.clamp(1, 4) as u16;
    Ok(VirtioBlock::new(
        Arc::new(disk),
        &format!("disk{index}"),
        queues,
    ))
}
