//! The virtio devices of a machine, each with its end at the host. Their order is the order in which
//! the guest finds them: disks first, so that their names do not depend on what else there is.

use crate::status::Failure;
use crate::{net, vsock};
use anyhow::anyhow;
use mimeo_backends::{DiskOptions, OpenDisk, ServerThread, host_entropy};
use mimeo_bus::{MessageServer, StreamHost};
use mimeo_devices::virtio::VirtioDevice;
use mimeo_devices::virtio::balloon::VirtioBalloon;
use mimeo_devices::virtio::block::VirtioBlock;
use mimeo_devices::virtio::console::VirtioConsole;
use mimeo_devices::virtio::rng::VirtioRng;
use mimeo_devices::virtio::share::VirtioShare;
use mimeo_jail::Folder;
use mimeo_machines::MachineSpec;
use mimeo_machines::spec::{DiskSpec, ShareProtocol, ShareSpec};
use mimeo_share::{Fuse, NineP, Tree};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Makes the devices that `spec` names, and a console at `console`. With `jail`, the threads behind
/// disks and folders give up all other files.
pub fn insert(
    spec: &MachineSpec,
    console: Option<Arc<dyn StreamHost>>,
    jail: bool,
) -> Result<Vec<Box<dyn VirtioDevice>>, Failure> {
    let mut cards: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for (i, disk) in spec.disks.iter().enumerate() {
        cards.push(Box::new(open_disk(i, disk, spec.cpus, jail)?));
    }
    for share in &spec.shares {
        cards.push(Box::new(serve(share, jail)?));
    }
    if spec.rng {
        cards.push(Box::new(VirtioRng::new(Box::new(host_entropy))));
    }
    if let Some(host) = console {
        let console = VirtioConsole::new(host.clone());
        host.connect(console.stream());
        cards.push(Box::new(console));
    }
    if spec.balloon {
        cards.push(Box::new(VirtioBalloon::new(spec.balloon_size)));
    }
    if let Some(spec) = &spec.vsock {
        cards.push(Box::new(vsock::card(spec, vsock::Reach::Sockets)?));
    }
    if let Some(card) = net::card(spec)? {
        cards.push(Box::new(card));
    }
    Ok(cards)
}

/// Opens a disk image, with a queue for each of up to four CPUs unless it says how many. Failures
/// of the host while the machine runs are told once for each kind.
fn open_disk(index: usize, spec: &DiskSpec, cpus: u32, jail: bool) -> Result<VirtioBlock, Failure> {
    let name = spec.file.display().to_string();
    let told =
        move |e: &io::Error| eprintln!("\nmimeo: the disk {name}: {e}; the guest sees I/O errors");
    let options = DiskOptions {
        file: spec.file.clone(),
        format: spec.format,
        read_only: spec.ro,
        snapshot: spec.snapshot,
    };
    let disk = OpenDisk::open(&options, Box::new(told)).map_err(Failure::usage)?;
    let first = move || {
        if jail {
            // What the host cannot do about it is said once, for the main thread.
            let _ = mimeo_jail::restrict_files(&[]);
        }
    };
    let disk = disk.start(Arc::new(first)).map_err(Failure::host)?;
    let serial = spec
        .serial
        .clone()
        .unwrap_or_else(|| format!("disk{index}"));
    let queues = spec.queues.unwrap_or(cpus.clamp(1, 4) as u16);
    Ok(VirtioBlock::new(disk, &serial, queues))
}

/// Serves a folder of the host's on a thread that reaches nothing else.
fn serve(spec: &ShareSpec, jail: bool) -> Result<VirtioShare, Failure> {
    let tree = Tree::open(&spec.dir, spec.ro).map_err(Failure::usage)?;
    let folder = tree.fd().try_clone_to_owned();
    let folder = folder.map_err(|e| Failure::host(anyhow!("no file descriptor is left: {e}")))?;
    let read_only = spec.ro;
    let first = move || {
        let fd = folder.as_fd();
        if jail {
            // As for disks.
            let _ = mimeo_jail::restrict_files(&[Folder { fd, read_only }]);
        }
    };
    let server: Box<dyn MessageServer> = match spec.protocol {
        ShareProtocol::Fs => Box::new(Fuse::new(tree).map_err(Failure::usage)?),
        ShareProtocol::NineP => Box::new(NineP::new(tree)),
    };
    let thread = ServerThread::start("share", server, first)
        .map_err(|e| Failure::host(anyhow!("cannot start a thread for a shared folder: {e}")))?;
    let (tag, thread) = (&spec.tag, Arc::new(thread));
    Ok(match spec.protocol {
        ShareProtocol::Fs => VirtioShare::fs(tag, thread),
        ShareProtocol::NineP => VirtioShare::nine_p(tag, thread),
    })
}
